"""Connections to RabbitMQ by pika: one for each thread, and a thread whose connection comes back.

A pika connection belongs to the thread that made it. Other threads hand work over with
`BrokerThread.submit`.
"""

import logging
import threading
from collections.abc import Callable

import pika
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.exceptions import (
    AMQPError,
    ChannelClosedByBroker,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from broker.address import broker_address, broker_urls, broker_user, describe
from broker.errors import BrokerRefused, BrokerUnavailable
from facade.contract.settings import Settings

log = logging.getLogger(__name__)
# It logs each failure several times as an error; here each is raised, or logged once.
logging.getLogger("pika").setLevel(logging.CRITICAL)

HEARTBEAT_S = 10
SOCKET_TIMEOUT_S = 3.0
STACK_TIMEOUT_S = 4.0
"""For TCP, TLS and AMQP together; a frozen broker costs this long."""
BLOCKED_TIMEOUT_S = 5.0
"""How long a broker in a memory or disk alarm may hold a connection back."""
BACK_OFF_FIRST_S = 0.2
BACK_OFF_LIMIT_S = 2.0
TICK_LIMIT_S = 1.0
STOP_WAIT_S = 5.0


def parameters(settings: Settings) -> list[pika.URLParameters]:
    """Make pika's parameters, one for each URL, in the order of the settings."""
    made = []
    for url in broker_urls(settings):
        one = pika.URLParameters(url)
        one.heartbeat = HEARTBEAT_S
        one.socket_timeout = SOCKET_TIMEOUT_S
        one.stack_timeout = STACK_TIMEOUT_S
        one.blocked_connection_timeout = BLOCKED_TIMEOUT_S
        one.connection_attempts = 1
        made.append(one)
    return made


def connect(settings: Settings) -> BlockingConnection:
    """Connect to the first URL that answers.

    Raises:
        BrokerUnavailable: none answers.
        BrokerRefused: one answers and refuses user, password or virtual host.
    """
    address = broker_address(settings)
    try:
        return BlockingConnection(parameters(settings))
    except (ProbableAuthenticationError, ProbableAccessDeniedError) as error:
        raise BrokerRefused(address=address, reason=describe(error)) from error
    except (AMQPError, OSError) as error:
        raise BrokerUnavailable(address=address, reason=describe(error)) from error


class BrokerThread(threading.Thread):
    """A thread with a connection of its own, which it makes again after every break.

    A subclass says in `connected` what to declare and consume, in `tick` what to do every
    `tick_s`, and in `leaving` what to say before a clean end; all three run on the thread. It never
    gives up while it is not stopped: a daemon of the process's life.
    """

    tick_s: float = TICK_LIMIT_S

    def __init__(self, settings: Settings, name: str) -> None:
        """Connect nothing yet; `start` does."""
        super().__init__(name=name, daemon=True)
        self.settings = settings
        self.user = broker_user(settings)
        self.stopping = threading.Event()
        self.ready = threading.Event()
        """Set while connected and set up."""
        self._connection: BlockingConnection | None = None

    def connected(self, channel: BlockingChannel) -> None:
        """Declare, bind and consume on a fresh channel."""

    def tick(self, channel: BlockingChannel) -> None:
        """Do what is to be done from time to time."""

    def leaving(self, channel: BlockingChannel) -> None:
        """Say good-bye, before a clean stop closes the connection."""

    def run(self) -> None:
        """Serve one connection after the other until stopped."""
        back_off_s = BACK_OFF_FIRST_S
        while not self.stopping.is_set():
            try:
                self._serve()
                back_off_s = BACK_OFF_FIRST_S
            except (BrokerUnavailable, AMQPError, OSError) as error:
                log.warning("%s: broker connection lost: %s", self.name, describe(error))
            except Exception:
                log.exception("%s: failed, will connect again", self.name)
            back_off_s = BACK_OFF_FIRST_S if self.ready.is_set() else back_off_s
            self.ready.clear()
            self.stopping.wait(back_off_s)
            back_off_s = min(back_off_s * 2, BACK_OFF_LIMIT_S)

    def submit(self, function: Callable[[], None]) -> bool:
        """Run a function on the thread soon; False while there is no connection."""
        connection = self._connection
        if connection is None or not self.ready.is_set():
            return False
        try:
            connection.add_callback_threadsafe(function)
        except (AMQPError, OSError):
            return False
        return True

    def stop(self) -> None:
        """End the thread, with a good-bye where there is a connection; waits for its end."""
        self.stopping.set()
        self.submit(lambda: None)
        if self.is_alive() and self is not threading.current_thread():
            self.join(STOP_WAIT_S)

    def _serve(self) -> None:
        connection = connect(self.settings)
        self._connection = connection
        try:
            channel = connection.channel()
            self.connected(channel)
            self.ready.set()
            log.info("%s: connected", self.name)
            while not self.stopping.is_set():
                connection.process_data_events(time_limit=self.tick_s)
                if channel.is_closed:
                    return
                self.tick(channel)
            self.leaving(channel)
        finally:
            self._connection = None
            _close(connection)


def _close(connection: BlockingConnection) -> None:
    if connection.is_open:
        try:
            connection.close()
        except (AMQPError, OSError) as error:
            log.debug("while closing: %s", describe(error))


def refused(settings: Settings, error: ChannelClosedByBroker) -> BrokerRefused:
    """Make the typed error of a channel that RabbitMQ closed (no permission, unknown exchange)."""
    return BrokerRefused(address=broker_address(settings), reason=error.reply_text)
