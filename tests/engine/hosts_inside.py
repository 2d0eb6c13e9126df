"""Hosts and peers inside the test's own process: the real volumes, journal, link and threads.

A `Host` is what an engine is without its sockets for clients and commands, so a test can put a
fault at any place in it. Peers that are none of our engines are in fake_peers.py.
"""

from __future__ import annotations

import sqlite3
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import facade.replication_events
import facade.volume_events  # noqa: F401  # both register the events that the engine makes
from facade.bitmap_size import bitmap_bytes
from facade.engine import states
from facade.engine.engine import Engine
from facade.engine.fault_volume import FaultVolume
from facade.engine.job import Job
from facade.engine.journal import Journal
from facade.engine.link_connection import Identity
from facade.engine.link_server import LinkServer
from facade.engine.open_volumes import OpenVolume, OpenVolumes
from facade.engine.replica import Replica
from facade.engine.replica_source import Source, SyncRequest
from facade.engine.replica_spec import ReplicaSpec
from facade.engine.replicas import Replicas
from tests.engine.harness import BLOCK_BYTES, MIB, EngineProcess, free_port, wait_for

SECRET = "s" * 32
SIZE_BYTES = 4 * MIB
JOB_TIMEOUT_S = 20.0


def identity(host: str) -> Identity:
    return Identity(host, SECRET, plain=False)


class Host:
    """One host with one volume `data` of one set. `fault` lies between the volume and its file."""

    def __init__(self, folder: Path, name: str, holds: bool = False) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir(exist_ok=True)
        self._sockets = tempfile.TemporaryDirectory(prefix="tr-")
        self._holds = holds
        self.journal = Journal(self.folder / "journal.db", name)
        self.volumes = OpenVolumes(Path(self._sockets.name), name)
        self.replicas = Replicas(self.volumes, self.journal, identity(name))
        self.address = f"127.0.0.1:{free_port()}"
        self.link = LinkServer(self.address, identity(name), self.replicas.serve)
        self.link.start()

    def add(
        self,
        set_id: str,
        role: str,
        peer: str,
        peer_link: str,
        size_bytes: int = SIZE_BYTES,
        autosync: bool = False,
    ) -> ReplicaSpec:
        """Make the volume and engage its side of the set."""
        self.open_volume(size_bytes)
        bitmap = self.folder / "bitmap"
        with bitmap.open("wb") as file:
            file.truncate(bitmap_bytes(size_bytes, BLOCK_BYTES))
        self.spec = ReplicaSpec(
            set_id, "pair", role, "sync", "data", bitmap, size_bytes, BLOCK_BYTES, peer, "data",
            peer_link, autosync,
        )  # fmt: skip
        self.replicas.enable(self.spec, "dirty", None)
        return self.spec

    def open_volume(self, size_bytes: int = SIZE_BYTES) -> OpenVolume:
        path = self.folder / "data"
        with path.open("wb") as file:
            file.truncate(size_bytes)
        self.volume = self.volumes.open("data", path, serve=False)
        self.file = self.volume.file
        self.fault = FaultVolume(self.file, is_async=self._holds)
        self.volume.file = self.fault
        self.volume.stack.set_top(self.fault)
        return self.volume

    @property
    def replica(self) -> Replica:
        return self.replicas.get(self.spec.set_id)

    @property
    def source(self) -> Source:
        return self.replicas._sources[self.spec.set_id]

    @property
    def state(self) -> str:
        return self.replica.state

    def is_off(self) -> bool:
        """Tell whether the side is logging with nothing of a link left."""
        replica = self.replica
        return replica.state == states.LOGGING and not (
            replica.connected or replica.layer.is_sending or replica.layer.is_target
        )

    def start_sync(self, kind: str = "update", keep: str | None = None) -> Job:
        return self.replicas.sync(
            self.spec.set_id, SyncRequest(kind, keep, self.replica.spec.peer_link)
        )

    def sync(self, kind: str = "update", keep: str | None = None) -> Job:
        """Synchronise and return the job, which has ended."""
        job = self.start_sync(kind, keep)
        assert job.ended.wait(JOB_TIMEOUT_S), "the job does not end"
        return job

    def log(self) -> None:
        self.replicas.log(self.spec.set_id)

    def write(self, offset: int, data: bytes) -> None:
        """Write as an application."""
        self.volume.stack.pwrite(offset, data)

    def events(self) -> list[str]:
        return [event["name"] for _, event in self.journal.events_after(0, 1000)]

    def close(self) -> None:
        self.link.stop()
        self.replicas.close()
        self.volumes.close_all()
        self.fault.close()
        self.file.close()
        self.journal.close()
        self._sockets.cleanup()


@contextmanager
def hosts(folder: Path, *names: str, holds: bool = False) -> Iterator[list[Host]]:
    """Hosts that are closed at the end. With `holds` their `fault` can keep requests pending."""
    with ExitStack() as stack:
        made = []
        for name in names:
            host = Host(folder, name, holds)
            stack.callback(host.close)
            made.append(host)
        yield made


def pair_up(a: Host, b: Host, size_bytes: int = SIZE_BYTES, autosync: bool = False) -> None:
    """Make `a` the primary and `b` the secondary of one set."""
    set_id = uuid.uuid4().hex
    b.add(set_id, "secondary", a.name, a.address, size_bytes)
    a.add(set_id, "primary", b.name, b.address, size_bytes, autosync)


def assert_equal(a: Host, b: Host) -> None:
    size_bytes = a.spec.size_bytes
    assert a.file.pread(0, size_bytes) == b.file.pread(0, size_bytes)


@contextmanager
def full_journal(host: Host, table: str) -> Iterator[None]:
    """Let every insertion into a table of the host's journal fail, as a full disk does."""
    with sqlite3.connect(host.folder / "journal.db") as database:
        database.execute(
            f"CREATE TRIGGER full BEFORE INSERT ON {table}"
            " BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
        )
        database.commit()
        try:
            yield
        finally:
            database.execute("DROP TRIGGER full")
            database.commit()
    database.close()


class Before:
    """Stands for an object and calls `hook` before one of its methods."""

    def __init__(self, real: Any, method: str, hook: Callable[[], object]) -> None:
        self._real, self._method, self._hook = real, method, hook

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            self._hook()
        return getattr(self._real, name)


def once_before(real: Any, method: str, hook: Callable[[], object]) -> Any:
    """Return a stand-in for `real` that calls `hook` before the first call of a method."""
    hooks = [hook]
    return Before(real, method, lambda: hooks.pop()() if hooks else None)


class EngineInside(EngineProcess):
    """The harness's engine, in this process: a test can look at and reach into each part of it."""

    engine: Engine | None = None

    def start(self, **environ: str) -> EngineInside:
        assert not environ, "there is no environment of its own"
        self.engine = Engine(self.settings)
        self.engine.start()
        return self

    def stop(self) -> int:
        engine, self.engine = self.engine, None
        assert engine is not None
        engine.stop()
        return 0

    def dispose(self) -> None:
        if self.engine is not None:
            self.stop()
        super().dispose()


def in_thread(body: Callable[[], object], name: str = "test") -> threading.Thread:
    """Start a thread that pytest does not wait for."""
    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    return thread


def ends(thread: threading.Thread, timeout_s: float = 10.0) -> bool:
    """Wait for a thread's end; False when it goes on."""
    thread.join(timeout_s)
    return not thread.is_alive()


def wait_off(*sides: Host) -> None:
    """Wait until sides are logging with nothing of a link left."""
    for side in sides:
        wait_for(side.is_off, what=f"{side.name} without a link")
