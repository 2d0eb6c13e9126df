"""Exports of a real engine: its control socket, its configuration store, its restarts."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from facade.config_store import ConfigStore, VolumeRecord
from facade.contract.settings import dump
from facade.errors import ExportNobody, ExportUnavailable
from tests.engine.harness import EngineProcess, new_secret
from tests.engine.nbd_raw import READ, RawClient, request
from tests.engine.tls_makers import Authority

SIZE_BYTES = 8 << 20
ALL: dict[str, Any] = {"plain": False, "clients": []}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls"))


def engine_with(tmp_path: Path, **export: Any) -> EngineProcess:
    engine = EngineProcess(tmp_path, "host_a", new_secret())
    engine.settings = replace(engine.settings, export=export["settings"])
    engine.config.write_text(dump(engine.settings))
    return engine


@pytest.fixture
def engine(tmp_path: Path, authority: Authority) -> Iterator[EngineProcess]:
    made = engine_with(tmp_path, settings=authority.settings(client_certificates=authority.client))
    try:
        yield made.start()
    finally:
        made.dispose()


def served(uri: str) -> bool:
    return subprocess.run(["nbdinfo", "--size", uri], capture_output=True, timeout=30,
                          check=False).returncode == 0  # fmt: skip


def exported(engine: EngineProcess, name: str, export: dict[str, Any] | None) -> Any:
    return engine.call("volume.export", name=name, export=export)["export"]


def record(engine: EngineProcess, name: str, export: dict[str, Any]) -> None:
    with ConfigStore(engine.settings.host.config_path) as store:
        store.put_volume(VolumeRecord(name, str(engine.volume_dir / name), "ste", export))


def test_all_exports_share_a_listener(engine: EngineProcess) -> None:
    for name in ("a", "b"):
        engine.make_volume(name, SIZE_BYTES)
    uris = [exported(engine, name, ALL)["uri"] for name in ("a", "b")]
    assert all(served(uri) for uri in uris)
    assert exported(engine, "a", None) is None
    assert [served(uri) for uri in uris] == [False, True]


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_an_export_is_served_again_after_a_restart(engine: EngineProcess, how: str) -> None:
    engine.make_volume("v", SIZE_BYTES)
    uri = exported(engine, "v", ALL)["uri"]
    record(engine, "v", ALL)
    getattr(engine, how)()
    assert not served(uri)
    engine.start()
    assert served(uri)
    (shown,) = engine.call("volume.list")
    assert shown["export"]["uri"] == uri
    assert shown["export"]["clients"] == ["trellis-client"]


def test_an_engine_whose_certificates_are_gone_serves_local_clients(
    tmp_path: Path, authority: Authority
) -> None:
    settings = authority.settings(certificate=Path("/nowhere/cert.pem"))
    engine = engine_with(tmp_path, settings=settings)
    try:
        engine.start()
        path = engine.make_volume("v", SIZE_BYTES)
        assert path.exists()
        with pytest.raises(ExportUnavailable, match=r"/nowhere/cert\.pem"):
            exported(engine, "v", ALL)
        record(engine, "v", ALL)
        engine.stop()
        engine.start()
        assert "export_failed" in engine.events()
        with RawClient(engine.run_dir / "nbd" / "v") as local:
            assert local.ask(request(READ, 0, 1), 1) == b"\0"
    finally:
        engine.dispose()


def test_an_engine_without_settings_for_exports_says_so(tmp_path: Path) -> None:
    engine = EngineProcess(tmp_path, "host_a", new_secret())
    try:
        engine.start()
        engine.make_volume("v", SIZE_BYTES)
        with pytest.raises(ExportUnavailable, match=r"\[export\] listen"):
            exported(engine, "v", ALL)
        with pytest.raises(ExportUnavailable, match=r"\[export\] plain_listen"):
            exported(engine, "v", {"plain": True, "clients": []})
    finally:
        engine.dispose()


def test_nobody_on_any_list_is_refused(tmp_path: Path, authority: Authority) -> None:
    engine = engine_with(tmp_path, settings=authority.settings(clients=()))
    try:
        engine.start()
        engine.make_volume("v", SIZE_BYTES)
        with pytest.raises(ExportNobody):
            exported(engine, "v", ALL)
        assert exported(engine, "v", {"plain": False, "clients": ["x"]})["clients"] == ["x"]
    finally:
        engine.dispose()
