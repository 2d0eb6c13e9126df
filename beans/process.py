"""`trellis-beans`: loads the code once and forks one Celery worker per bean of this host.

Children die with this process, and a dead one is started again with back-off. SIGTERM or SIGINT
ends all of them: a word first, `STOP_GRACE_S`, then SIGKILL for whoever still works.
"""

import argparse
import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from beans.logs import log_to_stderr
from beans.registry import bean_class, bean_names
from beans.supervise import ChildSpec, ChildState, Family
from facade.contract.errors import TrellisError
from facade.contract.settings import Settings, load

log = logging.getLogger(__name__)

STOP_GRACE_S = 6.0
WAKE_S = 5.0
PR_SET_PDEATHSIG = 1
CRASHED = 70
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; exit status 2 for settings that are not understood."""
    parser = argparse.ArgumentParser(
        prog="trellis-beans", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--config", type=Path, help="settings file; else TRELLIS_CONFIG")
    options = parser.parse_args(arguments)
    log_to_stderr("trellis-beans")
    try:
        settings = load(options.config, os.environ).need("host", "broker", "redis")
        settings.host.data_dir.mkdir(parents=True, exist_ok=True)
        children = [ChildSpec(name, jobs) for name in bean_names() for jobs in _kinds(name)]
    except TrellisError as error:
        sys.stderr.write(f"error: {error.code}: {error}\n")
        return 2
    return Parent(settings, children).run()


class Parent:
    """The process that forks the workers; has one thread, so that forking is safe."""

    def __init__(self, settings: Settings, children: Sequence[ChildSpec]) -> None:
        """Take who is to be run."""
        self._settings = settings
        self._family = Family([ChildState(spec) for spec in children])
        self._stopping = False

    def run(self) -> int:
        """Keep the children alive until told to end."""
        import beans.worker  # noqa: F401  (loaded here once, for all children)

        gc.collect()
        # Objects made so far stay shared: the collector of no child touches their pages.
        gc.freeze()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        while True:
            now_s = time.monotonic()
            for state in self._family.due(now_s):
                state.started(self._fork(state.spec), now_s)
            got = signal.sigtimedwait(SIGNALS, self._family.wait_s(time.monotonic(), WAKE_S))
            self._reap()
            if got is not None and got.si_signo in (signal.SIGTERM, signal.SIGINT):
                return self._stop()

    def _fork(self, spec: ChildSpec) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            log.info("started %s as process %d", spec.name, pid)
            return pid
        _run_child(self._settings, spec, parent)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            state = self._family.by_pid(pid)
            if state is not None:
                pause_s = state.ended(time.monotonic())
                log.warning("%s (process %d) ended with %s", state.spec.name, pid, _meaning(status))
                if not self._stopping:
                    log.info("%s starts again in %.1f s", state.spec.name, pause_s)

    def _stop(self) -> int:
        self._stopping = True
        for state in self._family.running():
            _signal(state, signal.SIGTERM)
        deadline_s = time.monotonic() + STOP_GRACE_S
        while self._family.running() and (left_s := deadline_s - time.monotonic()) > 0:
            signal.sigtimedwait({signal.SIGCHLD}, left_s)
            self._reap()
        for state in self._family.running():
            log.warning("%s still works, it is killed", state.spec.name)
            _signal(state, signal.SIGKILL)
        while self._family.running():
            signal.sigtimedwait({signal.SIGCHLD}, WAKE_S)
            self._reap()
        return 0


def _kinds(bean: str) -> tuple[bool, ...]:
    return (False, True) if bean_class(bean).jobs else (False,)


def _signal(state: ChildState, number: signal.Signals) -> None:
    if state.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.pid, number)


def _meaning(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"


def _run_child(settings: Settings, spec: ChildSpec, parent: int) -> NoReturn:
    status = CRASHED
    try:
        # A worker whose pool is at work cannot be ended by SIGTERM.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        # Ctrl-C on a terminal reaches the whole group: the parent deals with it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        from beans.worker import run_worker

        status = run_worker(settings, spec.bean, jobs=spec.jobs)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else CRASHED
    except BaseException:
        log.exception("%s ended", spec.name)
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
