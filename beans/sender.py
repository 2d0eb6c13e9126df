"""Sends calls as Celery tasks and takes their answers; maps foreign errors at this one border.

A message is sent at most twice (the connection of a pool may have died with a restarted broker),
with the same id: the bean recognises the second.
"""

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import celery.exceptions
import kombu.exceptions
import redis.exceptions
from amqp.exceptions import (  # type: ignore[import-untyped]
    AMQPError,
    ChannelError,
    MessageNacked,
)

from beans.app import CONFIRM_TIMEOUT_S, make_client_app, new_call_id
from beans.base import MethodSpec
from beans.errors import BeanBusy, BeanLost, BeanTimeout, ResultStoreUnavailable
from beans.schemas import HEADER, KNOWS, Envelope
from beans.wire import from_result
from broker import topology
from broker.address import broker_address, broker_user, describe
from broker.errors import BrokerRefused, BrokerUnavailable
from facade.contract.errors import TrellisError
from facade.contract.settings import Settings

SENDS_LIMIT = 2
ANSWER_GRACE_S = 0.5
"""A call expires in its queue after its time-out; its answer gets a little longer."""
PERSISTENT = 2
TRANSIENT = 1
ALIVE_CHECK_S = 1.0
"""How often a waiting caller asks whether the bean still has the call."""
STRANGE_LIMIT = 2
"""After so many answers that the bean does not know the call, it is lost."""
NO_ROUTE = 312
REFUSALS = frozenset({403, 404, 406})

# Celery says RuntimeError when it gives up connecting to Redis again.
_REDIS_GONE = (redis.exceptions.RedisError, RuntimeError)
_BROKER_GONE = (
    kombu.exceptions.OperationalError,
    AMQPError,
    OSError,
    kombu.exceptions.LimitExceeded,
)


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
            BeanLost: the bean's worker ended, so that no answer will come.
            BeanTimeout, ResultStoreUnavailable.
        """
        try:
            value = self._wait(call)
            failed = call.result.state != "SUCCESS"
        except celery.exceptions.TimeoutError as error:
            raise BeanTimeout(
                host=call.host, bean=call.bean, method=call.method, timeout_s=call.timeout_s
            ) from error
        except _REDIS_GONE as error:
            raise self._redis_gone(error) from error
        finally:
            self._drop(call)
        if failed:
            raise from_result(value)
        return value

    def _wait(self, call: PendingCall) -> Any:
        deadline_s = time.monotonic() + call.timeout_s + ANSWER_GRACE_S
        strange = 0
        while True:
            left_s = deadline_s - time.monotonic()
            try:
                return self._get(call, min(left_s, ALIVE_CHECK_S))
            except celery.exceptions.TimeoutError:
                if time.monotonic() >= deadline_s:
                    raise
            strange = 0 if self._known(call) else strange + 1
            # Twice: the call may have been on its way from the queue to its thread.
            if strange >= STRANGE_LIMIT:
                raise BeanLost(host=call.host, bean=call.bean, method=call.method)

    @staticmethod
    def _get(call: PendingCall, timeout_s: float) -> Any:
        return call.result.get(
            timeout=max(0.0, timeout_s), propagate=False, disable_sync_subtasks=False
        )

    def _known(self, call: PendingCall) -> bool:
        """Ask the bean whether it has the call, or had: a worker started since has not."""
        body = {"call_id": call.call_id}
        ask = PendingCall(
            new_call_id(), call.host, call.bean, KNOWS, body, Envelope(), ALIVE_CHECK_S
        )
        try:
            if not self.send(ask):
                return False
            return self._get(ask, ask.timeout_s) is not False
        except (TrellisError, celery.exceptions.TimeoutError):
            # Busy, or broker or Redis are away: the answer may still come.
            return True
        finally:
            if ask.result is not None:
                self._drop(ask)

    def _drop(self, call: PendingCall) -> None:
        """Stop listening for a call's answer, and leave nothing for the interpreter's end."""
        with contextlib.suppress(*_REDIS_GONE, OSError):
            self._app.backend.remove_pending_result(call.result)
        call.result.backend = None

    def _unlisten(self, task_id: str) -> None:
        with contextlib.suppress(*_REDIS_GONE, OSError):
            self._app.backend.result_consumer.cancel_for(task_id)

    def close(self) -> None:
        """Close the pools."""
        self._app.close()

    def _publish(
        self,
        *,
        task: str,
        task_id: str,
        body: dict[str, Any],
        routing_key: str,
        host: str,
        bean: str,
        **options: Any,
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
                self._unlisten(task_id)
                if error.reply_code == NO_ROUTE:
                    return None
                raise self._refused(error) from error
            except MessageNacked as error:
                limit = topology.CALL_QUEUE_LIMIT_MESSAGES
                raise BeanBusy(host=host, bean=bean, limit=limit) from error
            except _REDIS_GONE as error:
                raise self._redis_gone(error) from error
            except _BROKER_GONE as error:
                # A broker that did not answer in time does not answer a second try either.
                if attempt == SENDS_LIMIT or isinstance(error, TimeoutError):
                    self._unlisten(task_id)
                    raise self._gone(error) from error
        raise AssertionError("unreachable")

    def _redis_gone(self, error: BaseException) -> ResultStoreUnavailable:
        # What listens for answers does not come back after it gave up: begin anew.
        self._app = make_client_app(self._settings)
        cause = error.__cause__ if isinstance(error, RuntimeError) else None
        return ResultStoreUnavailable(reason=describe(cause or error))

    def _refused(self, error: ChannelError) -> BrokerRefused:
        return BrokerRefused(address=broker_address(self._settings), reason=describe(error))

    def _gone(self, error: BaseException) -> BrokerUnavailable | BrokerRefused:
        address = broker_address(self._settings)
        if getattr(error, "reply_code", None) in REFUSALS:
            return BrokerRefused(address=address, reason=describe(error))
        return BrokerUnavailable(address=address, reason=describe(error))
