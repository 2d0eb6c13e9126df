"""Faults around a link: what fails on this side, what ends in a bad moment."""

from __future__ import annotations

import errno
import os
import socket
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from facade.engine import autosync, link_sender, replica_source, states
from facade.engine.job import CANCELLED, DONE, FAILED
from facade.engine.replica_source import Source
from tests.engine.fake_peers import FakeSource, FakeTarget, Frame, Hangup, Wire, towards
from tests.engine.harness import KIB, MIB, wait_for
from tests.engine.hosts_inside import (
    Before,
    Host,
    assert_equal,
    ends,
    full_journal,
    hosts,
    in_thread,
    pair_up,
    wait_off,
)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autosync, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(replica_source, "CANCEL_GRACE_S", 0.2)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Host]]:
    with hosts(tmp_path, "a", "b") as made:
        pair_up(*made)
        yield made


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Host]:
    """A primary whose secondary `b` the test plays itself."""
    with hosts(tmp_path, "a") as [host]:
        yield host


# ---- a local volume that fails -----------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(("size", "skip"), [(4 * KIB, 0), (2 * MIB, 1)], ids=["one", "pieces"])
def test_write_that_fails_here_while_the_peer_applies_it(
    pair: list[Host], error: int, size: int, skip: int
) -> None:
    a, b = pair
    assert a.sync("full").state == DONE
    wait_for(lambda: a.replica.changes.dirty_blocks == 0, what="bits cleared")
    a.fault.fail("write", error, skip=skip)
    with pytest.raises(OSError, match=os.strerror(error)):
        a.write(MIB, b"N" * size)
    # The peer may have it: only a copy makes the block equal, so its bit stays and the link ends.
    wait_off(a, b)
    assert a.replica.changes.dirty_blocks >= max(1, size // a.spec.block_bytes)
    wait_for(lambda: "volume_failed" in a.events(), what="its event")
    assert a.sync("update").state == DONE
    assert_equal(a, b)


def test_flush_that_fails_here_ends_the_link(pair: list[Host]) -> None:
    a, b = pair
    assert a.sync("full").state == DONE
    a.write(0, b"F" * 4 * KIB)
    a.fault.fail("flush", errno.EIO)
    wait_off(a, b)
    assert a.replica.changes.dirty_blocks == 1
    assert a.sync("update").state == DONE
    assert_equal(a, b)


# ---- a link that ends in a bad moment ----------------------------------------------------------


def test_link_that_dies_with_the_answer_to_synced_leaves_no_state_behind(alone: Host) -> None:
    a = alone

    answered = threading.Event()

    def part() -> None:
        # The job has its answer, and goes on only when the end of the link is known here.
        source = a.source
        answered.set()
        source._ended.wait(10)

    def behave(wire: Wire, frame: Frame) -> bool:
        if wire.number == 2 and frame.message == "synced":
            a.replica.changes = Before(a.replica.changes, "sync", part)  # type: ignore[assignment]
            wire.obey(frame)
            answered.wait(10)
            raise Hangup
        return False

    with FakeTarget("b", behave) as target:
        towards(a, target, autosync=True)
        real = a.replica.changes
        assert a.sync("full").state == DONE
        target.cut()
        wait_for(lambda: len(target.wires) > 1, what="a second link, by itself")
        wait_for(lambda: isinstance(a.replica.changes, Before), what="its `synced`")
        second = a.replica.job
        assert second is not None
        assert second.ended.wait(10)
        a.replica.changes = real
        assert second.state == FAILED
        wait_for(lambda: a.state == states.REPLICATING, what="a third link, by itself")
        assert len(target.wires) >= 3
        assert a.replica.connected
        assert a.replica.layer.is_sending
        a.log()
        assert a.is_off()
        a.write(0, b"w" * 4 * KIB)
        job = a.sync("update")
        assert (job.state, job.total_bytes) == (DONE, a.spec.block_bytes)
        assert a.state == states.REPLICATING


def test_log_does_not_wait_for_an_answer_that_is_late(alone: Host) -> None:
    a, asked, over = alone, threading.Event(), threading.Event()

    def behave(wire: Wire, frame: Frame) -> bool:
        if frame.message != "synced":
            return False
        asked.set()
        while not over.wait(0.1):
            wire.ack(frame.seq - 1)  # alive, and not done
        wire.obey(frame)
        return True

    with FakeTarget("b", behave) as target:
        towards(a, target)
        job = a.start_sync("full")
        assert asked.wait(10)
        assert ends(in_thread(a.log), 5)
        assert a.is_off()
        assert job.state in (FAILED, CANCELLED)
        over.set()
        wait_for(lambda: a.source._connection is not None and a.source._connection.fileno() < 0)
        assert a.is_off()


def test_peer_that_only_repeats_acknowledgements_does_not_hold_a_write(
    alone: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_sender, "STUCK_LIMIT_S", 0.5)
    monkeypatch.setattr(replica_source, "KEEPALIVE_S", 0.2)
    a, over = alone, threading.Event()

    def behave(wire: Wire, frame: Frame) -> bool:
        if frame.payload[:1] != b"X":
            return False
        while not over.wait(0.05):
            wire.ack(frame.seq - 1)
        raise Hangup

    with FakeTarget("b", behave) as target:
        towards(a, target)
        assert a.sync("full").state == DONE
        writer = in_thread(lambda: a.write(0, b"X" * 4 * KIB))
        answered = ends(writer, 5)
        over.set()
        assert answered
        wait_off(a)
        assert a.replica.changes.dirty_blocks == 1
        wait_for(lambda: "link_lost" in a.events(), what="its event")


def test_error_in_the_receiver_is_the_end_of_the_link(
    alone: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = alone
    arrived = Source._control_arrived

    def fails_once(source: Source, payload: bytes) -> None:
        if b"boom" in payload:
            raise RuntimeError("boom")
        arrived(source, payload)

    monkeypatch.setattr(Source, "_control_arrived", fails_once)
    with FakeTarget("b") as target:
        towards(a, target, autosync=True)
        assert a.sync("full").state == DONE
        target.wires[0].control(b'{"type":"boom"}')
        wait_for(lambda: len(target.wires) == 2, what="a second link, by itself")
        wait_for(lambda: a.state == states.REPLICATING, what="replicating again")
        a.log()
        assert a.is_off()


# ---- a descriptor that has a new owner ---------------------------------------------------------


def test_ending_link_keeps_its_descriptor_until_nobody_uses_it(tmp_path: Path) -> None:
    with hosts(tmp_path, "b", holds=True) as [b]:
        b.add(uuid.uuid4().hex, "secondary", "a", "127.0.0.1:1")
        first = FakeSource(b)
        first.start()
        target = b.replicas._targets[b.spec.set_id]
        number = target.connection.fileno()
        b.fault.hold()
        first.wire.close()
        try:
            wait_for(lambda: b.fault.held == 1, what="the flush at the link's end")
            # Whoever opens something now must not get the number that the target may still cut.
            strangers = socket.socketpair()
            try:
                assert number not in {stranger.fileno() for stranger in strangers}
                again: list[FakeSource] = []
                dialing = in_thread(lambda: again.append(FakeSource(b)))
                cut = in_thread(target.cut)
                assert ends(cut)
                strangers[0].sendall(b"x")
                assert strangers[1].recv(1) == b"x"
            finally:
                for stranger in strangers:
                    stranger.close()
        finally:
            b.fault.release()
        assert ends(dialing)
        again[0].start()
        again[0].wire.close()
        wait_off(b)


# ---- a journal that is full --------------------------------------------------------------------


@pytest.mark.parametrize("table", ["jobs", "sides", "events", "meta"])
def test_full_journal_ends_a_synchronisation_and_holds_nothing(
    pair: list[Host], table: str
) -> None:
    a, b = pair
    with full_journal(a, table):
        if table == "jobs":
            with pytest.raises(sqlite3.Error, match="full"):
                a.start_sync("full")
        else:
            assert a.sync("full").state == FAILED
        assert a.is_off()
    assert ends(in_thread(a.log), 5)
    wait_off(b)
    assert a.sync("full").state == DONE
    assert a.state == states.REPLICATING
    assert_equal(a, b)


def test_full_journal_when_a_job_ends_leaves_it_ended(pair: list[Host]) -> None:
    a, _ = pair
    put_job = a.journal.put_job

    def refuses_ends(job: dict[str, Any]) -> None:
        if job["state"] != "running":
            raise sqlite3.OperationalError("database or disk is full")
        put_job(job)

    a.journal.put_job = refuses_ends  # type: ignore[method-assign]
    assert a.sync("full").state == DONE
    assert a.state == states.REPLICATING
    assert ends(in_thread(a.log), 5)
    assert a.is_off()
