"""Listens for other engines and hands each proven connection to the set it names."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Final

from facade.contract.errors import TrellisError
from facade.engine.acceptor import Acceptor
from facade.engine.link_connection import Identity, LinkConnection, check_private, welcome

log = logging.getLogger("trellis.link")

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
        name, _, port = address.rpartition(":")
        family = socket.AF_INET6 if ":" in name else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((name.strip("[]"), int(port)))
            check_private(listener.getsockname(), who.plain)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        self._acceptor = Acceptor(listener, "link", CONNECTIONS_MAX, self._welcome)

    def start(self) -> None:
        """Begin to accept."""
        self._acceptor.start()

    def stop(self) -> None:
        """Accept no more; links that stand are the sets' own."""
        self._acceptor.stop()

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
