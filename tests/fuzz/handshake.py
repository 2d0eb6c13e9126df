"""The NBD handshake under arbitrary bytes.

An input is a client's whole conversation, either as it is or as short records of options that
become well-formed ones. Whatever is said, the machine answers in whole option replies, keeps little,
and comes to the same end however the bytes are cut.
"""

import struct

from facade.engine.nbd_wire import (
    OPTION_DATA_MAX_BYTES,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    OPTIONS_MAX,
    Export,
    Handshake,
    Outcome,
    export_flags,
)

EXPORTS = {
    name: Export(name, size_bytes, export_flags(read_only=read_only, can_trim=True), contexts)
    for name, size_bytes, read_only, contexts in (
        ("vol", 1 << 20, False, ("base:allocation", "qemu:dirty-bitmap:s1")),
        ("größe", 2**63 - 1, True, ()),
    )
}
# What one option may be answered with: every context, and the words around them.
ANSWER_BYTES_MAX = 4096 + OPTION_DATA_MAX_BYTES
IS_RAW, IS_FLAGLESS = 1, 2


def stream_of(kind: int, data: bytes) -> bytes:
    """Return the bytes that the client sends."""
    if kind & IS_RAW:
        return data
    pieces = [b"" if kind & IS_FLAGLESS else struct.pack(">I", 3)]
    at = 0
    while at + 2 <= len(data):
        # Option, and the length of its data; lengths past 240 stand for very long ones.
        option, length = data[at], data[at + 1]
        payload = data[at + 2 : at + 2 + length]
        at += 2 + length
        told = length << 10 if length > 240 else len(payload)
        pieces.append(struct.pack(">QII", OPTION_MAGIC, option & 31, told) + payload)
    return b"".join(pieces)


def negotiate(stream: bytes, piece: int) -> tuple[Handshake, bytes]:
    """Give the machine the stream in pieces; return it and all that it said."""
    machine = Handshake(EXPORTS, "vol")
    told = bytearray()
    at = 0
    while at < len(stream) and machine.outcome is Outcome.NEGOTIATING:
        told += machine.receive(stream[at : at + piece])
        at += piece
        kept = len(machine.leftover)
        assert kept <= OPTION_DATA_MAX_BYTES + 16 + piece, f"{kept} bytes kept"
    return machine, bytes(told)


def check_replies(told: bytes, is_export_name: bool) -> None:
    """Every reply is whole and bounded; what follows the last one is the old-style answer."""
    at = replies = 0
    while len(told) - at >= 20:
        magic, _, kind, length = struct.unpack_from(">QIII", told, at)
        if magic != OPTION_REPLY_MAGIC:
            break
        assert kind in (1, 2, 3, 4) or kind >> 31, f"kind {kind}"
        assert length <= ANSWER_BYTES_MAX
        at += 20 + length
        replies += 1
    assert at <= len(told), "the last reply is cut"
    rest = len(told) - at
    assert rest == 0 or (is_export_name and rest in (10, 134)), f"{rest} bytes that are no reply"
    assert replies <= OPTIONS_MAX * 40


def fuzz_one(data: bytes) -> None:
    """Play one conversation. Raises AssertionError when anything about it was wrong."""
    if len(data) < 2:
        return
    stream = stream_of(data[0], data[2:])
    machine, told = negotiate(stream, 4096)
    begun = machine.outcome is Outcome.TRANSMISSION
    check_replies(told, begun)
    if begun:
        assert machine.export in EXPORTS.values()
        assert not machine.contexts or machine.structured
        assert set(machine.contexts) <= set(machine.export.contexts)
        assert len(set(machine.contexts)) == len(machine.contexts)
        assert stream.endswith(machine.leftover) or len(stream) > 4096
    elif machine.outcome is Outcome.ENDED:
        assert machine.reason
    # One in eight is cut small, too: it must not matter.
    if data[1] & 7 == 0:
        again, said = negotiate(stream, 1 + (data[1] >> 3))
        assert (again.outcome, again.export, said) == (machine.outcome, machine.export, told)
        assert (again.structured, again.contexts) == (machine.structured, machine.contexts)
