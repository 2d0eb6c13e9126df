"""What the demo stands on: printing each command before it runs, checking each step, waiting for
facts, and leaving nothing behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from console.base import run
from console.cli import trellis

TERMINAL_COLUMNS: Final = 110
COMMAND_TIMEOUT_S: Final = 120.0
FACT_TIMEOUT_S: Final = 20.0
FACT_POLL_S: Final = 0.1
PROGRAMS: Final = ("mkfs.ext4", "debugfs", "nbdcopy", "qemu-io", "sha256sum")

T = TypeVar("T")


class StepFailed(Exception):
    """Something is not as it should be; its text is the sentence to print."""


class Stage:
    """Runs commands where everybody sees them."""

    def __init__(self, root: Path, directory: Path) -> None:
        self.root = root
        self.directory = directory
        own = str(Path(sys.executable).parent)
        path = os.pathsep.join([own, os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
        self.environ = {
            **os.environ,
            "PATH": path,
            "TRELLIS_DIR": str(directory),
            "COLUMNS": str(TERMINAL_COLUMNS),
        }
        for name in ("TRELLIS_HOST", "TRELLIS_CONFIG"):
            self.environ.pop(name, None)
        self._started_s = time.monotonic()
        self._step = 0

    def step(self, text: str) -> None:
        """Announce what comes next."""
        self._step += 1
        elapsed_s = time.monotonic() - self._started_s
        print(f"\n=== {self._step}. {text}  [{elapsed_s:.0f} s]", flush=True)

    def say(self, text: str) -> None:
        print(text, flush=True)

    def check(self, holds: bool, claim: str, otherwise: str) -> None:
        """Print what holds, or stop."""
        if not holds:
            raise StepFailed(otherwise)
        self.say(f"ok: {claim}")

    def need_programs(self) -> None:
        path = self.environ["PATH"]
        missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
        if missing:
            raise StepFailed(f"not installed: {', '.join(missing)}; `make demo` installs them")

    def run(self, *command: str | Path, show: bool = True) -> str:
        """Print a command, run it, print what it says; stop unless it succeeds."""
        words = self._announce(command)
        done = subprocess.run(
            words, cwd=self.root, env=self.environ, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        if show and done.stdout:
            self.say(done.stdout.rstrip())
        if done.returncode != 0:
            if not show:
                self.say(done.stdout.rstrip())
            raise StepFailed(f"`{shlex.join(words)}` ended with status {done.returncode}")
        return done.stdout

    def run_on_terminal(self, *command: str | Path) -> str:
        """As `run`, but the command believes that a person looks on, and draws its progress bar."""
        words = self._announce(command)
        said: list[bytes] = []
        pid, terminal = pty.fork()
        if pid == 0:
            try:
                os.chdir(self.root)
                os.execvpe(words[0], words, self.environ)
            finally:
                os._exit(127)
        while True:
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # how a pseudo-terminal says that its other side is closed
                break
            if not piece:
                break
            said.append(piece)
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        os.close(terminal)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != 0:
            raise StepFailed(f"`{shlex.join(words)}` ended with status {status}")
        return b"".join(said).decode("utf-8", "replace")

    def try_to(self, *command: str) -> None:
        """Run a command whose failure changes nothing, and say nothing about it."""
        subprocess.run(
            command, cwd=self.root, env=self.environ, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=COMMAND_TIMEOUT_S,
            check=False,
        )  # fmt: skip

    def ask(self, *command: str) -> Any:
        """What `trellis ... --json` says, without showing it; in this process, which is quicker."""
        said, complaint = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
            status = run(trellis, "trellis", [*command, "--json"], self.environ)
        if status != 0:
            raise StepFailed(f"`trellis {shlex.join(command)}`: {complaint.getvalue().strip()}")
        return json.loads(said.getvalue())

    def wait_for(self, what: str, fact: Callable[[], T | None]) -> T:
        """Ask until the answer is not None or False; stop after `FACT_TIMEOUT_S`."""
        deadline_s = time.monotonic() + FACT_TIMEOUT_S
        while True:
            found = fact()
            if found is not None and found is not False:
                return found
            if time.monotonic() > deadline_s:
                raise StepFailed(f"after {FACT_TIMEOUT_S:.0f} s there is still no {what}")
            time.sleep(FACT_POLL_S)

    def _announce(self, command: Sequence[str | Path]) -> list[str]:
        words = [str(word).replace(f"{self.root}/", "") for word in command]
        self.say(f"$ {shlex.join(words)}")
        return words


def copy_project(root: Path, target: Path) -> int:
    """Copy this repository's own files (no build, no environment); gives their count."""
    left_out = {".git", ".venv", "build", "__pycache__", ".pytest_cache", ".mypy_cache",
                ".ruff_cache", ".hypothesis"}  # fmt: skip

    def ignore(_folder: str, names: list[str]) -> set[str]:
        endings = (".so", ".egg-info")
        return {
            name
            for name in names
            if name in left_out or name.startswith(".trellis") or name.endswith(endings)
        }

    shutil.copytree(root, target, ignore=ignore, symlinks=True)
    return sum(1 for path in target.rglob("*") if path.is_file())


def processes_naming(text: str) -> list[str]:
    """Command lines of other processes that hold `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if text in line:
            found.append(f"{entry.name}: {line.strip()[:100]}")
    return found
