"""`trellis up` and `trellis down`: a whole federation on this machine, and its end.

    up(directory, hosts, advertise)        here: returns when a signal or `down` ended it
    up_detached(directory, hosts, ...)     in a process of its own: returns when every bean answers
    down(directory)                        ends all of it, engines flushed first
    federation_dir(environ)                TRELLIS_DIR, or ./.trellis

RabbitMQ, Redis, mail sink, notifier, Flower and beans die with the supervisor, whatever ends it.
Engines go on, and are adopted by the next `up` or ended by `down`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from broker.definitions import OPS_USER, definitions
from broker.embedded import EmbeddedBroker, EmbeddedRedis
from broker.embedded_plan import LOOPBACK, BrokerPorts
from broker.embedded_process import ChildProcess, tail
from console.place import paths_of
from console.supervisor_errors import (
    ChildFailed,
    NothingToTakeDown,
    ProgramMissing,
    WouldNotEnd,
)
from console.supervisor_folders import make_directory, private_dir
from console.supervisor_parts import (
    ENGINE_GRACE_S,
    KILL_WAIT_S,
    BrokerPart,
    EnginePart,
    ManagerPart,
    Part,
    RedisPart,
    port_answers,
)
from console.supervisor_plan import (
    FLOWER_USER,
    Federation,
    Paths,
    host_settings,
    wanted_hosts,
)
from console.supervisor_process import (
    Process,
    end,
    end_session,
    living,
    read_processes,
    socket_owner,
)
from console.supervisor_record import (
    Lock,
    decide,
    drop_sockets,
    need_link_port,
    need_space,
    parse_advertise,
    read_record,
    take_lock,
    write_record,
)
from console.supervisor_run import StopRequested, Supervisor, child_environment
from facade.contract.errors import TrellisError, error_from_wire

FLOWER_APP: Final = "beans.flower_app"
DEFAULT_DIRECTORY: Final = ".trellis"
OLD_MANAGERS_GRACE_S: Final = 30.0
DOWN_TIMEOUT_S: Final = 120.0
LOCK_POLL_S: Final = 0.05


def federation_dir(environ: Mapping[str, str]) -> Path:
    """The federation's folder: TRELLIS_DIR, or .trellis in the working directory."""
    return Path(environ.get("TRELLIS_DIR") or DEFAULT_DIRECTORY)


def up(
    directory: Path,
    hosts: Sequence[str] = (),
    advertise: Sequence[str] = (),
    ready: Callable[[Federation, Paths], None] = lambda federation, paths: None,
) -> None:
    """Bring a federation up, call `ready`, and keep it up until a signal comes.

    `hosts` are added to those of an earlier `up` in the folder (host_a and host_b for none);
    `advertise` holds `HOST=ADDRESS:PORT`, the address that peers dial for HOST's link, where a
    proxy or tunnel stands between (kept until `HOST=` takes it back). Call from the main thread.

    Raises:
        TrellisError: with one sentence, and nothing left running that did not run before.
    """
    paths = paths_of(directory)
    make_directory(paths.directory)
    need_space(paths.directory)
    private_dir(paths.run)
    lock = take_lock(paths)
    try:
        _end_old_managers(paths)
        recorded = read_record(paths)
        names = wanted_hosts(recorded.hosts if recorded else (), hosts)
        federation = decide(recorded, hosts, parse_advertise(advertise, names))
        write_record(federation, paths)
        supervisor = make_supervisor(federation, paths)
        try:
            supervisor.bring_up()
        except StopRequested:
            return
        ready(federation, paths)
        supervisor.keep()
    finally:
        if not living(read_processes(paths.engines)):
            drop_sockets(paths)
        lock.release()


def up_detached(
    directory: Path, hosts: Sequence[str] = (), advertise: Sequence[str] = ()
) -> tuple[Federation, Paths]:
    """Bring a federation up in a process of its own; returns when every bean answers.

    The same arguments and errors as `up`; Ctrl-C while it waits takes the new federation down.
    """
    paths = paths_of(directory)
    make_directory(paths.directory)
    need_space(paths.directory)
    for folder in (paths.run, paths.log):
        private_dir(folder)
    reader, writer = os.pipe()
    argv = [sys.executable, "-m", "console.supervisor_main", "--dir", str(paths.directory)]
    argv += [part for host in hosts for part in ("--host", host)]
    argv += [part for text in advertise for part in ("--advertise", text)]
    child = ChildProcess(
        [*argv, "--report", str(writer)],
        os.environ,
        paths.log_file("supervisor"),
        cwd=paths.directory,
        detached=True,
        pass_descriptors=(writer,),
    )
    try:
        child.start()
    finally:
        os.close(writer)
    try:
        with os.fdopen(reader, encoding="utf-8") as pipe:
            answer = json.loads(pipe.readline() or "null")
    except BaseException:
        child.stop(DOWN_TIMEOUT_S)
        raise
    if answer is None or "error" in answer:
        child.wait(DOWN_TIMEOUT_S)
        raise _detached_error(answer, child)
    federation = read_record(paths)
    if federation is None:
        raise NothingToTakeDown(directory=str(paths.directory))
    return federation, paths


def down(directory: Path) -> None:
    """End the federation: its supervisor and with it everything; or, if that is gone, the engines.

    Returns when nothing of it runs any more. Raises NothingToTakeDown or WouldNotEnd.
    """
    paths = paths_of(directory)
    if not paths.record.exists() or not paths.run.is_dir():
        raise NothingToTakeDown(directory=str(paths.directory))
    lock = _end_supervisor(paths)
    try:
        _end_old_managers(paths)
        for name, process in _engines(paths).items():
            if not end(process, ENGINE_GRACE_S, KILL_WAIT_S):
                raise WouldNotEnd(name=name, pid=process.pid, timeout_s=KILL_WAIT_S)
        paths.engines.unlink(missing_ok=True)
        drop_sockets(paths)
    finally:
        lock.release()


def make_supervisor(federation: Federation, paths: Paths) -> Supervisor:
    """Make the parts of a federation, as yet not started; raises PortTaken, ProgramMissing."""
    engines = [_engine(federation, paths, host) for host in federation.hosts]
    infrastructure = [_redis(federation, paths), _broker(federation, paths)]
    sink = _python(
        paths,
        "mail_sink",
        ["-m", "console.mail_sink", "--listen", federation.smtp_address, "--dir", str(paths.mail)],
        port=federation.ports["smtp"],
    )
    managers: list[Part] = [_beans(paths, host) for host in federation.hosts]
    managers.append(
        _python(paths, "notifier", ["-m", "notifier", "--config", str(paths.notifier_settings)])
    )
    managers.append(_flower(federation, paths))
    return Supervisor(federation, paths, [*infrastructure, sink], engines, managers)


def _detached_error(answer: dict[str, Any] | None, child: ChildProcess) -> TrellisError:
    if answer is not None:
        return error_from_wire(answer["error"])
    said = tail(child.log_path).splitlines()
    return ChildFailed(
        name="the supervisor",
        status=child.poll(),
        reason=said[-1] if said else "it said nothing",
        log=str(child.log_path),
    )


def _engine(federation: Federation, paths: Paths, host: str) -> EnginePart:
    name = f"engine-{host}"
    engine = EnginePart(
        name,
        [_program("trellis-engine"), "--config", str(paths.settings(host))],
        child_environment(os.environ),
        paths.log_file(name),
        cwd=paths.directory,
        socket_path=host_settings(federation, paths, host).host.engine_socket,
        recorded=read_processes(paths.engines).get(name),
    )
    if not engine.adopted:
        need_link_port(federation, paths, host)
    return engine


def _redis(federation: Federation, paths: Paths) -> Part:
    return RedisPart(
        EmbeddedRedis(
            paths.redis,
            federation.redis_password,
            socket_path=paths.redis_socket,
            log_path=paths.log_file("redis"),
        )
    )


def _broker(federation: Federation, paths: Paths) -> Part:
    ports = federation.ports
    return BrokerPart(
        EmbeddedBroker(
            paths.broker,
            definitions(federation.domain, federation.hosts, federation.passwords),
            ports=BrokerPorts(
                ports["amqp"], ports["management"], ports["distribution"], ports["epmd"]
            ),
            log_path=paths.log_file("rabbitmq"),
        )
    )


def _beans(paths: Paths, host: str) -> Part:
    name = f"beans-{host}"
    return ManagerPart(
        name,
        [_program("trellis-beans"), "--config", str(paths.settings(host))],
        child_environment(os.environ),
        paths.log_file(name),
        cwd=paths.directory,
    )


def _flower(federation: Federation, paths: Paths) -> Part:
    """Flower with a login of its own; logins go by the environment, where no `ps` shows them."""
    management = f"{LOOPBACK}:{federation.ports['management']}"
    login = f"{OPS_USER}:{federation.passwords[OPS_USER]}"
    secrets = {
        "TRELLIS_BROKER_URLS": federation.amqp_url(OPS_USER),
        "TRELLIS_DOMAIN": federation.domain,
        "FLOWER_BASIC_AUTH": f"{FLOWER_USER}:{federation.flower_password}",
        "FLOWER_BROKER_API": f"http://{login}@{management}/api/{federation.domain}",
    }
    port = federation.ports["flower"]
    return _python(
        paths,
        "flower",
        ["-m", "celery", "-A", FLOWER_APP, "flower", f"--address={LOOPBACK}", f"--port={port}"],
        port=port,
        more=secrets,
    )


def _python(
    paths: Paths,
    name: str,
    arguments: Sequence[str],
    *,
    port: int | None = None,
    more: Mapping[str, str] | None = None,
) -> ManagerPart:
    return ManagerPart(
        name,
        [sys.executable, *arguments],
        {**child_environment(os.environ), **(more or {})},
        paths.log_file(name),
        cwd=paths.directory,
        ready=None if port is None else (lambda: port_answers(port)),
    )


def _program(name: str) -> str:
    """A command of this installation: it stands beside the Python that runs this."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise ProgramMissing(program=name, beside=str(sys.executable))
    return str(path)


def _end_old_managers(paths: Paths) -> None:
    """Wait for the managers of a supervisor that was killed: they are ending by themselves."""
    deadline_s = time.monotonic() + OLD_MANAGERS_GRACE_S
    for name, process in read_processes(paths.children).items():
        left_s = max(0.0, deadline_s - time.monotonic())
        if not end(process, left_s, KILL_WAIT_S) or end_session(process.pid, KILL_WAIT_S):
            raise WouldNotEnd(name=name, pid=process.pid, timeout_s=KILL_WAIT_S)
    paths.children.unlink(missing_ok=True)


def _engines(paths: Paths) -> dict[str, Process]:
    """The engines that run: recorded ones, and whoever serves a host's control socket."""
    found = living(read_processes(paths.engines))
    federation = read_record(paths)
    for host in federation.hosts if federation else ():
        owner = socket_owner(paths.socket_dir(host) / "engine.sock")
        if owner is not None:
            found.setdefault(f"engine-{host}", owner)
    return found


def _end_supervisor(paths: Paths) -> Lock:
    """Ask the supervisor to take everything down; returns with its lock. Raises WouldNotEnd."""
    lock = Lock(paths.lock)
    deadline_s = time.monotonic() + DOWN_TIMEOUT_S
    asked: Process | None = None
    while not lock.take():
        holder = lock.holder()
        if holder is not None and holder != asked:
            holder.signal(signal.SIGTERM)
            asked = holder
        if time.monotonic() > deadline_s:
            pid = holder.pid if holder is not None else 0
            raise WouldNotEnd(name="the supervisor", pid=pid, timeout_s=DOWN_TIMEOUT_S)
        if asked is not None:
            asked.wait(LOCK_POLL_S)
    if asked is not None:
        # The lock is free a moment before the process has ended.
        asked.wait(KILL_WAIT_S)
    return lock
