"""The source of a set: the primary's side of the link, from the first message to the last.

A Source lives as long as one link: it synchronises, then keeps the secondary equal until the link
ends. Its threads: the job's (dial, copy), the sender, the receiver, and the settler, which clears
bits of blocks that both sides have flushed.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from facade.contract.errors import TrellisError
from facade.engine.control_errors import EngineFault
from facade.engine.job import CANCELLED, DONE, FAILED, Job
from facade.engine.link_connection import Identity, LinkConnection, dial, parse_message
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


@dataclass(frozen=True)
class SyncRequest:
    """What a synchronisation is to do: `full` or `update`; `keep`: whose writes win."""

    kind: str
    keep: str | None
    peer_link: str
    quiet: bool = False  # a failure makes no event: it is one of many tries


class SyncCancelled(Exception):
    """The job was cancelled: not an error of anyone."""


class Source:
    """One link of a primary to its secondary."""

    def __init__(self, replica: Replica, who: Identity, on_lost: Callable[[], None]) -> None:
        """Prepare; `run` does the work. `on_lost`: the link ended and nobody meant it."""
        self.replica = replica
        self.who = who
        self.sender: LinkSender | None = None
        self.on_lost = on_lost
        self.reason = ""  # why the link ended, when this side ended it on purpose
        self._connection: LinkConnection | None = None
        self._threads: list[threading.Thread] = []
        self._answer: dict[str, Any] = {}
        self._answered = threading.Event()
        self._ended = threading.Event()
        self._peer_left = ""

    # ---- the job ----------------------------------------------------------------------------

    def run(self, job: Job, request: SyncRequest) -> None:
        """Body of the job's thread: never raises, the job says how it ended."""
        replica = self.replica
        try:
            self._synchronise(job, request)
        except SyncCancelled:
            self._fail(job, request, CANCELLED, None, "it was cancelled")
        except TrellisError as error:
            self._fail(job, request, FAILED, error, str(error))
        except OSError as error:
            reason = self._peer_left or error.strerror or str(error)
            broken = LinkBroken(peer=replica.spec.peer_host, reason=reason)
            self._fail(job, request, FAILED, broken, reason)
        except Exception as error:
            log.exception("job %s of %s", job.job_id, replica.spec.name)
            fault = EngineFault(reason=f"{type(error).__name__}: {error}")
            self._fail(job, request, FAILED, fault, str(fault))
        finally:
            try:
                replica.journal.put_job(job.to_wire())
            except Exception:
                log.exception("job %s of %s is not on record", job.job_id, replica.spec.name)

    def _synchronise(self, job: Job, request: SyncRequest) -> None:
        replica = self.replica
        connection = self._attach(request)
        self._check_cancel(job)
        self._take_map(connection, request)
        replica.change("sync", None)
        connection.send("start")
        connection.expect("started")
        sender = self._start_sending(connection)
        replica.layer.attach(sender)
        job.total_bytes = replica.changes.plan_copy() * replica.spec.block_bytes
        replica.record("state_syncing")
        replica.record("sync_started", kind=request.kind, total_bytes=job.total_bytes)
        # Writes that began before the sender was attached end before their blocks are read.
        if not replica.layer.wait_epoch(SETTLE_TIMEOUT_S):
            raise TimeoutError("writes in flight do not end")
        self._copy(job, sender)
        if replica.layer.settle(SETTLE_TIMEOUT_S) is None:
            raise OSError(sender.dead_errno, self._link_reason(sender))
        self._ask("synced")
        replica.changes.sync()
        job.sent_bytes = self._link_bytes(connection, sender)
        replica.change("synced", "state_replicating")
        replica.record("sync_finished", kind=request.kind, sent_bytes=job.sent_bytes)
        replica.last_error = None
        job.finish(DONE)
        self._start(self._settle_loop, "settler")

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
        )
        answer = connection.expect("attached")
        if answer.get("map_bytes") != self.replica.changes.map_bytes:
            raise PeerNotReady(host=spec.peer_host, name=spec.name, reason="its bitmap differs")
        return connection

    def _take_map(self, connection: LinkConnection, request: SyncRequest) -> None:
        # Durable here before the target clears its own: no block is in neither map.
        changes = self.replica.changes
        last = False
        while not last:
            offset, piece, last = connection.expect_map_piece()
            changes.merge(offset, piece)
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
        self._threads.append(thread)
        thread.start()

    def _copy(self, job: Job, sender: LinkSender) -> None:
        block, done_bytes = 0, 0
        while True:
            self._check_cancel(job)
            try:
                step_bytes, block = self.replica.layer.copy(block, COPY_STEP_BYTES)
            except OSError as error:
                raise OSError(error.errno, self._link_reason(sender)) from error
            if step_bytes == 0:
                return
            done_bytes += step_bytes
            job.sent_bytes = self._link_bytes(self._connection, sender)
            job.advance(min(done_bytes, job.total_bytes))

    @staticmethod
    def _check_cancel(job: Job) -> None:
        if job.cancelled.is_set():
            raise SyncCancelled

    @staticmethod
    def _link_bytes(connection: LinkConnection | None, sender: LinkSender) -> int:
        before = 0 if connection is None else connection.sent_bytes + connection.received_bytes
        return before + sender.sent_bytes + sender.received_bytes

    def _ask(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        """Send a control message in its place in the order and wait for the answer."""
        assert self.sender is not None
        self._answered.clear()
        self.sender.send_control(json.dumps({"type": kind, **fields}).encode())
        if not self._answered.wait(ANSWER_TIMEOUT_S) or self._ended.is_set():
            raise OSError(self.sender.dead_errno, self._link_reason(self.sender))
        return self._answer

    def _fail(
        self,
        job: Job,
        request: SyncRequest,
        state: str,
        error: TrellisError | None,
        reason: str,
    ) -> None:
        replica = self.replica
        self.stop(reason)
        job.finish(state, error)
        kind = job.kind
        if error is not None:
            replica.last_error = job.to_wire()["error"]
        if replica.state != "logging":
            replica.change("log" if state == CANCELLED else "failed", None)
        if state == CANCELLED:
            replica.record("sync_cancelled", kind=kind)
        elif not request.quiet:
            replica.record("sync_failed", kind=kind, reason=reason)

    # ---- the link's life ----------------------------------------------------------------------

    def _receive(self, sender: LinkSender) -> None:
        """Body of the receiver thread; the link has ended when it returns."""
        sender.run_receiver(self._control_arrived)
        self._ended.set()
        self._answered.set()
        self.replica.connected = False
        self.replica.layer.detach()
        self._link_ended(sender)

    def _control_arrived(self, payload: bytes) -> None:
        message = parse_message(payload)
        if message.get("type") == "leaving":
            self._peer_left = str(message.get("reason") or "the other side left")
            return
        self._answer = message
        self._answered.set()

    def _link_ended(self, sender: LinkSender) -> None:
        replica = self.replica
        replica.changes.drop_copy()
        if replica.state != "replicating":
            return  # the job's own thread, or a command, tells how it ended
        reason = self.reason or self._link_reason(sender)
        if self.reason or self._peer_left:
            replica.change("log", "state_logging", reason=reason)
        else:
            replica.change("link_lost", "link_lost", reason=reason)
            self.on_lost()

    def _link_reason(self, sender: LinkSender) -> str:
        return self._peer_left or self.reason or os.strerror(sender.dead_errno or 0)

    def _settle_loop(self) -> None:
        """Clear bits of blocks that both sides have flushed: soon when idle, in batches else."""
        replica = self.replica
        sender = self.sender
        assert sender is not None
        settled_at = seen = replica.changes.writes_begun
        waited_s = 0.0
        while not self._ended.wait(SETTLE_IDLE_S):
            waited_s += SETTLE_IDLE_S
            begun = replica.changes.writes_begun
            idle = begun == seen
            seen = begun
            if begun == settled_at or (not idle and waited_s < SETTLE_BUSY_S):
                continue
            try:
                cleared = replica.layer.settle(SETTLE_TIMEOUT_S)
                if cleared is not None and idle:
                    replica.changes.sync()
            except OSError as error:
                log.error("%s: %s; bits stay set", replica.spec.name, error)
                self.stop(f"the local volume or bitmap failed: {error.strerror}")
                replica.record(
                    "volume_failed", volume=replica.spec.volume, reason=str(error.strerror)
                )
                return
            settled_at, waited_s = begun, 0.0

    def leave(self, reason: str) -> None:
        """End the link in order: the other side learns that it was meant."""
        if self.sender is not None and not self._ended.is_set():
            self.reason = reason
            try:
                self._ask("leaving", reason=reason)
            except OSError as error:
                log.info("%s: the other side did not hear of it: %s", self.replica.spec.name, error)
        self.stop(reason)

    def stop(self, reason: str) -> None:
        """End the link now; returns once its threads are gone."""
        self.reason = self.reason or reason
        replica = self.replica
        if self.sender is not None:
            self.sender.stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(ANSWER_TIMEOUT_S)
        replica.layer.detach()
        replica.changes.drop_copy()
        replica.connected = False
        if self._connection is not None:
            self._connection.close()
