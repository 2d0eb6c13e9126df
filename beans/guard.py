"""The guard in front of Celery: a message that is not a proper call never reaches its code.

Odd JSON or headers in a well-formed AMQP message end a plain Celery worker, make it publish tasks
with its own rights, or unpack a bomb. The guard looks first, logs, and drops what is not right.
"""

import functools
import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery, bootsteps
from celery.worker.consumer import Consumer, Tasks

log = logging.getLogger(__name__)

BODY_LIMIT_BYTES = 1024 * 1024
HEADER_LIMIT_CHARACTERS = 256
REPR_LIMIT_CHARACTERS = 4096
NESTING_LIMIT = 32
CONSUMER_HEARTBEAT_S = 10
RECONNECT = {"interval_start": 0.2, "interval_step": 0.2, "interval_max": 2.0}
"""Pauses in seconds between tries to reach a broker that is away."""
_TASK_ID = re.compile(r"[0-9a-f-]{8,64}")
_SHORT = (
    "group",
    "root_id",
    "parent_id",
    "shadow",
    "origin",
    "lang",
    "stamped_headers",
    "stamps",
    "group_index",
    "replaced_task_nesting",
)
_TEXT = ("argsrepr", "kwargsrepr")


def problem(app: Celery, message: Any) -> str | None:
    """Say what is wrong with a message, `None` when Celery may see it."""
    headers = message.headers
    if not isinstance(headers, dict):
        return "no headers"
    for check in (_sender, _content, _task, _headers):
        why = check(app, message, headers)
        if why:
            return why
    return _body(message.body)


class Consuming(bootsteps.StartStopStep):
    """Keeps `app.consuming` set while the queue is consumed, over every reconnection."""

    requires = (Tasks,)

    def start(self, consumer: Any) -> None:
        """The queue is there and calls are taken."""
        consumer.app.consuming.set()

    def stop(self, consumer: Any) -> None:
        """The connection is lost or given up, and the queue with it."""
        consumer.app.consuming.clear()


class SafeConsumer(Consumer):
    """Celery's consumer behind the guard, without the step that declares 28 delay queues."""

    class Blueprint(Consumer.Blueprint):
        """The steps of a consumer, without delayed delivery: nothing here has an eta."""

        default_steps = [
            *(s for s in Consumer.Blueprint.default_steps if "delayed_delivery" not in str(s)),
            Consuming,
        ]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Switch on heartbeats for the consuming connection."""
        kwargs["amqheartbeat"] = CONSUMER_HEARTBEAT_S
        super().__init__(*args, **kwargs)

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, however long it takes; Celery's own pauses grow to half a minute."""
        conn.ensure_connection = functools.partial(conn.ensure_connection, **RECONNECT)
        return super().ensure_connected(conn)

    def create_task_handler(self, *args: Any) -> Callable[[Any], Any]:
        """Give Celery's handler with the guard in front."""
        inner = super().create_task_handler(*args)

        def on_task_received(message: Any) -> Any:
            why = problem(self.app, message)
            if why is None:
                return inner(message)
            log.warning("refused a message: %s", why)
            message.ack()
            return None

        return on_task_received


def _sender(_: Celery, message: Any, __: Mapping[str, Any]) -> str | None:
    user = message.properties.get("user_id")
    return None if isinstance(user, str) and user else "no user_id"


def _content(_: Celery, message: Any, headers: Mapping[str, Any]) -> str | None:
    if message.content_type != "application/json":
        return f"content type {message.content_type!r:.60}"
    if message.content_encoding not in ("utf-8", "UTF-8", None):
        return f"content encoding {message.content_encoding!r:.60}"
    if "compression" in headers:
        return "it is compressed"
    body = message.body
    size = len(body) if isinstance(body, bytes | str | memoryview) else -1
    return None if 0 <= size <= BODY_LIMIT_BYTES else f"body of {size} bytes"


def _task(app: Celery, _: Any, headers: Mapping[str, Any]) -> str | None:
    task = headers.get("task")
    if not isinstance(task, str) or task not in app.tasks or task.startswith("celery."):
        return f"task {task!r:.60}"
    task_id = headers.get("id")
    if not isinstance(task_id, str) or not _TASK_ID.fullmatch(task_id):
        return f"id {task_id!r:.80}"
    return None


def _headers(_: Celery, __: Any, headers: Mapping[str, Any]) -> str | None:
    if headers.get("eta") is not None or headers.get("expires") is not None:
        return "an eta or expiry by the sender's clock"
    if type(headers.get("retries", 0)) is not int:
        return "retries is no number"
    if headers.get("ignore_result") not in (True, False, None):
        return "ignore_result is no flag"
    limits = headers.get("timelimit")
    if limits is not None and limits != [None, None]:
        return "a time limit"
    for name in _SHORT:
        value = headers.get(name)
        if name in ("stamped_headers", "stamps") and value:
            return "stamps"
        if value is None or (name == "replaced_task_nesting" and type(value) is int):
            continue
        if name == "stamps" and value == {}:
            continue
        if not isinstance(value, str) or len(value) > HEADER_LIMIT_CHARACTERS:
            return f"{name} is no short text"
    for name in _TEXT:
        value = headers.get(name)
        if value is not None and not (
            isinstance(value, str) and len(value) <= REPR_LIMIT_CHARACTERS
        ):
            return f"{name} is no text"
    envelope = headers.get("trellis")
    return None if envelope is None or isinstance(envelope, dict) else "trellis is no table"


def _body(body: Any) -> str | None:
    try:
        document = json.loads(bytes(body) if isinstance(body, memoryview) else body)
    except (ValueError, RecursionError):
        return "body is no JSON"
    if not isinstance(document, list) or len(document) != 3:
        return "body is not [arguments, keywords, embedded]"
    arguments, keywords, embedded = document
    if arguments != [] or not isinstance(keywords, dict) or not isinstance(embedded, dict):
        return "body is not [[], {...}, {...}]"
    if any(embedded.values()):
        return "it embeds other tasks"
    return None if _plain(keywords, NESTING_LIMIT) else "typed values, or nested too deep"


def _plain(value: Any, depth_left: int) -> bool:
    """Tell whether a value is plain JSON: `__type__` makes kombu build objects."""
    if depth_left == 0:
        return False
    if isinstance(value, dict):
        return "__type__" not in value and all(_plain(v, depth_left - 1) for v in value.values())
    if isinstance(value, list):
        return all(_plain(v, depth_left - 1) for v in value)
    return True
