"""Every exchange, queue and routing key of the federation, as values declared once.

    trellis.beans   <host>.<bean>              -> queue <host>.<bean>        transient, auto-delete
                    <host>.<bean>.jobs         -> queue <host>.<bean>.jobs   durable quorum
    trellis.lookup  announce|depart|query.<host>.<bean>   -> queues <user>.lookup.<random>
    trellis.events  <host>.<service>.<severity>.<event>   -> queues <user>.events.<name>
    trellis.logs    <host>.<bean>.<level>
    trellis.dead    what a jobs or events queue gave up   -> queue trellis.dead

Delivery: a call is confirmed, mandatory and lost with its worker (the caller learns "no route"); an
event is confirmed, persistent and delivered at least once; a lookup message may be lost, the next
renewal makes up for it. Exchanges come from the definitions document (`broker/definitions.py`):
nobody declares one at run time, so that no host has the right to delete one.
"""

import re
from typing import Any

BEANS = "trellis.beans"
LOOKUP = "trellis.lookup"
EVENTS = "trellis.events"
LOGS = "trellis.logs"
DEAD = "trellis.dead"
"""Topic exchange for given-up messages, and the name of the queue that keeps them."""
EXCHANGES = (BEANS, LOOKUP, EVENTS, LOGS, DEAD)

TASK_EVENTS = "celeryev"
CONTROL = "celery.pidbox"
CONTROL_REPLY = "reply.celery.pidbox"
CELERY_EXCHANGES = {TASK_EVENTS: "topic", CONTROL: "fanout", CONTROL_REPLY: "direct"}
"""What Celery and Flower use beside ours: exchange and its type."""

ANY = "*"
"""In a query in place of host or bean: every one of them."""
HOST_CHARACTERS = "[a-z0-9_-]+"
BEAN_CHARACTERS = "[a-z][a-z0-9_]*"
ROUTING_KEY_LIMIT_BYTES = 255

CALL_QUEUE_LIMIT_MESSAGES = 1_000
JOBS_QUEUE_LIMIT_MESSAGES = 10_000
JOBS_DELIVERY_LIMIT = 3
LOOKUP_QUEUE_LIMIT_MESSAGES = 10_000
EVENTS_QUEUE_LIMIT_MESSAGES = 1_000_000
EVENTS_DELIVERY_LIMIT = 100
LIVE_QUEUE_LIMIT_MESSAGES = 10_000
DEAD_QUEUE_LIMIT_MESSAGES = 10_000
DURABLE_QUEUE_LIMIT_BYTES = 256 * 1024 * 1024

CALL_QUEUE_ARGUMENTS: dict[str, Any] = {
    "x-max-length": CALL_QUEUE_LIMIT_MESSAGES,
    "x-overflow": "reject-publish",
}
JOBS_QUEUE_ARGUMENTS: dict[str, Any] = {
    "x-queue-type": "quorum",
    "x-max-length": JOBS_QUEUE_LIMIT_MESSAGES,
    "x-overflow": "reject-publish",
    "x-delivery-limit": JOBS_DELIVERY_LIMIT,
    "x-dead-letter-exchange": DEAD,
}
EVENTS_QUEUE_ARGUMENTS: dict[str, Any] = {
    "x-queue-type": "quorum",
    "x-max-length": EVENTS_QUEUE_LIMIT_MESSAGES,
    "x-max-length-bytes": DURABLE_QUEUE_LIMIT_BYTES,
    "x-overflow": "reject-publish",
    "x-delivery-limit": EVENTS_DELIVERY_LIMIT,
    "x-dead-letter-exchange": DEAD,
}
LOOKUP_QUEUE_ARGUMENTS: dict[str, Any] = {"x-max-length": LOOKUP_QUEUE_LIMIT_MESSAGES}
LIVE_QUEUE_ARGUMENTS: dict[str, Any] = {"x-max-length": LIVE_QUEUE_LIMIT_MESSAGES}
DEAD_QUEUE_ARGUMENTS: dict[str, Any] = {
    "x-queue-type": "quorum",
    "x-max-length": DEAD_QUEUE_LIMIT_MESSAGES,
}

_WORD = re.compile(r"[A-Za-z0-9_-]+")


def call_queue(host: str, bean: str) -> str:
    """Name of a bean's call queue; also its routing key."""
    return f"{host}.{bean}"


def jobs_queue(host: str, bean: str) -> str:
    """Name of the queue of the tasks that follow a bean's jobs; also its routing key."""
    return f"{host}.{bean}.jobs"


def lookup_queue(user: str, instance: str) -> str:
    """Name of a transient queue for lookup messages; `instance` is random."""
    return f"{user}.lookup.{instance}"


def events_queue(user: str, name: str) -> str:
    """Name of a durable event queue; the same name goes on where it stopped."""
    return f"{user}.events.{name}"


def live_queue(user: str, instance: str) -> str:
    """Name of a transient event queue, for somebody who looks on; `instance` is random."""
    return f"{user}.live.{instance}"


def announce_key(host: str, bean: str) -> str:
    """Routing key of an announcement."""
    return f"announce.{host}.{bean}"


def depart_key(host: str, bean: str) -> str:
    """Routing key of a clean leave."""
    return f"depart.{host}.{bean}"


def query_key(host: str, bean: str) -> str:
    """Routing key of a question; `ANY` for host or bean asks for every one."""
    return f"query.{host}.{bean}"


def log_key(host: str, bean: str, level: str) -> str:
    """Routing key of a log record."""
    return f"{host}.{bean}.{level.lower()}"


def worker_name(host: str, bean: str) -> str:
    """Name under which Celery and Flower know a bean."""
    return f"{bean}@{host}"


def jobs_worker_name(host: str, bean: str) -> str:
    """Name of the worker that follows a bean's jobs."""
    return f"{bean}.jobs@{host}"
