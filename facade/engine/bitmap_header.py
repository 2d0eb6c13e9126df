"""The header of a bitmap volume: what it belongs to and what state its set was in.

Two slots of 4096 bytes at offsets 0 and 4096, written in turn, the newer intact one counts. The
layout is in docs/bitmap.md, held to this file by a test. Pure: bytes in, values out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from facade.engine.checksum import crc32c

MAGIC = b"TRELLISB"
VERSION = 1
SLOT_BYTES = 4096
SLOTS = 2
BITS_OFFSET_BYTES = SLOTS * SLOT_BYTES

_BODY = struct.Struct(">8sHHIQ16sBBHIQQQQ")
_CRC = struct.Struct(">I")
_CRC_OFFSET = 508

ROLES = ("primary", "secondary")
STATES = ("logging", "syncing", "reverse_syncing", "replicating", "queuing")
FLAGS = (
    "sync_needed",
    "reverse_sync_needed",
    "applying",
    "volume_failed",
    "bitmap_failed",
    "queue_failed",
    "diverged",
)


@dataclass(frozen=True)
class BitmapHeader:
    """One header; `sequence` rises with every one written, `generation` when the sides part."""

    set_id: bytes  # 16 bytes
    role: str
    state: str
    flags: frozenset[str]
    block_bytes: int
    size_bytes: int
    sequence: int = 0
    generation: int = 1
    peer_generation: int = 0

    def next(self, **changes: object) -> BitmapHeader:
        """The header to write after this one."""
        return replace(self, sequence=self.sequence + 1, **changes)  # type: ignore[arg-type]


def pack(header: BitmapHeader) -> bytes:
    """The 4096 bytes of a slot."""
    flags = sum(1 << FLAGS.index(name) for name in header.flags)
    body = _BODY.pack(
        MAGIC,
        VERSION,
        0,
        header.block_bytes,
        header.size_bytes,
        header.set_id,
        ROLES.index(header.role),
        STATES.index(header.state),
        0,
        flags,
        header.sequence,
        header.generation,
        header.peer_generation,
        0,
    )
    sector = body.ljust(_CRC_OFFSET, b"\0")
    return (sector + _CRC.pack(crc32c(sector))).ljust(SLOT_BYTES, b"\0")


def unpack(slot: bytes) -> BitmapHeader | None:
    """The header in a slot, or None when it is not an intact header of a version we know."""
    if len(slot) < 512 or slot[:8] != MAGIC:
        return None
    if _CRC.unpack_from(slot, _CRC_OFFSET)[0] != crc32c(slot[:_CRC_OFFSET]):
        return None
    fields = _BODY.unpack_from(slot)
    (_, version, _, block_bytes, size_bytes, set_id, role, state, _, flags, seq, gen, peer, _) = (
        fields
    )
    if version != VERSION or role >= len(ROLES) or state >= len(STATES) or flags >> len(FLAGS):
        return None
    return BitmapHeader(
        set_id=set_id,
        role=ROLES[role],
        state=STATES[state],
        flags=frozenset(name for i, name in enumerate(FLAGS) if flags >> i & 1),
        block_bytes=block_bytes,
        size_bytes=size_bytes,
        sequence=seq,
        generation=gen,
        peer_generation=peer,
    )


def newest(slots: list[bytes]) -> BitmapHeader | None:
    """The intact header with the highest sequence, or None when no slot is intact."""
    intact = [header for header in map(unpack, slots) if header is not None]
    return max(intact, key=lambda header: header.sequence, default=None)


def slot_offset_bytes(header: BitmapHeader) -> int:
    """Where this header goes: slots alternate by sequence, so that the older one stays whole."""
    return header.sequence % SLOTS * SLOT_BYTES
