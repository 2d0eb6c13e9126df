"""The embedded broker: RabbitMQ and Redis as private child processes of one machine.

Loopback only, own ports, folders and passwords; no system service is started, asked or stopped.
Both die with the process that started them (start them from its main thread).
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from broker.embedded_errors import (
    ServerDied,
    ServerFolderUnusable,
    ServerMissing,
    ServerNotReady,
    ServerPathTooLong,
    ServerPortTaken,
)
from broker.embedded_plan import (
    LOOPBACK,
    RABBITMQ_SERVER,
    SOCKET_PATH_LIMIT_BYTES,
    BrokerPorts,
    PlannedFile,
    PlannedProcess,
    plan,
    redis_plan,
)
from broker.embedded_process import ChildProcess, tail

BROKER_READY_TIMEOUT_S = 60.0
REDIS_READY_TIMEOUT_S = 10.0
EPMD_READY_TIMEOUT_S = 5.0
STOP_GRACE_S = 20.0
PROBE_INTERVAL_S = 0.05
PROBE_TIMEOUT_S = 2.0
COMMAND_TIMEOUT_S = 5.0
COOKIE_BYTES = 24
ERLANG = Path("/usr/lib/erlang")
# Below the kernel's range for outgoing connections, so that none of them takes a port of ours
# between the choice and the start.
PORT_RANGE = range(20_000, 32_000)
PORT_TRIES = 1_000
_AMQP_GREETING = b"AMQP\x00\x00\x09\x01"
_AMQP_METHOD_FRAME = 1


def port_is_free(port: int) -> bool:
    """Tell whether a loopback port can be listened on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Choose `count` different free loopback ports; OSError when there are none."""
    chosen: list[int] = []
    for _ in range(PORT_TRIES):
        if len(chosen) == count:
            return chosen
        port = secrets.choice(PORT_RANGE)
        if port not in chosen and port_is_free(port):
            chosen.append(port)
    raise OSError(f"no {count} free ports in {PORT_RANGE.start}..{PORT_RANGE.stop - 1}")


def choose_broker_ports() -> BrokerPorts:
    """Choose four free loopback ports for an embedded broker."""
    return BrokerPorts(*free_ports(4))


def write_file(planned: PlannedFile) -> None:
    """Write a planned file whole: the old one or the new one is there, never half."""
    temporary = planned.path.with_name(f"{planned.path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, planned.mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(planned.text)
    temporary.replace(planned.path)


class EmbeddedBroker:
    """A private RabbitMQ with its own epmd and the management plugin, all on the loopback.

    `base_dir` holds everything it writes (mode 0700) and keeps durable queues over restarts.
    `definitions` is RabbitMQ's definitions document; no other user or vhost exists. Ports are
    chosen when `ports` is None.
    """

    def __init__(
        self,
        base_dir: Path,
        definitions: Mapping[str, Any],
        *,
        ports: BrokerPorts | None = None,
        log_path: Path | None = None,
    ) -> None:
        self.base_dir = base_dir.resolve()
        self.definitions = definitions
        self.ports = choose_broker_ports() if ports is None else ports
        self.log_path = self.base_dir / "rabbitmq.log" if log_path is None else log_path
        self._epmd_log = self.log_path.with_name("epmd.log")
        self._epmd: ChildProcess | None = None
        self._server: ChildProcess | None = None
        self._stop_requested = False

    @property
    def amqp_port(self) -> int:
        """Loopback port of AMQP 0-9-1."""
        return self.ports.amqp

    @property
    def management_port(self) -> int:
        """Loopback port of RabbitMQ's management API (HTTP)."""
        return self.ports.management

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the children that were started, by name."""
        children = {"epmd": self._epmd, "rabbitmq": self._server}
        return {name: c.pid for name, c in children.items() if c is not None and c.pid is not None}

    def start(self) -> None:
        """Write the files and start epmd and RabbitMQ; returns before RabbitMQ is ready.

        Raises ServerMissing, ServerPortTaken, ServerFolderUnusable, ServerDied or ServerNotReady
        and leaves nothing running then.
        """
        if not RABBITMQ_SERVER.exists():
            raise ServerMissing(
                server="RabbitMQ", program=str(RABBITMQ_SERVER), package="rabbitmq-server"
            )
        _need_program("RabbitMQ", "epmd", "erlang-base")
        for purpose, port in self.ports.by_purpose().items():
            if not port_is_free(port):
                raise ServerPortTaken(server="RabbitMQ", port=port, purpose=purpose)
        planned = plan(self.base_dir, self.ports, self.definitions, self._cookie())
        with _folder_errors("RabbitMQ", self.base_dir):
            for folder in planned.folders:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for file in planned.files:
                write_file(file)
            self._epmd = _child(planned.epmd, self._epmd_log, self.base_dir)
            self._server = _child(planned.server, self.log_path, self.base_dir)
            self._epmd.start()
        self._stop_requested = False
        try:
            _wait_for("epmd", self._epmd, EPMD_READY_TIMEOUT_S, self._epmd_answers)
            self._server.start()
        except BaseException:
            self.stop()
            raise

    def alive(self) -> bool:
        """Tell whether both epmd and RabbitMQ run."""
        children = (self._epmd, self._server)
        return all(child is not None and child.alive() for child in children)

    def answers(self) -> bool:
        """Tell whether AMQP is spoken on the port now: users, vhosts and queues exist by then."""
        with contextlib.suppress(OSError), self._connect(self.ports.amqp) as probe:
            probe.sendall(_AMQP_GREETING)
            first = probe.recv(1)
            return bool(first) and first[0] == _AMQP_METHOD_FRAME
        return False

    def wait_ready(self, timeout_s: float = BROKER_READY_TIMEOUT_S) -> None:
        """Return when AMQP is answered; raises ServerDied or ServerNotReady and stops it then."""
        if self._server is None:
            raise RuntimeError("wait_ready() before start()")
        try:
            _wait_for("RabbitMQ", self._server, timeout_s, self.answers)
        except BaseException:
            self.stop()
            raise

    def request_stop(self) -> None:
        """Ask RabbitMQ to stop without waiting for it; `stop()` then takes less time."""
        if self._server is not None and self._server.alive() and not self._stop_requested:
            self._stop_requested = True
            erl_call = next(ERLANG.glob("erts-*/bin/erl_call"), None)
            if erl_call is not None:
                made = plan(self.base_dir, self.ports, {}, "", erl_call=str(erl_call))
                _run(made.prepare_stop)
            self._server.request_stop()

    def stop(self) -> None:
        """Stop RabbitMQ cleanly (SIGTERM, then SIGKILL), then epmd. Idempotent."""
        if self._server is not None:
            self.request_stop()
            self._server.stop(STOP_GRACE_S)
        if self._epmd is not None:
            self._epmd.stop()
            self._stop_stray_epmd()

    def _stop_stray_epmd(self) -> None:
        """End the epmd that a node starts by itself when ours has died: whoever has our port."""
        if not self._epmd_answers():
            return
        _run(plan(self.base_dir, self.ports, {}, "").epmd_stop)

    def _epmd_answers(self) -> bool:
        with contextlib.suppress(OSError), self._connect(self.ports.epmd):
            return True
        return False

    def _connect(self, port: int) -> socket.socket:
        return socket.create_connection((LOOPBACK, port), PROBE_TIMEOUT_S)

    def _cookie(self) -> str:
        with contextlib.suppress(OSError):
            return (self.base_dir / "home" / ".erlang.cookie").read_text(encoding="ascii")
        return secrets.token_hex(COOKIE_BYTES)


class EmbeddedRedis:
    """A private Redis on a Unix socket (mode 0700) with a password; it keeps nothing on disk.

    `socket_path` defaults to `base_dir/redis.sock` and must be under 100 bytes. A password is
    made when none is given.
    """

    def __init__(
        self,
        base_dir: Path,
        password: str | None = None,
        *,
        socket_path: Path | None = None,
        log_path: Path | None = None,
    ) -> None:
        self.base_dir = base_dir.resolve()
        self.password = secrets.token_urlsafe(COOKIE_BYTES) if password is None else password
        self.socket_path = self.base_dir / "redis.sock" if socket_path is None else socket_path
        self.log_path = self.base_dir / "redis.log" if log_path is None else log_path
        self._server: ChildProcess | None = None

    @property
    def url(self) -> str:
        """The URL that Celery and redis-py take, with the password."""
        return f"redis+socket://{self.socket_path}?virtual_host=0&password={self.password}"

    @property
    def pids(self) -> dict[str, int]:
        """Process id by name, empty before the start."""
        pid = None if self._server is None else self._server.pid
        return {} if pid is None else {"redis": pid}

    def start(self) -> None:
        """Start Redis; returns before it is ready.

        Raises ServerMissing, ServerPathTooLong or ServerFolderUnusable.
        """
        _need_program("Redis", "redis-server", "redis-server")
        length = len(os.fsencode(self.socket_path))
        if length > SOCKET_PATH_LIMIT_BYTES:
            raise ServerPathTooLong(
                server="Redis",
                path=str(self.socket_path),
                length=length,
                limit=SOCKET_PATH_LIMIT_BYTES,
            )
        with _folder_errors("Redis", self.base_dir):
            self.base_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.socket_path.unlink(missing_ok=True)
            planned = redis_plan(self.base_dir, self.socket_path, self.password)
            self._server = _child(planned, self.log_path, self.base_dir)
            self._server.start()

    def alive(self) -> bool:
        """Tell whether Redis runs."""
        return self._server is not None and self._server.alive()

    def answers(self) -> bool:
        """Tell whether Redis answers a login with its password now."""
        # A raw connection: the client library retries on its own and takes seconds to say no.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe,
        ):
            probe.settimeout(PROBE_TIMEOUT_S)
            probe.connect(str(self.socket_path))
            probe.sendall(f"AUTH {self.password}\r\n".encode())
            return probe.recv(16).startswith(b"+OK")
        return False

    def wait_ready(self, timeout_s: float = REDIS_READY_TIMEOUT_S) -> None:
        """Return when Redis answers; raises ServerDied or ServerNotReady and stops it then."""
        if self._server is None:
            raise RuntimeError("wait_ready() before start()")
        try:
            _wait_for("Redis", self._server, timeout_s, self.answers)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop Redis and remove its socket. Idempotent."""
        if self._server is not None:
            self._server.stop(STOP_GRACE_S)
            self.socket_path.unlink(missing_ok=True)


def _child(planned: PlannedProcess, log_path: Path, cwd: Path) -> ChildProcess:
    stdin_bytes = None if planned.stdin_text is None else planned.stdin_text.encode()
    return ChildProcess(planned.argv, planned.env, log_path, cwd=cwd, stdin_bytes=stdin_bytes)


def _run(command: PlannedProcess) -> None:
    """Run a short command; its failure shows in what it was to bring about."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            command.argv,
            env=command.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )


def _need_program(server: str, program: str, package: str) -> None:
    if shutil.which(program) is None:
        raise ServerMissing(server=server, program=program, package=package)


@contextlib.contextmanager
def _folder_errors(server: str, base_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = error.filename or base_dir
        raise ServerFolderUnusable(
            server=server, path=str(path), reason=error.strerror or str(error)
        ) from error


def _wait_for(
    server: str, child: ChildProcess, timeout_s: float, ready: Callable[[], bool]
) -> None:
    """Poll `ready` until it is true; the child's own end is noticed at once."""
    deadline_s = time.monotonic() + timeout_s
    while not ready():
        if not child.alive():
            last = tail(child.log_path).splitlines()
            raise ServerDied(
                server=server,
                status=child.poll(),
                reason=last[-1] if last else "it said nothing",
                log=str(child.log_path),
            )
        if time.monotonic() > deadline_s:
            raise ServerNotReady(server=server, timeout_s=timeout_s, log=str(child.log_path))
        child.wait(PROBE_INTERVAL_S)
