"""Accepts connections on a listening socket: each in a thread of its own, so many at most."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import Final

log = logging.getLogger("trellis.acceptor")

ACCEPT_RETRY_S: Final = 0.1  # out of descriptors, or a client that left while it waited


class Acceptor:
    """`serve(connection, peer)` gets each connection, closes it and never lets an error escape.

    Nothing but stop() ends it: a process that is out of descriptors goes on once it has some.
    """

    def __init__(
        self,
        listener: socket.socket,
        name: str,
        connections_max: int,
        serve: Callable[[socket.socket, str], None],
    ) -> None:
        """Take over a listening socket; connections past the limit are closed at once."""
        self.name = name
        self._listener = listener
        self._serve = serve
        self._limit = connections_max
        self._slots = threading.BoundedSemaphore(connections_max)
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to accept."""
        threading.Thread(target=self._accept, name=self.name, daemon=True).start()

    def stop(self) -> None:
        """Accept no more; connections that stand go on."""
        self._stopped.set()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            log.debug("%s: the listener was down already", self.name)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self._listener.accept()
            except OSError as error:
                if self._stopped.wait(ACCEPT_RETRY_S):
                    return
                log.warning("%s: not accepted: %s", self.name, error)
                continue
            if not self._slots.acquire(blocking=False):
                log.warning("%s: more than %d connections", self.name, self._limit)
                connection.close()
                continue
            peer = str(address[0]) if isinstance(address, tuple) else ""
            try:
                threading.Thread(
                    target=self._run, args=(connection, peer), name=self.name, daemon=True
                ).start()
            except RuntimeError as error:
                log.warning("%s: no thread: %s", self.name, error)
                connection.close()
                self._slots.release()

    def _run(self, connection: socket.socket, peer: str) -> None:
        try:
            self._serve(connection, peer)
        finally:
            self._slots.release()
