"""The progress bar of a waiting command: bytes, rate and time left, redrawn in place.

Pure but for `Bar`, which writes to standard error, and only when that is a terminal.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from typing import TextIO

from console.sizes import human_bytes, human_seconds

BAR_CELLS = 30
MIN_COLUMNS = 40


@dataclass(frozen=True)
class Progress:
    """How far a job is; `rate_bytes_per_s` is 0 while it is not known."""

    done_bytes: int
    total_bytes: int
    rate_bytes_per_s: float

    @property
    def fraction(self) -> float:
        """Done share, 0 to 1; a job with nothing to do is done."""
        if self.total_bytes <= 0:
            return 1.0
        return min(1.0, max(0.0, self.done_bytes / self.total_bytes))

    @property
    def left_s(self) -> float | None:
        """Seconds to go at the present rate, or None when nothing moves."""
        if self.rate_bytes_per_s <= 0:
            return None
        return max(0, self.total_bytes - self.done_bytes) / self.rate_bytes_per_s


def render(label: str, progress: Progress, columns: int) -> str:
    """One line of at most `columns` characters; the bar gives way first, then the label."""
    left = "-:--" if progress.left_s is None else human_seconds(progress.left_s)
    numbers = (
        f"{progress.fraction:4.0%}  {human_bytes(progress.done_bytes)} of "
        f"{human_bytes(progress.total_bytes)}  "
        f"{human_bytes(round(progress.rate_bytes_per_s))}/s  {left} left"
    )
    room = columns - len(label) - len(numbers) - 5
    cells = min(BAR_CELLS, room)
    if cells < 5:
        return f"{label} {numbers}"[:columns]
    full = int(progress.fraction * cells)
    return f"{label} [{'#' * full}{'.' * (cells - full)}] {numbers}"[:columns]


class Bar:
    """A bar on a terminal; silent when the stream is none or `quiet` is set."""

    def __init__(self, label: str, stream: TextIO | None = None, quiet: bool = False) -> None:
        """Draw on `stream` (standard error by default)."""
        self._label = label
        self._stream = stream or sys.stderr
        self._live = not quiet and self._stream.isatty()
        self._width = 0

    def show(self, progress: Progress, note: str = "") -> None:
        """Redraw; `note` stands in place of the label while something is wrong."""
        if not self._live:
            return
        columns = max(MIN_COLUMNS, shutil.get_terminal_size().columns) - 1
        line = render(note or self._label, progress, columns)
        self._stream.write("\r" + line.ljust(self._width))
        self._stream.flush()
        self._width = len(line)

    def close(self) -> None:
        """End the line, so that what follows starts on its own."""
        if self._live and self._width:
            self._stream.write("\n")
            self._stream.flush()
            self._width = 0
