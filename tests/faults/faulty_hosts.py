"""A set of two hosts whose backings fail when that is ordered, and the life that it lives."""

from __future__ import annotations

import random
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from facade.bitmap_size import bitmap_bytes
from facade.contract.errors import TrellisError
from facade.engine.fault_volume import FaultVolume
from facade.engine.file_volume import FileVolume
from facade.engine.job import DONE
from facade.engine.replica_source import SyncRequest
from facade.engine.replica_spec import ReplicaSpec
from tests.engine.harness import KIB, wait_for
from tests.engine.hosts_inside import JOB_TIMEOUT_S, Host

SIZE_BYTES = 1 << 20
BLOCK_BYTES = 32 * KIB
PIECE = 4 * KIB


class FaultyHost(Host):
    """A host with a fault layer over volume and bitmap. `keeps`: as the last one left them."""

    def __init__(self, folder: Path, name: str, keeps: bool = False) -> None:
        super().__init__(folder, name)
        self.keeps, self.is_stopped = keeps, False
        self.files: list[FileVolume] = []
        self.layers = {
            "data": self._open("data", SIZE_BYTES),
            "bits": self._open("bits", bitmap_bytes(SIZE_BYTES, BLOCK_BYTES)),
        }
        self.volume = self.volumes.get("data")

    def _open(self, name: str, size_bytes: int) -> FaultVolume:
        if not self.keeps:
            with (self.folder / name).open("wb") as file:
                file.truncate(size_bytes)
        opened = self.volumes.open(name, self.folder / name, serve=False)
        self.files.append(opened.image)
        layer = FaultVolume(opened.file)
        opened.file = layer
        opened.stack.set_top(layer)
        return layer

    def engage(self, set_id: str, role: str, peer: str) -> None:
        self.spec = ReplicaSpec(
            set_id, "pair", role, "sync", "data", self.folder / "bits", SIZE_BYTES, BLOCK_BYTES,
            peer, "data", "127.0.0.1:1",
        )  # fmt: skip
        self.replicas.enable(self.spec, "dirty", "bits")

    def stop(self) -> bool:
        """End as an engine does; tells whether every volume was flushed and closed."""
        self.is_stopped = True
        self.link.stop()
        self.replicas.close()
        closed = self.volumes.close_all()
        self.journal.close()
        self._sockets.cleanup()
        return closed

    def resume(self, folder: Path) -> FaultyHost:
        """Return what starts where this one has stopped, its side taken up again."""
        host = FaultyHost(folder, self.name, keeps=True)
        host.spec = self.spec
        host.replicas.enable(self.spec, "resume", "bits")
        return host

    def close(self) -> None:
        if self.is_stopped:
            return
        self.is_stopped = True
        self.link.stop()
        self.replicas.close()
        for opened in self.volumes.all():
            opened.stack.close()
        for file in self.files:
            file.close()
        self.journal.close()
        self._sockets.cleanup()


class Life:
    """One life of a set; every step says whether it was told of a fault."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.a, self.b = FaultyHost(folder, "a"), FaultyHost(folder, "b")
        stack.callback(self.a.close)
        stack.callback(self.b.close)
        self.set_id = uuid.uuid4().hex
        self.dice = random.Random(1)
        self.must_be: dict[int, bytes] = {}  # piece: content of the last acknowledged write
        self.may_be: dict[int, list[bytes]] = {}  # and of those that failed since
        self.told: list[str] = []

    def live(self) -> None:
        self.enable()
        self.write_all()
        self.sync("full")
        self.write_all()
        wait_for(lambda: self.a.replica.changes.active_writes == 0, what="no write in flight")
        self.log()
        self.write_all()
        self.sync("update")
        self.write_all()
        self.log()

    def tell(self, step: str, body: Callable[[], object]) -> bool:
        try:
            body()
        except (OSError, TrellisError, sqlite3.Error) as error:
            self.told.append(f"{step}: {error}")
            return False
        return True

    def enable(self) -> None:
        # One that fails engages nothing, and can be asked for again.
        for host, role, peer in ((self.b, "secondary", "a"), (self.a, "primary", "b")):
            if not self.tell("enable", lambda h=host, r=role, p=peer: h.engage(self.set_id, r, p)):
                assert host.volume.sets == set()
                host.engage(self.set_id, role, peer)

    def write_all(self) -> None:
        stack = self.a.volume.stack
        for kind in ("write", "fua", "zero", "trim", "flush", "write", "write"):
            piece = self.dice.randrange(SIZE_BYTES // PIECE)
            at, data = piece * PIECE, self.dice.randbytes(PIECE)
            if kind in ("zero", "trim"):
                data = bytes(PIECE)
            body: Callable[[], object] = stack.flush
            if kind in ("write", "fua"):
                body = lambda: stack.pwrite(at, data, fua=kind == "fua")  # noqa: B023, E731
            elif kind != "flush":
                body = lambda: getattr(stack, kind)(at, PIECE)  # noqa: B023, E731
            done = self.tell(kind, body)
            if kind == "flush":
                continue
            if done:
                self.must_be[piece] = data
                self.may_be.pop(piece, None)
            else:
                self.may_be.setdefault(piece, []).append(data)

    def sync(self, kind: str) -> None:
        request = SyncRequest(kind, "primary", self.b.address)

        def body() -> None:
            job = self.a.replicas.sync(self.set_id, request)
            assert job.ended.wait(JOB_TIMEOUT_S), "the job does not end"
            if job.state != DONE:
                self.told.append(f"{kind}: {job.to_wire()['error']}")

        self.tell(kind, body)

    def log(self) -> None:
        self.tell("log", lambda: self.a.replicas.log(self.set_id))
        for host in (self.a, self.b):
            wait_for(host.is_off, what=f"{host.name} without a link")

    def image(self, host: FaultyHost) -> bytes:
        return host.files[0].pread(0, SIZE_BYTES)

    def check(self) -> None:
        image = self.image(self.a)
        for piece in self.must_be | self.may_be:
            found = image[piece * PIECE : (piece + 1) * PIECE]
            allowed = [self.must_be.get(piece, bytes(PIECE)), *self.may_be.get(piece, [])]
            assert found in allowed, f"piece {piece}: an acknowledged write is lost"
        other = self.image(self.b)
        bits = {
            first + i
            for host in (self.a, self.b)
            for first, run in host.replica.changes.runs()
            for i in range(run)
        }
        for block in range(SIZE_BYTES // BLOCK_BYTES):
            at = block * BLOCK_BYTES
            if image[at : at + BLOCK_BYTES] != other[at : at + BLOCK_BYTES]:
                assert block in bits, f"block {block} differs and has no bit"

    def restart(self) -> None:
        """Both hosts start again, after their stop."""
        self.a, self.b = self.a.resume(self.folder), self.b.resume(self.folder)
        self.stack.callback(self.a.close)
        self.stack.callback(self.b.close)

    def events(self) -> set[str]:
        return {*self.a.events(), *self.b.events()}

    def recover(self) -> None:
        """The engine is alive: a set of failed parts can be made anew, and becomes equal."""
        flags = self.a.replica.flags | self.b.replica.flags
        if flags & {"bitmap_failed", "volume_failed"} or any(
            h.replica.changes.failed_errno for h in (self.a, self.b)
        ):
            for host in (self.a, self.b):
                host.replicas.disable(self.set_id)
            self.b.engage(self.set_id, "secondary", "a")
            self.a.engage(self.set_id, "primary", "b")
        told = len(self.told)
        self.sync("update")
        assert self.told[told:] == []
        self.a.volume.stack.flush()
        assert self.image(self.a) == self.image(self.b)
