"""Sends calls as Celery tasks and takes their answers; maps foreign errors at this one border.

A message is sent at most twice (the connection of a pool may have died with a restarted broker),
with the same id: the bean recognises the second.
"""

import socket
from dataclasses import dataclass
from typing import Any

import celery.exceptions
import kombu.exceptions
import redis.exceptions
from amqp.exceptions import AMQPError, ChannelError, MessageNacked

from beans.app import CONFIRM_TIMEOUT_S, make_client_app, new_call_id
from beans.base import MethodSpec
from beans.errors import BeanBusy, BeanTimeout, ResultStoreUnavailable
from beans.schemas import HEADER, Envelope
from beans.wire import from_result
from broker import topology
from broker.address import broker_address, broker_user, describe
from broker.errors import BrokerRefused, BrokerUnavailable
from facade.contract.settings import Settings

SENDS_LIMIT = 2
ANSWER_GRACE_S = 0.5
"""A call expires in its queue after its time-out; its answer gets a little longer."""
PERSISTENT = 2
TRANSIENT = 1
NO_ROUTE = 312
RefusalCodes = frozenset({403, 404, 406})

_BROKER_GONE = (kombu.exceptions.OperationalError, AMQPError, OSError, kombu.exceptions.LimitExceeded)


@dataclass
class PendingCall:
    """One call: what is sent, and the result to wait for."""

    call_id: str
    host: str
    bean: str
    method: str
    body: dict[str, Any]
    envelope: Envelope
    timeout_s: float
    result: Any = None
    """Celery's result object; valid after `Sender.send` gave True."""


class Sender:
    """The sending side of a process; safe for threads."""

    def __init__(self, settings: Settings) -> None:
        """Make the client application; connects to nothing."""
        self._settings = settings
        self._user = broker_user(settings)
        self._app = make_client_app(settings)

    def new_call(
        self,
        host: str,
        bean: str,
        spec: MethodSpec,
        body: dict[str, Any],
        depth: int,
        version: str,
        timeout_s: float,
    ) -> PendingCall:
        """Make a call, not yet sent."""
        envelope = Envelope(depth=depth, version=version)
        return PendingCall(new_call_id(), host, bean, spec.name, body, envelope, timeout_s)

    def send(self, call: PendingCall) -> bool:
        """Send a call; False when nobody consumes the bean's queue (known within milliseconds).

        Raises:
            BrokerUnavailable, BrokerRefused, BeanBusy, ResultStoreUnavailable.
        """
        call.result = self._publish(
            task=f"{call.bean}.{call.method}",
            task_id=call.call_id,
            body=call.body,
            routing_key=topology.call_queue(call.host, call.bean),
            host=call.host,
            bean=call.bean,
            headers={HEADER: call.envelope.to_wire()},
            expiration=call.timeout_s,
            delivery_mode=TRANSIENT,
        )
        return call.result is not None

    def send_job(self, host: str, bean: str, job: str, body: dict[str, Any]) -> str | None:
        """Send a task to a jobs queue, durably; gives its id, `None` when there is no queue."""
        task_id = new_call_id()
        result = self._publish(
            task=f"{bean}.{job}",
            task_id=task_id,
            body=body,
            routing_key=topology.jobs_queue(host, bean),
            host=host,
            bean=bean,
            headers={},
            expiration=None,
            delivery_mode=PERSISTENT,
            ignore_result=True,
        )
        return None if result is None else task_id

    def receive(self, call: PendingCall) -> Any:
        """Wait for the answer of a sent call.

        Raises:
            TrellisError: what the method raised.
            BeanTimeout, ResultStoreUnavailable.
        """
        try:
            value = call.result.get(
                timeout=call.timeout_s + ANSWER_GRACE_S,
                propagate=False,
                disable_sync_subtasks=False,
            )
            failed = call.result.state != "SUCCESS"
        except celery.exceptions.TimeoutError as error:
            raise BeanTimeout(
                host=call.host, bean=call.bean, method=call.method, timeout_s=call.timeout_s
            ) from error
        except (redis.exceptions.RedisError, OSError) as error:
            raise ResultStoreUnavailable(reason=describe(error)) from error
        if failed:
            raise from_result(value)
        return value

    def close(self) -> None:
        """Close the pools."""
        self._app.close()

    def _publish(
        self, *, task: str, task_id: str, body: dict[str, Any], routing_key: str,
        host: str, bean: str, **options: Any,
    ) -> Any:
        for attempt in range(1, SENDS_LIMIT + 1):
            try:
                return self._app.send_task(
                    task,
                    kwargs=body,
                    task_id=task_id,
                    exchange=topology.BEANS,
                    routing_key=routing_key,
                    mandatory=True,
                    user_id=self._user,
                    retry=False,
                    confirm_timeout=CONFIRM_TIMEOUT_S,
                    **options,
                )
            except ChannelError as error:
                if error.reply_code == NO_ROUTE:
                    return None
                raise self._refused(error) from error
            except MessageNacked as error:
                limit = topology.CALL_QUEUE_LIMIT_MESSAGES
                raise BeanBusy(host=host, bean=bean, limit=limit) from error
            except redis.exceptions.RedisError as error:
                raise ResultStoreUnavailable(reason=describe(error)) from error
            except _BROKER_GONE as error:
                if attempt == SENDS_LIMIT or isinstance(error, socket.timeout):
                    raise self._gone(error) from error
        raise AssertionError("unreachable")

    def _refused(self, error: ChannelError) -> BrokerRefused:
        return BrokerRefused(address=broker_address(self._settings), reason=describe(error))

    def _gone(self, error: BaseException) -> BrokerUnavailable | BrokerRefused:
        address = broker_address(self._settings)
        if getattr(error, "reply_code", None) in RefusalCodes:
            return BrokerRefused(address=address, reason=describe(error))
        return BrokerUnavailable(address=address, reason=describe(error))
