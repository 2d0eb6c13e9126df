"""The target of a set: the secondary's side of the link, from `attach` to the end."""

from __future__ import annotations

import json
import logging
import os
import threading
from typing import Any, Final

from facade.contract.errors import TrellisError
from facade.engine.link_connection import MAP_PIECE_BYTES, LinkConnection, parse_message
from facade.engine.link_errors import LinkBroken, PeerNotReady, TargetInUse, WouldLoseWrites
from facade.engine.link_target import LinkTarget
from facade.engine.replica import Replica

log = logging.getLogger("trellis.target")

SILENCE_LIMIT_S: Final = 10.0  # the source pings when it has no data
ALIVE_S: Final = 1.0
NEEDS_SYNC: Final = frozenset({"sync_needed"})
APPLYING: Final = frozenset({"applying"})


class Target:
    """One link of a secondary from its primary. `run` is the body of the connection's thread."""

    def __init__(self, replica: Replica, connection: LinkConnection, host: str) -> None:
        """Take over a connection whose other side has proven who it is."""
        self.replica = replica
        self.connection = connection
        self.host = host
        self.link: LinkTarget | None = None
        self.ended = threading.Event()
        self._left = ""  # why the link ends, when a side ends it on purpose

    def run(self) -> None:
        """Serve the link to its end; `replica.operation` is held by the caller until then."""
        try:
            self._serve()
        finally:
            self.ended.set()

    def _serve(self) -> None:
        replica, connection = self.replica, self.connection
        try:
            request = connection.expect("attach")
            self._check(request)
            replica.layer.set_target(True)
            self._send_map(request)
            connection.expect("start")
        except TrellisError as error:
            replica.layer.set_target(False)
            connection.refuse(error)
            log.info("%s: no synchronisation: %s", replica.spec.name, error)
            return
        try:
            # Durable before the first block changes; the source has the merged map on disk.
            replica.change("sync", None, add=NEEDS_SYNC | APPLYING)
            replica.changes.wipe()
            replica.changes.sync()
            connection.send("started")
        except (OSError, LinkBroken) as error:
            self._go_logging("failed", str(error))
            return
        self._apply()

    def _check(self, request: dict[str, Any]) -> None:
        replica = self.replica
        spec = replica.spec
        problem = None
        if spec.role != "secondary":
            problem = "it is not the secondary there"
        elif replica.state != "logging":
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
        dirty = replica.changes.dirty_blocks
        if dirty and request.get("keep") != "primary":
            raise WouldLoseWrites(volume=spec.volume, host=self.host, blocks=dirty)

    def _send_map(self, request: dict[str, Any]) -> None:
        # Nobody writes here any more, so the map stands still while it is sent.
        changes = self.replica.changes
        dirty = changes.dirty_blocks
        if dirty and request.get("keep") != "primary":
            raise WouldLoseWrites(volume=self.replica.spec.volume, host=self.host, blocks=dirty)
        self.connection.send("attached", map_bytes=changes.map_bytes, dirty_blocks=dirty)
        offset = 0
        while offset < changes.map_bytes:
            piece = changes.export(offset, MAP_PIECE_BYTES)
            self.connection.send_map_piece(
                offset, piece, last=offset + len(piece) >= changes.map_bytes
            )
            offset += len(piece)

    def _apply(self) -> None:
        replica = self.replica
        self.connection.set_timeout(SILENCE_LIMIT_S)
        link = LinkTarget(self.connection.fileno(), replica.volume.file)
        self.link = link
        replica.connected = True
        alive = threading.Thread(
            target=self._stay_alive, args=(link,), name=f"alive:{replica.spec.name}", daemon=True
        )
        alive.start()
        error = 0
        try:
            error = link.run(self._control)
        except OSError as failure:
            error = failure.errno or 0
        self.ended.set()
        alive.join()
        replica.connected = False
        self.connection.close()
        if self._left:
            self._go_logging("log", self._left)
        else:
            self._go_logging("link_lost", os.strerror(error))

    def _stay_alive(self, link: LinkTarget) -> None:
        while not self.ended.wait(ALIVE_S):
            error = link.send_alive()
            if error:
                link.stop()
                return

    def _control(self, payload: bytes) -> bytes | None:
        message = parse_message(payload)
        kind = message.get("type")
        if kind == "synced":
            # All before this message is applied, and the source's flush made it durable.
            self.replica.change("synced", None, remove=NEEDS_SYNC)
        elif kind == "leaving":
            self._left = str(message.get("reason") or "the primary ended it")
        else:
            log.warning("%s: unknown message %s", self.replica.spec.name, kind)
        return json.dumps({"type": "ok"}).encode()

    def _go_logging(self, trigger: str, reason: str) -> None:
        replica = self.replica
        try:
            replica.volume.file.flush()
            remove = APPLYING
        except OSError as error:
            log.error("%s: flush at the end of the link: %s", replica.spec.name, error)
            remove = frozenset()
        replica.layer.set_target(False)
        if "sync_needed" in replica.flags:
            replica.change(trigger, "sync_needed", remove=remove)
        elif trigger == "link_lost":
            replica.change(trigger, "link_lost", remove=remove, reason=reason)
        else:
            replica.change(trigger, None, remove=remove)

    def leave(self, reason: str) -> None:
        """End the link in order, from this side: the source learns that it was meant."""
        self._left = reason
        link = self.link
        if link is None:
            return
        try:
            link.send_control(json.dumps({"type": "leaving", "reason": reason}).encode())
        except OSError as error:
            log.info("%s: the source did not hear of it: %s", self.replica.spec.name, error)
        link.stop()
