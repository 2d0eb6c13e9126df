"""What commands print: one JSON document for scripts, or tables and lines for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

Document = Mapping[str, Any] | Sequence[Any]

# Terminal escapes, line feeds and the like in a name or a remote sentence are shown, not obeyed.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}


def printable(value: object) -> str:
    """Text that cannot move the cursor or fake another line; None becomes `-`."""
    if value is None:
        return "-"
    if value is True or value is False:
        return "yes" if value else "no"
    return str(value).translate(_CONTROL)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Left-aligned columns, two spaces apart, headers in capitals; no trailing spaces."""
    lines = [[header.upper() for header in headers]]
    lines += [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def fields(pairs: Iterable[tuple[str, object]]) -> str:
    """`name: value` lines with the values in one column."""
    known = [(name, printable(value)) for name, value in pairs]
    width = max((len(name) for name, _ in known), default=0) + 1
    return "\n".join(f"{name + ':':<{width}} {value}" for name, value in known)


def emit_json(document: object) -> None:
    """Print the one JSON document of a command on standard output."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))


def emit(text: str) -> None:
    """Print lines for people on standard output; nothing for an empty text."""
    if text:
        click.echo(text)


def note(text: str) -> None:
    """Say something beside the result, on standard error."""
    click.echo(text, err=True)


def on_terminal() -> bool:
    """True when a person can be asked: both standard input and standard error are terminals."""
    return sys.stdin.isatty() and sys.stderr.isatty()
