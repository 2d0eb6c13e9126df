"""A volume that is enabled read-only: read by all, written by nobody, used by no set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from facade.config_store import ConfigStore, VolumeRecord
from facade.engine.file_volume import FileVolume
from facade.errors import PathRefused
from tests.engine import nbd_raw as raw
from tests.engine.harness import BLOCK_BYTES, MIB, EngineProcess, new_secret
from tests.engine.nbd_raw import RawClient
from tests.engine.test_dirty_bitmap_export import socket_of

SIZE_BYTES = 4 * MIB
WRITES = [
    raw.write(0, b"x" * 512),
    raw.request(raw.WRITE_ZEROES, 0, 512),
    raw.request(raw.TRIM, 0, 512),
]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EngineProcess]:
    one = EngineProcess(tmp_path, "host_a", new_secret())
    try:
        yield one.start()
    finally:
        one.dispose()


@pytest.fixture
def image(engine: EngineProcess) -> Path:
    """A volume of this name, recorded and opened to be read only."""
    path = engine.volume_dir / "data"
    path.write_bytes(b"r" * SIZE_BYTES)
    path.chmod(0o400)
    with ConfigStore(engine.settings.host.config_path) as store:
        store.put_volume(VolumeRecord("data", str(path), "svi", read_only=True))
    engine.call("volume.open", name="data", path=str(path), read_only=True)
    return path


def assert_read_only(engine: EngineProcess, image: Path) -> None:
    (shown,) = engine.call("volume.list")
    assert shown["read_only"] is True
    with RawClient(socket_of(engine), transmission=False) as client:
        client.send(b"\0\0\0\3")
        (told,) = client.negotiate(raw.option(raw.OPT_INFO, raw.go_data()))
        assert int.from_bytes(told[10:12]) & 2
    with RawClient(socket_of(engine)) as client:
        assert [client.ask(sent) for sent in WRITES] == [raw.EPERM] * 3
        assert client.ask(raw.request(raw.READ, 0, 4), 4) == b"rrrr"
        assert client.ask(raw.request(raw.FLUSH)) == 0
    assert image.read_bytes() == b"r" * SIZE_BYTES


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_it_is_read_only_after_a_start_too(engine: EngineProcess, image: Path, how: str) -> None:
    assert_read_only(engine, image)
    getattr(engine, how)()
    engine.start()
    assert_read_only(engine, image)


def test_others_may_read_it_and_nobody_serve_it_for_writing(image: Path) -> None:
    FileVolume(image, read_only=True).close()
    image.chmod(0o600)
    with pytest.raises(OSError, match="served by another"):
        FileVolume(image)


def test_no_set_uses_it(engine: EngineProcess, image: Path) -> None:
    engine.make_volume("more", SIZE_BYTES)
    spec = {
        "set_id": "0" * 32, "name": "s", "role": "secondary", "mode": "sync", "group": None,
        "volume": "data", "bitmap": None, "bitmap_path": str(engine.data_dir / "bits"),
        "size_bytes": SIZE_BYTES, "block_bytes": BLOCK_BYTES, "autosync": False,
        "peer_host": "host_b", "peer_volume": "v", "peer_bitmap": None, "peer_link": "127.0.0.1:1",
    }  # fmt: skip
    (engine.data_dir / "bits").write_bytes(bytes(MIB))
    as_bitmap = spec | {"volume": "more", "bitmap": "data", "bitmap_path": str(image)}
    for refused in (spec, spec | {"role": "primary"}, as_bitmap):
        with pytest.raises(PathRefused, match="read-only"):
            engine.call("set.enable", spec=refused, init="dirty")
    assert_read_only_still(engine, image)


def assert_read_only_still(engine: EngineProcess, image: Path) -> None:
    with RawClient(socket_of(engine)) as client:
        assert client.ask(WRITES[0]) == raw.EPERM
    with pytest.raises(PathRefused, match="read-only"):
        engine.call("volume.resize", name="data", size_bytes=8 * MIB)
    assert image.stat().st_size == SIZE_BYTES
