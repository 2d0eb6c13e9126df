"""The station bean: caches every handle of the federation, and relays this host's events."""

import logging
import threading
from datetime import UTC
from typing import TYPE_CHECKING, Any

from marshmallow import fields, validate

from beans.base import Bean, method
from beans.schemas import Strict
from broker.outbox import READ_LIMIT_EVENTS

if TYPE_CHECKING:
    from broker.lookup import Handle

log = logging.getLogger(__name__)


class HandleSchema(Strict):
    """A handle."""

    host = fields.String(required=True)
    bean = fields.String(required=True)
    instance = fields.String(required=True)
    version = fields.String(required=True)
    queue = fields.String(required=True)


class FoundSchema(Strict):
    """Answer of `find`."""

    handle = fields.Nested(HandleSchema, required=True, allow_none=True)
    last_seen = fields.String(required=True, allow_none=True)


class HostSchema(Strict):
    """One host and its live beans."""

    host = fields.String(required=True)
    beans = fields.List(fields.String(), required=True)


class EventSchema(Strict):
    """One event of this host; `number` is its place in the host's history."""

    number = fields.Integer(required=True)
    id = fields.String(required=True)
    time = fields.String(required=True)
    host = fields.String(required=True)
    service = fields.String(required=True)
    subject = fields.String(required=True)
    severity = fields.String(required=True)
    name = fields.String(required=True)
    data = fields.Dict(keys=fields.String(), required=True)
    text = fields.String(required=True)
    advice = fields.String(required=True)


class StationBean(Bean):
    """Knows who is there, so that others need not ask everybody."""

    name = "station"

    def start(self) -> None:
        """Begin to watch and to relay."""
        # Callers import this module for its declarations only, and need none of these.
        from beans.cache import SharedCache
        from beans.relay import EngineTaker, OutboxRelay
        from broker.lookup import LookupTable, Watcher

        self.table = LookupTable()
        self._cache = SharedCache(self.settings)
        self._watcher = Watcher(self.settings, self.table, self._note)
        self._watcher.start()
        threading.Thread(target=self._note_own, name="note-own-beans", daemon=True).start()
        EngineTaker(self.settings, self._outbox, self.stopping).start()
        self._relay = OutboxRelay(self.settings, self._outbox, self.stopping)
        self._relay.start()

    def stop(self) -> None:
        """End the watch; the relay ends by `stopping`."""
        self._watcher.stop()

    @method(
        args={
            "host": fields.String(required=True),
            "bean": fields.String(required=True),
            "fresh": fields.Boolean(load_default=False),
        },
        result=FoundSchema,
        timeout_s=5.0,
    )
    def find(self, host: str, bean: str, fresh: bool) -> dict[str, Any]:
        """Give a bean's handle, null when it is not there, and when it last made itself known.

        `fresh` asks the bean itself over the lookup exchange, for a caller whose handle failed.
        """
        handle = self.table.find(host, bean)
        if fresh or (handle is None and not self._watcher.settled()):
            handle = self._watcher.refresh(host, bean)
        return {
            "handle": _plain(handle) if handle else None,
            "last_seen": self._last_seen(host, bean),
        }

    @method(result=HostSchema, many=True)
    def hosts(self) -> list[dict[str, Any]]:
        """Give every host that has a live bean, with its beans."""
        found: dict[str, list[str]] = {}
        for handle in self.table.handles():
            found.setdefault(handle.host, []).append(handle.bean)
        return [{"host": host, "beans": beans} for host, beans in found.items()]

    @method(result=HandleSchema, many=True)
    def beans(self) -> list[dict[str, Any]]:
        """Give the handle of every live bean."""
        return [_plain(handle) for handle in self.table.handles()]

    @method(
        args={
            "limit": fields.Integer(
                load_default=100, strict=True, validate=validate.Range(1, READ_LIMIT_EVENTS)
            ),
            "after": fields.Integer(load_default=None, allow_none=True, strict=True),
        },
        result=EventSchema,
        many=True,
    )
    def events(self, limit: int, after: int | None) -> list[dict[str, Any]]:
        """Give this host's events, oldest first: the last `limit`, or the first ones `after`."""
        rows = self._outbox.history(limit, after)
        return [{"number": number, **event.to_wire()} for number, event in rows]

    def _last_seen(self, host: str, bean: str) -> str | None:
        seen = self.table.last_seen(host, bean)
        if seen is None:
            return self._cache.last_seen(host, bean)
        return seen.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

    def _note(self, handle: "Handle", alive: bool) -> None:
        log.info("%s of %s %s", handle.bean, handle.host, "came" if alive else "left")
        self._cache.put(handle, alive=alive)

    def _note_own(self) -> None:
        from beans.cache import NOTED_EVERY_S

        while not self.stopping.wait(NOTED_EVERY_S):
            for handle in self.table.handles():
                if handle.host == self.host:
                    self._cache.put(handle, alive=True)


def _plain(handle: "Handle") -> dict[str, Any]:
    wire = handle.to_wire()
    del wire["lease_s"]
    return wire


BEAN = StationBean
