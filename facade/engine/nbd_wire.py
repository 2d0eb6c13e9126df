"""The NBD handshake as a machine without sockets: bytes in, bytes out, one outcome.

Fixed newstyle negotiation of the public protocol, server side. `Handshake` knows nothing of
connections or threads: give it what the client sent (`receive`), send what it returns, until
`outcome` says that transmission begins or that the connection is over. Whatever the client sends,
it keeps at most OPTION_DATA_MAX_BYTES plus one piece of input.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from facade.engine.nbd_meta import (
    MetaQueryRefused,
    list_contexts,
    parse_meta,
    select_contexts,
)

# Largest option data that is looked at; a longer one is skipped and answered with TOO_BIG.
OPTION_DATA_MAX_BYTES = 16 * 1024
# Longest option data that is skipped; past it the client is not worth its bytes.
OPTION_SKIP_MAX_BYTES = 1024 * 1024
# Options in one handshake; real clients send fewer than ten.
OPTIONS_MAX = 64
# Longest export name, as the protocol has it.
EXPORT_NAME_MAX_BYTES = 4096
# Largest payload of one request, either way (nbd_wire.pxd has it too).
MAX_PAYLOAD_BYTES = 32 * 1024 * 1024
# Any offset and length is served; what the page cache likes best is whole pages.
MIN_BLOCK_BYTES = 1
PREFERRED_BLOCK_BYTES = 4096

GREETING_MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9

GREETING = struct.Struct(">QQH")
CLIENT_FLAGS = struct.Struct(">I")
OPTION = struct.Struct(">QII")
OPTION_REPLY = struct.Struct(">QIII")
EXPORT_REPLY = struct.Struct(">QH")
EXPORT_REPLY_PADDING = bytes(124)

FLAG_FIXED_NEWSTYLE = 1 << 0
FLAG_NO_ZEROES = 1 << 1


class TransmissionFlag:
    """Bits that tell the client what the export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Opt:
    """Options that this server knows."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Rep:
    """Types of replies to options."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_INVALID = (1 << 31) + 3
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_TOO_BIG = (1 << 31) + 9


class Info:
    """Kinds of information about an export."""

    EXPORT = 0
    NAME = 1
    BLOCK_SIZE = 3


class Outcome(Enum):
    """How a handshake stands."""

    NEGOTIATING = "negotiating"
    TRANSMISSION = "transmission"
    ENDED = "ended"


@dataclass(frozen=True)
class Export:
    """What a client is told about one export."""

    name: str
    size_bytes: int
    flags: int
    # Metadata contexts that may be selected.
    contexts: tuple[str, ...] = ()
    # Whether structured replies are offered, and with them contexts.
    can_structured: bool = True


def export_flags(*, read_only: bool, can_trim: bool) -> int:
    """Return the transmission flags of an export that this engine serves.

    Every export is safe over several connections: they share one page cache and one flush.
    """
    flags = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH
    flags |= TransmissionFlag.CAN_MULTI_CONN | TransmissionFlag.SEND_FUA
    flags |= TransmissionFlag.SEND_CACHE
    if read_only:
        return flags | TransmissionFlag.READ_ONLY
    # Where zeroing is not known to be fast, a request for it fails fast.
    flags |= TransmissionFlag.SEND_WRITE_ZEROES | TransmissionFlag.SEND_FAST_ZERO
    return flags | TransmissionFlag.SEND_TRIM if can_trim else flags


class Handshake:
    """One client's negotiation, from the greeting to transmission or the end.

    `outcome` says how it stands; `export` is the chosen one once it is TRANSMISSION; `reason` says
    why it ENDED; `leftover` is what the client sent beyond the handshake. `structured` says whether
    structured replies were agreed on, `contexts` which metadata contexts were selected (the first
    has number 1).
    """

    def __init__(self, exports: Mapping[str, Export], default_name: str) -> None:
        """`default_name` is the export that the empty name stands for."""
        self._exports = exports
        self._default_name = default_name
        self._input = bytearray()
        self._output = bytearray()
        self._greeted = False
        self._no_zeroes = False
        self._options = 0
        self._skip_bytes = 0
        self.outcome = Outcome.NEGOTIATING
        self.export: Export | None = None
        self.reason = ""
        self.structured = False
        self.contexts: tuple[str, ...] = ()
        self._contexts_of: Export | None = None

    @property
    def leftover(self) -> bytes:
        """Bytes that came after the option that began transmission."""
        return bytes(self._input)

    def greeting(self) -> bytes:
        """Return what the server says first."""
        return GREETING.pack(GREETING_MAGIC, OPTION_MAGIC, FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)

    def receive(self, data: bytes) -> bytes:
        """Take what the client sent and return what it is answered, which may be nothing."""
        self._input += data
        while self.outcome is Outcome.NEGOTIATING and self._step():
            pass
        answer = bytes(self._output)
        self._output.clear()
        return answer

    def close(self) -> None:
        """Note that the client closed its end before transmission."""
        self._end("the client left during the handshake")

    def _step(self) -> bool:
        """Consume one message; False when more input is needed for it."""
        if self._skip_bytes:
            skipped = min(self._skip_bytes, len(self._input))
            del self._input[:skipped]
            self._skip_bytes -= skipped
            return not self._skip_bytes
        if not self._greeted:
            return self._take_client_flags()
        if len(self._input) < OPTION.size:
            return False
        magic, option, length = OPTION.unpack_from(self._input)
        if magic != OPTION_MAGIC:
            self._end("an option began with the wrong magic number")
            return False
        if length > OPTION_DATA_MAX_BYTES:
            return self._refuse_long(option, length)
        if len(self._input) < OPTION.size + length:
            return False
        payload = bytes(self._input[OPTION.size : OPTION.size + length])
        del self._input[: OPTION.size + length]
        if self._count_option():
            self._take_option(option, payload)
        return True

    def _take_client_flags(self) -> bool:
        if len(self._input) < CLIENT_FLAGS.size:
            return False
        (flags,) = CLIENT_FLAGS.unpack_from(self._input)
        del self._input[: CLIENT_FLAGS.size]
        if flags & ~(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES):
            self._end(f"unknown client flags 0x{flags:x}")
            return False
        self._no_zeroes = bool(flags & FLAG_NO_ZEROES)
        self._greeted = True
        return True

    def _refuse_long(self, option: int, length: int) -> bool:
        if length > OPTION_SKIP_MAX_BYTES or option == Opt.EXPORT_NAME:
            self._end(f"option {option} came with {length} bytes")
            return False
        del self._input[: OPTION.size]
        if not self._count_option():
            return False
        self._skip_bytes = length
        self._reply(option, Rep.ERR_TOO_BIG, b"at most %d bytes" % OPTION_DATA_MAX_BYTES)
        return True

    def _count_option(self) -> bool:
        self._options += 1
        if self._options > OPTIONS_MAX:
            self._end(f"more than {OPTIONS_MAX} options")
            return False
        return True

    def _take_option(self, option: int, payload: bytes) -> None:
        if option == Opt.EXPORT_NAME:
            self._take_export_name(payload)
        elif option == Opt.ABORT:
            self._reply(option, Rep.ACK)
            self._end("the client aborted")
        elif option == Opt.LIST:
            self._take_list(payload)
        elif option in (Opt.INFO, Opt.GO):
            self._take_go(option, payload)
        elif option == Opt.STRUCTURED_REPLY and self._can_structured:
            self._take_structured(payload)
        elif option in (Opt.LIST_META_CONTEXT, Opt.SET_META_CONTEXT) and self._can_structured:
            self._take_meta(option, payload)
        else:
            self._reply(option, Rep.ERR_UNSUP, b"option not supported")

    def _take_export_name(self, payload: bytes) -> None:
        export = self._find(payload)
        if export is None:
            self._end("no such export")
            return
        self._output += EXPORT_REPLY.pack(export.size_bytes, self._flags_of(export))
        if not self._no_zeroes:
            self._output += EXPORT_REPLY_PADDING
        self._begin(export)

    def _take_list(self, payload: bytes) -> None:
        if payload:
            self._reply(Opt.LIST, Rep.ERR_INVALID, b"this option takes no data")
            return
        for name in self._exports:
            encoded = name.encode()
            self._reply(Opt.LIST, Rep.SERVER, struct.pack(">I", len(encoded)) + encoded)
        self._reply(Opt.LIST, Rep.ACK)

    def _take_go(self, option: int, payload: bytes) -> None:
        parsed = parse_go(payload)
        if parsed is None:
            self._reply(option, Rep.ERR_INVALID, b"name and information requests do not fit")
            return
        name, wanted = parsed
        export = self._find(name)
        if export is None:
            self._reply(option, Rep.ERR_UNKNOWN, b"no such export")
            return
        told = struct.pack(">HQH", Info.EXPORT, export.size_bytes, self._flags_of(export))
        self._reply(option, Rep.INFO, told)
        if Info.NAME in wanted:
            self._reply(option, Rep.INFO, struct.pack(">H", Info.NAME) + export.name.encode())
        if Info.BLOCK_SIZE in wanted:
            sizes = (MIN_BLOCK_BYTES, PREFERRED_BLOCK_BYTES, MAX_PAYLOAD_BYTES)
            self._reply(option, Rep.INFO, struct.pack(">HIII", Info.BLOCK_SIZE, *sizes))
        self._reply(option, Rep.ACK)
        if option == Opt.GO:
            self._begin(export)

    @property
    def _can_structured(self) -> bool:
        return all(export.can_structured for export in self._exports.values())

    def _take_structured(self, payload: bytes) -> None:
        if payload:
            self._reply(Opt.STRUCTURED_REPLY, Rep.ERR_INVALID, b"this option takes no data")
            return
        self.structured = True
        self._reply(Opt.STRUCTURED_REPLY, Rep.ACK)

    def _take_meta(self, option: int, payload: bytes) -> None:
        is_set = option == Opt.SET_META_CONTEXT
        if is_set:
            # What was selected before is replaced, whatever becomes of this.
            self.contexts, self._contexts_of = (), None
        if not self.structured:
            self._reply(option, Rep.ERR_INVALID, b"ask for structured replies first")
            return
        try:
            asked = parse_meta(payload)
        except MetaQueryRefused as refused:
            kind = Rep.ERR_TOO_BIG if refused.is_too_big else Rep.ERR_INVALID
            self._reply(option, kind, str(refused).encode())
            return
        export = self._find(asked.export)
        if export is None:
            self._reply(option, Rep.ERR_UNKNOWN, b"no such export")
            return
        find = select_contexts if is_set else list_contexts
        found = find(export.contexts, asked.queries)
        for number, name in enumerate(found, 1):
            told = struct.pack(">I", number if is_set else 0) + name.encode()
            self._reply(option, Rep.META_CONTEXT, told)
        if is_set:
            self.contexts, self._contexts_of = tuple(found), export
        self._reply(option, Rep.ACK)

    def _flags_of(self, export: Export) -> int:
        return export.flags | (TransmissionFlag.SEND_DF if self.structured else 0)

    def _find(self, encoded: bytes) -> Export | None:
        if len(encoded) > EXPORT_NAME_MAX_BYTES:
            return None
        try:
            name = encoded.decode()
        except UnicodeDecodeError:
            return None
        return self._exports.get(name or self._default_name)

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self._output += OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data

    def _begin(self, export: Export) -> None:
        if self._contexts_of is not export:
            self.contexts = ()
        self.export = export
        self.outcome = Outcome.TRANSMISSION

    def _end(self, reason: str) -> None:
        self.reason = reason
        self.outcome = Outcome.ENDED


def parse_go(payload: bytes) -> tuple[bytes, frozenset[int]] | None:
    """Split the data of INFO and GO into export name and wanted information; None if malformed."""
    if len(payload) < 6:
        return None
    (name_bytes,) = struct.unpack_from(">I", payload)
    if name_bytes > len(payload) - 6:
        return None
    name = payload[4 : 4 + name_bytes]
    (count,) = struct.unpack_from(">H", payload, 4 + name_bytes)
    if len(payload) != 6 + name_bytes + 2 * count:
        return None
    return name, frozenset(struct.unpack_from(f">{count}H", payload, 6 + name_bytes))
