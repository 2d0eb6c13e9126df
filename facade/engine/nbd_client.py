"""One NBD client: its socket and its thread, from the greeting to the end.

The handshake is Python's, TLS or not; then the request loop, which never holds the GIL.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

from facade.engine.nbd_export import NbdExport, Offer
from facade.engine.nbd_tls import TlsContext, TlsRefused, TlsSession
from facade.engine.nbd_transmission import Transmission
from facade.engine.nbd_wire import Handshake, Outcome

# A client that has not come to transmission in this time is closed, TLS included.
HANDSHAKE_TIMEOUT_S = 30.0
# Input of a handshake that is looked at in one go.
HANDSHAKE_PIECE_BYTES = 4096
# Stack of a connection's thread; its deep part is C with small frames.
THREAD_STACK_BYTES = 256 * 1024
# Replies that the kernel may hold for a client on a Unix socket; it grants up to twice
# net.core.wmem_max. With more the sender of long replies sleeps less often.
SEND_BUFFER_BYTES = 1024 * 1024
# What a client that was refused is given to read why, before its connection is closed.
LINGER_TIMEOUT_S = 2.0

_log = logging.getLogger(__name__)
_thread_start_lock = threading.Lock()


class Entrance(Protocol):
    """A way in: what a client that comes by it may use."""

    name: str  # for messages
    is_listed: bool  # whether clients are told which exports there are
    default_name: str | None  # the export that the empty name stands for

    def tls(self) -> TlsContext | None:
        """Return what TLS needs where it is required; raise ValueError where that is unusable."""

    def offers(self, names: tuple[str, ...]) -> tuple[dict[str, Offer], dict[str, str]]:
        """Return the exports that a client of these names may use, and why not the others."""

    def may_use(self, names: tuple[str, ...], export: NbdExport) -> bool:
        """Tell whether such a client may use an export as things stand now."""

    def refused(self, export: str, peer: str, reason: str) -> None:
        """Note that a client was refused; `export` is empty when it had not come to name one."""


class NbdClient:
    """One client. `is_writable` is valid once it is attached to an export."""

    def __init__(
        self, entrance: Entrance, client: socket.socket, forget: Callable[[NbdClient], None]
    ) -> None:
        """Take over a connected socket; `forget` is called by its thread when it ends."""
        self.is_writable = False
        self.entrance = entrance
        self.names: tuple[str, ...] = ()  # in its certificate
        self.peer = _peer(client)
        self.export: NbdExport | None = None
        self._client = client
        self._forget = forget
        self._session: TlsSession | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._deadline = 0.0

    def start(self) -> None:
        """Serve it in a thread of its own. Raises RuntimeError when there is none to have."""
        self._thread = start_thread(f"nbd-{self.entrance.name}", self._serve)

    def shut(self, how: int) -> None:
        """Shut down one or both ways of its socket."""
        with self._lock:
            if self._client.fileno() >= 0:
                try:
                    self._client.shutdown(how)
                except OSError as error:
                    if error.errno != errno.ENOTCONN:
                        raise

    def join(self, timeout_s: float) -> None:
        """Wait for its thread to end."""
        if self._thread is not None:
            self._thread.join(max(timeout_s, 0.0))

    def may_use(self, export: NbdExport) -> bool:
        """Tell whether it may use an export as things stand now."""
        return self.entrance.may_use(self.names, export)

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def _serve(self) -> None:
        ending = "the handshake failed"
        try:
            ending = self._negotiate_and_transmit()
        except TlsRefused as error:
            ending = str(error)
            self.entrance.refused("", self._who(), ending)
            self._linger()
        except (OSError, ValueError) as error:
            ending = str(error)
        finally:
            if self._session is not None:
                self._session.close()
            with self._lock:
                self._client.close()
            self._forget(self)
            _log.debug("%s: connection of %s ended: %s", self.entrance.name, self._who(), ending)

    def _negotiate_and_transmit(self) -> str:
        self._deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
        tls = self.entrance.tls()
        offers, _ = ({}, {}) if tls is not None else self.entrance.offers(())
        handshake = Handshake(
            {name: offer.told for name, offer in offers.items()},
            self.entrance.default_name,
            needs_tls=tls is not None,
            is_listed=self.entrance.is_listed,
        )
        self._send(handshake.greeting())
        self._negotiate(handshake)
        if tls is not None and handshake.outcome is Outcome.STARTTLS:
            offers = self._secure(handshake, tls)
            self._negotiate(handshake)
        if handshake.refused_name is not None:
            self.entrance.refused(handshake.refused_name, self._who(), "not on its list")
        if handshake.outcome is not Outcome.TRANSMISSION or handshake.export is None:
            return handshake.reason
        return self._transmit(handshake, offers[handshake.export.name])

    def _secure(self, handshake: Handshake, tls: TlsContext) -> dict[str, Offer]:
        self._session = TlsSession(tls, self._client.fileno())
        self._session.handshake(self._remaining_s())
        self.names = self._session.names
        offers, refused = self.entrance.offers(self.names)
        handshake.secured({name: offer.told for name, offer in offers.items()}, refused)
        return offers

    def _negotiate(self, handshake: Handshake) -> None:
        """Lead the client on until the outcome changes; raise TimeoutError when it takes long."""
        while handshake.outcome is Outcome.NEGOTIATING:
            data = self._receive()
            if not data:
                handshake.close()
                break
            self._send(handshake.receive(data))

    def _receive(self) -> bytes:
        if self._session is not None:
            return self._session.receive(HANDSHAKE_PIECE_BYTES, self._remaining_s())
        self._client.settimeout(self._remaining_s())
        return self._client.recv(HANDSHAKE_PIECE_BYTES)

    def _send(self, data: bytes) -> None:
        if not data:
            return
        if self._session is not None:
            self._session.send(data, self._remaining_s())
        else:
            self._client.settimeout(self._remaining_s())
            self._client.sendall(data)

    def _remaining_s(self) -> float:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError(f"the handshake took longer than {HANDSHAKE_TIMEOUT_S:g} s")
        return remaining

    def _transmit(self, handshake: Handshake, offer: Offer) -> str:
        export = offer.export
        read_only = export.stack.read_only
        self.is_writable = not read_only
        if not export.attach(self):
            _log.warning("export %s: refused a client, it is full or ends", export.export_name)
            return "the export is full or ends"
        self.export = export
        try:
            # Asked again once it counts: who takes the export away now sees this client, or the
            # client sees that.
            if not self.may_use(export):
                return "the export was taken away"
            self._client.settimeout(None)
            # TCP sizes its buffer by itself.
            if self._client.family == socket.AF_UNIX:
                self._client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            return Transmission(
                self._client.fileno(),
                export.stack,
                read_only,
                handshake.leftover,
                structured=handshake.structured,
                extended=handshake.extended,
                can_zero_fast=export.can_trim,
                contexts=tuple(offer.contexts[name] for name in handshake.contexts),
                session=self._session,
            ).run()
        finally:
            export.detach(self)

    def _who(self) -> str:
        names = ", ".join(self.names)
        return f"{names} at {self.peer}" if names else self.peer

    def _linger(self) -> None:
        # Closing with bytes unread would cut off the alert that says why.
        try:
            self._client.settimeout(LINGER_TIMEOUT_S)
            self._client.shutdown(socket.SHUT_WR)
            until = time.monotonic() + LINGER_TIMEOUT_S
            while self._client.recv(HANDSHAKE_PIECE_BYTES) and time.monotonic() < until:
                pass
        except OSError as error:
            _log.debug("%s: %s", self.peer, error)


def _peer(client: socket.socket) -> str:
    try:
        address = client.getpeername()
    except OSError:
        return "a client that left"
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "a local client"


def start_thread(name: str, target: Callable[..., None], *args: object) -> threading.Thread:
    """Start a daemon thread with a small stack; the process's own setting is left as it was."""
    with _thread_start_lock:
        before = threading.stack_size(THREAD_STACK_BYTES)
        try:
            thread = threading.Thread(name=name, target=target, args=args, daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    return thread
