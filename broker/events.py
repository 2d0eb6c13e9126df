"""The event service: publishing with confirms, and subscribing, on `trellis.events`.

An event that `EventPublisher.publish` returns from is on the disks of every durable subscriber's
queue. A subscriber gets it at least once; ids seen lately are dropped here, and whoever must not do
a thing twice over its own restarts keeps the ids it has dealt with.
"""

import json
import logging
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable

import pika
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.exceptions import AMQPError, ChannelClosedByBroker, NackError
from pika.spec import Basic, BasicProperties

from broker import topology as t
from broker.address import broker_address, broker_user, describe
from broker.connection import BrokerThread, connect, refused
from broker.errors import BrokerUnavailable, MalformedMessage
from facade.contract.events import Event, event_from_wire
from facade.contract.settings import Settings

log = logging.getLogger(__name__)

PREFETCH_EVENTS = 100
SEEN_LIMIT_IDS = 10_000
MESSAGE_LIMIT_BYTES = 256 * 1024
HANDLER_PAUSE_S = 1.0
"""After a handler failed, before its event is given back to be tried again."""


class EventPublisher:
    """Publishes events, each confirmed by the broker; for one thread, connects when needed."""

    def __init__(self, settings: Settings) -> None:
        """Connect nothing yet."""
        self._settings = settings
        self._user = broker_user(settings)
        self._connection: BlockingConnection | None = None
        self._channel: BlockingChannel | None = None

    def publish(self, event: Event) -> None:
        """Publish one event and wait for the broker's word that it is safe.

        Raises:
            BrokerUnavailable: it may or may not be there; publish it again, with the same id.
            BrokerRefused: this user may not publish it.
        """
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2,
            message_id=event.id,
            user_id=self._user,
        )
        try:
            channel = self._open()
            body = json.dumps(event.to_wire()).encode()
            channel.basic_publish(t.EVENTS, event.routing_key(), body, properties)
        except ChannelClosedByBroker as error:
            self.close()
            raise refused(self._settings, error) from error
        except NackError as error:
            address = broker_address(self._settings)
            raise BrokerUnavailable(address=address, reason="an event queue is full") from error
        except (AMQPError, OSError) as error:
            self.close()
            address = broker_address(self._settings)
            raise BrokerUnavailable(address=address, reason=describe(error)) from error

    def idle(self) -> None:
        """Answer heartbeats; to be called at least every few seconds."""
        if self._connection is not None:
            try:
                self._connection.process_data_events(time_limit=0)
            except (AMQPError, OSError) as error:
                log.warning("event publisher lost its connection: %s", describe(error))
                self.close()

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None and connection.is_open:
            try:
                connection.close()
            except (AMQPError, OSError) as error:
                log.debug("while closing: %s", describe(error))

    def _open(self) -> BlockingChannel:
        if self._channel is None or not self._channel.is_open:
            self.close()
            self._connection = connect(self._settings)
            self._channel = self._connection.channel()
            self._channel.confirm_delivery()
        return self._channel


class EventSubscriber(BrokerThread):
    """Hands events to a function on this thread, each at least once, in order of their arrival.

    With a `name` the queue is durable and waits while the subscriber is away; without, it is a
    look-on that ends with the connection. A handler that raises gets the event again after a pause,
    `EVENTS_DELIVERY_LIMIT` times, then the event goes to `trellis.dead`: whoever depends on
    something slow stores the event and returns.
    """

    def __init__(
        self,
        settings: Settings,
        handler: Callable[[Event], None],
        *,
        name: str | None = None,
        patterns: Iterable[str] = ("#",),
    ) -> None:
        """Take the function, the queue's name if it is to be durable, and patterns of keys."""
        super().__init__(settings, f"events-{name or 'live'}")
        self._handler = handler
        self._durable = name is not None
        self._patterns = list(patterns)
        self._queue = (
            t.events_queue(self.user, name) if name else t.live_queue(self.user, uuid.uuid4().hex)
        )
        self._seen: OrderedDict[str, None] = OrderedDict()

    def connected(self, channel: BlockingChannel) -> None:
        """Declare, bind, consume."""
        channel.queue_declare(
            self._queue,
            durable=self._durable,
            exclusive=not self._durable,
            auto_delete=not self._durable,
            arguments=t.EVENTS_QUEUE_ARGUMENTS if self._durable else t.LIVE_QUEUE_ARGUMENTS,
        )
        for pattern in self._patterns:
            channel.queue_bind(self._queue, t.EVENTS, pattern)
        channel.basic_qos(prefetch_count=PREFETCH_EVENTS)
        channel.basic_consume(self._queue, self._deliver)

    def _deliver(
        self,
        channel: BlockingChannel,
        method: Basic.Deliver,
        properties: BasicProperties,
        body: bytes,
    ) -> None:
        try:
            event = read_event(method.routing_key, properties, body)
        except MalformedMessage as error:
            log.warning("%s", error)
            channel.basic_ack(method.delivery_tag)
            return
        if event.id not in self._seen:
            try:
                self._handler(event)
            except Exception:
                log.exception("the handler failed on event %s, it will get it again", event.id)
                self.stopping.wait(HANDLER_PAUSE_S)
                channel.basic_nack(method.delivery_tag, requeue=True)
                return
            self._remember(event.id)
        channel.basic_ack(method.delivery_tag)

    def _remember(self, event_id: str) -> None:
        self._seen[event_id] = None
        if len(self._seen) > SEEN_LIMIT_IDS:
            self._seen.popitem(last=False)


def read_event(routing_key: str, properties: BasicProperties, body: bytes) -> Event:
    """Check a message from `trellis.events`: its form, its key, and that its host sent it.

    Raises:
        MalformedMessage: with what is wrong.
    """
    try:
        if len(body) > MESSAGE_LIMIT_BYTES:
            raise ValueError(f"it is longer than {MESSAGE_LIMIT_BYTES} bytes")
        document = json.loads(body)
        if not isinstance(document, dict):
            raise ValueError("it is no JSON object")
        event = event_from_wire(document)
        if properties.user_id != event.host:
            raise ValueError(f"{properties.user_id} sent it in the name of {event.host}")
        if routing_key != event.routing_key():
            raise ValueError(f"its key should be {event.routing_key()}")
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(
            exchange=t.EVENTS, routing_key=routing_key, reason=str(error)
        ) from error
    return event
