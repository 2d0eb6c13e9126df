"""The host's event relay, in the station bean: engine and outbox to the event exchange.

The engine's numbered events are taken over its control socket into `events.db`; what lies there is
published with confirms, then marked. Nothing is given up before the next holder has it: the engine
keeps an event until it is in the outbox, the outbox until the broker has confirmed it.
"""

import logging
import threading
from typing import Any

from broker.address import describe
from broker.errors import BrokerRefused, BrokerUnavailable, OutboxFailed, OutboxFull
from broker.events import EventPublisher
from broker.outbox import Outbox
from facade.contract.errors import TrellisError, UnreachableError
from facade.contract.events import event_from_wire
from facade.contract.settings import Settings

log = logging.getLogger(__name__)

TAKE_LIMIT_EVENTS = 200
TAKE_WAIT_S = 5.0
PUBLISH_LIMIT_EVENTS = 200
POLL_S = 0.1
"""How often the outbox is looked at for what other processes put in."""
BACK_OFF_FIRST_S = 0.2
BACK_OFF_LIMIT_S = 3.0


class EngineTaker(threading.Thread):
    """Takes the engine's events into the outbox."""

    def __init__(self, settings: Settings, outbox: Outbox, stopping: threading.Event) -> None:
        """Take where from and where to."""
        super().__init__(name="engine-events", daemon=True)
        self._settings = settings
        self._outbox = outbox
        self._stopping = stopping

    def run(self) -> None:
        """Take until stopped; an engine that is away is asked again with back-off."""
        back_off_s = BACK_OFF_FIRST_S
        after = 0
        while not self._stopping.is_set():
            try:
                after = self._take(after)
                back_off_s = BACK_OFF_FIRST_S
            except (TrellisError, OSError, ValueError, KeyError, TypeError) as error:
                away = isinstance(error, UnreachableError)
                log.log(
                    logging.DEBUG if away else logging.WARNING,
                    "the engine's events wait: %s",
                    describe(error),
                )
                # It may be another engine, or one that lost our last word.
                after = 0
                self._stopping.wait(back_off_s)
                back_off_s = min(back_off_s * 2, BACK_OFF_LIMIT_S)

    def _take(self, after: int) -> int:
        from facade.native import EngineClient

        client = EngineClient(self._settings)
        answer: dict[str, Any] = client.call(
            "events.take", after=after, limit=TAKE_LIMIT_EVENTS, wait_s=TAKE_WAIT_S
        )
        events = [event_from_wire(document) for document in answer["events"]]
        if events:
            self._outbox.put_many(events)
            client.call("events.done", up_to=answer["last"])
        return int(answer["last"]) if events else after


class OutboxRelay(threading.Thread):
    """Publishes what waits in the outbox, in its order."""

    def __init__(self, settings: Settings, outbox: Outbox, stopping: threading.Event) -> None:
        """Take where from and where to."""
        super().__init__(name="event-relay", daemon=True)
        self._publisher = EventPublisher(settings)
        self._outbox = outbox
        self._stopping = stopping

    def run(self) -> None:
        """Publish until stopped; while the broker is away everything waits."""
        back_off_s = BACK_OFF_FIRST_S
        while not self._stopping.is_set():
            try:
                if not self._publish_some():
                    self._publisher.idle()
                    self._stopping.wait(POLL_S)
                back_off_s = BACK_OFF_FIRST_S
            except (BrokerUnavailable, BrokerRefused, OutboxFailed, OutboxFull) as error:
                log.warning("events wait in the outbox: %s", error)
                self._stopping.wait(back_off_s)
                back_off_s = min(back_off_s * 2, BACK_OFF_LIMIT_S)
            except Exception:
                log.exception("the event relay failed, it goes on")
                self._stopping.wait(BACK_OFF_LIMIT_S)
        self._publisher.close()

    def _publish_some(self) -> bool:
        waiting = self._outbox.waiting(PUBLISH_LIMIT_EVENTS)
        done: list[int] = []
        try:
            for number, event in waiting:
                self._publisher.publish(event)
                done.append(number)
        finally:
            if done:
                self._outbox.relayed(done)
        return bool(waiting)
