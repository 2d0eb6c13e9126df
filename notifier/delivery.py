"""From the ledger to the mail server: each event to all who shall know of it, tried until told.

While the mail server takes nothing at all, everything waits, `RETRY_FIRST_S` at first, at most
`RETRY_MAX_S`. A mail that it puts off or refuses for somebody waits alone, in the same steps, and
is given up (kept, and logged as an error) after `TRIES_MAX` of them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Final, Protocol

from facade.contract.events import Event
from notifier.errors import MailServerAway
from notifier.ledger import Entry, Ledger
from notifier.mail import compose
from notifier.rules import Rule, recipients_of
from notifier.smtp import Answer

log = logging.getLogger("trellis.notifier")

RETRY_FIRST_S: Final = 0.5
RETRY_MAX_S: Final = 60.0
TRIES_MAX: Final = 1000
"""Most of a day at `RETRY_MAX_S`."""


class Server(Protocol):
    """What takes mails: `notifier.smtp.MailServer`."""

    name: str

    def send(self, message: EmailMessage, sender: str, recipients: Sequence[str]) -> Answer:
        """Hand one mail over. Raises MailServerAway when nothing was decided for anybody."""


def back_off_s(tries: int, first_s: float, max_s: float) -> float:
    """How long to wait after so many tries: doubling from `first_s` to `max_s`."""
    return min(max_s, first_s * 2.0 ** min(tries, 30))


@dataclass
class Delivery:
    """Sends what the ledger holds; one thread runs it."""

    rules: Sequence[Rule]
    ledger: Ledger
    server: Server
    sender: str
    domain: str
    retry_first_s: float = RETRY_FIRST_S
    retry_max_s: float = RETRY_MAX_S
    tries_max: int = TRIES_MAX
    clock: Callable[[], float] = time.time
    _wake: threading.Event = field(default_factory=threading.Event)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def receive(self, event: Event) -> None:
        """Take an event durably; it is mailed soon. Safe for any thread."""
        self.ledger.receive(event)
        self._wake.set()

    def stop(self) -> None:
        """End `run` soon; what is not mailed stays in the ledger. Safe for any thread."""
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Mail what is due and wait for more, until stopped."""
        away = 0
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                busy = self.step()
                away = 0
            except MailServerAway as error:
                pause_s = back_off_s(away, self.retry_first_s, self.retry_max_s)
                away += 1
                log.warning("%s Next try in %.1f s.", error, pause_s)
                self._stopping.wait(pause_s)
                continue
            if not busy:
                self._wake.wait(self._idle_s())

    def step(self) -> bool:
        """Try every event that is due once; False when there was none. Raises MailServerAway."""
        entries = self.ledger.due(self.clock())
        for entry in entries:
            if self._stopping.is_set():
                break
            self._try(entry)
        return bool(entries)

    def _try(self, entry: Entry) -> None:
        event = entry.event
        recipients = self.ledger.untold(event.id, recipients_of(event, self.rules))
        if recipients:
            message = compose(event, self.sender, recipients, self.domain, datetime.now(UTC))
            answer = self.server.send(message, self.sender, recipients)
            self.ledger.told(event.id, answer.accepted)
            for name in answer.accepted:
                log.info("event %s (%s) mailed to %s", event.id, event.routing_key(), name)
            if answer.left:
                self._put_off(entry, "; ".join(f"{who}: {why}" for who, why in answer.left.items()))
                return
        self.ledger.done(event.id)

    def _put_off(self, entry: Entry, reason: str) -> None:
        event_id = entry.event.id
        if entry.tries + 1 >= self.tries_max:
            self.ledger.give_up(event_id, reason)
            log.error("event %s: no mail after %d tries: %s", event_id, entry.tries + 1, reason)
            return
        pause_s = back_off_s(entry.tries, self.retry_first_s, self.retry_max_s)
        self.ledger.put_off(event_id, self.clock() + pause_s, reason)
        log.warning("event %s: next try in %.1f s: %s", event_id, pause_s, reason)

    def _idle_s(self) -> float:
        due_s = self.ledger.next_due_s()
        if due_s is None:
            return self.retry_max_s
        return min(self.retry_max_s, max(0.01, due_s - self.clock()))
