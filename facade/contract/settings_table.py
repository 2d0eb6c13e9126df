"""Every setting, one row each: from this table come reading, refusing and docs/settings.md."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from facade.contract.errors import BadName, SettingsInvalid
from facade.contract.fault_script import BadFaultScript, parse_power_cut
from facade.contract.fault_script import parse as parse_faults
from facade.contract.names import check_host, check_volume

SECTIONS: Final = ("host", "link", "export", "broker", "redis", "mail", "faults")

# Variables that belong to the command line, not to the settings of a process.
ALLOWED_VARIABLES: Final = ("TRELLIS_DIR",)

# Longest name of a client in an allow-list.
CERTIFICATE_NAME_CHARACTERS_MAX: Final = 255

# A shorter secret is guessed too easily.
SECRET_CHARACTERS_MIN: Final = 16

# A Unix socket's path holds at most 107 bytes; below run_dir come `/nbd/` and up to 40 bytes.
RUN_DIR_BYTES_MAX: Final = 60


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: where it stands, its kind, what it is for."""

    section: str
    key: str
    kind: str  # a key of PARSERS
    meaning: str
    variable: str
    default: str  # in words, "" where there is none
    required_for: str = ""  # why it must be there; "" if it may lack
    secret: bool = False  # may be given as a file of its own: `<key>_file`, `<VARIABLE>_FILE`


def table() -> tuple[Setting, ...]:
    """Return every setting, in the order of the file."""
    return _TABLE


def refuse(source: str, problem: str) -> SettingsInvalid:
    """Return the error for one setting that is not understood."""
    return SettingsInvalid(source=source, problem=problem)


def parse_file_value(row: Setting, raw: object, source: str) -> Any:
    """Return a checked value out of TOML: lists are lists there. Raises SettingsInvalid."""
    if row.kind in _LISTS:
        if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
            raise refuse(source, "it must be a list of strings")
        return _many(row, raw, source)
    if not isinstance(raw, str):
        raise refuse(source, f"it must be a string, and is {raw!r}")
    return PARSERS[row.kind](raw, source)


def parse_variable(row: Setting, raw: str, source: str) -> Any:
    """Return a checked value out of a variable: lists are separated. Raises SettingsInvalid."""
    if row.kind in _LISTS:
        return _many(row, raw.split(_LISTS[row.kind]), source)
    return PARSERS[row.kind](raw, source)


def _many(row: Setting, items: list[str], source: str) -> tuple[Any, ...]:
    parsed = tuple(PARSERS[row.kind](item.strip(), source) for item in items if item.strip())
    if not parsed:
        raise refuse(source, "it must name at least one")
    if len(set(parsed)) != len(parsed):
        raise refuse(source, "it names one of them twice")
    return parsed


def _host(raw: str, source: str) -> str:
    try:
        return check_host(raw)
    except BadName as error:
        raise refuse(source, error.message.rstrip(".")) from error


def _folder(raw: str, source: str) -> Path:
    path = Path(raw)
    if not path.is_absolute() or ".." in path.parts or not raw.isprintable():
        raise refuse(source, f"{raw!r} is not an absolute path without `..`")
    return path


def _run_folder(raw: str, source: str) -> Path:
    path = _folder(raw, source)
    if len(str(path).encode()) > RUN_DIR_BYTES_MAX:
        raise refuse(
            source, f"{raw!r} is longer than {RUN_DIR_BYTES_MAX} bytes, too long for Unix sockets"
        )
    return path


def _address(raw: str, source: str) -> str:
    host, colon, port = raw.rpartition(":")
    bare = ":" not in host or (host.startswith("[") and host.endswith("]"))
    if not (colon and host and bare and re.fullmatch(r"[0-9]{1,5}", port)):
        raise refuse(source, f"{raw!r} is not HOST:PORT (an IPv6 address stands in brackets)")
    if not 1 <= int(port) <= 65535:
        raise refuse(source, f"{raw!r} has a port outside 1 to 65535")
    return raw


def _loopback_address(raw: str, source: str) -> str:
    host = _address(raw, source).rpartition(":")[0].strip("[]")
    try:
        is_loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise refuse(
            source, f"{raw!r} is not on the loopback, where alone exports may do without TLS"
        )
    return raw


def _certificate_name(raw: str, source: str) -> str:
    if not raw.isprintable() or "," in raw or len(raw) > CERTIFICATE_NAME_CHARACTERS_MAX:
        raise refuse(source, f"{raw!r} is not a name that a certificate bears")
    return raw


def _secret(raw: str, source: str) -> str:
    if len(raw) < SECRET_CHARACTERS_MIN:
        raise refuse(source, f"a secret has at least {SECRET_CHARACTERS_MIN} characters")
    return raw


def _url(*schemes: str) -> Callable[[str, str], str]:
    def parse(raw: str, source: str) -> str:
        # The value may hold a password, so no refusal prints it.
        try:
            parts = urlsplit(raw)
            proper = parts.scheme in schemes and bool(parts.hostname)
            proper = proper and (parts.port is None or parts.port > 0)
        except ValueError:
            proper = False
        if not proper:
            allowed = " or ".join(f"{scheme}://" for scheme in schemes)
            raise refuse(source, f"it must be an address {allowed}[USER:PASSWORD@]HOST[:PORT]...")
        return raw

    return parse


def _redis(raw: str, source: str) -> str:
    if raw.startswith("redis+socket:///"):
        return raw
    return _url("redis", "rediss")(raw, source)


def _smtp(raw: str, source: str) -> str:
    return _url("smtp", "smtps")(raw if "://" in raw else f"smtp://{raw}", source)


def _mailbox(raw: str, source: str) -> str:
    if re.fullmatch(r"[^@\s,]+@[^@\s,]+", raw) is None:
        raise refuse(source, f"{raw!r} is not a mail address")
    return raw


def _switch(raw: str, source: str) -> bool:
    if raw not in ("yes", "no"):
        raise refuse(source, f"it must be yes or no, and is {raw!r}")
    return raw == "yes"


def _faults(raw: str, source: str) -> str:
    name, colon, script = raw.partition(":")
    try:
        if not colon:
            raise BadFaultScript(f"`{raw}` is not NAME: SCRIPT")
        check_volume(name.strip())
        parse_faults(script)
    except (BadFaultScript, BadName) as error:
        raise refuse(source, str(error).rstrip(".")) from error
    return raw


def _power_cut(raw: str, source: str) -> str:
    try:
        parse_power_cut(raw)
    except BadFaultScript as error:
        raise refuse(source, str(error)) from error
    return raw


PARSERS: Final[dict[str, Callable[[str, str], Any]]] = {
    "host": _host,
    "folder": _folder,
    "folders": _folder,
    "run_folder": _run_folder,
    "address": _address,
    "loopback_address": _loopback_address,
    "file": _folder,
    "certificate_names": _certificate_name,
    "secret": _secret,
    "urls": _url("amqp", "amqps"),
    "redis": _redis,
    "smtp": _smtp,
    "mailbox": _mailbox,
    "mailboxes": _mailbox,
    "switch": _switch,
    "faults": _faults,
    "power_cut": _power_cut,
}

# The kinds that are lists, and what separates their items in a variable.
_LISTS: Final = {
    "folders": ":",
    "certificate_names": ",",
    "urls": ",",
    "mailboxes": ",",
    "faults": ",",
}

_TABLE: Final = (
    Setting(
        "host",
        "name",
        "host",
        "This host's name in the federation.",
        "TRELLIS_HOST",
        "",
        required_for="a host needs a name that no other host of its domain has",
    ),
    Setting(
        "host",
        "domain",
        "host",
        "The management domain: a RabbitMQ virtual host of that name.",
        "TRELLIS_DOMAIN",
        "`trellis`",
    ),
    Setting(
        "host",
        "data_dir",
        "folder",
        "Folder of the configuration store, the journal, the outbox and `metadata/`.",
        "TRELLIS_DATA_DIR",
        "`/var/lib/trellis`",
    ),
    Setting(
        "host",
        "volume_dirs",
        "folders",
        "Folders of image files; `volume create` uses the first.",
        "TRELLIS_VOLUME_DIRS",
        "`volumes/` in `data_dir`",
    ),
    Setting(
        "host",
        "run_dir",
        "run_folder",
        f"Folder of the Unix sockets, at most {RUN_DIR_BYTES_MAX} bytes long.",
        "TRELLIS_RUN_DIR",
        "`/run/trellis`",
    ),
    Setting(
        "link",
        "listen",
        "address",
        "Address on which the engine takes links from other engines.",
        "TRELLIS_LINK_LISTEN",
        "",
        required_for="the engine must know on which HOST:PORT other engines reach it",
    ),
    Setting(
        "link",
        "advertise",
        "address",
        "Address that other engines dial.",
        "TRELLIS_LINK_ADVERTISE",
        "the same as `listen`",
    ),
    Setting(
        "link",
        "secret",
        "secret",
        f"Secret by which engines know each other, at least {SECRET_CHARACTERS_MIN} characters.",
        "TRELLIS_LINK_SECRET",
        "",
        required_for="engines know each other by one secret that all of them have",
        secret=True,
    ),
    Setting(
        "link",
        "plain",
        "switch",
        "`yes` allows a link off the loopback. It is authenticated and checked but not encrypted in"
        " this version: only for a network that nobody else can read, or inside a tunnel.",
        "TRELLIS_LINK_PLAIN",
        "`no`",
    ),
    Setting(
        "export",
        "listen",
        "address",
        "Address on which the engine exports volumes to other hosts, over TLS (docs/exports.md).",
        "TRELLIS_EXPORT_LISTEN",
        "none: nothing can be exported",
    ),
    Setting(
        "export",
        "advertise",
        "address",
        "Address that clients of exports dial; their certificate check wants its name.",
        "TRELLIS_EXPORT_ADVERTISE",
        "the same as `listen`",
    ),
    Setting(
        "export",
        "certificate",
        "file",
        "Certificate of this host, PEM, with the chain below the CA after it.",
        "TRELLIS_EXPORT_CERTIFICATE",
        "`/etc/trellis/tls/server-cert.pem`",
    ),
    Setting(
        "export",
        "key",
        "file",
        "Its key, PEM; not readable by everybody.",
        "TRELLIS_EXPORT_KEY",
        "`/etc/trellis/tls/server-key.pem`",
    ),
    Setting(
        "export",
        "ca",
        "file",
        "Certificates of the CAs that clients' certificates must come from, PEM.",
        "TRELLIS_EXPORT_CA",
        "`/etc/trellis/tls/ca-cert.pem`",
    ),
    Setting(
        "export",
        "clients",
        "certificate_names",
        "Names of the clients (common name or DNS name in their certificate) that may use exports"
        " which name none themselves.",
        "TRELLIS_EXPORT_CLIENTS",
        "none",
    ),
    Setting(
        "export",
        "client_certificates",
        "folder",
        "Folder of a client certificate for programs on this machine; addresses of exports point"
        " to it (`?tls-certificates=`).",
        "TRELLIS_EXPORT_CLIENT_CERTIFICATES",
        "none",
    ),
    Setting(
        "export",
        "plain_listen",
        "loopback_address",
        "Address on the loopback for exports without TLS (`volume enable V --export --plain`).",
        "TRELLIS_EXPORT_PLAIN_LISTEN",
        "none: there are no plain exports",
    ),
    Setting(
        "broker",
        "urls",
        "urls",
        "RabbitMQ servers of one cluster, tried in order.",
        "TRELLIS_BROKER_URLS",
        "",
        required_for="beans and notifier meet at a RabbitMQ server",
        secret=True,
    ),
    Setting(
        "redis",
        "url",
        "redis",
        "Redis: results and progress; `redis://`, `rediss://` or `redis+socket:///PATH?password=...`.",
        "TRELLIS_REDIS_URL",
        "",
        required_for="beans answer calls through a Redis server",
        secret=True,
    ),
    Setting(
        "mail",
        "smtp",
        "smtp",
        "Mail server, `smtp://[USER:PASSWORD@]HOST:PORT`, `smtps://...`, or just `HOST:PORT`.",
        "TRELLIS_MAIL_SMTP",
        "",
        required_for="the notifier sends its mails through a mail server",
        secret=True,
    ),
    Setting(
        "mail",
        "sender",
        "mailbox",
        "Address that mails come from.",
        "TRELLIS_MAIL_SENDER",
        "",
        required_for="each mail needs the address it comes from",
    ),
    Setting(
        "mail",
        "recipients",
        "mailboxes",
        "Addresses that mails go to.",
        "TRELLIS_MAIL_RECIPIENTS",
        "",
        required_for="somebody must get the mails",
    ),
    Setting(
        "faults",
        "volumes",
        "faults",
        "Faults for trials, each `VOLUME: SCRIPT` (docs/faults.md). Never on a host that serves.",
        "TRELLIS_FAULTS_VOLUMES",
        "none",
    ),
    Setting(
        "faults",
        "bitmaps",
        "faults",
        "The same for bitmaps that Trellis made itself, each `SET: SCRIPT`.",
        "TRELLIS_FAULTS_BITMAPS",
        "none",
    ),
    Setting(
        "faults",
        "power_cut",
        "power_cut",
        "`N seed S`: at the N-th change of its backings the engine ends and loses, reorders and"
        " tears what was not flushed, as S chooses.",
        "TRELLIS_FAULTS_POWER_CUT",
        "none",
    ),
)
