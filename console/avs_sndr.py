"""`sndradm` and `snradm`: replication sets in the predecessor's syntax, on Trellis's beans.

Synchronisations never ask, wait for their end, and return their true status. What asks in Trellis
asks here too, unless `-n` is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from console.avs_options import Parsed, parse, usage, wrong
from console.avs_sets import (
    arrow,
    chosen,
    details,
    file_line,
    from_patent,
    from_tuple,
    health,
)
from console.avs_tables import SNDRADM
from console.avs_text import lines_of, version_text
from console.console import Console
from console.errors import report, unsupported
from console.replication import BEAN, await_end, synchronise
from console.replication_output import state_text
from console.sizes import human_bytes
from facade.contract.errors import TrellisError

WHAT: Final = "replication sets, in the predecessor's words"
Each = Callable[[Console, str], Mapping[str, Any]]


def main(command: str, arguments: Sequence[str], console: Console) -> int:
    """Run one command line; returns the exit status."""
    parsed = parse(command, SNDRADM, arguments)
    action = parsed.action
    if parsed.modifier("r") is not None and action not in ("m", "u"):
        raise wrong(command, "-r goes with -m or -u.")
    if action == "h":
        console.show({"usage": usage(command, WHAT, SNDRADM)}, usage(command, WHAT, SNDRADM))
    elif action == "v":
        console.show({"version": version_text()}, version_text())
    elif action == "C":
        words = [word for word in (*parsed.action_words, *parsed.rest) if word != "-n"]
        _create(console, from_patent(command, words, lambda: console.host))
    elif action == "c":
        return _control(command, console, parsed)
    elif action in ("e", "E"):
        return _enable(command, console, parsed)
    elif action in _LISTS or action is None:
        _list(console, parsed, _LISTS.get(action or "p", arrow))
    else:
        return _on_each(console, parsed, _action(console, parsed))
    return 0


_LISTS: Final[Mapping[str | None, Callable[[Mapping[str, Any]], str]]] = {
    "p": arrow,
    "P": details,
    "i": file_line,
    "H": health,
}


def _create(console: Console, order: Mapping[str, Any]) -> None:
    made = console.bean(BEAN).create(**order)
    console.show(made, f"{made['name']} created on both hosts: {arrow(made)}, {state_text(made)}.")


def _control(command: str, console: Console, parsed: Parsed) -> int:
    letter = parsed.action_words[0]
    if letter not in _CONTROLS:
        raise wrong(command, f"-c {letter}: it is -c s, -c u or -c l.")
    if len(parsed.rest) != 1:
        raise wrong(command, f"-c {letter} is followed by one set.")
    return _on_each(console, parsed, _CONTROLS[letter])


def _enable(command: str, console: Console, parsed: Parsed) -> int:
    identical = parsed.action == "E"
    source = parsed.modifier("f")
    if source is not None:
        orders = [from_tuple(command, line.split()) for line in lines_of(Path(source))]
    elif len(parsed.rest) == 1 and not identical:
        return _on_each(console, parsed, _enable_one)
    elif len(parsed.rest) == 1:
        raise unsupported(
            f"Enabling {parsed.rest[0]} as identical",
            "that is decided when a set is created",
            "Give the whole set behind -E, or use `trellis replica create --identical`.",
        )
    else:
        orders = [from_tuple(command, parsed.rest)]
    for order in orders:
        _create(console, {**order, "identical": identical})
    return 0


def _list(console: Console, parsed: Parsed, line: Callable[[Mapping[str, Any]], str]) -> None:
    found = chosen(console.bean(BEAN).list(), parsed.rest, parsed.modifier("g"))
    sets = [console.bean(BEAN).show(name=one) if isinstance(one, str) else one for one in found]
    console.show(sets, "\n".join(line(one) for one in sets) or "No sets.")


def _action(console: Console, parsed: Parsed) -> Each:
    if parsed.modifier("r") is not None:
        sure = parsed.modifier("n") is not None
        console.confirm("Overwriting primary volumes from their secondaries", sure, "-n")
        kind = "full" if parsed.action == "m" else "update"
        return lambda console, name: synchronise(console, name, kind, reverse=True)
    return _ACTIONS[str(parsed.action)]


def _on_each(console: Console, parsed: Parsed, act: Each) -> int:
    """Act on every set; the rest goes on when one fails, and the worst status is returned."""
    sets = chosen(console.bean(BEAN).list(), parsed.rest, parsed.modifier("g"))
    names = [one if isinstance(one, str) else str(one["name"]) for one in sets]
    if len(names) == 1:
        one = act(console, names[0])
        console.show(one, _done_line(one))
        return 0
    worst, done = 0, []
    for name in names:
        try:
            done.append(act(console, name))
        except TrellisError as error:
            worst = max(worst, report(error, console.json))
    console.show(done, "\n".join(_done_line(one) for one in done) or ("" if names else "No sets."))
    return worst


def _done_line(one: Mapping[str, Any]) -> str:
    sent = one.get("sent_bytes")
    tail = "" if sent is None else f", {human_bytes(sent)} ({sent} bytes) on the link"
    return f"{one['name']}: {state_text(one)}{tail}"


def _full(console: Console, name: str) -> Mapping[str, Any]:
    return synchronise(console, name, "full")


def _update(console: Console, name: str) -> Mapping[str, Any]:
    return synchronise(console, name, "update")


def _log(console: Console, name: str) -> Mapping[str, Any]:
    return dict(console.bean(BEAN).log(name=name))


def _disable(console: Console, name: str) -> Mapping[str, Any]:
    return dict(console.bean(BEAN).disable(name=name))


def _enable_one(console: Console, name: str) -> Mapping[str, Any]:
    return dict(console.bean(BEAN).enable(name=name))


_CONTROLS: Final[Mapping[str, Each]] = {"s": _full, "u": _update, "l": _log}
_ACTIONS: Final[Mapping[str, Each]] = {
    "m": _full,
    "u": _update,
    "l": _log,
    "d": _disable,
    "w": await_end,
}
