"""Commands on a set that come at once, or fail half way: obeyed in the end, nothing left over."""

from __future__ import annotations

import errno
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from facade.engine import autosync, replica_source, states
from facade.engine.job import DONE
from facade.engine.replica_source import Leaving
from facade.engine.replica_spec import ReplicaSpec
from facade.engine.volume_stack import VolumeStack
from facade.errors import SetNotEnabled, UnknownVolume
from tests.engine.fake_peers import FakeTarget, towards
from tests.engine.harness import KIB, MIB, wait_for
from tests.engine.hosts_inside import (
    Before,
    Host,
    assert_equal,
    ends,
    full_journal,
    hosts,
    in_thread,
    once_before,
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


# ---- commands that come at once ----------------------------------------------------------------


@pytest.mark.parametrize("command", ["log", "disable"])
def test_command_while_a_synchronisation_is_about_to_start(pair: list[Host], command: str) -> None:
    a, b = pair
    between, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        between.set()
        go_on.wait(10)

    a.replicas.journal = Before(a.journal, "put_job", pause)  # type: ignore[assignment]
    sync = in_thread(lambda: a.start_sync("full"))
    assert between.wait(10)
    a.replicas.journal = a.journal
    replica = a.replica
    other = in_thread(lambda: getattr(a.replicas, command)(a.spec.set_id))
    # It waits for the operation, or it overtakes: both are to end with the command obeyed.
    ends(other, 0.3)
    go_on.set()
    assert ends(sync)
    assert ends(other)
    wait_off(b)
    assert not replica.connected
    assert not replica.layer.is_sending
    assert replica.job is not None
    assert replica.job.ended.is_set()
    if command == "log":
        assert a.is_off()
        assert a.sync("update").state == DONE
        assert_equal(a, b)
    else:
        with pytest.raises(SetNotEnabled):
            a.replicas.get(a.spec.set_id)
        assert a.volume.stack.top is a.volume.file
        assert a.volume.sets == set()


def test_end_of_an_old_link_does_not_touch_the_new_one(pair: list[Host]) -> None:
    a, b = pair
    assert a.sync("full").state == DONE
    old = a.source
    a.log()
    wait_off(b)
    assert a.sync("update").state == DONE
    assert a.source is not old
    old.stop(Leaving("late", for_good=True))
    old._link_ended()
    assert not a.replica.layer.detach(old.sender)
    assert a.state == states.REPLICATING
    assert a.replica.connected
    assert a.replica.layer.is_sending
    a.write(0, b"Q" * 4 * KIB)
    assert b.file.pread(0, 4 * KIB) == b"Q" * 4 * KIB


def test_log_is_obeyed_by_a_try_that_had_begun(tmp_path: Path) -> None:
    with hosts(tmp_path, "a", "b") as [a, b]:
        pair_up(a, b, autosync=True)
        assert a.sync("full").state == DONE
        tries = a.replicas._autosyncs[a.spec.set_id]
        begun, logged, tried = threading.Event(), threading.Event(), threading.Event()
        start_sync = tries.start_sync

        def late() -> Any:
            begun.set()
            logged.wait(10)
            try:
                return start_sync()
            finally:
                tried.set()

        tries.start_sync = late
        assert a.source.sender is not None
        a.source.sender.stop(errno.ECONNRESET)
        assert begun.wait(10)
        a.log()
        logged.set()
        assert tried.wait(10)
        job = a.replica.job
        assert job is not None
        assert job.ended.wait(10)
        assert a.is_off()


def test_log_is_obeyed_though_the_peer_leaves_for_a_while(tmp_path: Path) -> None:
    with hosts(tmp_path, "a") as [a], FakeTarget("b") as target:
        towards(a, target, autosync=True)
        assert a.sync("full").state == DONE
        source, tries = a.source, a.replicas._autosyncs[a.spec.set_id]

        def leaves_first() -> None:
            # The peer's engine stops between the command and the end of the link.
            target.wires[0].control(b'{"type":"leaving","reason":"stop","for_good":false}')
            wait_for(lambda: source._leaving, what="its message")

        a.replicas._autosyncs[a.spec.set_id] = once_before(tries, "end", leaves_first)
        a.log()
        assert source._leaving is not None
        assert not source._leaving.for_good
        assert a.is_off()
        assert not a.journal.is_following(a.spec.set_id)
        assert not tries._runs


def test_log_is_obeyed_though_a_job_ends_well_and_its_link_at_once(tmp_path: Path) -> None:
    with hosts(tmp_path, "a") as [a], FakeTarget("b") as target:
        towards(a, target, autosync=True)
        tries = a.replicas._autosyncs[a.spec.set_id]

        def joins_and_parts() -> None:
            # All between the command's first step and its turn on the set.
            assert a.sync("full").state == DONE
            target.cut()
            wait_for(lambda: tries._wanted, what="autosync to begin")

        monkey = once_before(tries, "end", joins_and_parts)
        a.replicas._autosyncs[a.spec.set_id] = monkey
        leave = in_thread(a.log)
        assert ends(leave)
        assert a.is_off()
        assert not a.journal.is_following(a.spec.set_id)
        assert not tries._wanted


# ---- enable and disable that fail --------------------------------------------------------------


class Impatient(VolumeStack):
    """Gives requests in flight less time than a user would."""

    def set_top(self, top: Any, timeout_s: float = 0.2) -> None:
        super().set_top(top, timeout_s)


def test_disable_that_timed_out_can_be_repeated(tmp_path: Path) -> None:
    with hosts(tmp_path, "a", holds=True) as [a]:
        volume = a.open_volume()
        volume.stack = Impatient(volume.file)
        bitmap = a.folder / "bitmap"
        bitmap.write_bytes(bytes(64 * KIB))
        spec = ReplicaSpec(
            uuid.uuid4().hex, "pair", "primary", "sync", "data", bitmap, 4 * MIB, 32 * KIB, "b",
            "data", "127.0.0.1:1",
        )  # fmt: skip
        a.replicas.enable(spec, "dirty", None)
        a.fault.hold()
        writer = in_thread(lambda: volume.stack.pwrite(0, b"x" * 4 * KIB))
        wait_for(lambda: a.fault.held, what="a write in flight")
        for _ in range(2):
            with pytest.raises(TimeoutError):
                a.replicas.disable(spec.set_id)
            assert a.replicas.get(spec.set_id).state == states.LOGGING
            assert volume.sets == {spec.set_id}
        a.fault.release()
        assert ends(writer)
        a.replicas.disable(spec.set_id)
        assert volume.stack.top is volume.file
        assert volume.sets == set()
        assert a.journal.side(spec.set_id) is None
        with pytest.raises(SetNotEnabled):
            a.replicas.get(spec.set_id)


@pytest.mark.parametrize("why", ["bitmap volume", "journal"])
def test_enable_that_fails_leaves_nothing_engaged(tmp_path: Path, why: str) -> None:
    with hosts(tmp_path, "a") as [a]:
        volume = a.open_volume()
        bitmap = a.folder / "bitmap"
        bitmap.write_bytes(bytes(64 * KIB))
        spec = ReplicaSpec(
            uuid.uuid4().hex, "pair", "primary", "sync", "data", bitmap, 4 * MIB, 32 * KIB, "b",
            "data", "127.0.0.1:1",
        )  # fmt: skip
        for _ in range(2):  # the same answer twice: nothing of the first try is left
            if why == "journal":
                with full_journal(a, "sides"), pytest.raises(sqlite3.Error, match="full"):
                    a.replicas.enable(spec, "dirty", None)
            else:
                with pytest.raises(UnknownVolume):
                    a.replicas.enable(spec, "dirty", "nowhere")
            assert volume.stack.top is volume.file
            assert volume.sets == set()
            assert a.replicas.all() == []
        a.replicas.enable(spec, "dirty", None)
        assert volume.stack.top is not volume.file
        a.replicas.disable(spec.set_id)
        assert volume.stack.top is volume.file
