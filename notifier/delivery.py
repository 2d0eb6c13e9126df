"""One event to all who shall know of it, tried until the mail server has decided on each of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

from email.message import EmailMessage

from facade.contract.events import Event
from notifier.errors import MailServerAway
from notifier.ledger import Ledger
from notifier.mail import compose
from notifier.rules import Rule, recipients_of
from notifier.smtp import Answer

log = logging.getLogger("trellis.notifier")

RETRY_FIRST_S: Final = 0.5
RETRY_MAX_S: Final = 60.0


class Server(Protocol):
    """What takes mails: `notifier.smtp.MailServer`."""

    name: str

    def send(self, message: EmailMessage, sender: str, recipients: Sequence[str]) -> Answer:
        """Hand one mail over."""


@dataclass
class Delivery:
    """Delivers events; `deliver` may be called again with an event it has had."""

    rules: Sequence[Rule]
    ledger: Ledger
    server: Server
    sender: str
    domain: str
    stopping: threading.Event
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    retry_first_s: float = RETRY_FIRST_S
    retry_max_s: float = RETRY_MAX_S

    def deliver(self, event: Event) -> bool:
        """Mail the event to all who have not been told of it.

        Returns True when each of them has it or is refused by the mail server for good; False when
        `stopping` was set before that: the event must come again. While the mail server is away,
        this waits and tries again, `retry_first_s` apart at first, at most `retry_max_s`.
        """
        pause_s = self.retry_first_s
        while not self.stopping.is_set():
            try:
                open_ = self._attempt(event)
            except MailServerAway as error:
                reason = str(error)
            else:
                if not open_:
                    return True
                reason = f"{self.server.name} put off {', '.join(open_)}"
            log.warning("event %s waits %.1f s: %s", event.id, pause_s, reason)
            self.stopping.wait(pause_s)
            pause_s = min(pause_s * 2, self.retry_max_s)
        return False

    def retry_refused(self) -> int:
        """Try each refused mail once more; returns how many are refused no longer."""
        mended = 0
        for entry in self.ledger.all_refused():
            if self.stopping.is_set():
                break
            message = compose(
                entry.event, self.sender, [entry.recipient], self.domain, self.now()
            )
            answer = self.server.send(message, self.sender, [entry.recipient])
            self.ledger.delivered(entry.event.id, answer.accepted)
            mended += len(answer.accepted)
        return mended

    def _attempt(self, event: Event) -> tuple[str, ...]:
        """Send once; returns those for whom the server has not decided."""
        recipients = self.ledger.missing(event.id, recipients_of(event, self.rules))
        if not recipients:
            return ()
        message = compose(event, self.sender, recipients, self.domain, self.now())
        answer = self.server.send(message, self.sender, recipients)
        self.ledger.delivered(event.id, answer.accepted)
        if answer.refused:
            self.ledger.refused(event, answer.refused)
            for name, reason in answer.refused.items():
                log.error("event %s: %s refused the mail to %s: %s",
                          event.id, self.server.name, name, reason)
        for name in answer.accepted:
            log.info("event %s (%s) mailed to %s", event.id, event.routing_key(), name)
        return tuple(answer.deferred)
