"""Where a command runs and who it is: the host, its settings, the way to the beans."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from console import output
from console.errors import ConfirmationNeeded, HostUnknown, NoFederation, NotConfirmed
from facade.contract.names import check_host

if TYPE_CHECKING:
    from beans.proxy import Federation
    from facade.contract.settings import Settings

DEFAULT_DIRECTORY = ".trellis"


class Console:
    """One command's surroundings; nothing is read or connected before it is needed."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        """Take the environment variables: TRELLIS_DIR, TRELLIS_HOST, TRELLIS_CONFIG."""
        self.environ: Mapping[str, str] = environ if environ is not None else {}
        self.json = False
        self.named_hosts: list[str] = []
        self.config_path: Path | None = None
        self._opened: list[Federation] = []

    @property
    def directory(self) -> Path:
        """The federation's folder, whether it exists or not."""
        return Path(self.environ.get("TRELLIS_DIR") or DEFAULT_DIRECTORY)

    @property
    def in_embedded(self) -> bool:
        """True when the settings are those of a federation made by `trellis up`."""
        if self.config_path is not None:
            return False
        return self._config_variable() is None or bool(self.environ.get("TRELLIS_DIR"))

    @cached_property
    def settings(self) -> Settings:
        """This host's settings. Raises NoFederation, SettingsInvalid."""
        from facade.contract import settings

        # A federation's own file says it all; variables meant for one host would hide it.
        environ = {} if self.in_embedded else self.environ
        return settings.load(self._settings_path(), environ)

    @cached_property
    def this_host(self) -> str:
        """The host that one is: TRELLIS_HOST, else the settings' or the federation's first."""
        return self.settings.host.name

    @cached_property
    def host(self) -> str:
        """The host to act on: `--host`, else this host."""
        return check_host(self.named_hosts[-1]) if self.named_hosts else self.this_host

    @cached_property
    def federation(self) -> Federation:
        """The way to every bean of this management domain."""
        from beans.proxy import Federation

        federation = Federation(self.settings)
        self._opened.append(federation)
        return federation

    def bean(self, name: str, host: str | None = None) -> Any:
        """The proxy of a bean of `host` (default: the host to act on)."""
        return self.federation.proxy(host or self.host, name)

    def show(self, document: Any, text: str) -> None:
        """Print the result: the document with `--json`, else the text for people."""
        if self.json:
            output.emit_json(document)
        else:
            output.emit(text)

    def confirm(self, action: str, yes: bool, option: str = "--yes") -> None:
        """Ask before something is destroyed. Raises ConfirmationNeeded, NotConfirmed."""
        if yes:
            return
        if self.json or not output.on_terminal():
            raise ConfirmationNeeded(action=action, option=option)
        if not click.confirm(f"{action}. Go on?", err=True):
            raise NotConfirmed(action=action)

    def close(self) -> None:
        """Give back the connections that were opened."""
        for federation in self._opened:
            federation.close()
        self._opened.clear()

    def _config_variable(self) -> Path | None:
        value = self.environ.get("TRELLIS_CONFIG")
        return Path(value) if value else None

    def _settings_path(self) -> Path:
        if self.config_path is not None:
            return self.config_path
        variable = self._config_variable()
        if variable is not None and not self.in_embedded:
            return variable
        from console.place import host_settings, hosts_of

        hosts = hosts_of(self.directory)
        if not hosts:
            raise NoFederation(directory=self.directory)
        wanted = self.environ.get("TRELLIS_HOST")
        host = check_host(wanted) if wanted else hosts[0]
        if host not in hosts:
            raise HostUnknown(host=host, known=", ".join(hosts))
        return host_settings(self.directory, host)
