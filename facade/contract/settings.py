"""How a process is told who it is and where everything is: one TOML file, or variables, or both.

Variables win over the file. Every setting is one row of `settings_table`, from which reading,
refusing and docs/settings.md are made. A secret may stand in a file of its own: `<key>_file`,
`TRELLIS_..._FILE`.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from facade.contract.errors import SettingsMissing
from facade.contract.settings_table import (
    ALLOWED_VARIABLES,
    SECTIONS,
    Setting,
    parse_file_value,
    parse_variable,
    refuse,
    table,
)

# A settings file or secret file larger than this is a mistake, not settings.
FILE_BYTES_MAX: Final = 1 << 20

CONFIG_VARIABLE: Final = "TRELLIS_CONFIG"


@dataclass(frozen=True)
class HostSettings:
    """Who this host is and where its things lie."""

    name: str = ""  # lower-cased; "" where the process belongs to no host (the notifier)
    domain: str = "trellis"
    data_dir: Path = Path("/var/lib/trellis")
    volume_dirs: tuple[Path, ...] = (Path("/var/lib/trellis/volumes"),)
    run_dir: Path = Path("/run/trellis")

    @property
    def config_path(self) -> Path:
        """The configuration store: what was asked for."""
        return self.data_dir / "config.db"

    @property
    def journal_path(self) -> Path:
        """The engine's journal: states, jobs, numbered events."""
        return self.data_dir / "journal.db"

    @property
    def events_path(self) -> Path:
        """Outbox and history of this host's events."""
        return self.data_dir / "events.db"

    @property
    def metadata_dir(self) -> Path:
        """Bitmap volumes that Trellis made itself."""
        return self.data_dir / "metadata"

    @property
    def engine_socket(self) -> Path:
        """The engine's control socket."""
        return self.run_dir / "engine.sock"

    @property
    def nbd_dir(self) -> Path:
        """The folder of the NBD Unix sockets."""
        return self.run_dir / "nbd"


@dataclass(frozen=True)
class LinkSettings:
    """The link between engines."""

    listen: str = ""  # HOST:PORT
    advertise: str = ""  # HOST:PORT that other engines dial; `listen` unless set
    secret: str = field(default="", repr=False)
    plain: bool = False  # links off the loopback are allowed although they are not encrypted


@dataclass(frozen=True)
class ExportSettings:
    """Volumes exported to other hosts (STE)."""

    listen: str = ""  # HOST:PORT, TLS; "" where nothing is exported so
    advertise: str = ""  # HOST:PORT that clients dial; `listen` unless set
    certificate: Path = Path("/etc/trellis/tls/server-cert.pem")
    key: Path = Path("/etc/trellis/tls/server-key.pem")
    ca: Path = Path("/etc/trellis/tls/ca-cert.pem")
    clients: tuple[str, ...] = ()  # names in certificates, for exports that name none
    client_certificates: Path | None = None  # folder that URIs point clients of this machine to
    plain_listen: str = ""  # HOST:PORT of the loopback, no TLS


@dataclass(frozen=True)
class BrokerSettings:
    """RabbitMQ; the virtual host is `[host] domain` unless the URL has its own path."""

    urls: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class RedisSettings:
    """Results, progress and the stations' shared cache."""

    url: str = field(default="", repr=False)


@dataclass(frozen=True)
class MailSettings:
    """Where the notifier sends mail."""

    smtp: str = field(default="", repr=False)  # smtp://[USER:PASSWORD@]HOST:PORT or smtps://...
    sender: str = ""
    recipients: tuple[str, ...] = ()


@dataclass(frozen=True)
class FaultSettings:
    """Faults ordered for trials (docs/faults.md); empty on a host that serves."""

    volumes: tuple[str, ...] = ()  # NAME: SCRIPT
    bitmaps: tuple[str, ...] = ()  # SET: SCRIPT
    power_cut: str = ""  # CHANGE seed SEED


@dataclass(frozen=True)
class Settings:
    """All settings of a process; `need` says which of them must be there."""

    host: HostSettings = HostSettings()
    link: LinkSettings = LinkSettings()
    export: ExportSettings = ExportSettings()
    broker: BrokerSettings = BrokerSettings()
    redis: RedisSettings = RedisSettings()
    mail: MailSettings = MailSettings()
    faults: FaultSettings = FaultSettings()

    def need(self, *sections: str) -> "Settings":
        """Return self, or raise SettingsMissing for the first required setting that is empty.

        The engine needs host and link; beans need broker and redis too; the notifier broker, mail.
        """
        for row in table():
            if row.section in sections and row.required_for and not self.value(row):
                raise SettingsMissing(
                    setting=f"[{row.section}] {row.key}",
                    purpose=row.required_for,
                    section=row.section,
                    key=row.key,
                    variable=row.variable,
                )
        return self

    def value(self, row: Setting) -> Any:
        """Return the value of one row of the table."""
        return getattr(getattr(self, row.section), row.key)


_CLASSES: Final[dict[str, type]] = {
    "host": HostSettings,
    "link": LinkSettings,
    "export": ExportSettings,
    "broker": BrokerSettings,
    "redis": RedisSettings,
    "mail": MailSettings,
    "faults": FaultSettings,
}


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Return the settings of a file (or of TRELLIS_CONFIG's) overridden by variables.

    Raises SettingsInvalid for anything unknown or not understood: one sentence naming it.
    """
    _refuse_unknown_variables(environ)
    if path is None and environ.get(CONFIG_VARIABLE):
        path = Path(environ[CONFIG_VARIABLE])
    values = _from_file(path) if path is not None else {}
    for row in table():
        values.update(_from_environment(row, environ))
    host = values.setdefault(("host", "data_dir"), HostSettings.data_dir)
    values.setdefault(("host", "volume_dirs"), (host / "volumes",))
    if ("link", "listen") in values:
        values.setdefault(("link", "advertise"), values["link", "listen"])
    if ("export", "listen") in values:
        _default_export_address(values)
    built = {
        section: cls(**{key: value for (of, key), value in values.items() if of == section})
        for section, cls in _CLASSES.items()
    }
    return Settings(**built)


def _default_export_address(values: dict[tuple[str, str], Any]) -> None:
    if ("export", "advertise") not in values:
        listen = values["export", "listen"]
        if split_address(listen)[0] in ("0.0.0.0", "::"):
            problem = f"{listen} is every address of the host; say in `advertise` what clients dial"
            raise refuse("[export] listen", problem)
        values["export", "advertise"] = listen


def dump(settings: Settings) -> str:
    """Return TOML that `load` reads back into equal settings. It holds secrets in clear."""
    lines: list[str] = []
    for section in SECTIONS:
        rows = [row for row in table() if row.section == section and settings.value(row)]
        if rows:
            lines.append(f"[{section}]")
            lines += [f"{row.key} = {_toml(settings.value(row))}" for row in rows]
            lines.append("")
    return "\n".join(lines)


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of a checked `HOST:PORT` (IPv6 in brackets)."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _from_file(path: Path) -> dict[tuple[str, str], Any]:
    text = _read(path, str(path))
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise refuse(str(path), f"not TOML: {error}") from error
    values: dict[tuple[str, str], Any] = {}
    rows = {(row.section, row.key): row for row in table()}
    for section, content in document.items():
        if section not in SECTIONS or not isinstance(content, dict):
            known = ", ".join(f"[{name}]" for name in SECTIONS)
            raise refuse(str(path), f"[{section}] is not a section; there are {known}")
        for key, raw in content.items():
            source = f"{path}: [{section}] {key}"
            row = rows.get((section, key))
            from_file = rows.get((section, key.removesuffix("_file")))
            if row is not None:
                values[section, key] = parse_file_value(row, raw, source)
            elif from_file is not None and from_file.secret:
                if from_file.key in content:
                    raise refuse(source, f"{from_file.key} is given too; give one of them")
                values[section, from_file.key] = _secret(from_file, str(raw), source)
            else:
                raise refuse(source, "there is no such setting")
    return values


def _from_environment(row: Setting, environ: Mapping[str, str]) -> dict[tuple[str, str], Any]:
    file_variable = f"{row.variable}_FILE"
    direct, named = environ.get(row.variable, ""), environ.get(file_variable, "")
    if row.secret and direct and named:
        raise refuse(file_variable, f"{row.variable} is given too; give one of them")
    if direct:
        return {(row.section, row.key): parse_variable(row, direct, row.variable)}
    if row.secret and named:
        return {(row.section, row.key): _secret(row, named, file_variable)}
    return {}


def _secret(row: Setting, name: str, source: str) -> Any:
    text = _read(Path(name), source).strip()
    if not text:
        raise refuse(source, f"the file {name} is empty")
    # One address a line, where a setting is a list.
    return parse_variable(row, ",".join(text.split()) if row.kind == "urls" else text, source)


def _read(path: Path, source: str) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            raise refuse(source, f"{path} is larger than {FILE_BYTES_MAX} bytes")
        return raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise refuse(source, f"cannot read {path}: {reason}") from error


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    known = set(ALLOWED_VARIABLES) | {CONFIG_VARIABLE}
    for row in table():
        known |= {row.variable, f"{row.variable}_FILE"} if row.secret else {row.variable}
    for name in sorted(environ):
        if name.startswith("TRELLIS_") and name not in known:
            raise refuse(name, "there is no such variable")


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return '"yes"' if value else '"no"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    escaped = "".join(_escape(letter) for letter in str(value))
    return f'"{escaped}"'


def _escape(letter: str) -> str:
    if letter in '"\\':
        return "\\" + letter
    return letter if letter.isprintable() else f"\\U{ord(letter):08x}"
