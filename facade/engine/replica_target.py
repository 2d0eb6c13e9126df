"""The target of a set: the secondary's side of the link, from `attach` to the end."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from typing import Any, Final

from facade.contract.errors import TrellisError
from facade.engine import states
from facade.engine.link_connection import (
    DIGEST_KIND,
    MAP_PIECE_BYTES,
    LinkConnection,
    parse_message,
)
from facade.engine.link_errors import PeerNotReady, TargetInUse, WouldLoseWrites
from facade.engine.link_target import LinkTarget
from facade.engine.replica import Replica

log = logging.getLogger("trellis.target")

SILENCE_LIMIT_S: Final = 10.0  # the source pings when it has no data
ALIVE_S: Final = 1.0
NEEDS_SYNC: Final = frozenset({"sync_needed"})
APPLYING: Final = frozenset({"applying"})


class Target:
    """One link of a secondary from its primary. `run` is the body of the connection's thread.

    The connection is the caller's to close, after `run` has returned: until then its descriptor is
    this link's and nobody else's.
    """

    def __init__(self, replica: Replica, connection: LinkConnection, host: str) -> None:
        """Take a connection whose other side has proven who it is."""
        self.replica = replica
        self.connection = connection
        self.host = host
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._link: LinkTarget | None = None  # under _lock; None before the data and at the end
        self._over = False  # under _lock: the descriptor is not ours any more
        self._digest_seed: bytes | None = None  # when the source wants to compare by digests
        self._left = ""  # why the link ends, when a side ends it on purpose

    def run(self) -> None:
        """Serve the link to its end; `replica.operation` is held by the caller until then.

        However it ends, the side is logging and takes applications' writes again.
        """
        trigger, reason, error = "failed", "it did not begin", 0
        try:
            request = self._prepare()
            if request is None:
                return
            trigger, reason = "link_lost", "the link broke"
            self.connection.send("started")
            error = self._apply()
            trigger, reason = ("log", self._left) if self._left else (trigger, os.strerror(error))
        except (TrellisError, OSError) as failure:
            reason = str(failure)
            log.info("%s: the link ends: %s", self.replica.spec.name, failure)
        except Exception as failure:
            trigger, reason = "failed", str(failure)
            log.exception("%s: the link ends", self.replica.spec.name)
        finally:
            self._give_up_link()
            self._go_logging(trigger, reason)
            self.ended.set()

    def _prepare(self) -> dict[str, Any] | None:
        """Take the request, refuse or get ready: sync_needed durable, own map cleared.

        None when there is nothing to serve; then nothing has changed.
        """
        replica, connection = self.replica, self.connection
        try:
            request = connection.expect("attach")
            self._check(request)
            replica.layer.set_target(True)
            self._send_map(request)
            connection.expect("start")
        except TrellisError as error:
            connection.refuse(error)
            log.info("%s: no synchronisation: %s", replica.spec.name, error)
            return None
        # Durable before the first block changes; the source has the merged map on disk.
        replica.change("sync", None, add=NEEDS_SYNC | APPLYING)
        replica.changes.wipe()
        replica.changes.sync()
        return request

    def _check(self, request: dict[str, Any]) -> None:
        replica = self.replica
        spec = replica.spec
        problem = None
        if spec.role != "secondary":
            problem = "it is not the secondary there"
        elif replica.state != states.LOGGING:
            problem = f"it is {replica.state} there"
        elif request.get("block_bytes") != spec.block_bytes:
            problem = f"its blocks have {spec.block_bytes} bytes"
        elif request.get("size_bytes") != replica.changes.size_bytes:
            problem = (
                f"the set was made for {replica.changes.size_bytes} bytes there, "
                f"for {request.get('size_bytes')} here"
            )
        elif "bitmap_failed" in replica.flags or replica.layer.volume_failed:
            problem = "its volume or bitmap has failed"
        if problem:
            raise PeerNotReady(host=self.host, name=spec.name, reason=problem)
        clients = replica.volume.server.clients
        if clients:
            raise TargetInUse(volume=spec.volume, host=self.host, clients=clients)
        self._check_writes(request)

    def _check_writes(self, request: dict[str, Any]) -> int:
        dirty = self.replica.changes.dirty_blocks
        if dirty and request.get("keep") != "primary":
            raise WouldLoseWrites(volume=self.replica.spec.volume, host=self.host, blocks=dirty)
        return dirty

    def _send_map(self, request: dict[str, Any]) -> None:
        # Nobody writes here any more, so the map stands still while it is sent.
        changes = self.replica.changes
        dirty = self._check_writes(request)
        if request.get("digests") == DIGEST_KIND:
            self._digest_seed = self.connection.digest_seed
        self.connection.send(
            "attached",
            map_bytes=changes.map_bytes,
            dirty_blocks=dirty,
            digests=DIGEST_KIND if self._digest_seed else None,
        )
        offset = 0
        while offset < changes.map_bytes:
            piece = changes.export(offset, MAP_PIECE_BYTES)
            last = offset + len(piece) >= changes.map_bytes
            self.connection.send_map_piece(offset, piece, last=last)
            offset += len(piece)

    def _apply(self) -> int:
        """Apply until the link ends; returns the errno that ended it."""
        replica = self.replica
        self.connection.set_timeout(SILENCE_LIMIT_S)
        link = LinkTarget(self.connection.fileno(), replica.volume.file, self._digest_seed)
        with self._lock:
            self._link = link
        replica.connected = True
        over = threading.Event()
        alive = threading.Thread(
            target=self._stay_alive,
            args=(link, over),
            name=f"alive:{replica.spec.name}",
            daemon=True,
        )
        alive.start()
        try:
            error = link.run(self._control)
        finally:
            over.set()
            alive.join()
            replica.connected = False
        if link.apply_errno:
            reason = os.strerror(link.apply_errno)
            replica.record("volume_failed", volume=replica.spec.volume, reason=reason)
        return error

    @staticmethod
    def _stay_alive(link: LinkTarget, over: threading.Event) -> None:
        while not over.wait(ALIVE_S):
            if link.send_alive():
                link.stop()
                return

    def _control(self, payload: bytes) -> bytes | None:
        message = parse_message(payload)
        kind = message.get("type")
        if kind == "synced" and self.replica.state == states.SYNCING:
            # All before this message is applied, and the source's flush made it durable.
            self.replica.change("synced", None, remove=NEEDS_SYNC)
        elif kind == "leaving":
            self._left = str(message.get("reason") or "the primary ended it")
        else:
            log.warning("%s: message %s has no meaning now", self.replica.spec.name, kind)
        return json.dumps({"type": "ok"}).encode()

    def _give_up_link(self) -> None:
        with self._lock:
            self._link = None
            self._over = True

    def _go_logging(self, trigger: str, reason: str) -> None:
        """Flush what was applied, note it, let applications write again."""
        replica = self.replica
        try:
            if replica.state != states.LOGGING:
                self._note_end(trigger, reason)
        except Exception:
            log.exception("%s: the end of the link is not on record", replica.spec.name)
        finally:
            replica.layer.set_target(False)

    def _note_end(self, trigger: str, reason: str) -> None:
        replica = self.replica
        remove = APPLYING
        try:
            replica.volume.file.flush()
        except OSError as error:
            log.error("%s: flush at the end of the link: %s", replica.spec.name, error)
            remove = frozenset()
            why = error.strerror or str(error)
            replica.record("volume_failed", volume=replica.spec.volume, reason=why)
        if "sync_needed" in replica.flags:
            replica.change(trigger, "sync_needed", remove=remove)
        elif trigger == "link_lost":
            replica.change(trigger, "link_lost", remove=remove, reason=reason)
        else:
            replica.change(trigger, None, remove=remove)

    def leave(self, reason: str, for_good: bool) -> None:
        """End the link in order, from this side: the source learns that it was meant."""
        message = {"type": "leaving", "reason": reason, "for_good": for_good}
        with self._lock:
            if self._link is not None:
                self._left = reason
                try:
                    self._link.send_control(json.dumps(message).encode())
                except OSError as error:
                    log.info("%s: the source did not hear: %s", self.replica.spec.name, error)
                self._link.stop()
            else:
                self._shut()

    def cut(self) -> None:
        """End the link now: its source has begun another."""
        with self._lock:
            self._shut()

    def _shut(self) -> None:
        if self._over:
            return
        try:
            self.connection.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            log.debug("%s: the connection was down already", self.replica.spec.name)
