"""The documents of formats and protocols say what the code does."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from facade.engine import bitmap_header, link_connection, link_wire, replica_source, replica_target
from facade.engine.bitmap_header import BitmapHeader
from facade.engine.checksum import crc32c

DOCS = Path(__file__).resolve().parents[2] / "docs"


def rows(document: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading."""
    text = (DOCS / document).read_text().split(f"## {heading}\n", 1)[1].split("\n## ")[0]
    found = []
    for line in text.splitlines():
        if line.startswith("|"):
            found.append([cell.strip() for cell in line.strip("|").split("|")])
        elif found:
            break
    return found[2:]


def fields(document: str, heading: str, data: bytes) -> dict[str, int | bytes]:
    """Cut `data` by the document's table of offsets and sizes."""
    cut: dict[str, int | bytes] = {}
    for offset, size, name, *_ in rows(document, heading):
        piece = data[int(offset) : int(offset) + int(size)]
        cut[name] = piece if int(size) > 8 or name == "magic" else int.from_bytes(piece, "big")
    return cut


def test_bitmap_header_is_laid_out_as_documented() -> None:
    header = BitmapHeader(
        set_id=bytes(range(16)),
        role="secondary",
        state="replicating",
        flags=frozenset({"applying", "diverged"}),
        block_bytes=32768,
        size_bytes=2**40 + 512,
        sequence=7,
        generation=11,
        peer_generation=13,
    )
    slot = bitmap_header.pack(header)
    cut = fields("bitmap.md", "A header slot", slot)
    assert cut["magic"] == b"TRELLISB"
    assert cut["version"] == 1
    assert cut["block_bytes"] == 32768
    assert cut["size_bytes"] == 2**40 + 512
    assert cut["set_id"] == bytes(range(16))
    assert (cut["role"], cut["state"]) == (1, 3)
    assert cut["flags"] == 1 << 2 | 1 << 6
    assert (cut["sequence"], cut["generation"], cut["peer_generation"]) == (7, 11, 13)
    assert cut["crc"] == crc32c(slot[:508])
    assert len(slot) == 4096
    assert not any(slot[80:508])
    assert not any(slot[512:])
    assert bitmap_header.unpack(slot) == header


def test_bitmap_states_and_flags_are_numbered_as_documented() -> None:
    table = {row[2]: row[3] for row in rows("bitmap.md", "A header slot")}
    assert table["state"] == ", ".join(f"{i} {s}" for i, s in enumerate(bitmap_header.STATES))
    flags = ", ".join(f"{i} {name}" for i, name in enumerate(bitmap_header.FLAGS))
    assert table["flags"] == f"bit {flags}"


def test_a_damaged_header_is_refused() -> None:
    header = BitmapHeader(bytes(16), "primary", "logging", frozenset(), 4096, 4096)
    slot = bytearray(bitmap_header.pack(header))
    for at in (0, 9, 30, 100, 509):
        damaged = bytearray(slot)
        damaged[at] ^= 1
        assert bitmap_header.unpack(bytes(damaged)) is None
    newer = bitmap_header.pack(header.next(state="syncing"))
    assert bitmap_header.newest([bytes(slot), newer]) == header.next(state="syncing")
    assert bitmap_header.newest([bytes(slot), newer[:2000]]) == header.next(state="syncing")
    assert bitmap_header.newest([bytes(slot), b"\0" * 4096]) == header


def test_link_frame_is_laid_out_as_documented() -> None:
    frame = link_wire.pack_frame(2, b"data", seq=5, offset=4096, length=4, flags=1)
    cut = fields("link.md", "A frame", frame)
    assert cut["magic"] == b"TLNK"
    assert struct.unpack(">I", b"TLNK")[0] == 0x544C4E4B
    assert (cut["type"], cut["flags"], cut["seq"]) == (2, 1, 5)
    assert (cut["offset"], cut["length"], cut["payload_bytes"]) == (4096, 4, 4)
    assert cut["crc"] == crc32c(b"data", crc32c(frame[:36]))
    assert link_wire.unpack_frame(frame) == (2, 1, 5, 4096, 4, b"data")


def test_link_limits_are_those_documented() -> None:
    text = (DOCS / "link.md").read_text()
    assert f"at most {link_wire.PAYLOAD_LIMIT} |" in text
    assert f"# The link protocol, version {link_wire.VERSION}" in text
    assert f"for {replica_source.LINK_TIMEOUT_S:.0f} s, and sends PING after" in text
    assert re.search(rf"PING after\s+{replica_source.KEEPALIVE_S:.0f} s without", text)
    assert f"after {replica_target.SILENCE_LIMIT_S:.0f} s of silence" in text
    assert f"takes at most {link_connection.EXCHANGE_TIMEOUT_S:.0f} s." in text
    assert link_connection.NONCE_BYTES * 2 == 64
