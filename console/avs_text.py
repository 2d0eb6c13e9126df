"""Small texts that the predecessor's commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from console.errors import ListUnreadable

LIST_BYTES_MAX: Final = 1024 * 1024


def version_text() -> str:
    """What `-v` prints."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"Trellis {version('trellis-storage')}"
    except PackageNotFoundError:
        return "Trellis, not installed as a package"


def lines_of(path: Path) -> list[str]:
    """The lines of a list file, without comments (`#`) and empty ones. Raises ListUnreadable."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LIST_BYTES_MAX + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ListUnreadable(path=path, reason=reason) from error
    if len(text) > LIST_BYTES_MAX:
        raise ListUnreadable(path=path, reason=f"it is longer than {LIST_BYTES_MAX} bytes")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]
