"""The source of a set: the primary's side of the link, from the first message to the last.

A Source lives as long as one link: it synchronises, then keeps the secondary equal until the link
ends. Its threads: the job's (dial, copy), the sender, the receiver, and the settler, which clears
bits of blocks that both sides have flushed.

Whether the link lives and what the state is are one fact: both change under `replica.lock`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from facade.contract.errors import TrellisError
from facade.engine import states
from facade.engine.control_errors import EngineFault
from facade.engine.copier import Copier
from facade.engine.job import CANCELLED, DONE, FAILED, RUNNING, Job
from facade.engine.link_connection import DIGEST_KIND, Identity, LinkConnection, dial, parse_message
from facade.engine.link_errors import LinkBroken, PeerNotReady
from facade.engine.link_sender import LinkSender
from facade.engine.replica import Replica

log = logging.getLogger("trellis.source")

LINK_TIMEOUT_S: Final = 8.0  # what is sent and not acknowledged for so long: the link is lost
KEEPALIVE_S: Final = 2.0
COPY_STEP_BYTES: Final = 4 << 20  # the copier looks for a cancel between steps
SETTLE_TIMEOUT_S: Final = 60.0
SETTLE_IDLE_S: Final = 0.25  # without writes for so long, bits are cleared at once
SETTLE_BUSY_S: Final = 5.0  # under load, bits are cleared this often
ANSWER_TIMEOUT_S: Final = 30.0
LEAVE_TIMEOUT_S: Final = 3.0  # how long the other side may take to note that the link ends
CANCEL_GRACE_S: Final = 2.0  # for the job to end by itself before its link is cut
JOIN_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class SyncRequest:
    """What a synchronisation is to do: `full` or `update`; `keep`: whose writes win."""

    kind: str
    keep: str | None
    peer_link: str
    quiet: bool = False  # a failure makes no event: it is one of many tries


@dataclass(frozen=True)
class Leaving:
    """Why a side ends the link on purpose; `for_good`: nothing is tried again by itself."""

    reason: str
    for_good: bool


class SyncCancelled(Exception):
    """The job was cancelled: not an error of anyone."""


class Source:
    """One link of a primary to its secondary."""

    def __init__(
        self, replica: Replica, job: Job, who: Identity, on_lost: Callable[[], None]
    ) -> None:
        """Prepare; `run` does the work. `on_lost`: the link ended and is wanted back."""
        self.replica = replica
        self.job = job
        self.who = who
        self.on_lost = on_lost
        self.sender: LinkSender | None = None
        self._connection: LinkConnection | None = None
        self._digest_seed: bytes | None = None  # when the other side compares by digests
        self._threads: list[threading.Thread] = []
        self._answer: dict[str, Any] = {}
        self._answered = threading.Event()
        self._ended = threading.Event()  # set under replica.lock
        self._leaving: Leaving | None = None  # this side's or the other's, whoever was first

    # ---- the job ----------------------------------------------------------------------------

    def run(self, request: SyncRequest) -> None:
        """Body of the job's thread: never raises, the job says how it ended."""
        job = self.job
        try:
            self._synchronise(request)
        except SyncCancelled:
            self._fail(request, CANCELLED, None, "it was cancelled")
        except TrellisError as error:
            self._fail(request, FAILED, error, str(error))
        except OSError as error:
            reason = self._leaving.reason if self._leaving else error.strerror or str(error)
            broken = LinkBroken(peer=self.replica.spec.peer_host, reason=reason)
            self._fail(request, FAILED, broken, reason)
        except Exception as error:
            log.exception("job %s of %s", job.job_id, self.replica.spec.name)
            fault = EngineFault(reason=f"{type(error).__name__}: {error}")
            self._fail(request, FAILED, fault, str(fault))

    def _synchronise(self, request: SyncRequest) -> None:
        replica, job = self.replica, self.job
        connection = self._attach(request)
        self._check_cancel()
        self._take_map(connection, request)
        replica.change("sync", "state_syncing")
        connection.send("start")
        connection.expect("started")
        sender = self._start_sending(connection)
        replica.layer.attach(sender)
        job.total_bytes = replica.changes.plan_copy() * replica.spec.block_bytes
        replica.record("sync_started", kind=request.kind, total_bytes=job.total_bytes)
        # Writes that began before the sender was attached end before their blocks are read.
        if not replica.layer.wait_epoch(SETTLE_TIMEOUT_S):
            raise TimeoutError("writes in flight do not end")
        self._copy()
        if replica.layer.settle(SETTLE_TIMEOUT_S) is None:
            raise self._link_error()
        self._ask("synced", ANSWER_TIMEOUT_S)
        replica.changes.sync()
        job.sent_bytes = self._link_bytes()
        with replica.lock:
            if self._ended.is_set():
                raise self._link_error()
            replica.change("synced", "state_replicating")
            replica.journal.set_following(replica.spec.set_id, True)
        replica.record("sync_finished", kind=request.kind, sent_bytes=job.sent_bytes)
        replica.last_error = None
        self._start(self._settle_loop, "settler")
        self._finish(DONE, None)

    def _attach(self, request: SyncRequest) -> LinkConnection:
        spec = self.replica.spec
        connection = dial(request.peer_link, self.who, spec.peer_host, spec.set_id)
        self._connection = connection
        connection.send(
            "attach",
            name=spec.name,
            kind=request.kind,
            keep=request.keep,
            size_bytes=self.replica.changes.size_bytes,
            block_bytes=spec.block_bytes,
            digests=DIGEST_KIND if request.kind == "update" else None,
        )
        answer = connection.expect("attached")
        if request.kind == "update" and answer.get("digests") == DIGEST_KIND:
            self._digest_seed = connection.digest_seed
        if answer.get("map_bytes") != self.replica.changes.map_bytes:
            raise PeerNotReady(host=spec.peer_host, name=spec.name, reason="its bitmap differs")
        return connection

    def _take_map(self, connection: LinkConnection, request: SyncRequest) -> None:
        # Durable here before the target clears its own: no block is in neither map.
        changes = self.replica.changes
        last, offset = False, 0
        while not last:
            at, piece, last = connection.expect_map_piece()
            if at != offset or not piece or at + len(piece) > changes.map_bytes:
                raise LinkBroken(peer=connection.peer, reason="its bitmap comes out of order")
            changes.merge(at, piece)
            offset += len(piece)
        if request.kind == "full":
            changes.fill()
        changes.sync()

    def _start_sending(self, connection: LinkConnection) -> LinkSender:
        connection.set_timeout(LINK_TIMEOUT_S)
        sender = LinkSender(connection.fileno(), self.replica.changes, LINK_TIMEOUT_S, KEEPALIVE_S)
        self.sender = sender
        self.replica.connected = True
        self._start(sender.run_sender, "sender")
        self._start(lambda: self._receive(sender), "receiver")
        return sender

    def _start(self, body: Any, name: str) -> None:
        thread = threading.Thread(target=body, name=f"{name}:{self.replica.spec.name}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _copy(self) -> None:
        job, done_bytes = self.job, 0
        copier = Copier(self.replica.layer, self._digest_seed)
        while True:
            self._check_cancel()
            try:
                step_bytes = copier.copy(COPY_STEP_BYTES)
            except OSError as error:
                raise self._link_error() from error
            if step_bytes == 0:
                return
            done_bytes += step_bytes
            job.sent_bytes = self._link_bytes()
            job.advance(min(done_bytes, job.total_bytes))

    def _check_cancel(self) -> None:
        if self.job.cancelled.is_set():
            raise SyncCancelled

    def _link_bytes(self) -> int:
        """Every byte of this link so far, both ways."""
        return sum(
            end.sent_bytes + end.received_bytes
            for end in (self._connection, self.sender)
            if end is not None
        )

    def _ask(self, kind: str, timeout_s: float, **fields: Any) -> None:
        """Send a control message in its place in the order and wait for the answer."""
        assert self.sender is not None
        self._answered.clear()
        self.sender.send_control(json.dumps({"type": kind, **fields}).encode())
        if not self._answered.wait(timeout_s) or self._ended.is_set():
            raise self._link_error()

    def _fail(
        self, request: SyncRequest, state: str, error: TrellisError | None, reason: str
    ) -> None:
        replica = self.replica
        try:
            self.stop(Leaving(reason, for_good=False))
            with replica.lock:
                if replica.state != states.LOGGING:
                    replica.change("log" if state == CANCELLED else "failed", None)
            if state == CANCELLED:
                replica.record("sync_cancelled", kind=request.kind)
            elif not request.quiet:
                replica.record("sync_failed", kind=request.kind, reason=reason)
        except Exception:
            log.exception("end of job %s of %s", self.job.job_id, replica.spec.name)
        finally:
            self._finish(state, error)

    def _finish(self, state: str, error: TrellisError | None) -> None:
        """End the job, on record where that works; last of all, since others wait for it."""
        job, replica = self.job, self.replica
        if error is not None:
            replica.last_error = {"code": error.code, "message": str(error)}
        job.finish(state, error)
        try:
            replica.journal.put_job(job.to_wire())
        except Exception:
            log.exception("job %s of %s is not on record", job.job_id, replica.spec.name)

    # ---- the link's life ----------------------------------------------------------------------

    def _receive(self, sender: LinkSender) -> None:
        """Body of the receiver thread; the link has ended when it returns."""
        try:
            sender.run_receiver(self._control_arrived)
        except Exception:
            log.exception("%s: the link ends", self.replica.spec.name)
        finally:
            sender.stop()
            self._link_ended()

    def _control_arrived(self, payload: bytes) -> None:
        message = parse_message(payload)
        if message.get("type") == "leaving":
            reason = str(message.get("reason") or "the other side left")
            self._leaving = self._leaving or Leaving(reason, bool(message.get("for_good")))
            return
        self._answer = message
        self._answered.set()

    def _link_ended(self) -> None:
        """Note the end, once, and where the set was replicating say what it is now."""
        replica = self.replica
        try:
            with replica.lock:
                if self._ended.is_set():
                    return  # stop() waited no longer: the state may be another link's by now
                self._ended.set()
                self._answered.set()
                self._release()
                if replica.state != states.REPLICATING:
                    return  # the job's own thread tells how it ended
                self._tell_end()
        except Exception:
            log.exception("end of the link of %s", replica.spec.name)
        if self._leaving is None or not self._leaving.for_good:
            self.on_lost()

    def _release(self) -> None:
        """Under replica.lock: take the sender off, if it is still the one that is on."""
        replica = self.replica
        if replica.layer.detach(self.sender):
            replica.changes.drop_copy()
            replica.connected = False

    def _tell_end(self) -> None:
        replica, leaving = self.replica, self._leaving
        failed = replica.layer.failed_errno
        if leaving is not None:
            try:
                if leaving.for_good:
                    replica.journal.set_following(replica.spec.set_id, False)
            finally:
                # Whatever is on record: no side passes for one that replicates without a link.
                replica.change("log", "state_logging", reason=leaving.reason)
        elif failed and self.sender is not None and self.sender.dead_errno == failed:
            reason = os.strerror(failed)
            volume = replica.spec.volume
            replica.change("failed", "volume_failed", volume=volume, reason=reason)
        else:
            replica.change("link_lost", "link_lost", reason=str(self._link_error().strerror))

    def _link_error(self) -> OSError:
        number = self.sender.dead_errno if self.sender is not None else 0
        reason = self._leaving.reason if self._leaving else os.strerror(number)
        return OSError(number, reason)

    def _settle_loop(self) -> None:
        """Clear bits of blocks that both sides have flushed: soon when idle, in batches else."""
        replica = self.replica
        settled_at = seen = replica.changes.writes_begun
        waited_s = 0.0
        behind = False  # clears that the bitmap volume does not have yet
        while not self._ended.wait(SETTLE_IDLE_S):
            waited_s += SETTLE_IDLE_S
            begun = replica.changes.writes_begun
            idle = begun == seen
            seen = begun
            due = begun != settled_at and (idle or waited_s >= SETTLE_BUSY_S)
            try:
                if due:
                    behind = replica.layer.settle(SETTLE_TIMEOUT_S) is not None or behind
                    settled_at, waited_s = begun, 0.0
                if behind and idle:
                    replica.changes.sync()
                    behind = False
            except OSError as error:
                self._settle_failed(error)
                return

    def _settle_failed(self, error: OSError) -> None:
        """End the link: bits cannot be cleared any more, so every block written stays dirty."""
        replica = self.replica
        what = "bitmap" if replica.changes.failed_errno else "volume"
        log.error("%s: the local %s failed: %s", replica.spec.name, what, error)
        if replica.changes.failed_errno:
            reason = f"its bitmap volume failed: {error.strerror}"
            self._leaving = self._leaving or Leaving(reason, for_good=True)
        if self.sender is not None:
            self.sender.stop(error.errno or 0)

    # ---- ending it ----------------------------------------------------------------------------

    def leave(self, leaving: Leaving) -> None:
        """End the link in order: the other side learns that it was meant. Job first, if it runs.

        The caller holds `replica.operation`. When it returns no thread of this link is left, and
        the state is logging.
        """
        job = self.job
        job.cancelled.set()
        if not job.ended.wait(CANCEL_GRACE_S):
            self._cut()
            job.ended.wait(JOIN_TIMEOUT_S)
        with self.replica.lock:
            lives = self.sender is not None and not self._ended.is_set()
            if lives:
                self._leaving = self._leaving or leaving
        if lives:
            try:
                self._ask(
                    "leaving", LEAVE_TIMEOUT_S, reason=leaving.reason, for_good=leaving.for_good
                )
            except OSError as error:
                log.info("%s: the other side did not hear of it: %s", self.replica.spec.name, error)
        self.stop(leaving)

    def _cut(self) -> None:
        """Make every thread that waits for this link return."""
        if self.sender is not None:
            self.sender.stop()
        elif self._connection is not None:
            try:
                self._connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                log.debug("%s: the connection was down already", self.replica.spec.name)

    def stop(self, leaving: Leaving) -> None:
        """End the link now. Its socket is closed once nobody uses it any more."""
        with self.replica.lock:
            self._leaving = self._leaving or leaving
        self._cut()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(JOIN_TIMEOUT_S)
        self._link_ended()
        others = [t for t in self._threads if t is not threading.current_thread()]
        if self._connection is not None and not any(t.is_alive() for t in others):
            self._connection.close()

    @property
    def runs_job(self) -> bool:
        """True while its synchronisation has not ended."""
        return self.job.state == RUNNING
