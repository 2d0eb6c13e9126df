"""Serves one volume to NBD clients on a Unix socket.

The socket file exists exactly while the server accepts. Clients that come over TCP (tcp_exports)
count as clients of the same export.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from urllib.parse import quote

from facade.engine.nbd_export import CONNECTIONS_MAX, NbdExport, Offer
from facade.engine.nbd_listener import ABORT_TIMEOUT_S, BACKLOG, Listener, end_clients
from facade.engine.nbd_tls import TlsContext
from facade.engine.volume_stack import VolumeStack

# What stop() grants requests in flight unless told otherwise.
STOP_TIMEOUT_S = 10.0
# Bytes of a Unix socket's path that the kernel takes.
SOCKET_PATH_MAX_BYTES = 107


class NbdServer(NbdExport):
    """One export on one Unix socket.

    The export's name is the volume's; the empty name means it too. Safe to call from any thread.
    """

    def __init__(
        self,
        stack: VolumeStack,
        socket_path: Path,
        export_name: str = "",
        *,
        can_trim: bool = True,
        structured: bool = True,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        """See NbdExport; connections that still negotiate count as well here."""
        super().__init__(
            stack,
            export_name,
            can_trim=can_trim,
            structured=structured,
            connections_max=connections_max,
        )
        self.socket_path = socket_path
        self._listener = Listener(_LocalEntrance(self), connections_max, connections_max)
        self._identity: tuple[int, int] | None = None

    @property
    def uri(self) -> str:
        """The NBD URI under which local clients find the export."""
        name, path = quote(self.export_name, safe=""), quote(str(self.socket_path))
        return f"nbd+unix:///{name}?socket={path}"

    def start(self) -> None:
        """Listen and accept.

        A socket file that nobody listens on is replaced. Raises OSError: EADDRINUSE when somebody
        does, EEXIST when the path is no socket, ENAMETOOLONG when it is too long.
        """
        listener = listen(self.socket_path)
        status = self.socket_path.stat()
        self._identity = (status.st_dev, status.st_ino)
        self._set_open(True)
        self._listener.start(listener)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Accept no more, answer what has been received, and end all connections.

        After `timeout_s` clients that do not take their replies are cut off. Raises TimeoutError
        when requests are still in flight in the volume after that; the volume must then not be
        closed, and stop() may be called again. Stopping what is stopped does nothing.
        """
        self._set_open(False)
        if self._listener.stop():
            remove_socket(self.socket_path, self._identity)
        left = end_clients({*self._listener.clients, *self.clients_where(bool)}, timeout_s)
        if left:
            raise TimeoutError(
                f"export {self.export_name}: {left} connections still have requests in flight "
                f"after {timeout_s + ABORT_TIMEOUT_S:g} s; the volume does not answer"
            )


class _LocalEntrance:
    """The Unix socket of one export: whoever may open it may use it."""

    is_listed = True

    def __init__(self, export: NbdExport) -> None:
        self._export = export
        self.name = f"export {export.export_name}"
        self.default_name: str | None = export.export_name

    def tls(self) -> TlsContext | None:
        return None

    def offers(self, names: tuple[str, ...]) -> tuple[dict[str, Offer], dict[str, str]]:
        return {self._export.export_name: self._export.offer()}, {}

    def may_use(self, names: tuple[str, ...], export: NbdExport) -> bool:
        return True

    def refused(self, export: str, peer: str, reason: str) -> None:
        raise AssertionError("a local client is never refused an export")


def listen(path: Path) -> socket.socket:
    """Return a listening socket at `path` that only this user can connect to."""
    if len(os.fsencode(path)) > SOCKET_PATH_MAX_BYTES:
        raise OSError(
            errno.ENAMETOOLONG,
            f"socket path is longer than {SOCKET_PATH_MAX_BYTES} bytes; use a shorter folder",
            str(path),
        )
    clear_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Before bind(): the file is born with this mode.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def clear_stale(path: Path) -> None:
    """Remove a socket file that nobody listens on; raise OSError for anything else there."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(
            errno.EEXIST, "a file that is no socket is in the way; move it away", str(path)
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "another process serves this socket; end it first", str(path))


def remove_socket(path: Path, identity: tuple[int, int] | None) -> None:
    """Remove the socket file unless it is not the one that we made."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if (status.st_dev, status.st_ino) == identity:
        path.unlink(missing_ok=True)
