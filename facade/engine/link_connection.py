"""One connection of the link before and beside its data: control messages, proof of identity.

docs/link.md has the exchange word by word. Both sides prove that they know the domain's link
secret, each over both nonces, both host names and the set, so that no proof serves twice.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import secrets
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any, Final

from facade.contract.errors import TrellisError, error_from_wire, error_to_wire
from facade.engine.link_errors import (
    LinkBroken,
    LinkNotPrivate,
    LinkRefused,
    LinkUnreachable,
    LinkVersion,
)
from facade.engine.link_wire import (
    CONTROL,
    HEADER_SIZE_BYTES,
    LAST,
    MAP,
    PAYLOAD_LIMIT,
    VERSION,
    pack_frame,
    payload_bytes,
    unpack_frame,
)

HANDSHAKE_TIMEOUT_S: Final = 10.0
EXCHANGE_TIMEOUT_S: Final = 60.0  # from connection to data, bitmaps included
CONNECT_TIMEOUT_S: Final = 5.0
MAP_PIECE_BYTES: Final = 512 << 10
# How pieces are compared without being sent; a side that does not know it has them sent.
DIGEST_KIND: Final = "aes-256-gmac/4096"
SOCKET_BUFFER_BYTES: Final = 4 << 20
NONCE_BYTES: Final = 32

assert MAP_PIECE_BYTES <= PAYLOAD_LIMIT


class LinkConnection:
    """A connected socket that speaks frames; counts every byte in both directions."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        """Take over a connected socket; `peer` names it in errors."""
        self.sock = sock
        self.peer = peer
        self.host = ""  # the other side's name, proven once the handshake is done
        self.digest_seed = b""  # of this connection, once both sides are proven
        self.sent_bytes = 0
        self.received_bytes = 0
        # Until the data begins: a peer that sends a byte now and then holds no place for long.
        self.deadline_s = time.monotonic() + EXCHANGE_TIMEOUT_S
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        self.set_timeout(HANDSHAKE_TIMEOUT_S)

    def set_timeout(self, timeout_s: float) -> None:
        """Bound every later send and receive, in Python and in the nogil loops alike."""
        self.sock.setblocking(True)
        value = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self.sock.fileno()

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            if time.monotonic() > self.deadline_s:
                raise LinkBroken(peer=self.peer, reason="it takes too long")
            try:
                piece = self.sock.recv(size - len(data))
            except OSError as error:
                raise LinkBroken(peer=self.peer, reason=_reason(error)) from error
            if not piece:
                raise LinkBroken(peer=self.peer, reason="the other side closed it")
            data += piece
        self.received_bytes += size
        return bytes(data)

    def _frame(self) -> tuple[int, int, int, int, int, bytes]:
        header = self._receive(HEADER_SIZE_BYTES)
        try:
            body = self._receive(payload_bytes(header))
            return unpack_frame(header + body)
        except ValueError as error:
            raise LinkBroken(peer=self.peer, reason=str(error)) from error

    def _send(self, frame: bytes) -> None:
        try:
            self.sock.sendall(frame)
        except OSError as error:
            raise LinkBroken(peer=self.peer, reason=_reason(error)) from error
        self.sent_bytes += len(frame)

    def send(self, kind: str, /, **fields: Any) -> None:
        """Send a control message. Raises LinkBroken."""
        self._send(pack_frame(CONTROL, json.dumps({"type": kind, **fields}).encode()))

    def expect(self, kind: str) -> dict[str, Any]:
        """Return the next message, which must be of this kind.

        Raises LinkBroken, or the typed error with which the other side refused.
        """
        frame_kind, _, _, _, _, payload = self._frame()
        message = parse_message(payload) if frame_kind == CONTROL else {}
        if message.get("type") == "refused":
            told = message.get("error")
            raise error_from_wire(told if isinstance(told, dict) else {})
        if message.get("type") != kind:
            raise LinkBroken(peer=self.peer, reason=f"expected {kind}, got {message.get('type')}")
        return message

    def refuse(self, error: TrellisError) -> None:
        """Tell the other side why not; errors on the way are of no interest."""
        try:
            self.send("refused", error=error_to_wire(error))
        except LinkBroken:
            return

    def send_map_piece(self, offset_bytes: int, piece: bytes, last: bool) -> None:
        """Send a piece of a bitmap."""
        self._send(pack_frame(MAP, piece, offset=offset_bytes, flags=LAST if last else 0))

    def expect_map_piece(self) -> tuple[int, bytes, bool]:
        """Return (offset, piece, last) of a bitmap."""
        kind, flags, _, offset, _, payload = self._frame()
        if kind != MAP:
            raise LinkBroken(peer=self.peer, reason="expected a piece of a bitmap")
        return offset, payload, bool(flags & LAST)


def parse_message(payload: bytes) -> dict[str, Any]:
    """Return a control message; an empty one for what is none."""
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def check_private(sock_address: tuple[Any, ...], plain: bool) -> None:
    """Raise LinkNotPrivate for an address off the loopback, unless `plain` allows it."""
    address = str(sock_address[0])
    if not plain and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        raise LinkNotPrivate(address=address)


@dataclass(frozen=True)
class Identity:
    """Who this engine is on the link, and what it may do there."""

    host: str
    secret: str
    plain: bool  # links off the loopback are allowed


def dial(address: str, who: Identity, peer_host: str, set_id: str) -> LinkConnection:
    """Connect to another engine and prove who both are.

    Raises LinkUnreachable, LinkBroken, LinkRefused, LinkVersion, LinkNotPrivate.
    """
    name, _, port = address.rpartition(":")
    try:
        sock = socket.create_connection((name.strip("[]"), int(port)), CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise LinkUnreachable(peer=peer_host, address=address, reason=_reason(error)) from error
    connection = LinkConnection(sock, peer_host)
    try:
        check_private(sock.getpeername(), who.plain)
        _prove_as_dialer(connection, who, peer_host, set_id)
    except BaseException:
        connection.close()
        raise
    return connection


def _prove_as_dialer(
    connection: LinkConnection, who: Identity, peer_host: str, set_id: str
) -> None:
    host, secret = who.host, who.secret
    nonce = secrets.token_hex(NONCE_BYTES)
    connection.send("hello", version=VERSION, host=host, to=peer_host, set_id=set_id, nonce=nonce)
    answer = connection.expect("challenge")
    if answer.get("version") != VERSION:
        raise LinkVersion(peer=peer_host, theirs=answer.get("version"), ours=VERSION)
    theirs = str(answer.get("nonce"))
    names = (nonce, theirs, host, peer_host, set_id)
    if not hmac.compare_digest(_proof(secret, "listener", *names), str(answer.get("proof"))):
        raise LinkRefused(peer=peer_host, reason="it does not know this domain's link secret")
    connection.send("proof", proof=_proof(secret, "dialer", *names))
    connection.expect("welcome")
    connection.host = peer_host
    connection.digest_seed = _digest_seed(secret, *names)


def welcome(connection: LinkConnection, who: Identity) -> tuple[str, str]:
    """Prove identities as the side that was dialed; returns (host, set_id) of the dialer.

    Raises LinkBroken, LinkRefused, LinkVersion; the caller closes.
    """
    host, secret = who.host, who.secret
    hello = connection.expect("hello")
    if hello.get("version") != VERSION:
        error = LinkVersion(peer=connection.peer, theirs=hello.get("version"), ours=VERSION)
        connection.refuse(error)
        raise error
    dialer, set_id = str(hello.get("host")), str(hello.get("set_id"))
    if hello.get("to") != host:
        wrong = LinkRefused(peer=connection.peer, reason=f"{host} was dialed as {hello.get('to')}")
        connection.refuse(wrong)
        raise wrong
    nonce = secrets.token_hex(NONCE_BYTES)
    names = (str(hello.get("nonce")), nonce, dialer, host, set_id)
    connection.send(
        "challenge", version=VERSION, nonce=nonce, proof=_proof(secret, "listener", *names)
    )
    answer = connection.expect("proof")
    if not hmac.compare_digest(_proof(secret, "dialer", *names), str(answer.get("proof"))):
        stranger = LinkRefused(
            peer=connection.peer, reason="it does not know this domain's link secret"
        )
        connection.refuse(stranger)
        raise stranger
    connection.host = dialer
    connection.digest_seed = _digest_seed(secret, *names)
    connection.send("welcome")
    return dialer, set_id


def _digest_seed(secret: str, *parts: str) -> bytes:
    """Return what this connection's digests are made under: new each time, known to both sides."""
    text = "\n".join(("trellis-digest", str(VERSION), *parts)).encode()
    return hmac.new(secret.encode(), text, hashlib.sha256).digest()


def _proof(secret: str, side: str, *parts: str) -> str:
    text = "\n".join(("trellis-link", str(VERSION), side, *parts)).encode()
    return hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, BlockingIOError | TimeoutError):
        return "it does not answer"
    return getattr(error, "strerror", None) or str(error)
