"""A volume as NBD clients see it, whichever way they come: what they are told, who is connected."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from facade.engine.nbd_context import AllocationContext, MetaContext
from facade.engine.nbd_wire import Export, export_flags
from facade.engine.volume_stack import VolumeStack

if TYPE_CHECKING:
    from facade.engine.nbd_client import NbdClient

# Connections of one export past the handshake at a time; one more is closed.
CONNECTIONS_MAX = 1100
# Metadata contexts of one export (nbd_transmission.pxd has it too).
CONTEXTS_MAX = 16


@dataclass(frozen=True)
class Offer:
    """An export as one client is told of it."""

    export: NbdExport
    told: Export
    contexts: dict[str, MetaContext]


class NbdExport:
    """One export: a volume's stack under a name. Safe to call from any thread."""

    def __init__(
        self,
        stack: VolumeStack,
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
        self.export_name = export_name or stack.name
        self.can_trim = can_trim
        self._structured = structured
        allocation = AllocationContext(stack)
        self._contexts: dict[str, MetaContext] = {allocation.name: allocation}
        self._connections_max = connections_max
        self._lock = threading.Lock()
        self._clients: set[NbdClient] = set()
        self._is_open = False

    @property
    def is_open(self) -> bool:
        """Whether clients may come."""
        with self._lock:
            return self._is_open

    @property
    def clients(self) -> int:
        """Number of clients that are past the handshake."""
        with self._lock:
            return len(self._clients)

    @property
    def writable_clients(self) -> int:
        """Number of clients past the handshake that were told they may write."""
        with self._lock:
            return sum(one.is_writable for one in self._clients)

    def clients_where(self, fits: Callable[[NbdClient], bool]) -> list[NbdClient]:
        """Return the clients past the handshake that fit."""
        with self._lock:
            return [one for one in self._clients if fits(one)]

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

    def offer(self) -> Offer:
        """Return what a client that connects now is told."""
        contexts = self.contexts()
        flags = export_flags(read_only=self.stack.read_only, can_trim=self.can_trim)
        told = Export(
            self.export_name, self.stack.size_bytes, flags, tuple(contexts), self._structured
        )
        return Offer(self, told, contexts)

    def attach(self, client: NbdClient) -> bool:
        """Count a client that begins transmission; False when it must not."""
        with self._lock:
            has_room = self._is_open and len(self._clients) < self._connections_max
            if has_room:
                self._clients.add(client)
            return has_room

    def detach(self, client: NbdClient) -> None:
        """Count a client no more: its transmission has ended."""
        with self._lock:
            self._clients.discard(client)

    def _set_open(self, is_open: bool) -> None:
        with self._lock:
            self._is_open = is_open
