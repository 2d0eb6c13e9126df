"""A TCP proxy on the link between two engines that can be cut, stalled and restored.

    with LinkProxy(("127.0.0.1", 0)) as proxy:
        proxy.set_target(("127.0.0.1", 4000))
        proxy.cut()       # open connections are reset, new ones refused
        proxy.stall()     # connections stay, no byte moves, as with a lost network
        proxy.restore()

One thread, non-blocking sockets; about `BUFFER_BYTES` wait in each direction at most. `limit_rate`
slows the link down. `forwarded_bytes` counts what has passed, both ways.
"""

from __future__ import annotations

import contextlib
import enum
import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

Address = tuple[str, int]

BUFFER_BYTES: Final = 256 * 1024
READ_BYTES: Final = 64 * 1024
CONNECT_TIMEOUT_S: Final = 5.0
BACKLOG: Final = 64
JOIN_TIMEOUT_S: Final = 10.0
RATE_PAUSE_MAX_S: Final = 0.05
# Close with RST in place of FIN, as a broken network would in the end.
_RESET: Final = struct.pack("ii", 1, 0)


class Mode(enum.Enum):
    """What the proxy does with bytes and connections."""

    PASSING = "passing"
    STALLED = "stalled"
    CUT = "cut"


@dataclass(eq=False)
class _Half:
    """One socket of a pair, and the bytes that wait to be written to it."""

    sock: socket.socket
    waiting: bytearray = field(default_factory=bytearray)
    ended: bool = False  # the other side sends no more; shut down once `waiting` is out
    peer: _Half | None = None  # set before the pair is registered
    read_on: bool = True


class LinkProxy:
    """Forwards connections of `listen` to a target; usable from any thread."""

    def __init__(self, listen: Address, target: Address | None = None) -> None:
        """Listen at once (port 0 takes a free one); `start` begins to forward."""
        self._listener = socket.create_server(listen, backlog=BACKLOG)
        self._listener.setblocking(False)
        self.address: Address = self._listener.getsockname()[:2]
        self.forwarded_bytes = 0
        self._target = target
        self._mode = Mode.PASSING
        self._rate_bytes_per_s = 0.0
        self._resume_at = 0.0
        self._halves: set[_Half] = set()
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._lock = threading.Condition()
        self._asked = self._done = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="link-proxy", daemon=True)

    def start(self) -> LinkProxy:
        """Begin to forward."""
        self._thread.start()
        return self

    def set_target(self, target: Address) -> None:
        """Say where new connections go."""
        with self._lock:
            self._target = target

    def limit_rate(self, bytes_per_s: float) -> None:
        """Slow the link down, both directions together; 0 lets it run free."""
        with self._lock:
            self._rate_bytes_per_s = bytes_per_s

    def cut(self) -> None:
        """Reset every connection and refuse new ones; done when it returns."""
        self._change(Mode.CUT)

    def stall(self) -> None:
        """Move no byte any more; connections stay open. Done when it returns."""
        self._change(Mode.STALLED)

    def restore(self) -> None:
        """Pass again what comes, and what has waited while stalled. Done when it returns."""
        self._change(Mode.PASSING)

    @property
    def mode(self) -> Mode:
        """What the proxy does at present."""
        with self._lock:
            return self._mode

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._halves) // 2

    def close(self) -> None:
        """Reset what is open and end the thread."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._wake()
        if self._thread.is_alive():
            self._thread.join(JOIN_TIMEOUT_S)
        for sock in (self._listener, self._wake_in, self._wake_out):
            sock.close()
        self._selector.close()

    def __enter__(self) -> LinkProxy:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _change(self, mode: Mode) -> None:
        with self._lock:
            self._mode = mode
            self._asked += 1
            asked = self._asked
            self._wake()
            if not self._lock.wait_for(
                lambda: self._done >= asked or self._closing, JOIN_TIMEOUT_S
            ):
                raise TimeoutError("the link proxy's thread does not answer")

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_out.send(b"x")

    def _run(self) -> None:
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        self._listen(True)
        mode = Mode.PASSING
        while True:
            with self._lock:
                wanted, asked, closing = self._mode, self._asked, self._closing
            if closing:
                break
            if wanted is not mode:
                mode = wanted
                self._enter(mode)
            with self._lock:
                self._done = asked
                self._lock.notify_all()
            self._turn(mode)
        self._reset_all()
        with self._lock:
            self._lock.notify_all()

    def _listen(self, on: bool) -> None:
        if on:
            self._selector.register(self._listener, selectors.EVENT_READ)
        else:
            self._selector.unregister(self._listener)

    def _enter(self, mode: Mode) -> None:
        if mode is Mode.CUT:
            self._reset_all()
        for half in self._halves:
            self._watch(half, mode)

    def _turn(self, mode: Mode) -> None:
        pause_s = self._resume_at - time.monotonic()
        if pause_s > 0 and mode is Mode.PASSING:
            # A change of mode is noticed after this much at most; a rate needs no more precision.
            time.sleep(min(pause_s, RATE_PAUSE_MAX_S))
            return
        for key, events in self._selector.select(1.0):
            if key.fileobj is self._wake_in:
                with contextlib.suppress(BlockingIOError):
                    self._wake_in.recv(4096)
                return
            if key.fileobj is self._listener:
                self._accept(mode)
            elif key.data in self._halves:
                self._serve(key.data, events, mode)

    def _accept(self, mode: Mode) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        if mode is Mode.CUT:
            _reset(client)
            return
        with self._lock:
            target = self._target
        try:
            if target is None:
                raise ConnectionRefusedError
            server = socket.create_connection(target, CONNECT_TIMEOUT_S)
        except OSError:
            _reset(client)
            return
        pair = _Half(client), _Half(server)
        pair[0].peer, pair[1].peer = pair[1], pair[0]
        for half in pair:
            half.sock.setblocking(False)
            half.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._halves.add(half)
            self._watch(half, mode)

    def _watch(self, half: _Half, mode: Mode) -> None:
        """Register for what can be done: read while there is room, write what waits."""
        peer = half.peer
        assert peer is not None
        mask = 0
        if mode is Mode.PASSING:
            if half.read_on and len(peer.waiting) < BUFFER_BYTES:
                mask |= selectors.EVENT_READ
            if half.waiting:
                mask |= selectors.EVENT_WRITE
        known = half.sock in self._selector.get_map()
        if mask and known:
            self._selector.modify(half.sock, mask, half)
        elif mask:
            self._selector.register(half.sock, mask, half)
        elif known:
            self._selector.unregister(half.sock)

    def _serve(self, half: _Half, events: int, mode: Mode) -> None:
        peer = half.peer
        assert peer is not None
        try:
            if events & selectors.EVENT_READ:
                self._read(half, peer)
            if events & selectors.EVENT_WRITE:
                sent = half.sock.send(half.waiting)
                del half.waiting[:sent]
            for one in (half, peer):
                if one.ended and not one.waiting:
                    one.ended = False
                    one.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError:
            self._drop(half)
            return
        if not half.read_on and not peer.read_on and not half.waiting and not peer.waiting:
            self._drop(half, reset=False)
            return
        self._watch(half, mode)
        self._watch(peer, mode)

    def _read(self, half: _Half, peer: _Half) -> None:
        data = half.sock.recv(READ_BYTES)
        if not data:
            half.read_on = False
            peer.ended = True
            return
        peer.waiting += data
        with self._lock:
            self.forwarded_bytes += len(data)
            rate = self._rate_bytes_per_s
        if rate > 0:
            self._resume_at = max(self._resume_at, time.monotonic()) + len(data) / rate

    def _drop(self, half: _Half, reset: bool = True) -> None:
        for one in (half, half.peer):
            if one is None:
                continue
            self._halves.discard(one)
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(one.sock)
            if reset:
                _reset(one.sock)
            else:
                one.sock.close()

    def _reset_all(self) -> None:
        while self._halves:
            self._drop(next(iter(self._halves)))


def _reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
