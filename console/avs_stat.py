"""`dsstat`: state and progress of replication sets at intervals, in the predecessor's words.

Exit status as there: 0, 1 when there is nothing to report, 2 for a bad argument.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from console.avs_options import Parsed, parse, usage, wrong
from console.avs_tables import DSSTAT, NOT_HERE
from console.avs_text import version_text
from console.console import Console
from console.errors import unsupported
from console.output import emit, emit_json, table
from console.replication import BEAN

WHAT: Final = "state and progress of data services"
SERVICES_ELSEWHERE: Final = {"ii": NOT_HERE["iiadm"], "cache": NOT_HERE["scmadm"]}
STATES: Final = {
    "logging": "L",
    "queuing": "Q",
    "replicating": "R",
    "syncing": "SY",
    "reverse_syncing": "RS",
    "disabled": "-",
}
FLAGS: Final = {
    "volume_failed": "VF",
    "bitmap_failed": "BF",
    "queue_failed": "QF",
    "sync_needed": "SN",
    "reverse_sync_needed": "RN",
}
HEADINGS: Final = ("name", "t", "s", "pct", "role", "kps")
INTERVAL_MAX_S: Final = 86_400.0


def main(command: str, arguments: Sequence[str], console: Console) -> int:
    """Run one command line; returns the exit status."""
    parsed = parse(command, DSSTAT, arguments)
    if parsed.action == "h":
        console.show({"usage": usage(command, WHAT, DSSTAT)}, usage(command, WHAT, DSSTAT))
        return 0
    if parsed.action == "v":
        console.show({"version": version_text()}, version_text())
        return 0
    service = parsed.modifier("m") or "sndr"
    if service in SERVICES_ELSEWHERE:
        raise unsupported(
            f"{command} -m {service}",
            SERVICES_ELSEWHERE[service],
            f"`{command} -m sndr` shows replication sets.",
        )
    if service != "sndr":
        raise wrong(command, f"-m {service}: the services are sndr, ii and cache.")
    return _cycles(command, console, parsed)


def _cycles(command: str, console: Console, parsed: Parsed) -> int:
    interval_s, count = _interval(command, parsed.rest)
    wanted = parsed.modifier("s")
    names = wanted.split(",") if wanted else None
    cycle = 0
    while count == 0 or cycle < count:
        if cycle:
            time.sleep(interval_s)
        sets = [one for one in console.bean(BEAN).list() if names is None or one["name"] in names]
        if parsed.modifier("z") is not None:
            sets = [one for one in sets if one["dirty_blocks"] or one["progress"]]
        if not sets and not cycle:
            return 1
        _print(console, sets, headings=cycle == 0 or parsed.modifier("f") is not None)
        cycle += 1
    return 0


def _interval(command: str, words: Sequence[str]) -> tuple[float, int]:
    """Seconds between two tables, and how many tables: 0 stands for no end."""
    try:
        interval_s = float(words[0]) if words else 0.0
        count = int(words[1]) if len(words) > 1 else (0 if words else 1)
    except ValueError:
        raise wrong(command, "The interval is a number of seconds, the count a number.") from None
    if len(words) > 2 or not 0 <= interval_s <= INTERVAL_MAX_S or count < 0:
        raise wrong(
            command, f"At the end stand an interval of 0 to {INTERVAL_MAX_S:.0f} s and a count."
        )
    return interval_s, count


def _print(console: Console, sets: Sequence[Mapping[str, Any]], headings: bool) -> None:
    if console.json:
        emit_json(sets)
        return
    lines = table(HEADINGS, [row(one, console.host) for one in sets]).splitlines()
    emit("\n".join(lines if headings else lines[1:]))


def row(one: Mapping[str, Any], host: str) -> tuple[object, ...]:
    """One set as a line: name, primary or secondary, state, percent to copy, role, kB a second."""
    progress = one["progress"]
    role = "P" if one["primary"]["host"] == host else "S"
    flag = next((FLAGS[name] for name in one["flags"] if name in FLAGS), None)
    state = STATES.get(one["state"], "?")
    left, rate = 0.0, 0.0
    if progress and progress["total_bytes"]:
        left = 100.0 * (1 - progress["done_bytes"] / progress["total_bytes"])
        rate = progress["rate_bytes_per_s"] / 1024
    shown = flag if flag and state == "L" else state
    return (one["name"], role, shown, f"{left:.2f}", "net", f"{rate:.0f}")
