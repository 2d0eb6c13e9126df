"""Figures with their targets: how every bench says what it measured and whether that is enough.

A bench measures `Figure`s, prints them with `print_figures` and, given `--json FILE`, stores
`{"figures": [...]}` (and whatever else it likes to keep) with `store`. `python -m bench` runs all
benches and prints the figures of all in one table.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured value. Targets are None where there is none; `wanted` is stricter than them.

    `is_lower_better` says on which side of `target` and `wanted` it is to be; `about` how it came
    about: absolute numbers of both, who the peer was.
    """

    name: str
    value: float
    unit: str = "x"
    target: float | None = None
    wanted: float | None = None
    is_lower_better: bool = False
    about: str = ""

    @property
    def verdict(self) -> str:
        """`wanted`, `ok`, `MISSED`, or nothing when there is no target."""
        if self.wanted is not None and self._reaches(self.wanted):
            return "wanted"
        if self.target is None:
            return ""
        return "ok" if self._reaches(self.target) else "MISSED"

    @property
    def aim(self) -> str:
        """The target in words, with what is wanted in brackets."""
        if self.target is None:
            return ""
        sign = "<=" if self.is_lower_better else ">="
        return f"{sign} {self.target:g}" + (f" ({self.wanted:g})" if self.wanted else "")

    def _reaches(self, limit: float) -> bool:
        return self.value <= limit if self.is_lower_better else self.value >= limit


def print_figures(figures: Iterable[Figure]) -> None:
    """Print one line a figure."""
    print(f"{'figure':<40}{'measured':>11} {'unit':<6}{'target':<15}{'verdict':<8}")
    for one in figures:
        print(
            f"{one.name:<40}{one.value:>11.2f} {one.unit:<6}{one.aim:<15}{one.verdict:<8}"
            f"{one.about}".rstrip(),
            flush=True,
        )


def store(path: Path | None, figures: Iterable[Figure], **more: Any) -> None:
    """Write the figures, and `more`, as JSON to `path`; nowhere when it is None."""
    if path is not None:
        document = {"figures": [asdict(one) for one in figures], "load": load(), **more}
        path.write_text(json.dumps(document, indent=1))


def load_figures(path: Path) -> list[Figure]:
    """Return what `store` wrote; nothing when a bench stored something else, or nothing."""
    try:
        document = json.loads(path.read_text() or "null")
    except FileNotFoundError:
        return []
    found = document.get("figures", []) if isinstance(document, dict) else []
    return [Figure(**one) for one in found]


def load() -> str:
    """Return how busy the machine is: load averages, processors."""
    averages = " ".join(f"{one:.1f}" for one in os.getloadavg())
    return f"load {averages} on {os.cpu_count()} processors"
