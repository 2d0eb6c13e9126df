"""Processes that are known by process id *and* start time: never mistaken, never found by name.

A process id is used again after its process has ended; the pair of id and start time is not.
Every child of a supervisor leads a session of its own, so that its whole offspring, however it was
left behind, is found by the session's number.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.embedded import write_file
from broker.embedded_plan import PlannedFile

_PROC: Final = Path("/proc")
_POLL_S: Final = 0.05
CONNECT_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True)
class Process:
    """A process: its id and its start time in clock ticks since the machine's start."""

    pid: int
    start_ticks: int

    def alive(self) -> bool:
        """Tell whether this very process is there and not merely waits to be reaped."""
        facts = _stat(self.pid)
        return facts is not None and facts.start_ticks == self.start_ticks and facts.state != "Z"

    def signal(self, number: int) -> bool:
        """Signal this very process; False when it is gone."""
        # The descriptor holds on to the process that has the id now; the check after it makes
        # sure that it is this one.
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.alive():
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end, whosever child it is; False when it still lives after `timeout_s`."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if not self.alive():
                return True
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            return bool(poller.poll(timeout_s * 1000)) or not self.alive()
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class _Stat:
    state: str
    session: int
    start_ticks: int


def process_of(pid: int) -> Process | None:
    """The process that has this id now."""
    facts = _stat(pid)
    return None if facts is None or facts.state == "Z" else Process(pid, facts.start_ticks)


def socket_owner(path: Path) -> Process | None:
    """The process that listens on a Unix socket, as the kernel says; None when nobody does."""
    with (
        suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe,
    ):
        probe.settimeout(CONNECT_TIMEOUT_S)
        probe.connect(str(path))
        raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return process_of(struct.unpack("3i", raw)[0])
    return None


def session_members(session: int) -> list[Process]:
    """Every process of a session."""
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            facts = _stat(int(entry.name))
            if facts is not None and facts.session == session and facts.state != "Z":
                found.append(Process(int(entry.name), facts.start_ticks))
    return found


def end_session(session: int, timeout_s: float) -> list[Process]:
    """Kill what is left of a session whose leader has ended; returns those still there.

    A session's number is not given to a new process while one of its members lives.
    """
    deadline_s = time.monotonic() + timeout_s
    while members := session_members(session):
        for member in members:
            member.signal(signal.SIGKILL)
        if time.monotonic() > deadline_s:
            return members
        members[0].wait(_POLL_S)
    return []


def end(process: Process, grace_s: float, kill_wait_s: float) -> bool:
    """SIGTERM, wait `grace_s`, SIGKILL; False when it is still there `kill_wait_s` later."""
    process.signal(signal.SIGTERM)
    if process.wait(grace_s):
        return True
    process.signal(signal.SIGKILL)
    return process.wait(kill_wait_s)


def write_processes(path: Path, processes: Mapping[str, Process]) -> None:
    """Write a record of named processes, whole."""
    pairs = {name: [p.pid, p.start_ticks] for name, p in sorted(processes.items())}
    document = {"boot_id": _boot_id(), "processes": pairs}
    write_file(PlannedFile(path, json.dumps(document, indent=1) + "\n"))


def read_processes(path: Path) -> dict[str, Process]:
    """Read a record of named processes; one of an earlier boot, or damaged, names none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["boot_id"] != _boot_id():
            return {}
        pairs = document["processes"].items()
        return {str(name): Process(int(pid), int(ticks)) for name, (pid, ticks) in pairs}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def living(processes: Mapping[str, Process]) -> dict[str, Process]:
    """Those that are still there."""
    return {name: process for name, process in processes.items() if process.alive()}


def _boot_id() -> str:
    # Start times count from the machine's start, so a pair means nothing after the next one.
    return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _stat(pid: int) -> _Stat | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the program's name in parentheses and may hold anything.
    fields = text.rpartition(")")[2].split()
    return _Stat(state=fields[0], session=int(fields[3]), start_ticks=int(fields[19]))
