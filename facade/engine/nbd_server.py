"""Serves one volume to NBD clients on a Unix socket: listening, accepting, limits, stopping.

One thread per connection: the handshake in Python, then the request loop, which never holds the
GIL. The socket file exists exactly while the server accepts.
"""

import errno
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import quote

from facade.engine.nbd_context import AllocationContext, MetaContext
from facade.engine.nbd_transmission import Transmission
from facade.engine.nbd_wire import Export, Handshake, Outcome, export_flags
from facade.engine.volume_stack import VolumeStack

# Connections of one export at a time, those that still negotiate included; one more is closed.
CONNECTIONS_MAX = 1100
# Connections that the kernel holds for us until they are accepted.
BACKLOG = 128
# A client that has not come to transmission in this time is closed.
HANDSHAKE_TIMEOUT_S = 30.0
# Input of a handshake that is looked at in one go.
HANDSHAKE_PIECE_BYTES = 4096
# Stack of a connection's thread; its deep part is C with small frames.
THREAD_STACK_BYTES = 256 * 1024
# Replies that the kernel may hold for a client on a Unix socket; it grants up to twice
# net.core.wmem_max. With more the sender of long replies sleeps less often.
SEND_BUFFER_BYTES = 1024 * 1024
# Pause before accepting again when the process is out of file descriptors.
ACCEPT_RETRY_S = 0.1
# What stop() grants requests in flight unless told otherwise, and after that the threads to end.
STOP_TIMEOUT_S = 10.0
ABORT_TIMEOUT_S = 2.0
# Metadata contexts of one export (nbd_transmission.pxd has it too).
CONTEXTS_MAX = 16
# Bytes of a Unix socket's path that the kernel takes.
SOCKET_PATH_MAX_BYTES = 107

_log = logging.getLogger(__name__)
_thread_start_lock = threading.Lock()


class NbdServer:
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
        """`can_trim` says that the backing can punch holes: trim is advertised, zeroing is fast.

        `structured` says whether structured replies, and with them contexts, are offered.
        """
        self.stack = stack
        self.socket_path = socket_path
        self.export_name = export_name or stack.name
        self.can_trim = can_trim
        self._structured = structured
        allocation = AllocationContext(stack)
        self._contexts: dict[str, MetaContext] = {allocation.name: allocation}
        self._connections_max = connections_max
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._listener: socket.socket | None = None
        self._identity: tuple[int, int] | None = None
        self._accepting: threading.Thread | None = None
        self._stopping = threading.Event()

    @property
    def uri(self) -> str:
        """The NBD URI under which clients find the export."""
        name, path = quote(self.export_name, safe=""), quote(str(self.socket_path))
        return f"nbd+unix:///{name}?socket={path}"

    @property
    def clients(self) -> int:
        """Number of clients that are past the handshake."""
        with self._lock:
            return sum(one.export is not None for one in self._connections)

    @property
    def writable_clients(self) -> int:
        """Number of clients past the handshake that were told they may write."""
        with self._lock:
            return sum(one.is_writable for one in self._connections)

    def start(self) -> None:
        """Listen and accept.

        A socket file that nobody listens on is replaced. Raises OSError: EADDRINUSE when somebody
        does, EEXIST when the path is no socket, ENAMETOOLONG when it is too long.
        """
        self._stopping.clear()
        listener = listen(self.socket_path)
        status = self.socket_path.stat()
        self._identity = (status.st_dev, status.st_ino)
        self._listener = listener
        self._accepting = start_thread(f"nbd-{self.export_name}", self._accept_all, listener)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Accept no more, answer what has been received, and end all connections.

        After `timeout_s` clients that do not take their replies are cut off. Raises TimeoutError
        when requests are still in flight in the volume after that; the volume must then not be
        closed, and stop() may be called again. Stopping what is stopped does nothing.
        """
        self._stopping.set()
        deadline = time.monotonic() + timeout_s
        self._stop_listening()
        for how, until in (
            (socket.SHUT_RD, deadline),
            (socket.SHUT_RDWR, deadline + ABORT_TIMEOUT_S),
        ):
            left = self._end_connections(how, until)
            if not left:
                return
        raise TimeoutError(
            f"export {self.export_name}: {left} connections still have requests in flight after "
            f"{timeout_s + ABORT_TIMEOUT_S:g} s; the volume does not answer"
        )

    def _stop_listening(self) -> None:
        if self._listener is None or self._accepting is None:
            return
        # Closing alone would leave the accepting thread in its system call.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        self._listener = None
        remove_socket(self.socket_path, self._identity)

    def _end_connections(self, how: int, until: float) -> int:
        with self._lock:
            connections = list(self._connections)
        for one in connections:
            one.shut(how)
        for one in connections:
            one.join(until - time.monotonic())
        with self._lock:
            return len(self._connections)

    def _accept_all(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    _log.warning("export %s: cannot accept: %s", self.export_name, error)
                    self._stopping.wait(ACCEPT_RETRY_S)
                elif error.errno != errno.ECONNABORTED:
                    break
                continue
            self._admit(client)

    def _admit(self, client: socket.socket) -> None:
        connection = _Connection(self, client)
        with self._lock:
            is_full = len(self._connections) >= self._connections_max
            if not is_full:
                self._connections.add(connection)
        if is_full:
            _log.warning(
                "export %s: refused a client, %d are connected (the limit)",
                self.export_name,
                self._connections_max,
            )
            client.close()
            return
        try:
            connection.start()
        except RuntimeError as error:
            _log.warning("export %s: refused a client: %s", self.export_name, error)
            client.close()
            self.forget(connection)

    def add_context(self, context: MetaContext) -> None:
        """Offer a metadata context to the clients that connect from now on.

        Raises ValueError when one of its name is offered already, or CONTEXTS_MAX are.
        """
        with self._lock:
            if context.name in self._contexts:
                raise ValueError(
                    f"export {self.export_name}: the metadata context {context.name} is offered "
                    "already; remove that one first"
                )
            if len(self._contexts) >= CONTEXTS_MAX:
                raise ValueError(
                    f"export {self.export_name}: {CONTEXTS_MAX} metadata contexts are offered (the "
                    "limit); remove one first"
                )
            context.withdrawn = False
            self._contexts[context.name] = context

    def remove_context(self, name: str) -> None:
        """Offer it no more; clients that selected it are answered ESHUTDOWN when they ask.

        A name that is not offered is removed already.
        """
        with self._lock:
            context = self._contexts.pop(name, None)
        if context is not None:
            context.withdrawn = True

    def contexts(self) -> dict[str, MetaContext]:
        """Return the metadata contexts that are offered, by name."""
        with self._lock:
            return dict(self._contexts)

    def describe(self, contexts: Iterable[str] = ()) -> Export:
        """Return what a client that connects now is told."""
        read_only = self.stack.read_only
        flags = export_flags(read_only=read_only, can_trim=self.can_trim)
        return Export(
            self.export_name, self.stack.size_bytes, flags, tuple(contexts), self._structured
        )

    def forget(self, connection: "_Connection") -> None:
        """Take a connection off the list; called by its thread when it ends."""
        with self._lock:
            self._connections.discard(connection)


class _Connection:
    """One client: its socket and its thread."""

    def __init__(self, server: NbdServer, client: socket.socket) -> None:
        self._server = server
        self._client = client
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.export: Export | None = None
        self.is_writable = False

    def start(self) -> None:
        self._thread = start_thread(f"nbd-{self._server.export_name}", self._serve)

    def shut(self, how: int) -> None:
        with self._lock:
            if self._client.fileno() >= 0:
                try:
                    self._client.shutdown(how)
                except OSError as error:
                    if error.errno != errno.ENOTCONN:
                        raise

    def join(self, timeout_s: float) -> None:
        if self._thread is not None:
            self._thread.join(max(timeout_s, 0.0))

    def _serve(self) -> None:
        ending = "the handshake failed"
        try:
            contexts = self._server.contexts()
            export = self._server.describe(contexts)
            handshake = negotiate(self._client, export)
            if handshake.outcome is Outcome.TRANSMISSION:
                read_only = self._server.stack.read_only
                self.is_writable = not read_only
                self.export = export
                self._client.settimeout(None)
                # TCP sizes its buffer by itself.
                if self._client.family == socket.AF_UNIX:
                    self._client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
                ending = Transmission(
                    self._client.fileno(),
                    self._server.stack,
                    read_only,
                    handshake.leftover,
                    structured=handshake.structured,
                    extended=handshake.extended,
                    can_zero_fast=self._server.can_trim,
                    contexts=tuple(contexts[name] for name in handshake.contexts),
                ).run()
            else:
                ending = handshake.reason
        except OSError as error:
            ending = str(error)
        finally:
            with self._lock:
                self._client.close()
            self._server.forget(self)
            _log.debug("export %s: connection ended: %s", self._server.export_name, ending)


def negotiate(client: socket.socket, export: Export) -> Handshake:
    """Lead a client through the handshake; raise TimeoutError when it takes too long."""
    deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
    handshake = Handshake({export.name: export}, export.name)
    send_until(client, handshake.greeting(), deadline)
    while handshake.outcome is Outcome.NEGOTIATING:
        client.settimeout(remaining_s(deadline))
        data = client.recv(HANDSHAKE_PIECE_BYTES)
        if not data:
            handshake.close()
            break
        send_until(client, handshake.receive(data), deadline)
    return handshake


def send_until(client: socket.socket, data: bytes, deadline: float) -> None:
    """Send all of `data`; raise TimeoutError when the client has not taken it by `deadline`."""
    if data:
        client.settimeout(remaining_s(deadline))
        client.sendall(data)


def remaining_s(deadline: float) -> float:
    """Return the seconds until `deadline`; raise TimeoutError when there are none."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError(f"the handshake took longer than {HANDSHAKE_TIMEOUT_S:g} s")
    return remaining


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


def start_thread(name: str, target: Callable[..., None], *args: object) -> threading.Thread:
    """Start a daemon thread with a small stack; the process's own setting is left as it was."""
    with _thread_start_lock:
        before = threading.stack_size(THREAD_STACK_BYTES)
        try:
            thread = threading.Thread(name=name, target=target, args=args, daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    return thread
