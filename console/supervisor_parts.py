"""The parts of a running federation, each with the same few verbs: start, alive, ready, stop.

Managers (RabbitMQ, Redis, mail sink, notifier, Flower, beans) die with the supervisor. Engines do
not: they are detached, recorded by process id and start time, and adopted by the next supervisor.
"""

from __future__ import annotations

import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from broker.embedded import EmbeddedBroker, EmbeddedRedis
from broker.embedded_process import ChildProcess, tail
from console.supervisor_errors import ChildFailed, WouldNotEnd
from console.supervisor_process import Process, end, end_session, process_of, socket_owner

KILL_WAIT_S: Final = 5.0
MANAGER_GRACE_S: Final = 12.0
ENGINE_GRACE_S: Final = 60.0  # a flush of everything that waits may take its time
PROBE_TIMEOUT_S: Final = 1.0


class Part(ABC):
    """One part: started again when it dies, stopped with the federation."""

    def __init__(self, name: str, log_path: Path) -> None:
        """Take the name for messages and the file that its output goes to."""
        self.name = name
        self.log_path = log_path

    @abstractmethod
    def start(self) -> None:
        """Start it; returns before it is ready. Raises TrellisError or OSError."""

    @abstractmethod
    def alive(self) -> bool:
        """Tell whether all of its processes run."""

    @abstractmethod
    def ready(self) -> bool:
        """Tell whether it answers now."""

    @abstractmethod
    def request_stop(self) -> None:
        """Ask it to end, without waiting."""

    @abstractmethod
    def stop(self) -> None:
        """End it and what it left behind. Idempotent. Raises WouldNotEnd."""

    @abstractmethod
    def processes(self) -> dict[str, Process]:
        """Its processes that run, by name."""

    def status(self) -> int | None:
        """Exit status of its process, where it has ended and is known."""
        return None

    def failure(self) -> ChildFailed:
        """The error for a part that ended before it was ready."""
        said = tail(self.log_path).splitlines()
        return ChildFailed(
            name=self.name,
            status=self.status(),
            reason=said[-1] if said else "it said nothing",
            log=str(self.log_path),
        )


class BrokerPart(Part):
    """The embedded RabbitMQ with its epmd: one dies, both are started again."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        """Take the broker."""
        super().__init__("rabbitmq", broker.log_path)
        self._broker = broker
        self._sessions: tuple[int, ...] = ()

    def start(self) -> None:
        """Start both."""
        self._broker.start()
        self._sessions = tuple(self._broker.pids.values())

    def alive(self) -> bool:
        """Tell whether both run."""
        return self._broker.alive()

    def ready(self) -> bool:
        """Tell whether AMQP is answered."""
        return self._broker.answers()

    def request_stop(self) -> None:
        """Ask RabbitMQ to end."""
        self._broker.request_stop()

    def stop(self) -> None:
        """End both."""
        self._broker.stop()
        for session in self._sessions:
            _end_rest(self.name, session)

    def processes(self) -> dict[str, Process]:
        """Both processes."""
        return _named(self._broker.pids)


class RedisPart(Part):
    """The embedded Redis."""

    def __init__(self, redis: EmbeddedRedis) -> None:
        """Take the Redis."""
        super().__init__("redis", redis.log_path)
        self._redis = redis

    def start(self) -> None:
        """Start it."""
        self._redis.start()

    def alive(self) -> bool:
        """Tell whether it runs."""
        return self._redis.alive()

    def ready(self) -> bool:
        """Tell whether it takes the password."""
        return self._redis.answers()

    def request_stop(self) -> None:
        """Nothing: it ends at once when it is stopped, and the others need it until then."""

    def stop(self) -> None:
        """End it."""
        self._redis.stop()

    def processes(self) -> dict[str, Process]:
        """Its process."""
        return _named(self._redis.pids)


class ManagerPart(Part):
    """A program of ours that dies with the supervisor."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        log_path: Path,
        *,
        cwd: Path,
        ready: Callable[[], bool] | None = None,
    ) -> None:
        """Take the command; without `ready` it is ready while it lives."""
        super().__init__(name, log_path)
        self._make = partial(ChildProcess, argv, env, log_path, cwd=cwd)
        self._ready = ready
        self._child: ChildProcess | None = None

    def start(self) -> None:
        """Start it."""
        self._child = self._make()
        self._child.start()

    def alive(self) -> bool:
        """Tell whether it runs."""
        return self._child is not None and self._child.alive()

    def ready(self) -> bool:
        """Tell whether it answers, or at least lives."""
        return self.alive() and (self._ready is None or self._ready())

    def request_stop(self) -> None:
        """SIGTERM."""
        if self._child is not None:
            self._child.request_stop()

    def stop(self) -> None:
        """SIGTERM, SIGKILL after the grace, and an end to whatever it forked."""
        if self._child is None or self._child.pid is None:
            return
        self._child.stop(MANAGER_GRACE_S)
        _end_rest(self.name, self._child.pid)

    def processes(self) -> dict[str, Process]:
        """Its process."""
        pid = None if self._child is None or not self._child.alive() else self._child.pid
        return {} if pid is None else _named({self.name: pid})

    def status(self) -> int | None:
        """Its exit status."""
        return None if self._child is None else self._child.poll()


class EnginePart(Part):
    """An engine: detached, adopted when it runs already, ended only by `stop`."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        log_path: Path,
        *,
        cwd: Path,
        socket_path: Path,
        recorded: Process | None,
    ) -> None:
        """Take the command, the control socket, and who ran it according to the record."""
        super().__init__(name, log_path)
        self._make = partial(ChildProcess, argv, env, log_path, cwd=cwd, detached=True)
        self._socket_path = socket_path
        self._child: ChildProcess | None = None
        self.process = self._running(recorded)
        self.adopted = self.process is not None

    def _running(self, recorded: Process | None) -> Process | None:
        if recorded is not None and recorded.alive():
            return recorded
        # An engine whose start could not be recorded before the supervisor was killed.
        return socket_owner(self._socket_path)

    def start(self) -> None:
        """Start it, unless one was adopted and lives."""
        if self.alive():
            return
        self.adopted = False
        self._child = self._make()
        self._child.start()
        self.process = None if self._child.pid is None else process_of(self._child.pid)

    def alive(self) -> bool:
        """Tell whether it runs."""
        if self._child is not None:
            self._child.poll()  # reaps it where it is our own child
        return self.process is not None and self.process.alive()

    def ready(self) -> bool:
        """Tell whether its control socket takes connections."""
        return socket_owner(self._socket_path) is not None

    def request_stop(self) -> None:
        """SIGTERM: it flushes everything and ends."""
        if self.process is not None:
            self.process.signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGTERM, time to flush, then SIGKILL. Raises WouldNotEnd."""
        if self.process is not None and not end(self.process, ENGINE_GRACE_S, KILL_WAIT_S):
            raise WouldNotEnd(name=self.name, pid=self.process.pid, timeout_s=KILL_WAIT_S)
        if self._child is not None:
            self._child.wait(KILL_WAIT_S)

    def processes(self) -> dict[str, Process]:
        """Its process."""
        return {self.name: self.process} if self.process is not None and self.alive() else {}

    def status(self) -> int | None:
        """Its exit status, where it was our own child."""
        return None if self._child is None else self._child.poll()


def port_answers(port: int, host: str = "127.0.0.1") -> bool:
    """Tell whether somebody takes connections on a port."""
    with suppress(OSError), socket.create_connection((host, port), PROBE_TIMEOUT_S):
        return True
    return False


def _end_rest(name: str, session: int) -> None:
    rest = end_session(session, KILL_WAIT_S)
    if rest:
        raise WouldNotEnd(name=name, pid=rest[0].pid, timeout_s=KILL_WAIT_S)


def _named(pids: Mapping[str, int]) -> dict[str, Process]:
    found = {name: process_of(pid) for name, pid in pids.items()}
    return {name: process for name, process in found.items() if process is not None}
