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
from facade.engine.nbd_numbers import (
    CLIENT_FLAGS,
    EXPORT_REPLY,
    EXPORT_REPLY_PADDING,
    FLAG_FIXED_NEWSTYLE,
    FLAG_NO_ZEROES,
    GREETING,
    GREETING_MAGIC,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    Info,
    Opt,
    Rep,
    TransmissionFlag,
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

NEEDS_TLS = b"begin TLS first (STARTTLS)"


class Outcome(Enum):
    """How a handshake stands."""

    NEGOTIATING = "negotiating"
    STARTTLS = "starttls"
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
    # Whether structured replies are offered, and with them contexts and extended headers.
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
    structured replies were agreed on, `extended` whether extended headers were (which bring them
    along), `contexts` which metadata contexts were selected (the first has number 1).

    `refused_name` is the last export that the client asked for and may not use.

    With `needs_tls` (the protocol's FORCEDTLS) nothing is told before TLS: when `outcome` is
    STARTTLS and the answer is sent, lead the TLS handshake and call `secured`.
    """

    def __init__(
        self,
        exports: Mapping[str, Export],
        default_name: str | None = None,
        *,
        needs_tls: bool = False,
        is_listed: bool = True,
    ) -> None:
        """`default_name` is the export that the empty name stands for, if it stands for one.

        `is_listed` says whether a client that asks which exports there are is told.
        """
        self._exports = exports
        self._refused: Mapping[str, str] = {}
        self._default_name = default_name
        self._needs_tls = needs_tls
        self._is_listed = is_listed
        self._input = bytearray()
        self._output = bytearray()
        self._greeted = False
        self._no_zeroes = False
        self._had_tls = False
        self._options = 0
        self._skip_bytes = 0
        self.outcome = Outcome.NEGOTIATING
        self.export: Export | None = None
        self.reason = ""
        self.refused_name: str | None = None
        self._forget_options()

    def _forget_options(self) -> None:
        """Set everything that options agree on to what it is at first."""
        self.structured = False
        self.extended = False
        self.contexts: tuple[str, ...] = ()
        self._contexts_of: Export | None = None

    def secured(self, exports: Mapping[str, Export], refused: Mapping[str, str]) -> None:
        """Go on under TLS with the exports of this client; what was agreed on before is void.

        `refused` has the names of exports that it may not use, each with a sentence why.
        """
        self._forget_options()
        self._needs_tls = False
        self._exports, self._refused = exports, refused
        self.outcome = Outcome.NEGOTIATING

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
        if self._needs_tls and not flags & FLAG_FIXED_NEWSTYLE:
            self._end("the client is too old for TLS")
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
        if self._needs_tls and option != Opt.STARTTLS:
            self._reply(option, Rep.ERR_TLS_REQD, NEEDS_TLS)
        else:
            self._reply(option, Rep.ERR_TOO_BIG, b"at most %d bytes" % OPTION_DATA_MAX_BYTES)
        return True

    def _count_option(self) -> bool:
        self._options += 1
        if self._options > OPTIONS_MAX:
            self._end(f"more than {OPTIONS_MAX} options")
            return False
        return True

    def _take_option(self, option: int, payload: bytes) -> None:
        if option == Opt.ABORT:
            self._reply(option, Rep.ACK)
            self._end("the client aborted")
        elif self._needs_tls:
            self._take_before_tls(option, payload)
        elif option == Opt.EXPORT_NAME:
            self._take_export_name(payload)
        elif option == Opt.STARTTLS and self._had_tls:
            self._reply(option, Rep.ERR_INVALID, b"this connection has TLS already")
        elif option == Opt.LIST:
            self._take_list(payload)
        elif option in (Opt.INFO, Opt.GO):
            self._take_go(option, payload)
        elif option == Opt.STRUCTURED_REPLY and self._can_structured:
            self._take_structured(payload)
        elif option == Opt.EXTENDED_HEADERS and self._can_structured:
            self._take_extended(payload)
        elif option in (Opt.LIST_META_CONTEXT, Opt.SET_META_CONTEXT) and self._can_structured:
            self._take_meta(option, payload)
        else:
            self._reply(option, Rep.ERR_UNSUP, b"option not supported")

    def _take_before_tls(self, option: int, payload: bytes) -> None:
        if option == Opt.EXPORT_NAME:
            self._end("the client named an export without TLS, which is required")
        elif option != Opt.STARTTLS:
            self._reply(option, Rep.ERR_TLS_REQD, NEEDS_TLS)
        elif payload:
            self._reply(option, Rep.ERR_INVALID, b"this option takes no data")
        elif self._input:
            # Whoever sent it did not wait for the answer: it would be taken for something that
            # came under TLS.
            self._end("bytes came after STARTTLS without TLS")
        else:
            self._reply(option, Rep.ACK)
            self._had_tls = True
            self.outcome = Outcome.STARTTLS

    def _take_export_name(self, payload: bytes) -> None:
        if self.extended:
            self._end("EXPORT_NAME is not for extended headers")
            return
        export = self._find(payload)
        if export is None:
            self._end(self._why_not(payload)[1].decode())
            return
        self._output += EXPORT_REPLY.pack(export.size_bytes, self._flags_of(export))
        if not self._no_zeroes:
            self._output += EXPORT_REPLY_PADDING
        self._begin(export)

    def _take_list(self, payload: bytes) -> None:
        if payload:
            self._reply(Opt.LIST, Rep.ERR_INVALID, b"this option takes no data")
            return
        for name in self._exports if self._is_listed else ():
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
            self._reply(option, *self._why_not(name))
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
        if self.extended:
            told = b"extended headers were agreed on; they come first"
            self._reply(Opt.STRUCTURED_REPLY, Rep.ERR_EXT_HEADER_REQD, told)
            return
        self.structured = True
        self._reply(Opt.STRUCTURED_REPLY, Rep.ACK)

    def _take_extended(self, payload: bytes) -> None:
        if payload:
            self._reply(Opt.EXTENDED_HEADERS, Rep.ERR_INVALID, b"this option takes no data")
            return
        self.structured = self.extended = True
        self._reply(Opt.EXTENDED_HEADERS, Rep.ACK)

    def _take_meta(self, option: int, payload: bytes) -> None:
        is_set = option == Opt.SET_META_CONTEXT
        if is_set:
            # What was selected before is replaced, whatever becomes of this.
            self.contexts, self._contexts_of = (), None
        if not self.structured:
            told = b"ask for structured replies or extended headers first"
            self._reply(option, Rep.ERR_INVALID, told)
            return
        try:
            asked = parse_meta(payload)
        except MetaQueryRefused as refused:
            kind = Rep.ERR_TOO_BIG if refused.is_too_big else Rep.ERR_INVALID
            self._reply(option, kind, str(refused).encode())
            return
        export = self._find(asked.export)
        if export is None:
            self._reply(option, *self._why_not(asked.export))
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
        flags = export.flags
        if self.structured:
            flags |= TransmissionFlag.SEND_DF
        if self.extended and self._contexts_of is export and self.contexts:
            flags |= TransmissionFlag.BLOCK_STATUS_PAYLOAD
        return flags

    def _find(self, encoded: bytes) -> Export | None:
        if len(encoded) > EXPORT_NAME_MAX_BYTES:
            return None
        try:
            name = encoded.decode()
        except UnicodeDecodeError:
            return None
        return self._exports.get(name or self._default_name or "")

    def _why_not(self, encoded: bytes) -> tuple[int, bytes]:
        """Return the error for an export that `_find` does not find."""
        if not encoded and self._default_name is None:
            return Rep.ERR_UNKNOWN, b"name the export that you want: there is no default"
        refused = self._refused.get(encoded.decode(errors="replace"))
        if refused is not None:
            self.refused_name = encoded.decode(errors="replace")
            return Rep.ERR_POLICY, refused.encode()
        return Rep.ERR_UNKNOWN, b"no such export"

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
