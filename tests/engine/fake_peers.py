"""Peers that know the domain's secret, and then say what no engine of ours says."""

from __future__ import annotations

import json
import socket
import threading
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from facade.bitmap_size import HEADER_SLOTS, SLOT_BYTES, bitmap_bytes
from facade.engine.link_connection import LinkConnection, dial, welcome
from facade.engine.link_errors import LinkBroken
from facade.engine.link_wire import pack_frame
from tests.engine.hosts_inside import JOB_TIMEOUT_S, SIZE_BYTES, Host, identity

CONTROL, ACK, ERROR = 1, 5, 7  # types of frames


class Frame(NamedTuple):
    """One frame as it came."""

    kind: int
    flags: int
    seq: int
    offset: int
    length: int
    payload: bytes

    @property
    def message(self) -> str:
        """The type of a control message, empty for other frames."""
        return str(json.loads(self.payload)["type"]) if self.kind == CONTROL else ""


class Hangup(Exception):
    """A peer's script ends its link."""


class Wire:
    """One proven link, as frames."""

    def __init__(self, connection: LinkConnection, number: int = 1) -> None:
        self.connection = connection
        self.number = number  # of this link at its peer, from 1

    def take(self) -> Frame:
        return Frame(*self.connection._frame())

    def control(self, payload: bytes, seq: int = 0) -> None:
        self.connection._send(pack_frame(CONTROL, payload, seq=seq))

    def ack(self, seq: int) -> None:
        self.connection._send(pack_frame(ACK, b"", seq=seq))

    def error(self, seq: int, error: int) -> None:
        """Say that the frame after `seq` failed."""
        self.connection._send(pack_frame(ERROR, b"", seq=seq, offset=error))

    def obey(self, frame: Frame) -> None:
        """Answer as an engine would that has done it."""
        if frame.kind == CONTROL:
            self.control(b'{"type":"ok"}')
        self.ack(frame.seq)

    def close(self) -> None:
        self.connection.close()


Behaviour = Callable[[Wire, Frame], bool]


class FakeTarget:
    """Listens as the host `name`, attaches as a clean secondary, and applies nothing.

    `behave(wire, frame)` sees each frame of the data; what it answers False for is obeyed. It may
    raise Hangup. `exchange` replaces all that follows the handshake.
    """

    def __init__(
        self,
        name: str,
        behave: Behaviour = lambda _wire, _frame: False,
        exchange: Callable[[Wire], None] | None = None,
    ) -> None:
        self.name = name
        self.behave = behave
        self.exchange = exchange or self._serve
        self.wires: list[Wire] = []
        self.errors: list[BaseException] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, name="fake-target")]
        self._threads[0].start()

    def __enter__(self) -> FakeTarget:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(JOB_TIMEOUT_S)
        for wire in self.wires:
            wire.close()
        assert self.errors == []

    def cut(self) -> None:
        """End every link without a word."""
        for wire in list(self.wires):
            try:
                wire.connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            wire = Wire(LinkConnection(sock, "fake"), len(self.wires) + 1)
            self.wires.append(wire)
            thread = threading.Thread(target=self._run, args=(wire,), name="fake-target")
            self._threads.append(thread)
            thread.start()

    def _run(self, wire: Wire) -> None:
        try:
            welcome(wire.connection, identity(self.name))
            self.exchange(wire)
        except (Hangup, LinkBroken, OSError):
            pass  # how every link here ends
        except BaseException as error:
            self.errors.append(error)
        finally:
            try:
                wire.connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _serve(self, wire: Wire) -> None:
        connection = wire.connection
        attach = connection.expect("attach")
        headers = HEADER_SLOTS * SLOT_BYTES
        size = bitmap_bytes(attach["size_bytes"], attach["block_bytes"]) - headers
        connection.send("attached", map_bytes=size, dirty_blocks=0)
        connection.send_map_piece(0, bytes(size), last=True)
        connection.expect("start")
        connection.send("started")
        connection.deadline_s = float("inf")
        while True:
            frame = wire.take()
            if not self.behave(wire, frame):
                wire.obey(frame)


class FakeSource:
    """Dials a host as the primary `a` of its set, up to the map; then anything may be said."""

    def __init__(self, host: Host, keep: str = "primary") -> None:
        spec = host.spec
        connection = dial(host.address, identity(spec.peer_host), host.name, spec.set_id)
        self.wire = Wire(connection)
        try:
            connection.send(
                "attach", name=spec.name, kind="full", keep=keep, size_bytes=spec.size_bytes,
                block_bytes=spec.block_bytes,
            )  # fmt: skip
            connection.expect("attached")
            while not connection.expect_map_piece()[2]:
                pass
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> FakeSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.close()

    def start(self) -> None:
        self.wire.connection.send("start")
        self.wire.connection.expect("started")

    def say(self, seq: int, **message: Any) -> None:
        """Send a control message in its place in the order."""
        self.wire.control(json.dumps(message).encode(), seq)


def towards(
    host: Host, target: FakeTarget, autosync: bool = False, size_bytes: int = SIZE_BYTES
) -> None:
    """Make a host the primary of a set whose secondary is a fake."""
    host.add(uuid.uuid4().hex, "primary", target.name, target.address, size_bytes, autosync)
