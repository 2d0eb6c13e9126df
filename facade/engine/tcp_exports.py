"""STE volumes: exports that clients of other hosts reach over TCP with TLS, by name.

One listener with TLS serves all of them to clients whose certificate comes from the CA and bears a
name on the export's list. Another one, on the loopback only, serves those that were asked to be
plain; it tells nobody which there are.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from facade.contract.settings import ExportSettings, split_address
from facade.engine.nbd_certificates import Certificates
from facade.engine.nbd_client import NbdClient
from facade.engine.nbd_export import NbdExport, Offer
from facade.engine.nbd_listener import BACKLOG, Listener, end_clients
from facade.engine.nbd_tls import TlsContext
from facade.errors import ExportNobody, ExportUnavailable, VolumeBusy

# Clients that came over TCP and are not past the handshake yet, of all exports; one more is closed.
HANDSHAKES_MAX: Final = 128
# Connections over TCP to all exports.
TCP_CONNECTIONS_MAX: Final = 4400
# The same client refused at the same export makes one event in this time.
REFUSAL_EVENT_INTERVAL_S: Final = 600.0
REFUSALS_KEPT_MAX: Final = 1024
STOP_TIMEOUT_S: Final = 10.0

_log = logging.getLogger("trellis.export")

Tell = Callable[..., None]


@dataclass(frozen=True)
class _Exported:
    """An export with who may use it; no clients where it is plain."""

    export: NbdExport
    plain: bool
    clients: tuple[str, ...]

    def may_use(self, names: tuple[str, ...]) -> bool:
        return self.plain or not set(names).isdisjoint(self.clients)


def _is_remote(client: NbdClient) -> bool:
    return isinstance(client.entrance, _TcpEntrance)


class _TcpEntrance:
    """One of the two listeners as its clients see it."""

    def __init__(self, exports: TcpExports, plain: bool) -> None:
        self._exports = exports
        self._plain = plain
        self.name = "plain exports" if plain else "exports"
        self.is_listed = not plain
        self.default_name: str | None = None

    def tls(self) -> TlsContext | None:
        return None if self._plain else self._exports.certificates.context()

    def offers(self, names: tuple[str, ...]) -> tuple[dict[str, Offer], dict[str, str]]:
        return self._exports.offers(names, self._plain)

    def may_use(self, names: tuple[str, ...], export: NbdExport) -> bool:
        return self._exports.may_use(names, self._plain, export)

    def refused(self, export: str, peer: str, reason: str) -> None:
        self._exports.refused(export, peer, reason)


class TcpExports:
    """The exports of an engine over TCP. Safe to call from any thread."""

    def __init__(self, settings: ExportSettings, host: str, tell: Tell) -> None:
        """`tell(event, subject, **data)` records an event. Nothing listens yet."""
        self._settings = settings
        self._host = host
        self._tell = tell
        self._lock = threading.Lock()
        self._exported: dict[str, _Exported] = {}
        self._refusals: dict[tuple[str, str], float] = {}
        self.certificates = Certificates(settings.certificate, settings.key, settings.ca)
        self._listeners = {
            plain: Listener(_TcpEntrance(self, plain), TCP_CONNECTIONS_MAX, HANDSHAKES_MAX)
            for plain in (False, True)
        }

    # ---- what is exported ------------------------------------------------------------------------

    def add(self, export: NbdExport, plain: bool, clients: tuple[str, ...]) -> None:
        """Export a volume, or change how it is exported; the default list stands for no clients.

        Clients that may use it no longer are cut off. Raises ExportUnavailable, ExportNobody.
        """
        name = export.export_name
        allowed = () if plain else clients or self._settings.clients
        self._listen(name, plain)
        if not plain and not allowed:
            raise ExportNobody(volume=name, host=self._host)
        with self._lock:
            self._exported[name] = _Exported(export, plain, allowed)
        remote = export.clients_where(_is_remote)
        end_clients([one for one in remote if not one.may_use(export)], STOP_TIMEOUT_S)

    def remove(self, name: str) -> None:
        """Export a volume no more; one that is not exported is fine.

        Raises VolumeBusy while a client is connected over TCP.
        """
        with self._lock:
            exported = self._exported.get(name)
            if exported is None:
                return
            count = len(exported.export.clients_where(_is_remote))
            if count:
                raise VolumeBusy(volume=name, role="export", used_by=f"{count} NBD client(s)")
            del self._exported[name]

    def show(self, name: str) -> dict[str, Any] | None:
        """Return how a volume is exported, None where it is not."""
        with self._lock:
            exported = self._exported.get(name)
        if exported is None:
            return None
        return {
            "uri": self._uri(name, exported.plain),
            "plain": exported.plain,
            "clients": list(exported.clients),
            "connected": len(exported.export.clients_where(_is_remote)),
        }

    def start(self) -> None:
        """Listen where the settings say; what cannot be had is told, and tried again by `add`."""
        for plain in (False, True):
            try:
                if self._address(plain):
                    self._listen("", plain)
            except ExportUnavailable as error:
                _log.error("no exports over TCP: %s", error.data["reason"])

    def stop(self) -> None:
        """Accept no more; clients are their exports' own to end."""
        for listener in self._listeners.values():
            listener.stop()
            end_clients([one for one in listener.clients if one.export is None], STOP_TIMEOUT_S)

    # ---- for the listeners -----------------------------------------------------------------------

    def offers(
        self, names: tuple[str, ...], plain: bool
    ) -> tuple[dict[str, Offer], dict[str, str]]:
        """Return what a client of these names may use of a listener, and why not the others."""
        with self._lock:
            found = [one for one in self._exported.values() if one.plain == plain]
        allowed = [one for one in found if one.may_use(names)]
        refused = [one.export.export_name for one in found if one not in allowed]
        who = ", ".join(names) or "without a name"
        return (
            {one.export.export_name: one.export.offer() for one in allowed},
            {name: f"the client {who} is not on the list of {name}" for name in refused},
        )

    def may_use(self, names: tuple[str, ...], plain: bool, export: NbdExport) -> bool:
        """Tell whether a client of a listener may use an export as things stand now."""
        with self._lock:
            exported = self._exported.get(export.export_name)
        return (
            exported is not None
            and exported.export is export
            and exported.plain == plain
            and exported.may_use(names)
        )

    def refused(self, export: str, peer: str, reason: str) -> None:
        """Log a refusal, and make an event of the first in a while."""
        _log.warning("export %s: refused %s: %s", export or "-", peer, reason)
        key = (export, peer.rpartition(":")[0])
        now_s = time.monotonic()
        with self._lock:
            told_s = self._refusals.get(key)
            if told_s is not None and now_s - told_s < REFUSAL_EVENT_INTERVAL_S:
                return
            if len(self._refusals) >= REFUSALS_KEPT_MAX:
                del self._refusals[min(self._refusals, key=lambda one: self._refusals[one])]
            self._refusals[key] = now_s
        if export:
            self._tell("export_refused", export, client=peer, reason=reason)
        else:
            self._tell("tls_refused", self._host, client=peer, reason=reason)

    # ---- inside ----------------------------------------------------------------------------------

    def _address(self, plain: bool) -> str:
        return self._settings.plain_listen if plain else self._settings.listen

    def _uri(self, name: str, plain: bool) -> str:
        if plain:
            return f"nbd://{self._settings.plain_listen}/{quote(name, safe='')}"
        folder = self._settings.client_certificates
        query = f"?tls-certificates={quote(str(folder))}" if folder else ""
        return f"nbds://{self._settings.advertise}/{quote(name, safe='')}{query}"

    def _listen(self, volume: str, plain: bool) -> None:
        """Make sure that one listener runs. Raises ExportUnavailable."""
        try:
            if not self._address(plain):
                key = "plain_listen" if plain else "listen"
                raise ValueError(f"the settings have no `[export] {key}`")
            if not plain:
                self.certificates.context()
            with self._lock:
                listener = self._listeners[plain]
                if not listener.is_running:
                    listener.start(listen_tcp(self._address(plain), loopback_only=plain))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if isinstance(error, OSError):
                reason = f"{self._address(plain)} cannot be listened on: {reason}"
            raise ExportUnavailable(volume=volume, host=self._host, reason=reason) from error


def listen_tcp(address: str, loopback_only: bool) -> socket.socket:
    """Return a socket that listens at HOST:PORT. Raises OSError, ValueError with a sentence."""
    host, port = split_address(address)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, where = found[0]
    if loopback_only and not ipaddress.ip_address(str(where[0]).partition("%")[0]).is_loopback:
        raise ValueError(
            f"plain exports are served on the loopback only, and {address} is not; use "
            "127.0.0.1:PORT there, or export with TLS"
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
