"""How large a bitmap volume must be: two header slots, then one bit per block."""

from typing import Final

SLOT_BYTES: Final = 4096
"""Size of one header slot, and the granule that the bits are rounded up to."""

HEADER_SLOTS: Final = 2

BLOCK_BYTES: Final = 32 * 1024
"""Bytes of the data volume that one bit stands for, unless a set says otherwise."""


def bitmap_bytes(size_bytes: int, block_bytes: int = BLOCK_BYTES) -> int:
    """Return the bytes that a bitmap volume needs for a data volume of `size_bytes`."""
    if size_bytes < 0 or block_bytes <= 0:
        raise ValueError(f"size {size_bytes} and block {block_bytes} must be positive")
    bits = -(-size_bytes // block_bytes)
    bits_bytes = -(-bits // 8)
    return HEADER_SLOTS * SLOT_BYTES + -(-bits_bytes // SLOT_BYTES) * SLOT_BYTES
