"""The NBD handshake under arbitrary bytes.

An input is a client's whole conversation, either as it is or as short records of options that
become well-formed ones. Whatever is said, the machine answers in whole option replies, keeps little
and comes to the same end however the bytes are cut; and where TLS is required, nothing is to be had
without it.
"""

import struct

from facade.engine.nbd_numbers import OPTION_MAGIC, OPTION_REPLY_MAGIC
from facade.engine.nbd_wire import (
    OPTION_DATA_MAX_BYTES,
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
REFUSED = {"x": "not for you"}
# What one option may be answered with: every context, and the words around them.
ANSWER_BYTES_MAX = 4096 + OPTION_DATA_MAX_BYTES
PIECE_BYTES = 4096
# An input's first byte.
IS_RAW, IS_FLAGLESS, NEEDS_TLS, IS_UNLISTED = 1, 2, 4, 8


def pieces_of(kind: int, data: bytes) -> list[bytes]:
    """Return what the client sends, in the pieces in which it arrives."""
    if kind & IS_RAW:
        return [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
    pieces = [b"" if kind & IS_FLAGLESS else struct.pack(">I", 3)]
    at = 0
    while at + 2 <= len(data):
        # Option, and the length of its data; lengths past 240 stand for very long ones.
        option, length = data[at], data[at + 1]
        payload = data[at + 2 : at + 2 + length]
        at += 2 + length
        told = length << 10 if length > 240 else len(payload)
        pieces.append(struct.pack(">QII", OPTION_MAGIC, option & 31, told) + payload)
    return pieces


def negotiate(kind: int, pieces: list[bytes]) -> tuple[Handshake, bytes]:
    """Give the machine what the client sends; return it and all that it said."""
    needs_tls, is_listed = bool(kind & NEEDS_TLS), not kind & IS_UNLISTED
    machine = Handshake({} if needs_tls else EXPORTS, None if needs_tls else "vol",
                        needs_tls=needs_tls, is_listed=is_listed)  # fmt: skip
    is_secured = False
    told = bytearray()
    for piece in pieces:
        told += machine.receive(piece)
        kept = len(machine.leftover)
        assert kept <= OPTION_DATA_MAX_BYTES + 16 + len(piece), f"{kept} bytes kept"
        if machine.outcome is Outcome.STARTTLS:
            assert needs_tls
            assert not is_secured
            assert not kept
            is_secured = True
            machine.secured(EXPORTS, REFUSED)
        if machine.outcome is not Outcome.NEGOTIATING:
            break
    assert machine.outcome is not Outcome.TRANSMISSION or is_secured or not needs_tls
    return machine, bytes(told)


def check_replies(told: bytes, has_begun: bool) -> None:
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
    rest = len(told) - at
    assert rest >= 0, "the last reply is cut"
    assert rest == 0 or (has_begun and rest in (10, 134)), f"{rest} bytes that are no reply"
    assert replies <= OPTIONS_MAX * 70


def fuzz_one(data: bytes) -> None:
    """Play one conversation. Raises AssertionError when anything about it was wrong."""
    if len(data) < 2:
        return
    kind, pieces = data[0], pieces_of(data[0], data[2:])
    machine, told = negotiate(kind, pieces)
    has_begun = machine.outcome is Outcome.TRANSMISSION
    check_replies(told, has_begun)
    if has_begun:
        assert machine.export in EXPORTS.values()
        assert not machine.contexts or machine.structured
        assert set(machine.contexts) <= set(machine.export.contexts)
        assert len(set(machine.contexts)) == len(machine.contexts)
        assert b"".join(pieces).find(machine.leftover) >= 0
    elif machine.outcome is Outcome.ENDED:
        assert machine.reason
    # One in eight is cut small, too: it must not matter. Around STARTTLS it has to.
    if data[1] & 7 == 0 and not kind & NEEDS_TLS:
        stream, size = b"".join(pieces), 1 + (data[1] >> 3)
        cut = [stream[at : at + size] for at in range(0, len(stream), size)]
        again, said = negotiate(kind, cut)
        assert (again.outcome, again.export, said) == (machine.outcome, machine.export, told)
        assert (again.structured, again.contexts) == (machine.structured, machine.contexts)
