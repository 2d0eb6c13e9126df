"""Who else uses an image file: loop devices, swap, programs that have it open for writing."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_WRITES: Final = os.O_WRONLY | os.O_RDWR


def problem_of_file(path: Path) -> str | None:
    """Return why no service could use the file, None where nothing speaks against it."""
    if path.stat().st_size == 0:
        return "it is empty"
    if not os.access(path, os.R_OK | os.W_OK):
        return "it may not be read and written by this user"
    real = os.path.realpath(path)
    device = _loop_device_of(real)
    if device is not None:
        return f"it is attached as {device}"
    return "it is swap space" if real in _swap_files() else None


def writer_of(path: Path, besides: Iterable[int]) -> str | None:
    """Return `name (process N)` of a program that has the file or device open for writing.

    Sees every process as root, else those of the same user. `besides` and this process are left
    out. A program that opens it a moment later is not seen.
    """
    real = os.path.realpath(path)
    skipped = {os.getpid(), *besides}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in skipped and _writes(entry, real):
            return f"{_name(entry)} (process {entry.name})"
    return None


def _writes(process: Path, real: str) -> bool:
    try:
        for descriptor in (process / "fd").iterdir():
            if str(descriptor.readlink()) == real:
                info = (process / "fdinfo" / descriptor.name).read_text()
                flags = next(line for line in info.splitlines() if line.startswith("flags:"))
                if int(flags.split()[1], 8) & _WRITES:
                    return True
    except (OSError, StopIteration):  # it ended meanwhile, or is another user's
        pass
    return False


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "a program"


def _loop_device_of(real: str) -> str | None:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().rstrip("\n") == real:
                return f"/dev/{backing.parents[1].name}"
        except OSError:  # detached meanwhile
            continue
    return None


def _swap_files() -> set[str]:
    try:
        lines = Path("/proc/swaps").read_text().splitlines()[1:]
    except OSError:
        return set()
    return {line.split()[0] for line in lines if line.strip()}
