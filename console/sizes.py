"""Sizes and rates as people write and read them; K, M, G, T are binary (1 K = 1024 bytes)."""

from __future__ import annotations

import re

import click

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_PATTERN = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:IB|B)?", re.IGNORECASE)
MAX_SIZE_BYTES = 2**60


def parse_size(text: str) -> int:
    """Turn `64M` or `1.5G` into bytes; ValueError with a sentence when it is no size."""
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"'{text}' is no size: write a number, with K, M, G or T behind it for binary "
            "units, such as 64M"
        )
    size_bytes = float(match[1]) * 1024 ** _UNITS[match[2].upper()]
    if not 0 < size_bytes <= MAX_SIZE_BYTES or size_bytes != int(size_bytes):
        raise ValueError(
            f"'{text}' is no size of a volume: it must be a whole number of bytes from 1 to 1024P"
        )
    return int(size_bytes)


def human_bytes(size_bytes: float) -> str:
    """Bytes with a binary unit and at most one decimal: `64 MiB`, `1.5 GiB`."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"


def human_seconds(seconds: float) -> str:
    """A duration for a progress bar: `0:07`, `1:02:03`."""
    total = max(0, int(seconds))
    hours, rest = divmod(total, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


class Size(click.ParamType[int]):
    """The click type of an option such as `--size 64M`; its value is in bytes."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Parse what was typed; a wrong size is wrong usage (exit status 2)."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)
