"""Accepts NBD clients on one listening socket: a thread each, so many at most, and their end."""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from collections.abc import Iterable

from facade.engine.nbd_client import Entrance, NbdClient, start_thread

# Connections that the kernel holds for us until they are accepted.
BACKLOG = 128
# Pause before accepting again when the process is out of file descriptors.
ACCEPT_RETRY_S = 0.1
# What end_clients() grants threads to end once their sockets are cut off.
ABORT_TIMEOUT_S = 2.0
# Half-open TCP clients end: silence after which they are asked, how often, how long an answer may
# take, and what sent bytes may take to be acknowledged.
KEEPALIVE_IDLE_S = 60
KEEPALIVE_INTERVAL_S = 15
KEEPALIVE_PROBES = 4
UNACKNOWLEDGED_TIMEOUT_MS = 120_000

_log = logging.getLogger(__name__)


class Listener:
    """One way in. `handshakes_max` bounds those that are not past the handshake yet."""

    def __init__(self, entrance: Entrance, connections_max: int, handshakes_max: int) -> None:
        """Clients past the limits are closed at once."""
        self.entrance = entrance
        self._connections_max = connections_max
        self._handshakes_max = handshakes_max
        self._lock = threading.Lock()
        self._clients: set[NbdClient] = set()
        self._socket: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self._stopping = threading.Event()

    @property
    def is_running(self) -> bool:
        """Whether it accepts."""
        return self._socket is not None

    @property
    def clients(self) -> list[NbdClient]:
        """Every client that came this way and is still here."""
        with self._lock:
            return list(self._clients)

    def start(self, listener: socket.socket) -> None:
        """Take over a listening socket and accept."""
        self._stopping.clear()
        self._socket = listener
        self._accepting = start_thread(f"nbd-{self.entrance.name}", self._accept_all, listener)

    def stop(self) -> bool:
        """Accept no more; True when it did until now. Clients go on."""
        self._stopping.set()
        if self._socket is None or self._accepting is None:
            return False
        # Closing alone would leave the accepting thread in its system call.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._socket.close()
        self._socket = None
        return True

    def _accept_all(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    _log.warning("%s: cannot accept: %s", self.entrance.name, error)
                    self._stopping.wait(ACCEPT_RETRY_S)
                elif error.errno != errno.ECONNABORTED:
                    break
                continue
            self._admit(client)

    def _admit(self, client: socket.socket) -> None:
        try:
            if client.family != socket.AF_UNIX:
                tune(client)
        except OSError as error:
            _log.debug("%s: a client left at once: %s", self.entrance.name, error)
            client.close()
            return
        connection = NbdClient(self.entrance, client, self._forget)
        problem = self._problem_or_add(connection)
        if problem is None:
            try:
                connection.start()
            except RuntimeError as error:
                problem = str(error)
                self._forget(connection)
        if problem is not None:
            _log.warning("%s: refused a client: %s", self.entrance.name, problem)
            client.close()

    def _problem_or_add(self, client: NbdClient) -> str | None:
        with self._lock:
            if len(self._clients) >= self._connections_max:
                return f"{self._connections_max} are connected (the limit)"
            if sum(one.export is None for one in self._clients) >= self._handshakes_max:
                return f"{self._handshakes_max} are in their handshake (the limit)"
            self._clients.add(client)
            return None

    def _forget(self, client: NbdClient) -> None:
        with self._lock:
            self._clients.discard(client)


def end_clients(clients: Iterable[NbdClient], timeout_s: float) -> int:
    """Answer what they have sent, then end them; return how many are left all the same.

    After `timeout_s` those that do not take their replies are cut off.
    """
    left = list(clients)
    deadline = time.monotonic() + timeout_s
    for how, until in (
        (socket.SHUT_RD, deadline),
        (socket.SHUT_RDWR, deadline + ABORT_TIMEOUT_S),
    ):
        for one in left:
            one.shut(how)
        for one in left:
            one.join(until - time.monotonic())
        left = [one for one in left if one.is_alive]
        if not left:
            break
    return len(left)


def tune(client: socket.socket) -> None:
    """Make a TCP connection answer at once, and notice a client that is gone without a word."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_TIMEOUT_MS)
