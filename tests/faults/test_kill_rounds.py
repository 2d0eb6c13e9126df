"""Engines killed at random moments: no answered write lost, every difference has its bit.

`TEST_KILL_ROUNDS` says how many rounds (default a few, `make soak` 200), `TEST_SEED` replays.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from facade.bitmap_size import bitmap_bytes
from tests.engine.harness import (
    BLOCK_BYTES,
    MIB,
    EngineProcess,
    Pair,
    new_secret,
    wait_for,
)
from tests.faults.nbd_writer import NbdWriter, check_acknowledged

SIZE_BYTES = 16 * MIB
ROUNDS = int(os.environ.get("TEST_KILL_ROUNDS", "6"))
BITS_OFFSET_BYTES = 8192


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    secret = new_secret()
    engines = [EngineProcess(tmp_path, host, secret) for host in ("host_a", "host_b")]
    try:
        for engine in engines:
            engine.start()
        yield Pair(engines[0], engines[1], SIZE_BYTES).enable()
    finally:
        for engine in engines:
            engine.dispose()


def bits(engine: EngineProcess) -> bytes:
    path = engine.data_dir / "metadata" / "pair.bitmap"
    assert path.stat().st_size == bitmap_bytes(SIZE_BYTES, BLOCK_BYTES)
    return path.read_bytes()[BITS_OFFSET_BYTES:]


def assert_differences_have_bits(pair: Pair) -> int:
    """Check invariant 1 on what the disks say; returns how many blocks differ."""
    a, b = ((e.volume_dir / "data").read_bytes() for e in (pair.a, pair.b))
    map_a, map_b = bits(pair.a), bits(pair.b)
    different = 0
    for block in range(SIZE_BYTES // BLOCK_BYTES):
        start = block * BLOCK_BYTES
        if a[start : start + BLOCK_BYTES] != b[start : start + BLOCK_BYTES]:
            different += 1
            has_bit = (map_a[block // 8] | map_b[block // 8]) >> block % 8 & 1
            assert has_bit, f"block {block} differs and has no bit"
    return different


@pytest.mark.timeout(60 + ROUNDS * 15)
def test_kill_rounds(pair: Pair) -> None:
    seed = int(os.environ.get("TEST_SEED") or random.randrange(1 << 32))
    print(f"TEST_SEED={seed}")
    rng = random.Random(seed)
    stamp = 1
    past = NbdWriter("", SIZE_BYTES, 0)
    for number in range(ROUNDS):
        victim = rng.choice([pair.a, pair.b])
        kind = rng.choice(["full", "update", "update"])
        moment_s = rng.uniform(0, 0.5)
        print(f"round {number}: {kind}, kill {victim.host} after {moment_s:.3f} s")
        writers = [NbdWriter(pair.a.uri("data"), SIZE_BYTES, rng.randrange(1 << 32), stamp)]
        for writer in writers:
            writer.start()
            assert writer.first_write.wait(10)
        job = pair.start_sync(kind)
        if rng.random() < 0.6:
            pair.wait_job(job)
        time.sleep(moment_s)  # the moment is the test's input, not a wait for a fact
        victim.kill()
        if victim is pair.b:
            wait_for(lambda: pair.show()["state"] == "logging", what="logging after the kill")
            before = writers[0].writes
            wait_for(lambda w=writers[0], n=before: w.writes > n, what="writes go on")
        for writer in writers:
            writer.stop()
        stamp = max(w.stamp for w in writers)
        for writer in writers:
            past.acknowledged.update(writer.acknowledged)
            past.sent.update(writer.sent)
        check_acknowledged((pair.a.volume_dir / "data").read_bytes(), [past])
        assert_differences_have_bits(pair)
        victim.start()
        assert pair.show()["state"] == "logging"
        assert_differences_have_bits(pair)
        wait_for(lambda: pair.show(pair.b)["state"] == "logging", what="secondary logging")
        job = pair.sync("update")
        assert job["state"] == "done", job
        pair.assert_equal()
        pair.a.call("set.log", set_id=pair.set_id)
        wait_for(lambda: pair.show(pair.b)["state"] == "logging", what="secondary logging")
