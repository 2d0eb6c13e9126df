"""Faults by script, over a layer and over the backings of a real engine."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nbd
import pytest

from facade.contract.fault_script import parse
from facade.contract.settings import FaultSettings, dump
from facade.engine.fault_volume import FaultVolume
from facade.engine.file_volume import FileVolume
from facade.engine.power_cut_volume import EXIT_STATUS_POWER_CUT
from tests.engine.harness import KIB, MIB, EngineProcess, Pair, new_secret

PAGE = 4 * KIB


@pytest.fixture
def bottom(tmp_path: Path) -> Iterator[FileVolume]:
    (tmp_path / "image").write_bytes(bytes(MIB))
    volume = FileVolume(tmp_path / "image")
    yield volume
    volume.close()


def ordered(bottom: FileVolume, script: str, is_async: bool = False) -> FaultVolume:
    layer = FaultVolume(bottom, is_async)
    for order in parse(script):
        layer.order(order)
    return layer


def test_every_order_counts_every_request(bottom: FileVolume) -> None:
    layer = ordered(bottom, "write 2 EIO; write 4 ENOSPC; any 6+ EROFS")
    found = []
    for _ in range(7):
        try:
            layer.pwrite(0, b"x")
            found.append(0)
        except OSError as error:
            found.append(error.errno or -1)
    assert found == [0, errno.EIO, 0, errno.ENOSPC, 0, errno.EROFS, errno.EROFS]
    assert layer.hits == 4


@pytest.mark.parametrize("is_async", [False, True])
def test_a_short_write_does_its_first_part_and_fails(bottom: FileVolume, is_async: bool) -> None:
    layer = ordered(bottom, "write 1 short 700 ENOSPC", is_async)
    with pytest.raises(OSError, match="No space"):
        layer.pwrite(100, b"s" * PAGE)
    assert bottom.pread(0, 2 * PAGE).strip(b"\0") == b"s" * 700
    layer.close()


def test_a_torn_write_leaves_sectors_of_both(bottom: FileVolume) -> None:
    layer = ordered(bottom, "write 1-8 torn")
    seen = set()
    for number in range(8):
        with pytest.raises(OSError, match="Input/output"):
            layer.pwrite(number * PAGE, b"t" * PAGE)
        data = bottom.pread(number * PAGE, PAGE)
        parts = {data[at : at + 512] for at in range(0, PAGE, 512)}
        assert parts <= {b"t" * 512, bytes(512)}
        seen.add(len(parts))
    assert 2 in seen


def test_a_delay_waits_and_then_does_it(bottom: FileVolume) -> None:
    layer = ordered(bottom, "read 1 delay 60ms")
    begun = time.monotonic()
    layer.pread(0, 1)
    assert time.monotonic() - begun >= 0.06
    assert layer.hits == 1


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[list[EngineProcess]]:
    secret = new_secret()
    made = [EngineProcess(tmp_path, host, secret) for host in ("host_a", "host_b")]
    yield made
    for engine in made:
        engine.dispose()


def order(engine: EngineProcess, **faults: object) -> None:
    settings = replace(engine.settings, faults=FaultSettings(**faults))  # type: ignore[arg-type]
    engine.config.write_text(dump(settings))


def test_a_real_engine_does_what_its_settings_order(engines: list[EngineProcess]) -> None:
    a, b = engines
    order(a, volumes=("data: write 2 ENOSPC; flush 2 EIO",), bitmaps=("pair: flush 900 EIO",))
    a.start()
    b.start()
    assert b.call("engine.info")["faults"] == []
    assert [f["name"] for f in a.call("engine.info")["faults"]] == ["data", "pair"]
    Pair(a, b, MIB).enable("clean")
    handle = nbd.NBD()
    handle.connect_uri(a.uri("data"))
    handle.pwrite(b"1" * PAGE, 0)
    with pytest.raises(nbd.Error) as caught:
        handle.pwrite(b"2" * PAGE, 0)
    assert caught.value.errnum == errno.ENOSPC
    handle.pwrite(b"3" * PAGE, 0)
    handle.shutdown()
    [shown] = a.call("volume.list")
    assert shown["faults"]["hits"] >= 1
    assert "FAULTS are ordered for the volume of data" in a.log_path.read_text()
    assert "FAULTS" not in b.log_path.read_text()


def test_a_volume_that_cannot_be_flushed_keeps_no_other_from_it_at_the_stop(
    engines: list[EngineProcess],
) -> None:
    engine = engines[0]
    order(engine, volumes=("a: flush 1+ EIO", "b: flush 900 EIO"))
    engine.start()
    for name in ("a", "b"):
        engine.make_volume(name, MIB)
    assert engine.stop() == 0
    log = engine.log_path.read_text()
    assert "a is not flushed and closed" in log
    assert "b is not flushed" not in log
    order(engine)
    engine.start()
    found = engine.call("events.take", after=0, limit=100, wait_s=0)["events"]
    assert [event["name"] for event in found][-1] == "engine_recovered"


@pytest.mark.parametrize("seed", range(3))
def test_an_engine_loses_its_power_and_comes_back(engines: list[EngineProcess], seed: int) -> None:
    [a, b] = engines
    order(a, power_cut=f"{40 + seed * 7} seed {seed}")
    a.start()
    b.start()
    pair = Pair(a, b, MIB).enable()
    handle = nbd.NBD()
    handle.connect_uri(a.uri("data"))
    flushed, page = -1, 0
    try:
        for page in range(200):
            handle.pwrite(bytes([page + 1]) * PAGE, page * PAGE)
            if page % 5 == 4:
                handle.flush()
                flushed = page
    except nbd.Error:
        pass
    assert a.process is not None
    assert a.process.wait(10) == EXIT_STATUS_POWER_CUT
    assert 0 <= flushed < 199
    image = (a.volume_dir / "data").read_bytes()
    for number in range(flushed + 1):
        assert image[number * PAGE : (number + 1) * PAGE] == bytes([number + 1]) * PAGE
    order(a)
    a.start()
    assert pair.sync()["state"] == "done"
    pair.assert_equal()
