"""The federation's folder on disk: private folders, the lock, federation.json, settings files."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from broker.embedded import free_ports, port_is_free, write_file
from broker.embedded_plan import LOOPBACK, PlannedFile
from console.supervisor_certificates import make_certificates
from console.supervisor_errors import (
    AdvertiseUnknown,
    AlreadyUp,
    DiskFull,
    FederationDamaged,
    FolderUnusable,
    PortTaken,
)
from console.supervisor_folders import private_dir
from console.supervisor_plan import (
    PORT_NAMES,
    Federation,
    Paths,
    from_json,
    host_settings,
    notifier_settings,
    to_json,
    wanted_hosts,
)
from console.supervisor_process import Process, process_of
from facade.contract.settings import dump, split_address
from facade.contract.settings_table import parse_variable, table

# RabbitMQ takes no messages below 100 MiB free; the rest is for its first files and ours.
FREE_SPACE_MB: Final = 200
SECRET_BYTES: Final = 24


class Lock:
    """The folder's lock: one supervisor (or one `down`) at a time. Ends with the process."""

    def __init__(self, path: Path) -> None:
        """Take the lock's file."""
        self.path = path
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Take the lock and write who holds it; False when somebody else does."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        me = process_of(os.getpid())
        os.truncate(descriptor, 0)
        if me is not None:
            os.pwrite(descriptor, f"{me.pid} {me.start_ticks}\n".encode(), 0)
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> Process | None:
        """Who wrote himself into the lock last."""
        with suppress(OSError, ValueError):
            pid, start_ticks = self.path.read_text(encoding="ascii").split()
            return Process(int(pid), int(start_ticks))
        return None


def need_space(directory: Path) -> None:
    """Raise DiskFull when there is too little space to start."""
    free_mb = shutil.disk_usage(directory).free // (1024 * 1024)
    if free_mb < FREE_SPACE_MB:
        raise DiskFull(directory=str(directory), free_mb=free_mb, needed_mb=FREE_SPACE_MB)


def take_lock(paths: Paths) -> Lock:
    """Take the folder's lock; raises AlreadyUp."""
    lock = Lock(paths.lock)
    if not lock.take():
        holder = lock.holder()
        pid = holder.pid if holder is not None else "unknown"
        raise AlreadyUp(directory=str(paths.directory), pid=pid)
    return lock


def read_record(paths: Paths) -> Federation | None:
    """Read federation.json; None when there is none. Raises FederationDamaged."""
    try:
        return from_json(paths.record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FederationDamaged(path=str(paths.record), reason=str(error)) from error


def decide(
    recorded: Federation | None, named: Sequence[str], advertise: Mapping[str, str]
) -> Federation:
    """Complete a record: hosts, passwords and ports it lacks are made.

    Ports that nobody outside relies on are chosen again when they are taken, ports of hosts
    are kept.
    `advertise` is kept from one `up` to the next, an empty address takes it back. Raises BadName,
    AdvertiseUnknown.
    """
    hosts = wanted_hosts(recorded.hosts if recorded else (), named)
    ports = dict(recorded.ports) if recorded else {}
    links = dict(recorded.links) if recorded else {}
    lacking = [name for name in PORT_NAMES if name not in ports or not port_is_free(ports[name])]
    exports = dict(recorded.exports) if recorded else {}
    plain_exports = dict(recorded.plain_exports) if recorded else {}
    each = (links, exports, plain_exports)
    unknown = [(addresses, host) for addresses in each for host in hosts if host not in addresses]
    used = {*ports.values(), *(port for addresses in each for port in _ports_of(addresses))}
    fresh = iter(_unused_ports(len(lacking) + len(unknown), used))
    ports.update((name, next(fresh)) for name in lacking)
    for addresses, host in unknown:
        addresses[host] = f"{LOOPBACK}:{next(fresh)}"
    advertised = {**(recorded.advertise if recorded else {}), **advertise}
    federation = Federation(
        hosts=hosts,
        ports=ports,
        links=links,
        exports=exports,
        plain_exports=plain_exports,
        advertise={host: address for host, address in advertised.items() if address},
        passwords={},
        redis_password=recorded.redis_password if recorded else _secret(),
        link_secret=recorded.link_secret if recorded else _secret(),
        flower_password=recorded.flower_password if recorded else _secret(),
    )
    known = recorded.passwords if recorded else {}
    passwords = {user: known.get(user) or _secret() for user in federation.users}
    return replace(federation, passwords=passwords)


def parse_advertise(texts: Sequence[str], hosts: Sequence[str]) -> dict[str, str]:
    """Read `HOST=ADDRESS:PORT` options; `HOST=` takes an address back. Raises AdvertiseUnknown."""
    found = {}
    row = next(row for row in table() if (row.section, row.key) == ("link", "advertise"))
    for text in texts:
        host, equals, address = text.partition("=")
        host = host.lower()
        if not equals or host not in hosts:
            problem = "there is no such host" if equals else "it has no `=`"
            raise AdvertiseUnknown(text=text, problem=problem, hosts=", ".join(hosts))
        try:
            found[host] = str(parse_variable(row, address, "address")) if address else ""
        except Exception as error:
            raise AdvertiseUnknown(text=text, problem=str(error), hosts=", ".join(hosts)) from error
    return found


def need_link_port(federation: Federation, paths: Paths, host: str) -> None:
    """Raise PortTaken when a stranger has the port of a host whose engine is to be started."""
    address = federation.links[host]
    if not port_is_free(split_address(address)[1]):
        raise PortTaken(
            purpose=f"The link of {host}", address=address, path=f"{paths.record} (links)"
        )


def write_record(federation: Federation, paths: Paths) -> None:
    """Write federation.json, certificates and settings files (mode 0600) into private folders."""
    try:
        make_certificates(paths.tls, federation.hosts)
        for host in federation.hosts:
            _socket_dir(paths, host)
            for folder in (paths.host(host).parent, paths.host(host), *_host_folders(paths, host)):
                private_dir(folder)
            text = dump(host_settings(federation, paths, host))
            write_file(PlannedFile(paths.settings(host), text))
        for folder in (paths.notifier, paths.log, paths.mail, paths.broker, paths.redis):
            private_dir(folder)
        for name in ("notifier", "redis"):
            _socket_dir(paths, name)
        write_file(PlannedFile(paths.notifier_settings, dump(notifier_settings(federation, paths))))
        write_file(PlannedFile(paths.record, to_json(federation)))
    except OSError as error:
        path = error.filename or paths.directory
        raise FolderUnusable(path=str(path), reason=error.strerror or str(error)) from error


def drop_sockets(paths: Paths) -> None:
    """Remove the socket folder in /tmp, once nothing runs."""
    with suppress(OSError):
        if paths.socket_root.lstat().st_uid == os.getuid() and not paths.socket_root.is_symlink():
            shutil.rmtree(paths.socket_root)


def _socket_dir(paths: Paths, name: str) -> None:
    folder = paths.socket_dir(name)
    if folder.is_relative_to(paths.socket_root):
        private_dir(paths.socket_root)
    private_dir(folder)


def _host_folders(paths: Paths, host: str) -> tuple[Path, ...]:
    return (paths.host(host) / "volumes", paths.host(host) / "metadata")


def _unused_ports(count: int, used: set[int]) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < count:
        wanted = count - len(chosen)
        chosen += [port for port in free_ports(wanted) if port not in used and port not in chosen]
    return chosen


def _ports_of(links: Mapping[str, str]) -> set[int]:
    return {split_address(address)[1] for address in links.values()}


def _secret() -> str:
    return secrets.token_urlsafe(SECRET_BYTES)
