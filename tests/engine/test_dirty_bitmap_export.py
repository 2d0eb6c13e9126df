"""A set's change bitmap as NBD clients read it from a running engine, over the set's whole life."""

from __future__ import annotations

import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.engine import nbd_raw
from tests.engine.harness import (
    BLOCK_BYTES,
    MIB,
    EngineProcess,
    Pair,
    new_secret,
    wait_for,
)

SIZE_BYTES = 16 * MIB
BLOCKS = SIZE_BYTES // BLOCK_BYTES
CONTEXT = "qemu:dirty-bitmap:pair"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    secret = new_secret()
    engines = [EngineProcess(tmp_path, host, secret) for host in ("host_a", "host_b")]
    try:
        for engine in engines:
            engine.start()
        yield Pair(engines[0], engines[1], SIZE_BYTES)
    finally:
        for engine in engines:
            engine.dispose()


def socket_of(engine: EngineProcess, name: str = "data") -> Path:
    return Path(parse_qs(urlsplit(engine.uri(name)).query)["socket"][0])


def connect(engine: EngineProcess, *contexts: str) -> nbd_raw.RawClient:
    return nbd_raw.RawClient(socket_of(engine), structured=True, contexts=contexts)


def offered(engine: EngineProcess, name: str = "data") -> list[str]:
    with nbd_raw.RawClient(socket_of(engine, name), transmission=False) as client:
        client.send(b"\0\0\0\3")
        client.negotiate(nbd_raw.option(nbd_raw.OPT_STRUCTURED))
        listed = nbd_raw.option(nbd_raw.OPT_LIST_META, nbd_raw.meta_data(()))
        return [one[4:].decode() for one in client.negotiate(listed)]


def write(engine: EngineProcess, block: int, count: int = 1) -> None:
    with connect(engine) as client:
        data = nbd_raw.write(block * BLOCK_BYTES, b"w" * (count * BLOCK_BYTES))
        assert client.ask(data) == 0


def dirty_runs(engine: EngineProcess) -> list[tuple[int, int]]:
    """What `nbdinfo --map` says is marked, as (first block, number of blocks)."""
    found = json.loads(run("nbdinfo", f"--map={CONTEXT}", "--json", engine.uri("data")))
    assert sum(one["length"] for one in found) == SIZE_BYTES
    return [(one["offset"] // BLOCK_BYTES, one["length"] // BLOCK_BYTES)
            for one in found if one["type"] == 1]  # fmt: skip


def run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_what_is_written_while_logging_can_be_read_as_a_bitmap(pair: Pair) -> None:
    pair.enable("clean")
    assert dirty_runs(pair.a) == []
    write(pair.a, 3, 2)
    write(pair.a, 100)
    assert dirty_runs(pair.a) == [(3, 2), (100, 1)]
    options = (
        f"driver=nbd,server.type=unix,server.path={socket_of(pair.a)},export=data,"
        f"x-dirty-bitmap={CONTEXT}"
    )
    mapped = json.loads(run("qemu-img", "map", "--output=json", "--image-opts", options))
    # qemu shows what is marked as what holds no data.
    marked = [(one["start"] // BLOCK_BYTES, one["length"] // BLOCK_BYTES)
              for one in mapped if not one["data"]]  # fmt: skip
    assert marked == [(3, 2), (100, 1)]


def test_both_sides_show_their_own_changes(pair: Pair) -> None:
    pair.enable("clean")
    write(pair.a, 1)
    write(pair.b, 7, 2)
    assert dirty_runs(pair.a) == [(1, 1)]
    assert dirty_runs(pair.b) == [(7, 2)]


def test_a_new_set_is_all_dirty_and_a_synchronised_one_clean(pair: Pair) -> None:
    pair.enable("dirty")
    assert dirty_runs(pair.a) == [(0, BLOCKS)]
    assert pair.sync("full")["state"] == "done"
    wait_for(lambda: dirty_runs(pair.a) == [], what="bits are cleared")
    pair.a.call("set.log", set_id=pair.set_id)
    write(pair.a, 9)
    assert dirty_runs(pair.a) == [(9, 1)]


def test_disable_ends_it_for_who_is_connected_and_enable_begins_another(pair: Pair) -> None:
    status = nbd_raw.request(nbd_raw.BLOCK_STATUS, 0, SIZE_BYTES)
    pair.enable("clean")
    with connect(pair.a, "base:allocation", CONTEXT) as before:
        before.send(status)
        assert len(before.take_chunks()) == 2
        pair.a.call("set.disable", set_id=pair.set_id)
        assert offered(pair.a) == ["base:allocation"]
        before.send(status)
        (refused,) = before.take_chunks()
        assert refused.kind == nbd_raw.ERROR
        assert int.from_bytes(refused.payload[:4]) == nbd_raw.ESHUTDOWN
        # What writes now is in no bitmap; the next set's begins anew, for new clients only.
        assert before.ask(nbd_raw.write(0, b"untracked")) == 0
        pair.enable("dirty")
        assert offered(pair.a) == ["base:allocation", CONTEXT]
        assert dirty_runs(pair.a) == [(0, BLOCKS)]
        before.send(status)
        assert before.take_chunks()[0].kind == nbd_raw.ERROR
        assert before.ask(nbd_raw.request(nbd_raw.FLUSH)) == 0


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_it_is_there_again_when_the_engine_is(pair: Pair, how: str) -> None:
    pair.enable("clean")
    write(pair.a, 5)
    getattr(pair.a, how)()
    pair.a.start()
    assert offered(pair.a) == ["base:allocation", CONTEXT]
    # After a kill the extent that was hot counts as dirty: 128 blocks.
    assert dirty_runs(pair.a) == ([(0, 128)] if how == "kill" else [(5, 1)])


def test_a_set_that_cannot_be_enabled_offers_nothing(pair: Pair) -> None:
    spec = pair.spec(pair.a)
    Path(spec["bitmap_path"]).unlink()
    with pytest.raises(Exception, match="bitmap"):
        pair.a.call("set.enable", spec=spec, init="dirty")
    assert offered(pair.a) == ["base:allocation"]
    pair.enable("clean")
    assert offered(pair.a) == ["base:allocation", CONTEXT]


def test_each_volume_offers_the_bitmap_of_its_own_set(pair: Pair) -> None:
    pair.enable("clean")
    second = uuid.uuid4().hex
    for engine in (pair.a, pair.b):
        engine.make_volume("more", SIZE_BYTES)
        bitmap = engine.data_dir / "metadata" / "second.bitmap"
        bitmap.write_bytes(bytes(engine.data_dir.joinpath("metadata/pair.bitmap").stat().st_size))
        spec = pair.spec(engine) | {
            "set_id": second, "name": "second", "volume": "more", "peer_volume": "more",
            "bitmap_path": str(bitmap),
        }  # fmt: skip
        engine.call("set.enable", spec=spec, init="clean")
    assert offered(pair.a) == ["base:allocation", CONTEXT]
    assert offered(pair.a, "more") == ["base:allocation", "qemu:dirty-bitmap:second"]
    pair.a.call("set.disable", set_id=second)
    assert offered(pair.a) == ["base:allocation", CONTEXT]
    assert offered(pair.a, "more") == ["base:allocation"]
