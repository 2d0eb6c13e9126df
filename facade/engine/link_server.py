"""Listens for other engines and hands each proven connection to the set it names."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import Final

from facade.contract.errors import TrellisError
from facade.engine.link_connection import Identity, LinkConnection, check_private, welcome

log = logging.getLogger("trellis.link")

ACCEPT_RETRY_S: Final = 0.1  # out of descriptors, or a client that left while it waited
CONNECTIONS_MAX: Final = 256  # strangers included; more are closed at once
BACKLOG: Final = 64


class LinkServer:
    """Accepts links at `address` (HOST:PORT). `serve(connection, set_id)` gets the proven ones."""

    def __init__(
        self,
        address: str,
        who: Identity,
        serve: Callable[[LinkConnection, str], None],
    ) -> None:
        """Bind at once, so that a taken port is known at the start.

        Raises OSError, LinkNotPrivate.
        """
        self.who = who
        self.serve = serve
        self._slots = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._stopped = threading.Event()
        name, _, port = address.rpartition(":")
        family = socket.AF_INET6 if ":" in name else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((name.strip("[]"), int(port)))
            check_private(self._listener.getsockname(), who.plain)
            self._listener.listen(BACKLOG)
        except BaseException:
            self._listener.close()
            raise
        self._thread = threading.Thread(target=self._accept, name="link", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    def stop(self) -> None:
        """Accept no more; links that stand are the sets' own."""
        self._stopped.set()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            log.debug("the listener was closed already")
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, address = self._listener.accept()
            except OSError as error:
                if self._stopped.wait(ACCEPT_RETRY_S):
                    return
                log.warning("not accepted: %s", error)
                continue
            if not self._slots.acquire(blocking=False):
                log.warning("more than %d links: one is turned away", CONNECTIONS_MAX)
                sock.close()
                continue
            threading.Thread(
                target=self._welcome, args=(sock, str(address[0])), name="link", daemon=True
            ).start()

    def _welcome(self, sock: socket.socket, peer: str) -> None:
        connection = LinkConnection(sock, peer)
        try:
            host, set_id = welcome(connection, self.who)
            self.serve(connection, set_id)
            log.debug("link from %s for %s has ended", host, set_id)
        except TrellisError as error:
            log.warning("link from %s: %s", peer, error)
        except Exception:
            log.exception("link from %s", peer)
        finally:
            connection.close()
            self._slots.release()
