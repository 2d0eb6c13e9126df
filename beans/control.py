"""Celery's remote control (Flower's pings and inspections) within what the definitions allow."""

from typing import Any

from celery.app.control import Control
from kombu.pidbox import Mailbox

from broker import topology


class NarrowMailbox(Mailbox):
    """Celery's remote control with exchanges that the definitions made: none is declared."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Mark both exchanges as made."""
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        made: Any = (self.exchange, self.reply_exchange)
        for exchange in made:
            exchange.no_declare = True

    def _publish_reply(
        self,
        reply: Any,
        exchange: str,
        routing_key: str,
        ticket: str,
        channel: Any = None,
        producer: Any = None,
        **options: Any,
    ) -> None:
        if exchange != topology.CONTROL_REPLY:
            return
        connection: Any = self.connection
        sent_to = channel or connection.default_channel
        with self.producer_or_acquire(producer, sent_to) as sender:
            sender.publish(
                reply,
                exchange=exchange,
                routing_key=routing_key,
                headers={"ticket": ticket, "clock": self.clock.forward()},
                retry=True,
                **options,
            )


class NarrowControl(Control):
    """Remote control over the narrow mailbox."""

    Mailbox = NarrowMailbox
