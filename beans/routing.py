"""Where Celery sends a task: straight to an exchange, declaring nothing on the way."""

from typing import Any

from broker import topology


def route(
    name: str, args: Any, kwargs: Any, options: dict[str, Any], task: Any = None, **_: Any
) -> dict[str, Any]:
    """Route every task by the exchange and key that it was sent with.

    Without this Celery declares its default queue `celery` on each connection. The empty
    `declare` keeps it from declaring anything else: the queues belong to their workers.
    """
    return {
        "exchange": options.get("exchange") or topology.BEANS,
        "exchange_type": "topic",
        "routing_key": options.get("routing_key") or name,
        "declare": [],
    }
