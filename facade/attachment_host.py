"""What attachments need of the operating system: helper processes, mounts, nbd devices."""

import contextlib
import ctypes
import errno
import os
import re
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from facade.attachment_plan import PROGRAMS, Means

HELPER_START_TIMEOUT_S: Final = 8.0
HELPER_END_TIMEOUT_S: Final = 5.0
FLUSH_TIMEOUT_S: Final = 20.0
REASON_CHARS_MAX: Final = 300

_POLL_S: Final = 0.01
_MNT_DETACH: Final = 2
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Helper:
    """A process that is one of the helper programs, ours or not."""

    pid: int
    argv: list[str]


class HelperFailed(Exception):
    """A helper did not come up; `str` is what it said."""


class AttachmentHost:
    """This machine; the folders and the search path of programs are its own unless given."""

    def __init__(
        self,
        dev: Path = Path("/dev"),
        block: Path = Path("/sys/block"),
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Take where device nodes are, what the kernel tells of them, where programs are."""
        self._dev = dev
        self._block = block
        self._environ = dict(environ)

    # What there is

    def means(self) -> Means:
        """Return what this machine has for attaching."""
        devices = sorted(self._block.glob("nbd[0-9]*"), key=lambda one: int(one.name[3:]))
        free = next((one for one in devices if not (one / "pid").exists()), None)
        return Means(
            nbd_client=self.program("nbd"),
            has_nbd=bool(devices),
            free_device=None if free is None else str(self._dev / free.name),
            nbdfuse=self.program("nbdfuse"),
            has_fuse=(self._dev / "fuse").exists(),
        )

    def program(self, helper: str) -> str | None:
        """Return where a helper's program is; daemons often have no sbin in their path."""
        path = f"{self._environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        return shutil.which(PROGRAMS[helper], path=path)

    def is_connected(self, device: str) -> bool:
        """Whether an nbd device has a connection."""
        return (self._block / Path(device).name / "pid").exists()

    def user_of(self, target: str) -> str | None:
        """Return who uses the device or file, as the end of a sentence; None: nobody is seen.

        `target` is a real path. It is not looked at itself: a helper that hangs would hang us.
        """
        for backing in self._block.glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):  # released meanwhile
                if backing.read_text().rstrip("\n") == target:
                    loop = backing.parents[1]
                    mounted = _mounted_on(_numbers(loop))
                    return f"in use as {self._dev / loop.name}" + (
                        f", mounted on {mounted}" if mounted else ""
                    )
        device = self._block / Path(target).name
        if Path(target).parent == self._dev and device.is_dir():
            mounted = _mounted_on(_numbers(device))
            if mounted:
                return f"mounted on {mounted}"
            holders = sorted(path.name for path in device.glob("holders/*"))
            if holders:
                return f"held by {holders[0]}"
        return _opener(target)

    # Helpers

    def start(self, argv: list[str], log: Path, is_ready: Callable[[], bool]) -> None:
        """Start a helper in a session of its own and wait until it serves. Raises HelperFailed."""
        with log.open("wb") as output:
            try:
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/",
                    start_new_session=True, env={**self._environ, "LC_ALL": "C"},
                )  # fmt: skip
            except OSError as error:
                raise HelperFailed(error.strerror or str(error)) from error
        deadline_s = time.monotonic() + HELPER_START_TIMEOUT_S
        while not is_ready():
            if process.poll() is not None:
                raise HelperFailed(_last_words(log) or f"it ended with {process.returncode}")
            if time.monotonic() > deadline_s:
                process.kill()
                process.wait()
                raise HelperFailed(f"it was not ready within {HELPER_START_TIMEOUT_S:g} s")
            time.sleep(_POLL_S)
        # It outlives us; while we are there, its end leaves no zombie.
        threading.Thread(target=process.wait, name="helper-end", daemon=True).start()

    def helpers(self) -> list[Helper]:
        """Return every process of this machine that may be a helper."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):  # ended meanwhile
                    raw = (entry / "cmdline").read_bytes().decode(errors="replace")
                    argv = raw.split("\0")[:-1]
                    if argv and argv[0].rpartition("/")[2] in PROGRAMS.values():
                        found.append(Helper(int(entry.name), argv))
        return found

    def run(self, argv: list[str]) -> None:
        """Run a short command; its outcome shows in what it changed."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                argv,
                capture_output=True,
                timeout=HELPER_END_TIMEOUT_S,
                check=False,
                env=self._environ,
            )

    def end(self, pid: int | None, grace_s: float = HELPER_END_TIMEOUT_S) -> None:
        """Wait for a helper's end; one that does not end by itself is told to, then killed."""
        if pid is None:
            return
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            for number in (None, signal.SIGTERM, signal.SIGKILL):
                if number is not None:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(handle, number)
                if select.select([handle], [], [], grace_s)[0]:
                    return
        finally:
            os.close(handle)


def started_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def is_mounted(folder: Path) -> bool:
    """Whether something is mounted on a folder, even where its server is dead."""
    return any(point == str(folder) for point, _ in _mounts())


def unmount(folder: Path, lazily: bool = False) -> None:
    """Unmount a folder; `lazily`: at once, whoever uses it. Raises OSError, EBUSY where it is used.

    One that is not mounted is fine.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(folder), _MNT_DETACH if lazily else 0) == 0:
        return
    error = ctypes.get_errno()
    if error == errno.EPERM:  # not root: libfuse's own program may
        argv = ["fusermount3", "-u", *(["-z"] if lazily else []), str(folder)]
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=HELPER_END_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.SubprocessError) as failure:
            raise OSError(errno.EPERM, f"fusermount3: {failure}") from failure
        error = 0 if done.returncode == 0 else errno.EBUSY
    if error and error not in (errno.EINVAL, errno.ENOENT):
        raise OSError(error, os.strerror(error))


def flush(target: str) -> str | None:
    """Flush what was written to the target; returns why it failed, None when all is durable.

    By a process of its own: one that waits for a dead server cannot be interrupted.
    """
    try:
        done = subprocess.run(
            ["sync", target], capture_output=True, text=True, timeout=FLUSH_TIMEOUT_S, check=False,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"it did not end within {FLUSH_TIMEOUT_S:g} s"
    except OSError as error:
        return error.strerror or str(error)
    return None if done.returncode == 0 else done.stderr.strip().rpartition(": ")[2]


def _mounts() -> list[tuple[str, str]]:
    """Return mount point and device number of every mount."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        found.append((_ESCAPE.sub(lambda m: chr(int(m[1], 8)), words[4]), words[2]))
    return found


def _numbers(device: Path) -> set[str]:
    """Return the device numbers of a disk and its partitions."""
    found = set()
    for path in (device / "dev", *device.glob(f"{device.name}p*/dev")):
        with contextlib.suppress(OSError):
            found.add(path.read_text().strip())
    return found


def _mounted_on(numbers: set[str]) -> str | None:
    return next((point for point, number in _mounts() if number in numbers), None)


def _opener(target: str) -> str | None:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                for descriptor in (entry / "fd").iterdir():
                    if str(descriptor.readlink()) == target:
                        name = (entry / "comm").read_text().strip()
                        if name not in PROGRAMS.values():
                            return f"open in {name} (process {entry.name})"
    return None


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")[:REASON_CHARS_MAX].rstrip(".")
