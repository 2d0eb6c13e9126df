"""A replicated pair of two real engines: synchronise, replicate, cut, kill, synchronise again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from facade.engine.link_errors import PeerNotReady, WouldLoseWrites
from facade.engine.replica_source import LINK_TIMEOUT_S, SETTLE_BUSY_S
from tests.engine.harness import (
    BLOCK_BYTES,
    KIB,
    MIB,
    ROOT,
    EngineProcess,
    Pair,
    free_port,
    new_secret,
    wait_for,
)

SIZE_BYTES = 64 * MIB


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


def write(uri: str, offset: int, size: int, pattern: int = 0x5A) -> None:
    subprocess.run(
        ["qemu-io", "-f", "raw", "-c", f"write -P {pattern} {offset} {size}", uri],
        check=True,
        capture_output=True,
    )


def fill(engine: EngineProcess, seed: int = 1) -> None:
    """Put data into the volume through its export: random in the first half, holes after."""
    rng = random.Random(seed)
    source = engine.data_dir / "source.img"
    source.write_bytes(rng.randbytes(SIZE_BYTES // 2) + bytes(SIZE_BYTES // 2))
    subprocess.run(["nbdcopy", str(source), engine.uri("data")], check=True)
    source.unlink()


def test_new_set_is_logging_and_all_dirty(pair: Pair) -> None:
    shown = pair.show()
    assert shown["state"] == "logging"
    assert shown["dirty_blocks"] == SIZE_BYTES // BLOCK_BYTES
    assert pair.show(pair.b)["dirty_blocks"] == 0


def test_full_sync_then_writes_reach_both_sides(pair: Pair) -> None:
    fill(pair.a)
    job = pair.sync("full")
    assert job["state"] == "done", job
    assert pair.show()["state"] == "replicating"
    assert pair.show(pair.b)["state"] == "replicating"
    assert pair.show(pair.b)["flags"] == []
    pair.assert_equal()
    write(pair.a.uri("data"), 40 * MIB + 512, 3 * MIB, 0x77)
    pair.assert_equal()
    wait_for(lambda: pair.show()["dirty_blocks"] == 0, what="no dirty blocks when idle")
    # Holes and zeroes are not sent.
    assert job["sent_bytes"] < SIZE_BYTES // 2 + 2 * MIB


def test_secondary_refuses_writes_while_it_is_a_target(pair: Pair) -> None:
    assert pair.sync("full")["state"] == "done"
    result = subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write -P 1 0 4096", pair.b.uri("data")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Operation not permitted" in result.stdout + result.stderr
    pair.assert_equal()


def test_log_then_update_moves_only_changed_blocks(pair: Pair) -> None:
    fill(pair.a)
    assert pair.sync("full")["state"] == "done"
    shown = pair.a.call("set.log", set_id=pair.set_id)
    assert shown["state"] == "logging"
    wait_for(lambda: pair.show(pair.b)["state"] == "logging", what="secondary logging")
    assert pair.show(pair.b)["flags"] == []
    for i in range(10):
        write(pair.a.uri("data"), i * 100 * BLOCK_BYTES % SIZE_BYTES, 4 * KIB, 0x11 + i)
    assert pair.show()["dirty_blocks"] == 10
    job = pair.sync("update")
    assert job["state"] == "done", job
    # Of each dirty block only the piece that was written.
    assert 10 * 4 * KIB <= job["sent_bytes"] < 10 * 5 * KIB
    pair.assert_equal()


@pytest.mark.parametrize("kind", ["full", "update"])
def test_writes_during_a_synchronisation_are_on_both_sides(pair: Pair, kind: str) -> None:
    fill(pair.a)
    fio = subprocess.Popen(
        ["fio", "--name=w", "--ioengine=nbd", f"--uri={pair.a.uri('data')}", "--rw=randwrite",
         "--bs=4k", "--iodepth=16", "--time_based", "--runtime=3", f"--size={SIZE_BYTES}"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    job = pair.sync(kind)
    assert job["state"] == "done", job
    assert fio.wait(30) == 0
    assert pair.show()["state"] == "replicating"
    pair.assert_equal()


def test_kill_of_the_secondary_and_update(pair: Pair) -> None:
    fill(pair.a)
    assert pair.sync("full")["state"] == "done"
    pair.b.kill()
    wait_for(lambda: pair.show()["state"] == "logging", what="primary logging")
    write(pair.a.uri("data"), 0, 64 * KIB, 0x33)
    assert pair.show()["dirty_blocks"] >= 2
    assert "link_lost" in pair.a.events()
    pair.b.start()
    assert pair.show(pair.b)["state"] == "logging"
    assert pair.show(pair.b)["flags"] == ["sync_needed"]
    job = pair.sync("update")
    assert job["state"] == "done", job
    assert pair.show(pair.b)["flags"] == []
    pair.assert_equal()


def test_kill_of_the_primary_under_load_and_update(pair: Pair) -> None:
    fill(pair.a)
    assert pair.sync("full")["state"] == "done"
    fio = subprocess.Popen(
        ["fio", "--name=w", "--ioengine=nbd", f"--uri={pair.a.uri('data')}", "--rw=randwrite",
         "--bs=4k", "--iodepth=16", "--time_based", "--runtime=20", f"--size={SIZE_BYTES}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: pair.a.call("set.show", set_id=pair.set_id)["dirty_blocks"] > 0)
    pair.a.kill()
    fio.wait(30)
    pair.a.start()
    assert pair.show()["state"] == "logging"
    assert pair.show()["dirty_blocks"] > 0
    assert "engine_recovered" in pair.a.events()
    job = wait_for(
        lambda: (j := pair.sync("update"))["state"] == "done" and j, what="update after kill"
    )
    assert job["sent_bytes"] < SIZE_BYTES
    pair.assert_equal()


def test_writes_on_the_secondary_are_not_undone_unasked(pair: Pair) -> None:
    assert pair.sync("full")["state"] == "done"
    pair.a.call("set.log", set_id=pair.set_id)
    wait_for(lambda: pair.show(pair.b)["state"] == "logging")
    write(pair.b.uri("data"), 5 * MIB, 4 * KIB)
    job = pair.sync("update")
    assert job["state"] == "failed"
    assert job["error"]["code"] == WouldLoseWrites.code
    assert job["error"]["data"]["blocks"] == 1
    assert pair.show(pair.b)["flags"] == []
    job = pair.sync("update", keep="primary")
    assert job["state"] == "done"
    pair.assert_equal()


def test_clean_stop_and_start_resume_logging(pair: Pair) -> None:
    assert pair.sync("full")["state"] == "done"
    assert pair.a.stop() == 0
    pair.a.start()
    shown = pair.show()
    assert (shown["state"], shown["dirty_blocks"]) == ("logging", 0)
    assert "engine_started" in pair.a.events()
    assert pair.sync("update")["state"] == "done"
    pair.assert_equal()


def test_update_of_a_replicating_set_is_done_at_once_and_a_full_one_is_refused(pair: Pair) -> None:
    assert pair.sync("full")["state"] == "done"
    job = pair.sync("update")
    assert (job["state"], job["sent_bytes"]) == ("done", 0)
    with pytest.raises(PeerNotReady, match="put it into logging first"):
        pair.start_sync("full")
    assert pair.show()["state"] == "replicating"


def test_cancel_ends_in_logging_and_the_next_update_completes(pair: Pair) -> None:
    fill(pair.a)
    job = pair.start_sync("full")
    ended = pair.a.call("job.cancel", job_id=job["job_id"])
    assert ended["state"] in ("cancelled", "done")
    if ended["state"] == "done":
        pair.a.call("set.log", set_id=pair.set_id)
    wait_for(lambda: pair.show(pair.b)["state"] == "logging")
    assert pair.show()["state"] == "logging"
    assert pair.sync("update")["state"] == "done"
    pair.assert_equal()


def test_wrong_secret_is_refused(tmp_path: Path) -> None:
    engines = [EngineProcess(tmp_path, host, new_secret()) for host in ("host_a", "host_b")]
    try:
        for engine in engines:
            engine.start()
        pair = Pair(engines[0], engines[1], 4 * MIB).enable()
        job = pair.sync("full")
        assert job["state"] == "failed"
        assert job["error"]["code"] == "link_refused"
        assert pair.show(pair.b)["flags"] == []
    finally:
        for engine in engines:
            engine.dispose()


def test_secondary_may_be_larger_and_keeps_what_lies_past_the_set(tmp_path: Path) -> None:
    secret = new_secret()
    engines = [EngineProcess(tmp_path, host, secret) for host in ("host_a", "host_b")]
    try:
        for engine in engines:
            engine.start()
        pair = Pair(engines[0], engines[1], 4 * MIB, secondary_bytes=6 * MIB).enable()
        write(pair.b.uri("data"), 5 * MIB, 64 * KIB, 0x99)
        write(pair.a.uri("data"), MIB, 64 * KIB, 0x55)
        job = pair.sync("full")
        assert job["state"] == "done", job
        with (pair.b.volume_dir / "data").open("rb") as file:
            data = file.read()
        assert data[: 4 * MIB] == (pair.a.volume_dir / "data").read_bytes()
        assert data[5 * MIB : 5 * MIB + 64 * KIB] == b"\x99" * 64 * KIB
    finally:
        for engine in engines:
            engine.dispose()


@pytest.mark.parametrize("victim", ["primary", "secondary"])
def test_autosync_brings_the_set_back_by_itself(tmp_path: Path, victim: str) -> None:
    secret = new_secret()
    engines = [EngineProcess(tmp_path, host, secret) for host in ("host_a", "host_b")]
    try:
        for engine in engines:
            engine.start()
        pair = Pair(engines[0], engines[1], SIZE_BYTES)
        pair.autosync = True
        pair.enable()
        assert pair.sync("full")["state"] == "done"
        killed = pair.a if victim == "primary" else pair.b
        killed.kill()
        if victim == "secondary":
            write(pair.a.uri("data"), 0, MIB, 0x21)
        killed.start()
        wait_for(lambda: pair.show()["state"] == "replicating", what="replicating again")
        pair.assert_equal()
        assert "sync_failed" not in pair.a.events()
        # A command that ends the link is obeyed: nothing is tried until the next synchronisation.
        pair.a.call("set.log", set_id=pair.set_id)
        wait_for(lambda: pair.show(pair.b)["state"] == "logging")
        jobs = len(pair.a.call("job.list", set_id=pair.set_id))
        pair.b.kill()
        pair.b.start()
        assert pair.show()["state"] == "logging"
        assert len(pair.a.call("job.list", set_id=pair.set_id)) == jobs
    finally:
        for engine in engines:
            engine.dispose()


def test_link_off_the_loopback_must_be_asked_for(tmp_path: Path) -> None:
    engine = EngineProcess(tmp_path, "host_a", new_secret())
    try:
        refused = subprocess.run(
            [sys.executable, "-m", "facade.engine.process", "--config", str(engine.config)],
            env={**os.environ, "TRELLIS_LINK_LISTEN": f"0.0.0.0:{free_port()}"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: link_not_private: "), refused.stderr
    finally:
        engine.dispose()


def test_a_frozen_secondary_holds_writes_up_no_longer_than_the_time_out(pair: Pair) -> None:
    assert pair.sync("full")["state"] == "done"
    assert pair.b.process is not None
    pair.b.process.send_signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        write(pair.a.uri("data"), MIB, 4 * KIB, 0x42)
        assert time.monotonic() - started < LINK_TIMEOUT_S + 4
        wait_for(lambda: pair.show()["state"] == "logging", what="primary logging")
        assert pair.show()["dirty_blocks"] == 1
    finally:
        pair.b.process.send_signal(signal.SIGCONT)
    wait_for(lambda: pair.show(pair.b)["state"] == "logging", what="secondary logging")
    assert pair.sync("update")["state"] == "done"
    pair.assert_equal()


def test_an_engine_starts_from_variables_alone(tmp_path: Path) -> None:
    engine = EngineProcess(tmp_path, "host_a", new_secret())
    try:
        settings = engine.settings
        engine.config.write_text("")
        engine.start(
            TRELLIS_HOST=settings.host.name,
            TRELLIS_DATA_DIR=str(settings.host.data_dir),
            TRELLIS_RUN_DIR=str(settings.host.run_dir),
            TRELLIS_LINK_LISTEN=settings.link.listen,
            TRELLIS_LINK_SECRET=settings.link.secret,
        )
        assert engine.call("engine.info")["host"] == "host_a"
        engine.make_volume("v", MIB)
        write(engine.uri("v"), 0, 4 * KIB)
        assert engine.stop() == 0
    finally:
        engine.dispose()


def test_cleared_bits_reach_the_bitmap_volume_when_writes_end(pair: Pair) -> None:
    assert pair.sync("full")["state"] == "done"
    bitmap = pair.a.data_dir / "metadata" / "pair.bitmap"
    # Longer than the settler's busy interval, so that clears under load come first.
    subprocess.run(
        ["fio", "--name=w", "--ioengine=nbd", f"--uri={pair.a.uri('data')}", "--rw=randwrite",
         "--bs=4k", "--iodepth=4", "--time_based", f"--runtime={SETTLE_BUSY_S + 1:.0f}",
         f"--size={SIZE_BYTES}"],
        check=True, capture_output=True,
    )  # fmt: skip
    wait_for(lambda: not any(bitmap.read_bytes()[8192:]), what="cleared bits on disk")
    pair.assert_equal()
