"""Block devices of this host, as `lsblk` reports them."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

LSBLK_TIMEOUT_S: Final = 10.0
"""A device that hangs must not hang the bean: without a report there are no block devices."""

_COLUMNS: Final = "NAME,PATH,SIZE,TYPE,MOUNTPOINTS,RO"

# Kinds of block device that are a volume; loop devices stand for a file, which has its own name.
_TYPES: Final = frozenset({"disk", "part", "lvm", "crypt", "mpath", "raid0", "raid1", "raid5",
                           "raid6", "raid10"})  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """Something that could be a volume, with what speaks against its use."""

    name: str
    path: Path
    kind: str  # "file", "block"
    size_bytes: int
    problem: str | None  # why no data service can use it as things are


def block_devices() -> list[Candidate]:
    """Return the block devices of this host; none where `lsblk` gives no report."""
    command = ["lsblk", "--json", "--bytes", "--output", _COLUMNS]
    try:
        done = subprocess.run(command, capture_output=True, timeout=LSBLK_TIMEOUT_S, check=True)
        return parse_report(json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def parse_report(report: dict[str, Any]) -> list[Candidate]:
    """Return the devices of lsblk's JSON report, each once though it may hang on several."""
    found: dict[str, Candidate] = {}
    for device in _flat(report.get("blockdevices") or []):
        size_bytes = int(device.get("size") or 0)
        if device.get("type") in _TYPES and size_bytes > 0:
            name = str(device["name"])
            path = Path(device.get("path") or f"/dev/{name}")
            found[name] = Candidate(name, path, "block", size_bytes, _problem(device))
    return list(found.values())


def _flat(devices: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for device in devices:
        yield device
        yield from _flat(device.get("children") or [])


def _problem(device: dict[str, Any]) -> str | None:
    mounted = [str(point) for point in device.get("mountpoints") or [] if point]
    if mounted:
        return "it is swap space" if mounted == ["[SWAP]"] else f"it is mounted on {mounted[0]}"
    children = [str(child["name"]) for child in device.get("children") or []]
    if children:
        return f"it is divided into, or held by, {', '.join(sorted(children))}"
    return "it is read-only" if device.get("ro") else None
