"""What an engine does in which order when it starts, and what it comes back to by itself."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from facade.config_store import ConfigStore, SetRecord, Use
from facade.engine import autosync
from facade.engine.bitmap_header import BitmapHeader, pack, slot_offset_bytes
from facade.engine.job import Job
from facade.engine.journal import Journal
from facade.engine.link_errors import PeerNotReady
from facade.engine.nbd_server import NbdServer
from facade.engine.replica import open_bitmap
from facade.engine.replica_spec import ReplicaSpec
from facade.errors import PathRefused, Unsupported
from tests.engine import nbd_raw
from tests.engine.harness import BLOCK_BYTES, KIB, MIB, Pair, new_secret, wait_for
from tests.engine.hosts_inside import EngineInside

SIZE_BYTES = 8 * MIB


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EngineInside]]:
    monkeypatch.setattr(autosync, "FIRST_PAUSE_S", 0.05)
    secret = new_secret()
    made = [EngineInside(tmp_path, host, secret) for host in ("host_a", "host_b")]
    try:
        for engine in made:
            engine.start()
        yield made
    finally:
        for engine in made:
            engine.dispose()


@pytest.fixture
def pair(engines: list[EngineInside]) -> Pair:
    return Pair(engines[0], engines[1], SIZE_BYTES).enable()


def wait_replicating(pair: Pair) -> None:
    wait_for(
        lambda: (
            {pair.show(e)["state"] for e in (pair.a, pair.b)} == {"replicating"}
            and pair.show()["dirty_blocks"] == 0
        ),
        what="both sides replicating",
    )


def socket_of(engine: Any, name: str = "data") -> Path:
    return Path(engine.run_dir / "nbd" / name)


def test_client_that_connects_at_once_is_tracked(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pair.sync("full")["state"] == "done"
    wait_replicating(pair)
    pair.a.stop()
    start = NbdServer.start

    def start_with_a_client(server: NbdServer) -> None:
        # The earliest client there can be: it is served before the engine's boot goes on.
        start(server)
        with nbd_raw.RawClient(server.socket_path) as client:
            assert client.ask(nbd_raw.write(MIB, b"E" * 64 * KIB)) == 0

    monkeypatch.setattr(NbdServer, "start", start_with_a_client)
    pair.a.start()
    monkeypatch.undo()
    assert pair.show()["dirty_blocks"] == 64 * KIB // BLOCK_BYTES
    assert pair.sync("update")["state"] == "done"
    pair.assert_equal()


@pytest.mark.parametrize("damage", ["bitmap gone", "volume resized"])
def test_volume_whose_set_cannot_be_engaged_is_not_exported(pair: Pair, damage: str) -> None:
    assert pair.sync("full")["state"] == "done"
    wait_replicating(pair)
    pair.a.stop()
    bitmap = pair.a.data_dir / "metadata" / "pair.bitmap"
    data = pair.a.volume_dir / "data"
    content = bitmap.read_bytes()
    if damage == "bitmap gone":
        bitmap.unlink()
    else:
        os.truncate(data, SIZE_BYTES + MIB)
    pair.a.start()
    assert pair.a.call("set.list") == []
    assert pair.a.call("volume.list") == []
    assert not socket_of(pair.a).exists()
    assert "volume_missing" in pair.a.events()
    # Nobody could write, so what the bitmap said before is still true.
    pair.a.stop()
    bitmap.write_bytes(content)
    os.truncate(data, SIZE_BYTES)
    pair.a.start()
    assert socket_of(pair.a).exists()
    assert pair.show()["dirty_blocks"] == 0
    assert pair.sync("update")["state"] == "done"
    pair.assert_equal()


def blocks_dirty_after(pair: Pair, change: Callable[[Path], object]) -> int:
    """Stop, let `change` work on the bitmap, start; how many blocks count as dirty then."""
    pair.a.stop()
    change(pair.a.data_dir / "metadata" / "pair.bitmap")
    pair.a.start()
    assert socket_of(pair.a).exists()
    return int(pair.show()["dirty_blocks"])


@pytest.mark.parametrize("left_bytes", [0, 5000, 8192 + 100])
def test_short_bitmap_is_made_long_again_and_means_all_dirty(pair: Pair, left_bytes: int) -> None:
    assert pair.sync("full")["state"] == "done"
    wait_replicating(pair)
    dirty = blocks_dirty_after(pair, lambda bitmap: os.truncate(bitmap, left_bytes))
    assert dirty == SIZE_BYTES // BLOCK_BYTES
    assert "bitmap_untrusted" in pair.a.events()
    assert pair.sync("update")["state"] == "done"
    pair.assert_equal()


def test_short_bitmap_stays_untrusted_when_the_engine_ends_as_soon_as_it_is_long(
    pair: Pair,
) -> None:
    assert pair.sync("full")["state"] == "done"
    wait_replicating(pair)
    pair.a.stop()
    spec = ReplicaSpec.from_wire(pair.spec(pair.a))
    os.truncate(spec.bitmap_path, 8192 + 100)
    file, was_short = open_bitmap(spec, True)
    assert was_short
    file.close()
    pair.a.start()
    assert pair.show()["dirty_blocks"] == SIZE_BYTES // BLOCK_BYTES


def test_older_copy_of_the_bitmap_is_known_and_means_all_dirty(pair: Pair) -> None:
    assert pair.sync("full")["state"] == "done"
    wait_replicating(pair)
    bitmap = pair.a.data_dir / "metadata" / "pair.bitmap"
    older = bitmap.read_bytes()
    assert blocks_dirty_after(pair, lambda _: None) == 0
    assert blocks_dirty_after(pair, lambda bitmap: bitmap.write_bytes(older)) == (
        SIZE_BYTES // BLOCK_BYTES
    )
    assert "bitmap_untrusted" in pair.a.events()
    # Put back once more it is still older: numbers go on from the highest that was in use.
    pair.a.stop()
    bitmap.write_bytes(older)
    pair.a.start()
    assert pair.show()["dirty_blocks"] == SIZE_BYTES // BLOCK_BYTES
    assert pair.sync("update")["state"] == "done"
    pair.assert_equal()


def test_bitmap_of_another_set_is_replaced_for_good(pair: Pair) -> None:
    assert pair.sync("full")["state"] == "done"
    wait_replicating(pair)
    other = BitmapHeader(
        bytes(16), "primary", "logging", frozenset(), BLOCK_BYTES, SIZE_BYTES, sequence=1001
    )

    def give(bitmap: Path) -> None:
        with bitmap.open("r+b") as file:
            file.seek(slot_offset_bytes(other))
            file.write(pack(other))

    assert blocks_dirty_after(pair, give) == SIZE_BYTES // BLOCK_BYTES
    assert pair.sync("update")["state"] == "done"
    wait_replicating(pair)
    # The other set's header is gone, although its number was the higher one.
    assert blocks_dirty_after(pair, lambda _: None) == 0
    assert pair.a.events().count("bitmap_untrusted") == 1


def test_volume_without_a_set_is_exported_beside_one_that_is_not(pair: Pair) -> None:
    pair.a.make_volume("other", MIB)
    pair.a.stop()
    (pair.a.data_dir / "metadata" / "pair.bitmap").unlink()
    pair.a.start()
    assert [volume["name"] for volume in pair.a.call("volume.list")] == ["other"]
    assert socket_of(pair.a, "other").exists()


def test_bitmap_volume_of_a_set_that_is_not_engaged_takes_no_writes(
    engines: list[EngineInside],
) -> None:
    pair = Pair(engines[0], engines[1], SIZE_BYTES)
    bitmap = pair.a.make_volume("map", MIB)
    spec = {**pair.spec(pair.a), "bitmap": "map", "bitmap_path": str(bitmap)}
    uses = [
        Use("data", "replication", "pair", "primary"),
        Use("map", "replication", "pair", "bitmap"),
    ]
    with ConfigStore(pair.a.settings.host.config_path) as store:
        store.put_set(SetRecord("replication", "pair", pair.set_id, True, spec), uses)
    pair.a.call("set.enable", spec=spec, init="dirty")
    pair.a.stop()
    os.truncate(pair.a.volume_dir / "data", SIZE_BYTES // 2)
    pair.a.start()
    (served,) = pair.a.call("volume.list")
    assert served["name"] == "map"
    write = subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write 0 4096", served["uri"]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Permission denied" in write.stderr  # the export says that it is read only


@pytest.mark.parametrize("missing", ["bitmap", "volume"])
def test_volume_that_was_left_out_is_exported_with_its_set_only(pair: Pair, missing: str) -> None:
    assert pair.sync("full")["state"] == "done"
    wait_replicating(pair)
    bitmap = pair.a.data_dir / "metadata" / "pair.bitmap"
    data = pair.a.volume_dir / "data"
    away = (bitmap if missing == "bitmap" else data).rename(pair.a.data_dir / "away")
    pair.a.stop()
    pair.a.start()
    with pytest.raises(PathRefused):
        pair.a.open_volume("data")
    assert pair.a.call("volume.list") == []
    assert not socket_of(pair.a).exists()
    away.rename(bitmap if missing == "bitmap" else data)
    pair.a.open_volume("data")
    assert pair.show()["dirty_blocks"] == 0
    with nbd_raw.RawClient(socket_of(pair.a)) as client:
        assert client.ask(nbd_raw.write(MIB, b"L" * 64 * KIB)) == 0
    assert pair.show()["dirty_blocks"] == 64 * KIB // BLOCK_BYTES


def test_volume_that_was_left_out_is_free_once_its_set_is_disabled(pair: Pair) -> None:
    pair.a.stop()
    (pair.a.data_dir / "metadata" / "pair.bitmap").unlink()
    pair.a.start()
    with ConfigStore(pair.a.settings.host.config_path) as store:
        record = next(iter(store.sets("replication")))
        store.put_set(replace(record, enabled=False), [])
    pair.a.open_volume("data")
    assert socket_of(pair.a).exists()


@pytest.mark.parametrize("side", ["primary", "secondary"])
def test_clean_stop_of_a_side_with_autosync_is_made_good_by_itself(
    engines: list[EngineInside], side: str
) -> None:
    pair = Pair(engines[0], engines[1], SIZE_BYTES)
    pair.autosync = True
    pair.enable()
    assert pair.sync("full")["state"] == "done"
    wait_replicating(pair)
    engine = pair.a if side == "primary" else pair.b
    engine.stop()
    engine.start()
    wait_replicating(pair)
    pair.assert_equal()


def test_command_outlives_a_stop(engines: list[EngineInside]) -> None:
    pair = Pair(engines[0], engines[1], SIZE_BYTES)
    pair.autosync = True
    pair.enable()
    assert pair.sync("full")["state"] == "done"
    pair.a.call("set.log", set_id=pair.set_id)
    pair.a.stop()
    engine = engines[0].start().engine
    assert engine is not None
    assert not engine.replicas._autosyncs[pair.set_id]._runs
    assert pair.show()["state"] == "logging"


def test_try_that_had_begun_does_not_outlive_the_engine(engines: list[EngineInside]) -> None:
    pair = Pair(engines[0], engines[1], SIZE_BYTES)
    pair.autosync = True
    pair.enable()
    assert pair.sync("full")["state"] == "done"
    engine = engines[0].engine
    assert engine is not None
    replicas = engine.replicas
    tries = replicas._autosyncs[pair.set_id]
    begun, stopping, tried = threading.Event(), threading.Event(), threading.Event()
    start_sync, outcome = tries.start_sync, []

    def late() -> Any:
        begun.set()
        stopping.wait(10)
        try:
            return start_sync()
        except Exception as error:
            outcome.append(error)
            raise
        finally:
            tried.set()

    tries.start_sync = late
    sender = replicas._sources[pair.set_id].sender
    assert sender is not None
    sender.stop(errno.ECONNRESET)
    assert begun.wait(10)
    replicas.close()
    stopping.set()
    assert tried.wait(10)
    assert isinstance(outcome[0], PeerNotReady), outcome


def test_job_of_an_earlier_run_is_closed(engines: list[EngineInside]) -> None:
    a = engines[0]
    a.stop()
    job = Job("0" * 32, "full")
    journal = Journal(a.settings.host.journal_path, a.host)
    journal.put_job(job.to_wire())
    journal.close()
    a.start()
    shown = a.call("job.show", job_id=job.job_id)
    assert shown["state"] == "failed"
    assert shown["ended_at"] is not None
    assert shown["error"]["code"] == "engine_fault"
    assert [found["state"] for found in a.call("job.list")] == ["failed"]


def test_keep_secondary_is_refused_as_unsupported(pair: Pair) -> None:
    with pytest.raises(Unsupported):
        pair.start_sync("update", keep="secondary")
    assert pair.show()["state"] == "logging"
    assert pair.a.call("job.list") == []
