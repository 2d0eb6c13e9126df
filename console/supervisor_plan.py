"""What a federation on one machine consists of, computed without I/O: names, ports, secrets, files.

    D/federation.json          hosts, ports, secrets (0600); kept from one `up` to the next
    D/hosts/<host>/            data folder of a host; trellis.toml is its settings file
    D/notifier/                the notifier's data folder and settings file
    D/broker/                  the embedded RabbitMQ
    D/mail/<n>.eml             what the mail sink took
    D/log/<name>.log           output of every child
    D/tls/                     CA, hosts and client of the exports (supervisor_certificates)
    D/run/                     lock, process records, and the Unix sockets where the path is short

Unix socket paths hold about 100 bytes, so a long D has its sockets in /tmp/trellis-<uid>-<digest>.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from broker.definitions import NOTIFIER_USER, OPS_USER
from broker.embedded_plan import LOOPBACK
from facade.contract.names import check_host
from facade.contract.settings import (
    BrokerSettings,
    ExportSettings,
    HostSettings,
    LinkSettings,
    MailSettings,
    RedisSettings,
    Settings,
)
from facade.contract.settings_table import RUN_DIR_BYTES_MAX

DEFAULT_HOSTS: Final = ("host_a", "host_b")
DOMAIN: Final = "trellis"
RECORD_VERSION: Final = 1
RECORD_FILE: Final = "federation.json"
SETTINGS_FILE: Final = "trellis.toml"
DIGEST_CHARACTERS: Final = 10
FLOWER_USER: Final = "ops"
MAIL_SENDER: Final = "trellis@localhost"
MAIL_RECIPIENT: Final = "operator@localhost"
# The one client of a federation's exports, by the name in its certificate; and its folder.
CLIENT_NAME: Final = "trellis-client"
CLIENT_FOLDER: Final = "client"
# What every federation has a port for, beside the ports of each host.
PORT_NAMES: Final = ("amqp", "management", "distribution", "epmd", "smtp", "flower")


@dataclass(frozen=True)
class Federation:
    """The record of a federation: what `up` decided once and keeps."""

    hosts: tuple[str, ...]
    ports: Mapping[str, int]  # by PORT_NAMES
    links: Mapping[str, str]  # host -> HOST:PORT that its engine listens on
    advertise: Mapping[str, str]  # host -> HOST:PORT that peers dial, where it differs
    passwords: Mapping[str, str] = field(repr=False)  # RabbitMQ user -> password
    redis_password: str = field(repr=False)
    link_secret: str = field(repr=False)
    flower_password: str = field(repr=False)
    domain: str = DOMAIN
    exports: Mapping[str, str] = field(default_factory=dict)  # host -> HOST:PORT, TLS
    plain_exports: Mapping[str, str] = field(default_factory=dict)  # host -> HOST:PORT, no TLS

    @property
    def users(self) -> tuple[str, ...]:
        """RabbitMQ's users: one for each host, the notifier's and Flower's."""
        return (*self.hosts, NOTIFIER_USER, OPS_USER)

    def amqp_url(self, user: str) -> str:
        """Where a user finds RabbitMQ, with the password; the domain names the virtual host."""
        return f"amqp://{user}:{self.passwords[user]}@{LOOPBACK}:{self.ports['amqp']}"

    @property
    def flower_url(self) -> str:
        """Flower's address, without the login."""
        return f"http://{LOOPBACK}:{self.ports['flower']}/"

    @property
    def flower_login_url(self) -> str:
        """Flower's address, with the login in it: a browser takes it as it is."""
        login = f"{FLOWER_USER}:{self.flower_password}"
        return f"http://{login}@{LOOPBACK}:{self.ports['flower']}/"

    @property
    def smtp_address(self) -> str:
        """HOST:PORT of the mail sink."""
        return f"{LOOPBACK}:{self.ports['smtp']}"


@dataclass(frozen=True)
class Paths:
    """Where everything of a federation lies; `directory` is absolute."""

    directory: Path
    uid: int

    @property
    def record(self) -> Path:
        """federation.json."""
        return self.directory / RECORD_FILE

    @property
    def run(self) -> Path:
        """Lock and process records."""
        return self.directory / "run"

    @property
    def log(self) -> Path:
        """Output of the children."""
        return self.directory / "log"

    @property
    def mail(self) -> Path:
        """The mail sink's folder."""
        return self.directory / "mail"

    @property
    def broker(self) -> Path:
        """The embedded RabbitMQ's folder."""
        return self.directory / "broker"

    @property
    def notifier(self) -> Path:
        """The notifier's data folder."""
        return self.directory / "notifier"

    @property
    def lock(self) -> Path:
        """Held by the supervisor while it runs; its text names the process."""
        return self.run / "supervisor.lock"

    @property
    def engines(self) -> Path:
        """Record of the engines, which outlive a supervisor."""
        return self.run / "engines.json"

    @property
    def children(self) -> Path:
        """Record of the supervisor's other children."""
        return self.run / "children.json"

    @property
    def tls(self) -> Path:
        """The CA of the exports, and what it certified."""
        return self.directory / "tls"

    @property
    def client_certificates(self) -> Path:
        """What a program on this machine needs to use the hosts' exports."""
        return self.tls / CLIENT_FOLDER

    @property
    def redis(self) -> Path:
        """Redis's folder."""
        return self.directory / "redis"

    @property
    def redis_socket(self) -> Path:
        """Redis's socket."""
        return self.socket_dir("redis") / "redis.sock"

    def host(self, host: str) -> Path:
        """A host's data folder."""
        return self.directory / "hosts" / host

    def settings(self, host: str) -> Path:
        """A host's settings file."""
        return self.host(host) / SETTINGS_FILE

    @property
    def notifier_settings(self) -> Path:
        """The notifier's settings file."""
        return self.notifier / SETTINGS_FILE

    def log_file(self, name: str) -> Path:
        """The log of a child."""
        return self.log / f"{name}.log"

    @property
    def socket_root(self) -> Path:
        """The folder in /tmp for sockets whose paths under D would be too long."""
        digest = hashlib.sha256(bytes(self.directory)).hexdigest()[:DIGEST_CHARACTERS]
        return Path(f"/tmp/trellis-{self.uid}-{digest}")

    def socket_dir(self, name: str) -> Path:
        """The folder of the Unix sockets of a host (or of Redis): never longer than the limit."""
        short = self.run / name
        if len(bytes(short)) <= RUN_DIR_BYTES_MAX:
            return short
        other = self.socket_root / name
        if len(bytes(other)) <= RUN_DIR_BYTES_MAX:
            return other
        return self.socket_root / hashlib.sha256(name.encode()).hexdigest()[:DIGEST_CHARACTERS]


def wanted_hosts(recorded: Sequence[str], named: Sequence[str]) -> tuple[str, ...]:
    """The hosts to bring up: those on record, then those newly named; the default for neither.

    Raises BadName.
    """
    checked = [check_host(name) for name in named]
    return tuple(dict.fromkeys([*recorded, *checked])) or DEFAULT_HOSTS


def host_settings(federation: Federation, paths: Paths, host: str) -> Settings:
    """What trellis-engine and trellis-beans of one host are told."""
    data_dir = paths.host(host)
    listen = federation.links[host]
    return Settings(
        host=HostSettings(
            name=host,
            domain=federation.domain,
            data_dir=data_dir,
            volume_dirs=(data_dir / "volumes",),
            run_dir=paths.socket_dir(host),
        ),
        link=LinkSettings(
            listen=listen,
            advertise=federation.advertise.get(host, listen),
            secret=federation.link_secret,
        ),
        export=export_settings(federation, paths, host),
        broker=BrokerSettings(urls=(federation.amqp_url(host),)),
        redis=RedisSettings(url=redis_url(federation, paths)),
    )


def export_settings(federation: Federation, paths: Paths, host: str) -> ExportSettings:
    """What an engine is told about exports: they are for this machine, and for one client."""
    folder = paths.tls / host
    return ExportSettings(
        listen=federation.exports[host],
        advertise=federation.exports[host],
        certificate=folder / "server-cert.pem",
        key=folder / "server-key.pem",
        ca=folder / "ca-cert.pem",
        clients=(CLIENT_NAME,),
        client_certificates=paths.client_certificates,
        plain_listen=federation.plain_exports[host],
    )


def notifier_settings(federation: Federation, paths: Paths) -> Settings:
    """What the notifier is told: it belongs to no host."""
    return Settings(
        host=HostSettings(
            domain=federation.domain,
            data_dir=paths.notifier,
            volume_dirs=(paths.notifier / "volumes",),
            run_dir=paths.socket_dir("notifier"),
        ),
        broker=BrokerSettings(urls=(federation.amqp_url(NOTIFIER_USER),)),
        mail=MailSettings(
            smtp=f"smtp://{federation.smtp_address}",
            sender=MAIL_SENDER,
            recipients=(MAIL_RECIPIENT,),
        ),
    )


def redis_url(federation: Federation, paths: Paths) -> str:
    """Where Celery finds Redis: its Unix socket, with the password."""
    return (
        f"redis+socket://{paths.redis_socket}?virtual_host=0&password={federation.redis_password}"
    )


def to_json(federation: Federation) -> str:
    """The text of federation.json; it holds secrets in clear."""
    return json.dumps({"version": RECORD_VERSION, **asdict(federation)}, indent=2) + "\n"


def from_json(text: str) -> Federation:
    """Read federation.json back. Raises ValueError with what is wrong with it."""
    document = json.loads(text)
    if not isinstance(document, dict) or document.pop("version", None) != RECORD_VERSION:
        raise ValueError(f"it is no record of version {RECORD_VERSION}")
    try:
        federation = Federation(**document)
    except TypeError as error:
        raise ValueError(str(error).removeprefix("Federation.__init__() ")) from error
    federation = replace(federation, hosts=tuple(federation.hosts))
    missing: list[Any] = [name for name in PORT_NAMES if name not in federation.ports]
    missing += [host for host in federation.hosts if host not in federation.links]
    missing += [user for user in federation.users if user not in federation.passwords]
    if missing:
        raise ValueError(f"it lacks {', '.join(map(str, missing))}")
    return federation
