"""Replication sets as people read them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from console.output import fields, table
from console.progress import Progress
from console.sizes import human_bytes, human_seconds

Set = Mapping[str, Any]


def set_text(one: Set) -> str:
    """All about one set, a line for each fact that has something to say."""
    pairs: list[tuple[str, object]] = [
        ("name", one["name"]),
        ("state", state_text(one)),
        ("mode", one["mode"]),
        ("primary", side_text(one["primary"])),
        ("secondary", side_text(one["secondary"])),
        ("changed", dirty_text(one)),
    ]
    if one["group"]:
        pairs.append(("group", one["group"]))
    if one["autosync"]:
        pairs.append(("autosync", "on"))
    if one["progress"]:
        pairs.append(("progress", progress_text(one["progress"])))
    if one.get("sent_bytes") is not None:
        pairs.append(("sent", f"{human_bytes(one['sent_bytes'])} ({one['sent_bytes']} bytes)"))
    if one["unreachable"]:
        pairs.append(("no answer", ", ".join(one["unreachable"])))
    if one["last_error"]:
        pairs.append(("last error", one["last_error"].get("message")))
    if one["note"]:
        pairs.append(("note", one["note"]))
    return fields(pairs)


def list_text(sets: Sequence[Set]) -> str:
    """A table, one set a line."""
    rows = [
        (
            one["name"],
            state_text(one),
            short_side(one["primary"]),
            short_side(one["secondary"]),
            dirty_text(one),
        )
        for one in sets
    ]
    return table(("name", "state", "primary", "secondary", "changed"), rows)


def deleted_text(done: Mapping[str, Any]) -> str:
    """What a delete did, and where it did not."""
    text = f"Deleted {done['name']} on {' and '.join(done['hosts']) or 'no host'}."
    return f"{text} {done['note']}" if done["note"] else text


def state_text(one: Set) -> str:
    """`logging`, or with flags `logging (sync_needed)`."""
    return f"{one['state']} ({', '.join(one['flags'])})" if one["flags"] else str(one["state"])


def dirty_text(one: Set) -> str:
    """How many blocks have changed, and what that is in bytes at most."""
    blocks = one["dirty_blocks"]
    if blocks is None:
        return "not known"
    noun = "block" if blocks == 1 else "blocks"
    size = f" ({human_bytes(blocks * one['block_bytes'])})" if blocks else ""
    return f"{blocks} {noun}{size}"


def side_text(side: Mapping[str, Any]) -> str:
    """`host_a:Volume_a, bitmap MetaInfoVolume_a`."""
    return f"{short_side(side)}, bitmap {side['bitmap'] or 'made by Trellis'}"


def short_side(side: Mapping[str, Any]) -> str:
    """`host_a:Volume_a`."""
    return f"{side['host']}:{side['volume']}"


def progress_text(progress: Mapping[str, Any]) -> str:
    """`42 %, 100 MiB of 240 MiB, 80 MiB/s, 0:02 left`."""
    known = Progress(progress["done_bytes"], progress["total_bytes"], progress["rate_bytes_per_s"])
    left = "" if known.left_s is None else f", {human_seconds(known.left_s)} left"
    return (
        f"{known.fraction:.0%}, {human_bytes(known.done_bytes)} of "
        f"{human_bytes(known.total_bytes)}, {human_bytes(round(known.rate_bytes_per_s))}/s{left}"
    )
