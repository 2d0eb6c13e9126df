"""Managers, broker and Redis killed under an application: it writes on, the replica is right."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from console.supervisor_process import Process
from tests.e2e.conftest import Federation, Pair
from tests.e2e.seat import Seat, sha256, wait_for
from tests.faults.nbd_writer import NbdWriter, check_acknowledged

SIZE_BYTES = 16 << 20
WRITES_AFTER_THE_KILL = 500
LONGEST_PAUSE_S = 2.0


@pytest.fixture
def replicating(seat: Seat, pair: Pair) -> Iterator[Pair]:
    seat.trellis("replica", "create", pair.name, *pair.sides).json()
    assert seat.trellis("replica", "sync", pair.name).json()["state"] == "replicating"
    yield pair
    seat.trellis("replica", "delete", pair.name, "--yes").json()


def children(pid: int) -> list[int]:
    """Return the processes whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return sorted(found)


def victims(seat: Seat, what: str) -> list[Process]:
    """Return the processes to kill: one child of the supervisor, or every worker of a host."""
    if what != "workers":
        return [seat.child(what)]
    pids = children(seat.child("beans-host_a").pid) + children(seat.child("beans-host_b").pid)
    assert len(pids) >= 8, "a worker for each bean of both hosts"
    return [Process(pid, 0) for pid in pids]


@pytest.mark.parametrize("what", ["rabbitmq", "redis", "workers", "beans-host_a", "notifier"])
def test_writes_go_on_and_the_replica_is_right(
    federation: Federation, replicating: Pair, what: str
) -> None:
    seat = federation.seat
    uri = seat.trellis("volume", "show", replicating.volume_a).json()["uri"]
    writer = NbdWriter(uri, SIZE_BYTES, seed=5)
    writer.start()
    assert writer.first_write.wait(10)
    for victim in victims(seat, what):
        os.kill(victim.pid, signal.SIGKILL)
    killed_at = time.monotonic()
    before = writer.writes
    wait_for("writes after the kill", lambda: writer.writes >= before + WRITES_AFTER_THE_KILL)
    assert time.monotonic() - killed_at < LONGEST_PAUSE_S + WRITES_AFTER_THE_KILL / 200
    # The managers come back by themselves and find the set as it was.
    shown = wait_for("an answer", lambda: _shown(seat, replicating.name))
    assert (shown["state"], shown["flags"]) == ("replicating", [])
    writer.stop()
    check_acknowledged(replicating.path_a.read_bytes(), [writer])
    assert sha256(replicating.path_a) == sha256(replicating.path_b)


def _shown(seat: Seat, name: str) -> dict[str, object] | None:
    said = seat.trellis("replica", "show", name)
    if said.status != 0 or said.json()["unreachable"]:
        return None
    found: dict[str, object] = said.json()
    return found
