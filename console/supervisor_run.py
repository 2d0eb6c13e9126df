"""The supervisor at work: starts the parts in order, keeps them alive, stops them in order.

It has one thread, since the kernel ends the managers when the thread that started them ends.
Signals only set a mark and wake it; it acts on them where it waits.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from broker.errors import BrokerRefused, BrokerUnavailable
from broker.lookup import query
from console.supervisor_errors import FolderUnusable, NotReady
from console.supervisor_parts import EnginePart, Part
from console.supervisor_plan import Federation, Paths, host_settings
from console.supervisor_process import write_processes
from facade.contract.errors import TrellisError
from facade.contract.services import BASE_SERVICES, DATA_SERVICES

log = logging.getLogger("trellis.supervisor")

BACK_OFF_FIRST_S: Final = 0.5
BACK_OFF_LIMIT_S: Final = 30.0
STEADY_S: Final = 60.0  # who lived this long starts again without a longer pause
PART_READY_TIMEOUT_S: Final = 60.0
BEANS_READY_TIMEOUT_S: Final = 60.0
PROBE_INTERVAL_S: Final = 0.05
QUERY_WAIT_S: Final = 0.4
WAKE_S: Final = 30.0
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(Exception):
    """Ctrl-C, SIGTERM or SIGHUP came while the federation was being brought up."""


@dataclass
class Kept:
    """A part with what is needed to start it again."""

    part: Part
    started_s: float = 0.0
    due_s: float | None = None  # when to start it; None while it runs
    back_off_s: float = BACK_OFF_FIRST_S

    def started(self, now_s: float) -> None:
        """Note a start."""
        self.started_s, self.due_s = now_s, None

    def ended(self, now_s: float) -> float:
        """Note an end; returns the pause before the next start."""
        if now_s - self.started_s >= STEADY_S:
            self.back_off_s = BACK_OFF_FIRST_S
        pause_s = self.back_off_s
        self.due_s = now_s + pause_s
        self.back_off_s = min(self.back_off_s * 2, BACK_OFF_LIMIT_S)
        return pause_s


class Wakeup:
    """Signals as something to wait for."""

    def __init__(self) -> None:
        """Catch the signals that mean `down`, and the ends of children."""
        self.stop_requested = False
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, self._noted)

    def wait(self, timeout_s: float, descriptors: Iterable[int] = ()) -> None:
        """Wait for a signal, for one of the descriptors, or for the time to pass."""
        poller = select.poll()
        for descriptor in (self._reader.fileno(), *descriptors):
            poller.register(descriptor, select.POLLIN)
        if not self.stop_requested:
            poller.poll(max(0.0, timeout_s) * 1000)
        with suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass

    def pause(self, timeout_s: float) -> None:
        """Wait while bringing up; raises StopRequested."""
        self.wait(timeout_s)
        if self.stop_requested:
            raise StopRequested

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stop_requested = True

    def _noted(self, _number: int, _frame: FrameType | None) -> None:
        return


class Supervisor:
    """Starts, keeps and stops the parts of one federation; made and used in the main thread.

    `infrastructure` (RabbitMQ, Redis, mail sink) is up before `managers` (notifier, Flower, beans)
    start, and goes down last; the engines stand between.
    """

    def __init__(
        self,
        federation: Federation,
        paths: Paths,
        infrastructure: Sequence[Part],
        engines: Sequence[EnginePart],
        managers: Sequence[Part],
    ) -> None:
        """Take the parts; starts nothing."""
        self._federation = federation
        self._paths = paths
        self._infrastructure = [Kept(part) for part in infrastructure]
        self._engines = [Kept(engine) for engine in engines]
        self._managers = [Kept(part) for part in managers]
        self._wakeup = Wakeup()

    def bring_up(self) -> None:
        """Return when every bean of every host answers.

        Raises StopRequested or TrellisError, with nothing left running but engines that ran before.
        """
        try:
            self._start([*self._infrastructure, *self._engines])
            self._wait_ready([*self._infrastructure, *self._engines])
            self._start(self._managers)
            self._wait_ready(self._managers)
            self._wait_beans()
        except OSError as error:
            self._stop(adopted_too=False)
            path = error.filename or self._paths.directory
            raise FolderUnusable(path=str(path), reason=error.strerror or str(error)) from error
        except BaseException:
            # A stop asked for means `down`; a failure leaves things as they were found.
            self._stop(adopted_too=self._wakeup.stop_requested)
            raise

    def keep(self) -> None:
        """Start again whatever dies, until a signal says to stop; then stop everything."""
        try:
            while not self._wakeup.stop_requested:
                now_s = time.monotonic()
                changed = [kept for kept in self._all() if self._look_after(kept, now_s)]
                if changed:
                    self._record()
                self._sleep()
        finally:
            self._stop(adopted_too=True)

    def _look_after(self, kept: Kept, now_s: float) -> bool:
        part = kept.part
        if kept.due_s is None:
            if part.alive():
                return False
            status = part.status()
            self._quietly(part, part.stop)
            pause_s = kept.ended(now_s)
            log.warning("%s ended (status %s), starts again in %.1f s", part.name, status, pause_s)
            return True
        if now_s < kept.due_s:
            return False
        if self._quietly(part, part.start):
            kept.started(now_s)
            log.info("%s started again", part.name)
        else:
            kept.ended(now_s)
        return True

    def _sleep(self) -> None:
        """Wait for the end of a child or an adopted engine, or for the next start that is due."""
        now_s = time.monotonic()
        waits = [kept.due_s - now_s for kept in self._all() if kept.due_s is not None]
        descriptors = []
        for kept in self._engines:
            for process in kept.part.processes().values():
                with suppress(OSError):
                    descriptors.append(os.pidfd_open(process.pid))
        try:
            self._wakeup.wait(min([WAKE_S, *waits]), descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _start(self, group: Sequence[Kept]) -> None:
        for kept in group:
            kept.part.start()
            kept.started(time.monotonic())
            self._record()

    def _wait_ready(self, group: Sequence[Kept]) -> None:
        deadline_s = time.monotonic() + PART_READY_TIMEOUT_S
        while missing := [kept.part for kept in group if not kept.part.ready()]:
            for part in missing:
                if not part.alive():
                    raise part.failure()
            self._check_time(deadline_s, PART_READY_TIMEOUT_S, [part.name for part in missing])
            self._wakeup.pause(PROBE_INTERVAL_S)

    def _wait_beans(self) -> None:
        """Ask the lookup service until every bean of every host has answered."""
        host = self._federation.hosts[0]
        settings = host_settings(self._federation, self._paths, host)
        services = (*BASE_SERVICES, *DATA_SERVICES)
        missing = {(host, bean) for host in self._federation.hosts for bean in services}
        deadline_s = time.monotonic() + BEANS_READY_TIMEOUT_S
        while missing:
            with suppress(BrokerUnavailable, BrokerRefused):
                handles = query(settings, wait_s=QUERY_WAIT_S)
                missing -= {(handle.host, handle.bean) for handle in handles}
            for kept in self._managers:
                if not kept.part.alive():
                    raise kept.part.failure()
            if missing:
                names = [f"{bean} of {host}" for host, bean in sorted(missing)]
                self._check_time(deadline_s, BEANS_READY_TIMEOUT_S, names)
                self._wakeup.pause(PROBE_INTERVAL_S)

    def _check_time(self, deadline_s: float, timeout_s: float, missing: Sequence[str]) -> None:
        if time.monotonic() > deadline_s:
            raise NotReady(
                timeout_s=timeout_s, missing=", ".join(missing), log=f"{self._paths.log}/"
            )

    def _stop(self, *, adopted_too: bool) -> None:
        engines = [kept for kept in self._engines if adopted_too or not _adopted(kept.part)]
        for group in (self._managers, engines, self._infrastructure):
            for kept in group:
                self._quietly(kept.part, kept.part.request_stop)
            if group is engines:
                # RabbitMQ takes seconds to end; nobody needs it while the engines flush.
                for kept in self._infrastructure:
                    self._quietly(kept.part, kept.part.request_stop)
            for kept in group:
                self._quietly(kept.part, kept.part.stop)
        self._record()

    def _quietly(self, part: Part, act: Callable[[], None]) -> bool:
        """Act on one part so that its failure does not keep the others from their turn."""
        try:
            act()
        except (TrellisError, OSError) as error:
            log.error("%s: %s", part.name, error)
            return False
        return True

    def _record(self) -> None:
        """Write down who runs, for `down` and for the next `up`."""
        self._write(self._paths.engines, self._engines)
        self._write(self._paths.children, [*self._infrastructure, *self._managers])

    def _write(self, path: Path, group: Sequence[Kept]) -> None:
        processes = {
            name: process for kept in group for name, process in kept.part.processes().items()
        }
        try:
            write_processes(path, processes)
        except OSError as error:
            log.error("cannot write %s: %s", path, error.strerror)

    def _all(self) -> list[Kept]:
        return [*self._infrastructure, *self._engines, *self._managers]


def _adopted(part: Part) -> bool:
    return isinstance(part, EnginePart) and part.adopted


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of our programs: none of the variables that would override their files."""
    return {key: value for key, value in environ.items() if not key.startswith("TRELLIS_")}
