"""An administrator's seat: the real commands, typed on a host of a real federation."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from console.base import run
from console.cli import trellis
from console.supervisor_process import Process

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TIMEOUT_S = 90.0
FACT_TIMEOUT_S = 30.0
FACT_POLL_S = 0.1

T = TypeVar("T")


@dataclass(frozen=True)
class Said:
    """How a command ended and what it said."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """The one document on standard output of a command that succeeded."""
        assert self.status == 0, self.err
        return json.loads(self.out)

    def error(self) -> Any:
        """The document on standard error of a command that failed with --json."""
        assert self.status != 0, self.out
        assert self.out == ""
        return json.loads(self.err)


class Seat:
    """Types commands; `host` is who one is (TRELLIS_HOST)."""

    def __init__(self, directory: Path, host: str | None = None) -> None:
        self.directory = directory
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TRELLIS_")}
        self.environment = {**environment, "TRELLIS_DIR": str(directory)}
        if host is not None:
            self.environment["TRELLIS_HOST"] = host

    def on(self, host: str) -> "Seat":
        """The same seat on another host."""
        return Seat(self.directory, host)

    def type(self, *command: str | Path) -> Said:
        """A command in a process of its own, as from a shell without a terminal."""
        words = [str(BIN / command[0]), *map(str, command[1:])]
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL, cwd=self.directory.parent, check=False,
        )  # fmt: skip
        return Said(done.returncode, done.stdout, done.stderr)

    def trellis(self, *arguments: str | Path) -> Said:
        """`trellis ... --json` in this process: the same code, without the start of Python."""
        return self.say("--json", *arguments)

    def say(self, *arguments: str | Path) -> Said:
        """`trellis ...` in this process, with what people read."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(trellis, "trellis", [*map(str, arguments)], self.environment)
        return Said(status, out.getvalue(), err.getvalue())

    def volume(self, host: str, name: str, size: str = "16M") -> Path:
        """Make a volume; gives its file."""
        made = self.trellis("volume", "create", name, "--size", size, "--host", host).json()
        return Path(made["path"])

    def configuration(self) -> Any:
        """What both hosts were asked to have, and which volumes there are."""
        found = {}
        for host in ("host_a", "host_b"):
            told = self.trellis("volume", "list", "--host", host).json()
            sets = self.trellis("replica", "list", "--host", host).json()
            found[host] = (
                {one["name"]: (one["control"], one["uses"]) for one in told},
                {one["name"]: one["state"] for one in sets},
            )
        return found

    def child(self, name: str) -> Process:
        """A child of the supervisor by its name, such as `beans-host_b`."""
        for record in ("children.json", "engines.json"):
            document = json.loads((self.directory / "run" / record).read_text())
            known = document["processes"]
            if name in known:
                return Process(*known[name])
        raise AssertionError(f"the supervisor has no child {name}")

    def supervisor(self) -> Process:
        """The process that `trellis up` left."""
        pid, start_ticks = (self.directory / "run/supervisor.lock").read_text().split()
        return Process(int(pid), int(start_ticks))


def wait_for(what: str, fact: Callable[[], T | None]) -> T:
    """Ask until the answer is neither None nor False."""
    deadline_s = time.monotonic() + FACT_TIMEOUT_S
    while True:
        found = fact()
        if found is not None and found is not False:
            return found
        assert time.monotonic() < deadline_s, f"still no {what}"
        time.sleep(FACT_POLL_S)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def one_sentence(said: Said, code: str, status: int = 1) -> str:
    """The error of a command that must fail like this: one line on standard error, nothing else."""
    assert (said.status, said.out) == (status, ""), said
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith(f"error: {code}: "), said.err
    return lines[0]
