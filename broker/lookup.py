"""The lookup service: who is there, by announcements with a lease on `trellis.lookup`.

`Registrar` announces the beans of a process and answers queries; `Watcher` keeps a `LookupTable` of
all; `query` asks once, for those who have no station. A handle that is not renewed for `LEASE_S`
is gone; a clean leave says so at once.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker
from pika.spec import Basic, BasicProperties

from broker import topology as t
from broker.address import broker_address, broker_user, describe
from broker.connection import BrokerThread, connect, refused
from broker.errors import BrokerUnavailable, MalformedMessage
from facade.contract.settings import Settings

log = logging.getLogger(__name__)

LEASE_S = 6.0
RENEW_S = 2.0
CONSUMING_POLL_S = 0.25
"""How often a registrar looks whether its bean takes calls."""
LEASE_LIMIT_S = 60.0
"""Longest lease that a table believes."""
TABLE_LIMIT_HANDLES = 10_000
SEEN_LIMIT_HANDLES = 20_000
QUERY_WAIT_S = 0.6
QUERY_QUIET_S = 0.15
"""With no more answers for this long, a question to all is taken as answered."""
MESSAGE_LIMIT_BYTES = 4096
_NAME_LIMIT_CHARACTERS = 130


@dataclass(frozen=True)
class Handle:
    """What the lookup service gives: enough to call a bean."""

    host: str
    bean: str
    instance: str
    """Of the worker's process: another one after each start."""
    version: str
    queue: str
    lease_s: float = LEASE_S

    def to_wire(self) -> dict[str, Any]:
        """Give the JSON document of an announcement."""
        return asdict(self)


def make_handle(host: str, bean: str, version: str, instance: str | None = None) -> Handle:
    """Make the handle of a bean of this process."""
    return Handle(
        host=host,
        bean=bean,
        instance=instance or uuid.uuid4().hex,
        version=version,
        queue=t.call_queue(host, bean),
    )


def read_handle(document: Any) -> Handle:
    """Check a document and make a handle of it.

    Raises:
        ValueError: with what is wrong.
    """
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    for key in ("host", "bean", "instance", "version", "queue"):
        value = document.get(key)
        if not isinstance(value, str) or not 0 < len(value) <= _NAME_LIMIT_CHARACTERS:
            raise ValueError(f"{key} is {value!r:.50}")
    lease_s = document.get("lease_s")
    if type(lease_s) not in (int, float) or not 0 < float(lease_s or 0) <= LEASE_LIMIT_S:
        raise ValueError(f"lease_s is {lease_s!r:.50}, it must be above 0 and at most 60")
    handle = Handle(**{key: document[key] for key in Handle.__dataclass_fields__})
    if handle.queue != t.call_queue(handle.host, handle.bean):
        raise ValueError(f"queue {handle.queue!r} is not the one of {handle.host} {handle.bean}")
    return handle


def read_announcement(properties: BasicProperties, body: bytes) -> Handle:
    """Check an announce or depart message: its form, and that the host itself sent it.

    Raises:
        MalformedMessage: with what is wrong.
    """
    try:
        if len(body) > MESSAGE_LIMIT_BYTES:
            raise ValueError(f"it is longer than {MESSAGE_LIMIT_BYTES} bytes")
        handle = read_handle(json.loads(body))
        if properties.user_id != handle.host:
            raise ValueError(f"{properties.user_id} sent it in the name of {handle.host}")
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(
            exchange=t.LOOKUP, routing_key="announce", reason=str(error)
        ) from error
    return handle


class LookupTable:
    """Handles with expiry; safe for threads. Knows no broker, so that its clock can be given."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Take a monotonic clock in seconds."""
        self._clock = clock
        self._changed = threading.Condition()
        self._entries: dict[tuple[str, str], tuple[Handle, float, float]] = {}
        self._last_seen: dict[tuple[str, str], datetime] = {}

    def announce(self, handle: Handle) -> bool:
        """Note a handle or its renewal; True when the bean was not known or is a new instance."""
        key, now = (handle.host, handle.bean), self._clock()
        with self._changed:
            old = self._entries.get(key)
            if old is None and len(self._entries) >= TABLE_LIMIT_HANDLES:
                log.warning("lookup table is full, %s of %s left out", handle.bean, handle.host)
                return False
            self._entries[key] = (handle, now + handle.lease_s, now)
            self._last_seen.pop(key, None)
            self._last_seen[key] = datetime.now(UTC)
            if len(self._last_seen) > SEEN_LIMIT_HANDLES:
                self._last_seen.pop(next(iter(self._last_seen)))
            self._changed.notify_all()
            return old is None or old[0].instance != handle.instance or old[1] < now

    def depart(self, handle: Handle) -> bool:
        """Forget a bean that left; a late word of an earlier instance changes nothing."""
        key = (handle.host, handle.bean)
        with self._changed:
            old = self._entries.get(key)
            if old is None or old[0].instance != handle.instance:
                return False
            del self._entries[key]
            self._changed.notify_all()
            return True

    def find(self, host: str, bean: str) -> Handle | None:
        """Give the live handle of a bean."""
        with self._changed:
            entry = self._entries.get((host, bean))
            return entry[0] if entry and entry[1] > self._clock() else None

    def handles(self) -> list[Handle]:
        """Give every live handle, by host and bean; drops the expired ones."""
        with self._changed:
            now = self._clock()
            self._entries = {key: e for key, e in self._entries.items() if e[1] > now}
            return [self._entries[key][0] for key in sorted(self._entries)]

    def last_seen(self, host: str, bean: str) -> datetime | None:
        """Give when the bean was last announced, `None` if never since this table began."""
        with self._changed:
            return self._last_seen.get((host, bean))

    def wait_for(self, host: str, bean: str, since: float, timeout_s: float) -> Handle | None:
        """Wait for an announcement made after `since` (of the table's clock)."""

        def fresh() -> bool:
            entry = self._entries.get((host, bean))
            return entry is not None and entry[2] >= since

        with self._changed:
            self._changed.wait_for(fresh, timeout_s)
            return self._entries[host, bean][0] if fresh() else None

    def now(self) -> float:
        """Read the table's clock."""
        return self._clock()


class Registrar(BrokerThread):
    """Announces the beans of this process, renews them, and answers queries.

    After a broker's restart it may be connected again before the one who takes the calls is: it
    says nothing while `consuming` is clear, and takes back what it has said.
    """

    tick_s = CONSUMING_POLL_S

    def __init__(
        self,
        settings: Settings,
        handles: Iterable[Handle],
        consuming: threading.Event | None = None,
    ) -> None:
        """Take the handles to announce, all of this host, and the sign that calls are taken."""
        super().__init__(settings, "registrar")
        self._handles = list(handles)
        self._consuming = consuming
        self._announced = False
        self._queue = t.lookup_queue(self.user, uuid.uuid4().hex)
        self._due_s = 0.0

    def connected(self, channel: BlockingChannel) -> None:
        """Listen for queries and announce."""
        _own_queue(channel, self._queue, ["query.#"])
        channel.basic_consume(self._queue, self._answer, auto_ack=True, exclusive=True)
        self._announced = False
        self.tick(channel)

    def tick(self, channel: BlockingChannel) -> None:
        """Renew in good time; announce, or take back, as soon as calls are taken or no more."""
        if not self._takes_calls():
            if self._announced:
                self.leaving(channel)
        elif not self._announced or time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + RENEW_S
            self._announce(channel, self._handles)
            self._announced = True

    def leaving(self, channel: BlockingChannel) -> None:
        """Say that the beans leave."""
        self._announced = False
        for handle in self._handles:
            _publish(channel, self.user, t.depart_key(handle.host, handle.bean), handle.to_wire())

    def _takes_calls(self) -> bool:
        return self._consuming is None or self._consuming.is_set()

    def _announce(self, channel: BlockingChannel, handles: Iterable[Handle]) -> None:
        for handle in handles:
            _publish(channel, self.user, t.announce_key(handle.host, handle.bean), handle.to_wire())

    def _answer(
        self, channel: BlockingChannel, method: Basic.Deliver, _: BasicProperties, body: bytes
    ) -> None:
        words = method.routing_key.split(".")
        if len(words) == 3 and self._takes_calls():
            asked = [
                handle
                for handle in self._handles
                if words[1] in (t.ANY, handle.host) and words[2] in (t.ANY, handle.bean)
            ]
            self._announce(channel, asked)


class Watcher(BrokerThread):
    """Keeps a table of every bean of the federation; asks for all of them whenever it connects."""

    def __init__(
        self, settings: Settings, table: LookupTable, changed: Callable[[Handle, bool], None]
    ) -> None:
        """Take the table to keep; `changed(handle, alive)` is told of comers and leavers."""
        super().__init__(settings, "lookup")
        self.table = table
        self._changed = changed
        self._queue = t.lookup_queue(self.user, uuid.uuid4().hex)
        self._channel: BlockingChannel | None = None
        self.connected_at: float | None = None
        """Of the table's clock; the table is complete one lease after."""

    def connected(self, channel: BlockingChannel) -> None:
        """Listen, then ask who is there."""
        _own_queue(channel, self._queue, ["announce.#", "depart.#"])
        channel.basic_consume(self._queue, self._note, auto_ack=True, exclusive=True)
        _publish(channel, self.user, t.query_key(t.ANY, t.ANY), {})
        self._channel = channel
        self.connected_at = self.table.now()

    def settled(self) -> bool:
        """Tell whether the table has listened for a whole lease: who is not in it is not there."""
        since = self.connected_at
        return self.ready.is_set() and since is not None and self.table.now() - since > LEASE_S

    def refresh(self, host: str, bean: str, timeout_s: float = QUERY_WAIT_S) -> Handle | None:
        """Ask for one bean and wait for its answer."""
        since = self.table.now()

        def ask() -> None:
            if self._channel is not None and self._channel.is_open:
                _publish(self._channel, self.user, t.query_key(host, bean), {})

        if not self.submit(ask):
            return None
        return self.table.wait_for(host, bean, since, timeout_s)

    def _note(
        self, _: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> None:
        try:
            handle = read_announcement(properties, body)
        except MalformedMessage as error:
            log.warning("%s", error)
            return
        if method.routing_key == t.announce_key(handle.host, handle.bean):
            if self.table.announce(handle):
                self._changed(handle, True)
        elif method.routing_key == t.depart_key(handle.host, handle.bean):
            if self.table.depart(handle):
                self._changed(handle, False)


def query(
    settings: Settings, host: str = t.ANY, bean: str = t.ANY, wait_s: float = QUERY_WAIT_S
) -> list[Handle]:
    """Ask the lookup exchange once, over a connection made for it.

    With host and bean given it returns at the first answer; a question to all waits until no more
    answers come. An empty list means that nobody answered within `wait_s`.

    Raises:
        BrokerUnavailable: the broker does not answer.
        BrokerRefused: it refuses the user or the question.
    """
    user, found = broker_user(settings), dict[tuple[str, str], Handle]()
    queue = t.lookup_queue(user, uuid.uuid4().hex)
    connection = connect(settings)
    try:
        channel = connection.channel()
        _own_queue(channel, queue, [t.announce_key(host, bean)])
        _publish(channel, user, t.query_key(host, bean), {})
        one = t.ANY not in (host, bean)
        deadline_s = time.monotonic() + wait_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            quiet_s = left_s if one or not found else min(left_s, QUERY_QUIET_S)
            method, properties, body = next(
                channel.consume(queue, auto_ack=True, inactivity_timeout=quiet_s)
            )
            if method is None:
                break
            try:
                handle = read_announcement(properties, body)
            except MalformedMessage as error:
                log.warning("%s", error)
                continue
            found[handle.host, handle.bean] = handle
            if one:
                break
    except ChannelClosedByBroker as error:
        raise refused(settings, error) from error
    except (AMQPError, OSError) as error:
        address = broker_address(settings)
        raise BrokerUnavailable(address=address, reason=describe(error)) from error
    finally:
        if connection.is_open:
            connection.close()
    return [found[key] for key in sorted(found)]


def _own_queue(channel: BlockingChannel, queue: str, keys: Iterable[str]) -> None:
    channel.queue_declare(
        queue, exclusive=True, auto_delete=True, arguments=t.LOOKUP_QUEUE_ARGUMENTS
    )
    for key in keys:
        channel.queue_bind(queue, t.LOOKUP, key)


def _publish(channel: BlockingChannel, user: str, key: str, document: dict[str, Any]) -> None:
    properties = pika.BasicProperties(
        content_type="application/json", delivery_mode=1, user_id=user
    )
    channel.basic_publish(t.LOOKUP, key, json.dumps(document).encode(), properties)
