"""The Celery application of a process, made from its settings.

Two kinds: a client's, which only sends (`make_client_app`), and a worker's, which also consumes the
queue of one bean (`make_worker_app`). A worker holds one of each, since what makes a worker keep
trying to store a result would make a caller wait for minutes.

Every command line imports this module: what only a worker or Flower needs is imported there.
"""

import logging
import threading
import uuid
from typing import Any

import kombu.compression
import kombu.entity
from celery import Celery
from kombu.utils.objects import cached_property

from beans.routing import route
from broker import topology
from broker.address import broker_urls
from facade.contract.settings import Settings

CONNECT_TIMEOUT_S = 2.0
CONNECT_RETRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}
SOCKET_TIMEOUT_S = 4.0
"""For one read or write of a sender; a broker in a memory alarm never answers."""
CONFIRM_TIMEOUT_S = 3.0
REDIS_TIMEOUT_S = 3.0
REDIS_RETRY = {"max_retries": 2, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5}
RESULT_EXPIRES_S = 3600
RESULT_RETRIES = 15
POOL_THREADS = 32
SENDER_POOL_LIMIT = 16
"""Connections for sending, of one process."""

# kombu's classes have no types.
_Queue: Any = kombu.entity.Queue
_Exchange: Any = kombu.entity.Exchange

_COMMON: dict[str, Any] = {
    "task_serializer": "json",
    "result_serializer": "json",
    "event_serializer": "json",
    "accept_content": ["json"],
    "result_accept_content": ["json"],
    "task_create_missing_queues": False,
    "task_default_exchange": topology.BEANS,
    "task_default_exchange_type": "topic",
    "task_default_delivery_mode": 1,
    "task_routes": (route,),
    "task_acks_late": False,
    "task_track_started": False,
    "task_send_sent_event": False,
    "worker_send_task_events": True,
    "worker_prefetch_multiplier": 1,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "worker_enable_remote_control": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_connection_timeout": CONNECT_TIMEOUT_S,
    "broker_pool_limit": SENDER_POOL_LIMIT,
    "broker_heartbeat": 10,
    "result_expires": RESULT_EXPIRES_S,
    "redis_socket_timeout": REDIS_TIMEOUT_S,
    "redis_socket_connect_timeout": REDIS_TIMEOUT_S,
    "redis_retry_on_timeout": False,
    "redis_backend_health_check_interval": 0,
    "enable_utc": True,
    "timezone": "UTC",
}


class FederationApp(Celery):
    """A Celery application whose senders give up in seconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what Celery takes."""
        super().__init__(*args, **kwargs)
        self.consuming = threading.Event()
        """In a worker: set while it consumes its queue."""

    @cached_property
    def events(self) -> Any:
        """Celery's own events, over an exchange that the definitions made."""
        leave_event_exchange()
        return super().events

    def connection_for_write(self, url: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Connect for sending: confirmed, and with limits on every read and write."""
        kwargs["transport_options"] = {
            **(kwargs.get("transport_options") or {}),
            "confirm_publish": True,
            "read_timeout": SOCKET_TIMEOUT_S,
            "write_timeout": SOCKET_TIMEOUT_S,
            **CONNECT_RETRY,
        }
        return super().connection_for_write(url, *args, **kwargs)


def make_client_app(settings: Settings, name: str = "trellis") -> FederationApp:
    """Make the application of a process that calls beans; it connects to nothing yet.

    Raises:
        SettingsMissing: the settings lack the broker or Redis.
    """
    return make_onlooker_app(settings.need("broker", "redis"), name)


def make_onlooker_app(settings: Settings, name: str = "trellis") -> FederationApp:
    """Make the application of one who only looks on (Flower) and may have no Redis.

    Raises:
        SettingsMissing: the settings lack the broker.
    """
    refuse_compressed()
    # It warns of every call that finds no route.
    logging.getLogger("amqp").setLevel(logging.ERROR)
    app = FederationApp(name, set_as_current=False, control="beans.control:NarrowControl")
    app.conf.update(_COMMON)
    app.conf.broker_url = ";".join(broker_urls(settings))
    if settings.redis.url:
        app.conf.result_backend = settings.redis.url
    app.conf.result_backend_transport_options = {"retry_policy": REDIS_RETRY}
    return app


def make_worker_app(settings: Settings, bean: str, *, jobs: bool = False) -> FederationApp:
    """Make the application of the worker of one bean's call queue, or of its jobs queue."""
    app = make_client_app(settings, name=bean)
    host = settings.host.name
    queue = jobs_queue(host, bean) if jobs else call_queue(host, bean)
    app.conf.update(
        task_queues=[queue],
        task_default_queue=queue.name,
        task_default_routing_key=queue.routing_key,
        worker_consumer="beans.guard:SafeConsumer",
        result_backend_always_retry=True,
        result_backend_max_retries=RESULT_RETRIES,
        task_track_started=jobs,
    )
    return app


def refuse_compressed() -> None:
    """Take the decoders out of kombu, so that no message unpacks into more than it is."""
    kombu.compression._decoders.clear()


def call_queue(host: str, bean: str) -> Any:
    """The transient queue of a bean's calls; it ends with the worker, which tells callers."""
    name = topology.call_queue(host, bean)
    return _Queue(
        name,
        exchange=_beans_exchange(),
        routing_key=name,
        durable=False,
        auto_delete=True,
        queue_arguments=topology.CALL_QUEUE_ARGUMENTS,
    )


def jobs_queue(host: str, bean: str) -> Any:
    """The durable queue of the tasks that follow a bean's jobs."""
    name = topology.jobs_queue(host, bean)
    return _Queue(
        name,
        exchange=_beans_exchange(),
        routing_key=name,
        durable=True,
        queue_arguments=topology.JOBS_QUEUE_ARGUMENTS,
    )


def leave_event_exchange() -> None:
    """Celery's events have their exchange among the definitions: nobody may declare it.

    Whoever receives events without `app.events`, as Flower does, calls this first.
    """
    import celery.events.event

    celery.events.event.event_exchange.no_declare = True


def new_call_id() -> str:
    """Make the id of a call, which is its task's id too and the same on every retry."""
    return str(uuid.uuid4())


def _beans_exchange() -> Any:
    return _Exchange(topology.BEANS, type="topic", no_declare=True)
