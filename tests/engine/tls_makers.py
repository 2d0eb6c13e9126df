"""Certificates for tests, and exports over TCP of one volume in this process."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from console.supervisor_certificates import make_certificates
from console.supervisor_plan import CLIENT_NAME
from facade.contract.settings import ExportSettings
from facade.engine.nbd_server import NbdServer
from facade.engine.tcp_exports import TcpExports
from tests.engine.harness import free_port

HOST = "host_a"


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)


@dataclass(frozen=True)
class Authority:
    """A CA with a server and a client, in folders as libnbd and qemu want them."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        make_certificates(folder, [HOST])
        return cls(folder)

    @property
    def client(self) -> Path:
        return self.folder / "client"

    def settings(self, **more: Any) -> ExportSettings:
        address = f"127.0.0.1:{free_port()}"
        server = self.folder / HOST
        given = {
            "listen": address,
            "advertise": address,
            "certificate": server / "server-cert.pem",
            "key": server / "server-key.pem",
            "ca": server / "ca-cert.pem",
            "clients": (CLIENT_NAME,),
            "plain_listen": f"127.0.0.1:{free_port()}",
            **more,
        }
        return ExportSettings(**given)

    def other_client(self, name: str, *, days: int = 30, extension: str = "") -> Path:
        """Make a client of another name; expired with negative days."""
        folder = self.folder / f"client-{name}-{days}"
        folder.mkdir()
        key, request = folder / "client-key.pem", folder / "request"
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-subj", f"/CN={name}", "-keyout", key, "-out", request)  # fmt: skip
        extensions = folder / "extensions"
        extensions.write_text(extension)
        openssl("x509", "-req", "-in", request, "-CA", self.folder / "ca-cert.pem", "-CAkey",
                self.folder / "ca-key.pem", "-days", str(days), "-extfile", extensions,
                "-out", folder / "client-cert.pem")  # fmt: skip
        (folder / "ca-cert.pem").write_bytes((self.folder / "ca-cert.pem").read_bytes())
        return folder


@dataclass
class Exported:
    """One volume exported over TCP."""

    server: NbdServer
    exports: TcpExports
    settings: ExportSettings
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.server.export_name

    @property
    def port(self) -> int:
        return int(self.settings.listen.rpartition(":")[2])

    @property
    def plain_port(self) -> int:
        return int(self.settings.plain_listen.rpartition(":")[2])

    def uri(self, certificates: Path, name: str | None = None) -> str:
        export = quote(self.name if name is None else name)
        return f"nbds://{self.settings.listen}/{export}?tls-certificates={quote(str(certificates))}"


@contextmanager
def exporting(server: NbdServer, settings: ExportSettings, *, plain: bool = False,
              clients: tuple[str, ...] = ()) -> Iterator[Exported]:  # fmt: skip
    events: list[tuple[str, str, dict[str, Any]]] = []
    exports = TcpExports(settings, HOST, lambda name, subject, **data: events.append(
        (name, subject, data)))  # fmt: skip
    exports.add(server, plain, clients)
    try:
        yield Exported(server, exports, settings, events)
    finally:
        exports.stop()
