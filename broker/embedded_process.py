"""One child process that dies with its parent: the building block of every server we run.

The kernel sends the child SIGTERM when the *thread* that started it ends, so children are started
from the main thread. Each child has a session of its own: a Ctrl-C on the terminal reaches only
the parent, which then stops its children in order.
"""

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
LOG_LIMIT_BYTES = 8 * 1024 * 1024
STOP_GRACE_S = 15.0
KILL_WAIT_S = 5.0
LOG_TAIL_BYTES = 2000

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_pid: int, signal_number: int = signal.SIGTERM) -> None:
    """Ask the kernel to signal this process when its parent ends; run in the child before exec.

    A parent that ended before the request is noticed by its changed id, and this process ends.
    """
    if _libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        os._exit(126)
    if os.getppid() != parent_pid:
        os._exit(0)


def rotate(path: Path, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
    """Put a log longer than `limit_bytes` aside as `<name>.1`, replacing an older one."""
    try:
        if path.stat().st_size > limit_bytes:
            path.replace(path.with_name(path.name + ".1"))
    except FileNotFoundError:
        return


def tail(path: Path, limit_bytes: int = LOG_TAIL_BYTES) -> str:
    """Return the last bytes of a log as text, for an error's sentence; empty when there is none."""
    try:
        with path.open("rb") as log:
            size_bytes = log.seek(0, os.SEEK_END)
            log.seek(max(0, size_bytes - limit_bytes))
            return log.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""


class ChildProcess:
    """A program run as a child: its output in a log, ended with its parent.

    `detached` children keep running when the parent ends. Starting raises OSError as
    `subprocess.Popen` does.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        log_path: Path,
        *,
        cwd: Path | None = None,
        stdin_bytes: bytes | None = None,
        detached: bool = False,
        pass_descriptors: Sequence[int] = (),
    ) -> None:
        self.argv = list(argv)
        self.env = dict(env)
        self.log_path = log_path
        self.cwd = cwd
        self.stdin_bytes = stdin_bytes
        self.detached = detached
        self.pass_descriptors = tuple(pass_descriptors)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id, or None before the start."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the program; its standard output and error go to the end of the log (mode 0600)."""
        rotate(self.log_path)
        descriptor = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = subprocess.Popen(
                self.argv,
                env=self.env,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL if self.stdin_bytes is None else subprocess.PIPE,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
                pass_fds=self.pass_descriptors,
                preexec_fn=None if self.detached else _death_request(os.getpid()),
            )
        finally:
            os.close(descriptor)
        if self.stdin_bytes is not None and self._process.stdin is not None:
            with self._process.stdin as pipe:
                pipe.write(self.stdin_bytes)

    def poll(self) -> int | None:
        """Return the exit status, or None while the child lives or was never started."""
        return None if self._process is None else self._process.poll()

    def alive(self) -> bool:
        """Tell whether the child was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def request_stop(self, signal_number: int = signal.SIGTERM) -> None:
        """Send the child a signal if it still lives."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal_number)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the child's end; False when it still lives after `timeout_s`."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, grace_s: float = STOP_GRACE_S) -> int | None:
        """SIGTERM, wait `grace_s`, then SIGKILL; returns the exit status. Idempotent."""
        self.request_stop()
        if not self.wait(grace_s):
            self.request_stop(signal.SIGKILL)
            self.wait(KILL_WAIT_S)
        return self.poll()


def _death_request(parent_pid: int) -> Callable[[], None]:
    def request() -> None:
        die_with_parent(parent_pid)

    return request
