"""The small language in which faults are ordered; docs/faults.md describes it. Pure.

script = order { ";" order }
order  = operation [ which ] action
which  = N | N "-" M | N "+"            counted from 1 in the order of the requests; all if absent
action = ERRNO | "short" BYTES [ ERRNO ] | "torn" [ ERRNO ] | "delay" TIME
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import Final

OPERATIONS: Final = ("any", "read", "write", "zero", "trim", "flush")
ORDERS_MAX: Final = 16  # in one script
COUNT_MAX: Final = 1 << 40
DELAY_S_MAX: Final = 60.0
DEFAULT_ERRNO: Final = errno.EIO

_TIMES: Final = {"us": 1, "ms": 1_000, "s": 1_000_000}


class BadFaultScript(ValueError):
    """An order that cannot be understood: which one, and what is allowed there."""


@dataclass(frozen=True)
class FaultOrder:
    """One order. `first` and `last` count from 1; `last` 0 means no end."""

    operation: str
    first: int
    last: int
    kind: str  # "fail", "short", "torn" or "delay"
    error: int = 0  # errno, for all but delay
    size_bytes: int = 0  # short: so much is written before the error
    delay_us: int = 0


def parse(script: str) -> tuple[FaultOrder, ...]:
    """Return the orders of a script. Raises BadFaultScript."""
    orders = tuple(_order(text.strip()) for text in script.split(";") if text.strip())
    if not 1 <= len(orders) <= ORDERS_MAX:
        raise BadFaultScript(f"a script has 1 to {ORDERS_MAX} orders, this one {len(orders)}")
    return orders


def _order(text: str) -> FaultOrder:
    words = text.split()
    operation = words.pop(0)
    if operation not in OPERATIONS:
        raise BadFaultScript(f"`{text}`: {operation} is none of {', '.join(OPERATIONS)}")
    first, last = 1, 0
    if words and words[0][0].isdigit():
        first, last = _which(words.pop(0), text)
    if not words:
        raise BadFaultScript(f"`{text}`: what is to happen? An errno, short, torn or delay")
    kind = words.pop(0)
    error, size_bytes, delay_us = DEFAULT_ERRNO, 0, 0
    if kind == "delay":
        error, delay_us = 0, _delay(words.pop(0) if words else "", text)
    elif kind == "short":
        size_bytes = _count(words.pop(0) if words else "", text)
    elif kind != "torn":
        kind, words = "fail", [kind, *words]
    if kind in ("short", "torn") and operation != "write":
        raise BadFaultScript(f"`{text}`: only a write can be {kind}")
    if words and kind != "delay":
        error = _errno(words.pop(0), text)
    if words:
        raise BadFaultScript(f"`{text}`: {' '.join(words)} is too much")
    return FaultOrder(operation, first, last, kind, error, size_bytes, delay_us)


def _which(word: str, text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]+)(?:(\+)|-([0-9]+))?", word)
    if found is None:
        raise BadFaultScript(f"`{text}`: {word} is none of N, N-M and N+")
    first = _count(found[1], text)
    last = 0 if found[2] else _count(found[3] or found[1], text)
    if first < 1 or (last and last < first):
        raise BadFaultScript(f"`{text}`: {word} counts from 1 upwards")
    return first, last


def _count(word: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,13}", word) or int(word) > COUNT_MAX:
        raise BadFaultScript(f"`{text}`: a number up to {COUNT_MAX} is needed, not `{word}`")
    return int(word)


def _delay(word: str, text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})(us|ms|s)", word)
    if found is None:
        raise BadFaultScript(f"`{text}`: a time like 500us, 50ms or 2s is needed, not `{word}`")
    delay_us = int(found[1]) * _TIMES[found[2]]
    if delay_us > DELAY_S_MAX * 1_000_000:
        raise BadFaultScript(f"`{text}`: a delay is at most {DELAY_S_MAX:.0f} s")
    return delay_us


def _errno(word: str, text: str) -> int:
    number = getattr(errno, word, None) if re.fullmatch(r"E[A-Z0-9]+", word) else None
    # The stack has its own meaning for EAGAIN: ask again on a thread that may wait.
    if not isinstance(number, int) or number == errno.EAGAIN:
        raise BadFaultScript(f"`{text}`: {word} is no error name like EIO or ENOSPC")
    return number


@dataclass(frozen=True)
class PowerCut:
    """When a host's backings lose power: at the n-th change, losing what `seed` chooses."""

    change: int
    seed: int


def parse_power_cut(text: str) -> PowerCut:
    """Return the order `CHANGE seed SEED`. Raises BadFaultScript."""
    found = re.fullmatch(r"([0-9]{1,12}) seed ([0-9]{1,18})", text.strip())
    if found is None or int(found[1]) < 1:
        raise BadFaultScript(f"`{text}`: it must be like `40 seed 7`: the 40th change, seed 7")
    return PowerCut(int(found[1]), int(found[2]))
