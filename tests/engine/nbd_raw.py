"""An NBD client made of bytes, for what well-behaved clients never send; and a server to test."""

from __future__ import annotations

import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from facade.engine.nbd_server import NbdServer
from facade.engine.volume import Volume
from facade.engine.volume_stack import VolumeStack

OPTION_MAGIC = 0x49484156454F5054
REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
CHUNK_MAGIC = 0x668E33EF
EXTENDED_REQUEST_MAGIC = 0x21E41C71
EXTENDED_REPLY_MAGIC = 0x6E8A278C
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO = 1, 2, 3, 6, 7
OPT_STRUCTURED, OPT_LIST_META, OPT_SET_META, OPT_EXTENDED = 8, 9, 10, 11
NONE, OFFSET_DATA, OFFSET_HOLE, STATUS, STATUS_EXT, ERROR = 0, 1, 2, 5, 6, (1 << 15) + 1
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = (
    1, 5, 12, 22, 28, 75, 95, 108,
)  # fmt: skip
TIMEOUT_S = 20.0


def option(number: int, data: bytes = b"", magic: int = OPTION_MAGIC) -> bytes:
    return struct.pack(">QII", magic, number, len(data)) + data


def go_data(name: bytes = b"", wanted: tuple[int, ...] = ()) -> bytes:
    return struct.pack(f">I{len(name)}sH{len(wanted)}H", len(name), name, len(wanted), *wanted)


def meta_data(queries: tuple[str | bytes, ...], name: bytes = b"") -> bytes:
    encoded = [one.encode() if isinstance(one, str) else one for one in queries]
    listed = b"".join(struct.pack(">I", len(one)) + one for one in encoded)
    return struct.pack(">I", len(name)) + name + struct.pack(">I", len(encoded)) + listed


def request(command: int, offset: int = 0, length: int = 0, *, cookie: int = 1, flags: int = 0,
            data: bytes = b"", magic: int = REQUEST_MAGIC) -> bytes:  # fmt: skip
    header = struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length)
    return header + data


def write(offset: int, data: bytes, *, cookie: int = 1, flags: int = 0) -> bytes:
    return request(WRITE, offset, len(data), cookie=cookie, flags=flags, data=data)


def extended(command: int, offset: int = 0, length: int = 0, *, cookie: int = 1, flags: int = 0,
             data: bytes = b"", magic: int = EXTENDED_REQUEST_MAGIC) -> bytes:  # fmt: skip
    """A request with an extended header; `data`, if any, is its payload and gives the length."""
    if data:
        flags, length = flags | PAYLOAD_LEN, len(data)
    return struct.pack(">IHHQQQ", magic, flags, command, cookie, offset, length) + data


class Chunk(NamedTuple):
    """One chunk of a structured reply."""

    is_last: bool
    kind: int
    cookie: int
    payload: bytes


class RawClient:
    """A connection on which anything can be said. `transmission=True` says GO first.

    With `structured` it agrees on chunks before that, with `extended` on extended headers (which
    bring chunks along), and selects `contexts`.
    """

    def __init__(
        self,
        path: Path,
        *,
        transmission: bool = True,
        structured: bool = False,
        extended: bool = False,
        contexts: tuple[str, ...] = (),
    ) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(TIMEOUT_S)
        try:
            self.socket.connect(str(path))
            self.greeting = self.take(18)
            self.selected: dict[str, int] = {}
            if transmission:
                self.send(struct.pack(">I", 3))
                if structured:
                    self.negotiate(option(OPT_STRUCTURED))
                if extended:
                    self.negotiate(option(OPT_EXTENDED))
                if contexts:
                    told = self.negotiate(option(OPT_SET_META, meta_data(contexts)))
                    self.selected = {one[4:].decode(): int.from_bytes(one[:4]) for one in told}
                self.negotiate(option(OPT_GO, go_data()))
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def take(self, length: int) -> bytes:
        data = bytearray(length)
        room, done = memoryview(data), 0
        while done < length:
            count = self.socket.recv_into(room[done:])
            if not count:
                raise EOFError(f"the server closed after {done} of {length} bytes")
            done += count
        return bytes(data)

    def take_option_reply(self) -> tuple[int, int, bytes]:
        magic, number, kind, length = struct.unpack(">QIII", self.take(20))
        assert magic == REPLY_MAGIC
        return number, kind, self.take(length)

    def negotiate(self, data: bytes) -> list[bytes]:
        """Send an option that is acknowledged; what was told before."""
        self.send(data)
        told = []
        while True:
            _, kind, payload = self.take_option_reply()
            assert kind < 1 << 31, payload
            if kind == 1:
                return told
            told.append(payload)

    def take_chunk(self) -> Chunk:
        magic, flags, kind, cookie, length = struct.unpack(">IHHQI", self.take(20))
        assert magic == CHUNK_MAGIC
        assert flags in (0, 1)
        return Chunk(bool(flags), kind, cookie, self.take(length))

    def take_extended_chunk(self, offset: int) -> Chunk:
        """A chunk with an extended head, of the reply to a request at `offset`."""
        magic, flags, kind, cookie, told, length = struct.unpack(">IHHQQQ", self.take(32))
        assert magic == EXTENDED_REPLY_MAGIC
        assert flags in (0, 1)
        assert told == offset
        return Chunk(bool(flags), kind, cookie, self.take(length))

    def take_chunks(self, offset: int | None = None) -> list[Chunk]:
        """Return the chunks of one reply; with `offset` they have extended heads that repeat it."""

        def take() -> Chunk:
            return self.take_chunk() if offset is None else self.take_extended_chunk(offset)

        chunks = [take()]
        while not chunks[-1].is_last:
            chunks.append(take())
            assert chunks[-1].cookie == chunks[0].cookie
        return chunks

    def take_cookie(self) -> int:
        """Return the cookie of the next reply, whole, whose kind does not matter."""
        (magic,) = struct.unpack(">I", self.socket.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL))
        return self.take_chunks()[0].cookie if magic == CHUNK_MAGIC else self.take_reply()[1]

    def take_reply(self, read_bytes: int = 0) -> tuple[int, int, bytes]:
        """Return error, cookie and (of a read without error) data."""
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        assert magic == SIMPLE_REPLY_MAGIC
        return error, cookie, b"" if error else self.take(read_bytes)

    def ask(self, data: bytes, read_bytes: int = 0) -> int | bytes:
        """Send one request; its error, or the data of a read."""
        self.send(data)
        error, _, found = self.take_reply(read_bytes)
        return found if read_bytes and not error else error

    def is_ended(self) -> bool:
        """Wait for the server's end of the connection; False when it sends something instead."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


@contextmanager
def serve(volume: Volume, **options: bool | int) -> Iterator[NbdServer]:
    """Serve a volume under a short path of its own."""
    stack = volume if isinstance(volume, VolumeStack) else VolumeStack(volume)
    with tempfile.TemporaryDirectory(prefix="nbd-") as folder:
        server = NbdServer(stack, Path(folder) / "s", **options)  # type: ignore[arg-type]
        server.start()
        try:
            yield server
        finally:
            server.stop(5)
