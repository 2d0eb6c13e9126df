"""The disk of a journal is full at its n-th change, for once or from then on until room is made.

A set lives through every change of state meanwhile. Nothing hangs, no side says that it replicates
without a link, each difference has its bit, also after a restart, and with room in the journal the
set works again. `TEST_FAULT_STRIDE` (default 4, soak 1): of about twice so many changes of rows
one is made to fail; of 1, each.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from facade.engine import replica_source, states
from tests.engine.harness import new_secret, wait_for
from tests.engine.hosts_inside import EngineInside, full_journal
from tests.faults.faulty_hosts import FaultyHost, Life

STRIDE = 2 * int(os.environ.get("TEST_FAULT_STRIDE", "4")) - 1
CHANGES_MAX = 1000


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_source, "SETTLE_IDLE_S", 0.01)
    monkeypatch.setattr(replica_source, "CANCEL_GRACE_S", 0.2)


class FullDisk:
    """SQLite's own transactions fail and are rolled back, from a change of a row on."""

    def __init__(self, host: FaultyHost, skip: int, lasts: bool) -> None:
        self.skip, self.lasts = skip, lasts
        self.seen = self.hits = 0
        self.has_room = False
        database = host.journal._db
        database.create_function("take_room", 0, self._take_room)
        for table in ("meta", "sides", "events", "jobs"):
            for change in ("INSERT", "UPDATE", "DELETE"):
                database.execute(
                    f"CREATE TEMP TRIGGER full_{table}_{change} BEFORE {change} ON main.{table}"
                    " BEGIN SELECT take_room(); END"
                )

    def _take_room(self) -> None:
        self.seen += 1
        if self.seen > self.skip and not self.has_room:
            self.has_room = not self.lasts
            self.hits += 1
            raise sqlite3.OperationalError("database or disk is full")

    def make_room(self) -> None:
        self.has_room = True


class JournalLife(Life):
    """Every change of state, on a host whose journal may be full."""

    disk: FullDisk

    def live(self) -> None:
        self.enable()
        self.write_all()
        self.sync("full")
        self.write_all()
        self.leave(self.a)
        self.write_all()
        self.sync("update")
        self.write_all()
        self.leave(self.b)
        self.write_all()
        self.sync("update")
        self.write_all()

    def enable(self) -> None:
        for host, role, peer in ((self.b, "secondary", "a"), (self.a, "primary", "b")):
            if not self.tell("enable", lambda h=host, r=role, p=peer: h.engage(self.set_id, r, p)):
                assert host.volume.sets == set()
                assert host.volume.stack.top is host.volume.file
                self.disk.make_room()
                host.engage(self.set_id, role, peer)

    def leave(self, host: FaultyHost) -> None:
        wait_for(lambda: self.a.replica.changes.active_writes == 0, what="no write in flight")
        if self.tell(f"log {host.name}", lambda: host.replicas.log(self.set_id)):
            for side in (self.a, self.b):
                wait_for(side.is_off, what=f"{side.name} without a link")

    def check_states(self) -> None:
        for side in (self.a, self.b):
            wait_for(
                lambda s=side: (
                    s.state == states.LOGGING
                    or (s.state == states.REPLICATING and s.replica.connected)
                ),
                what=f"{side.name} is logging, or replicates over a link",
            )
        self.check()

    def disable(self) -> None:
        """With no room it may fail, but leaves no set that is there and tracks nothing."""
        for host in (self.a, self.b):
            self.tell("disable", lambda h=host: h.replicas.disable(self.set_id))
            assert bool(host.replicas.all()) == (host.volume.stack.top is not host.volume.file)
        self.disk.make_room()
        for host, role, peer in ((self.b, "secondary", "a"), (self.a, "primary", "b")):
            host.replicas.disable(self.set_id)
            assert not host.replicas.all()
            assert not host.volume.sets
            host.engage(self.set_id, role, peer)

    def stop_and_start(self) -> None:
        for host in (self.a, self.b):
            top = host.volume.stack
            assert host.stop()
            assert top.top is host.volume.file
        self.restart()
        self.check_states()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("end", ["disable", "restart"])
@pytest.mark.parametrize("lasts", [False, True], ids=["once", "lasts"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_full_journal(tmp_path: Path, name: str, lasts: bool, end: str) -> None:
    for n in count(random.randrange(STRIDE), STRIDE):
        assert n < CHANGES_MAX
        home = tmp_path / str(n)
        home.mkdir()
        with ExitStack() as stack:
            life = JournalLife(home, stack)
            life.disk = FullDisk({"a": life.a, "b": life.b}[name], n, lasts)
            life.live()
            life.check_states()
            if end == "disable":
                life.disable()
            else:
                life.stop_and_start()
            print(f"{name} {n}: {life.told}")
            if life.disk.hits == 0:
                return
            life.disk.make_room()
            life.recover()


# ---- one change of state each ------------------------------------------------------------------


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    """A set that replicates."""
    with ExitStack() as stack:
        life = Life(tmp_path, stack)
        life.enable()
        life.sync("full")
        assert life.told == []
        yield life


def test_peer_that_leaves_is_no_peer_though_the_journal_is_full(life: Life) -> None:
    with full_journal(life.a, "meta"):
        life.b.replicas.log(life.set_id)
        wait_for(life.a.is_off, what="a without a link")
    life.write_all()
    assert life.a.replica.changes.dirty_blocks > 0
    life.recover()


def test_set_that_is_off_with_a_full_journal_is_not_enabled(life: Life) -> None:
    with full_journal(life.a, "events"), pytest.raises(sqlite3.Error, match="full"):
        life.a.replicas.disable(life.set_id)
    assert life.a.replicas.all() == []
    assert life.a.volume.sets == set()
    life.a.volumes.get("bits").stack.pwrite(0, b"free")
    wait_for(life.b.is_off, what="b without a link")
    life.write_all()  # seen by no set
    life.a.engage(life.set_id, "primary", "b")
    life.recover()


def test_side_is_let_go_at_the_stop_though_the_journal_is_full(life: Life) -> None:
    changes = life.a.replica.changes
    with full_journal(life.a, "meta"):
        life.a.replicas.close()
    with pytest.raises(OSError, match="shut"):
        changes.mark(0, 0)


def test_engine_stops_though_the_journal_is_full(tmp_path: Path) -> None:
    inside = EngineInside(tmp_path, "a", new_secret())
    try:
        inside.start()
        engine = inside.engine
        assert engine is not None
        with sqlite3.connect(inside.settings.host.journal_path) as database:
            database.execute(
                "CREATE TRIGGER full BEFORE INSERT ON meta"
                " BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
            )
        inside.stop()
        assert engine._stopped.is_set()
        with sqlite3.connect(inside.settings.host.journal_path) as database:
            database.execute("DROP TRIGGER full")
        database.close()
        inside.start()
        assert "engine_recovered" in inside.events()
    finally:
        inside.dispose()
