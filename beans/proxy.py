"""Calling beans by name: look up, call, look up again and retry once.

    federation = Federation(settings)
    volume = federation.proxy("host_b", "volume").show(name="Volume_b")

Celery, Redis and the beans' modules are imported at the first call, not with this module.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beans.errors import (
    BadArguments,
    BadResult,
    BeanLost,
    BeanTimeout,
    BeanUnavailable,
    CallTooDeep,
    InterfaceMismatch,
    PeerNotLeaf,
    UnknownMethod,
)
from facade.contract.names import check_host
from facade.contract.settings import Settings

if TYPE_CHECKING:
    from beans.base import Bean, Call, JobSpec, MethodSpec
    from beans.sender import PendingCall, Sender

STATION = "station"
HANDLES_LIMIT = 1_000
HANDLE_FRESH_S = 30.0
"""How long a process uses a handle before it asks again; a stale one costs one more round."""
NEVER = "never"
FIND_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Found:
    """A handle, as a process keeps it."""

    version: str
    instance: str
    until_s: float


@dataclass(frozen=True)
class Answer:
    """What came back from a call; the value may be None."""

    value: Any


class BeanProxy:
    """A handle in use: its attributes are the bean's methods, which take keyword arguments."""

    def __init__(self, federation: "Federation", host: str, bean: str) -> None:
        """Take who is to be called; nothing is looked up yet."""
        self._federation = federation
        self._host = host
        self._bean = bean

    def __getattr__(self, method: str) -> Callable[..., Any]:
        """Give a function that calls the method; `UnknownMethod` when the bean has none such."""
        if method.startswith("_"):
            raise AttributeError(method)
        self._federation.method_spec(self._host, self._bean, method)

        def call(**arguments: Any) -> Any:
            return self._federation.call(self._host, self._bean, method, arguments)

        call.__name__ = method
        return call


class Federation:
    """Every bean of every host, as this process sees them; safe for threads, made after a fork."""

    def __init__(self, settings: Settings) -> None:
        """Take the settings; connects to nothing.

        Raises:
            SettingsMissing: the settings lack the broker or Redis.
        """
        settings.need("broker", "redis")
        self.settings = settings
        self._lock = threading.Lock()
        self._sender: Sender | None = None
        self._handles: OrderedDict[tuple[str, str], Found] = OrderedDict()

    def proxy(self, host: str, bean: str) -> BeanProxy:
        """Give the proxy of a bean.

        Raises:
            BadName: no host can have that name.
            UnknownBean: this build has no such bean.
        """
        checked = check_host(host)
        _bean_class(bean)
        return BeanProxy(self, checked, bean)

    def call(
        self,
        host: str,
        bean: str,
        method: str,
        arguments: dict[str, Any],
        timeout_s: float | None = None,
    ) -> Any:
        """Call a method and give its checked answer.

        `timeout_s` is in place of the declared one. Raises whatever TrellisError the method raised,
        and those of `beans.errors` and `broker.errors` when it could not be called.
        """
        spec = self.method_spec(host, bean, method)
        body = self._check_arguments(host, bean, spec, arguments)
        depth = self._depth(host, bean, method)
        sender = self._make_sender()
        call = sender.new_call(
            host, bean, spec, body, depth, _bean_class(bean).version, timeout_s or spec.timeout_s
        )
        if bean != STATION:
            self._handle(host, bean)
        try:
            result = self._exchange(sender, call)
        except BeanLost:
            if not spec.idempotent:
                raise
            result = None
        if result is None:
            self.forget(host, bean)
            if bean == STATION or not self._look_up(host, bean, fresh=True):
                raise self.unavailable(host, bean)
            result = self._exchange(sender, call)
        if result is None:
            raise self.unavailable(host, bean)
        return self._check_result(host, bean, spec, result.value)

    def follow(self, host: str, bean: str, job: str, **arguments: Any) -> str:
        """Send a task to the bean's jobs queue on this own host; gives its task id.

        Raises:
            BeanUnavailable: no such queue: the bean's jobs worker never ran.
            BrokerUnavailable: it was not sent.
        """
        spec: JobSpec | None = _bean_class(bean).jobs.get(job)
        if spec is None:
            raise UnknownMethod(host=host, bean=bean, method=job, problem="no such job")
        body = self._check_arguments(host, bean, spec, arguments)
        task_id = self._make_sender().send_job(host, bean, spec.name, body)
        if task_id is None:
            raise BeanUnavailable(host=host, bean=f"{bean}.jobs", last_seen=NEVER)
        return task_id

    def method_spec(self, host: str, bean: str, method: str) -> "MethodSpec":
        """Give the declaration of a method; raises UnknownMethod."""
        spec = _bean_class(bean).methods.get(method)
        if spec is None:
            raise UnknownMethod(host=host, bean=bean, method=method, problem="no such method")
        return spec

    def forget(self, host: str, bean: str) -> None:
        """Drop the kept handle of a bean."""
        with self._lock:
            self._handles.pop((host, bean), None)

    def unavailable(self, host: str, bean: str) -> BeanUnavailable:
        """Make the error for a bean that is not there, with when any station last saw it."""
        answer = self._ask_station(host, bean, fresh=False) if bean != STATION else None
        if answer is not None:
            last_seen = answer["last_seen"]
        else:
            from beans.cache import SharedCache

            last_seen = SharedCache(self.settings).last_seen(host, bean)
        return BeanUnavailable(host=host, bean=bean, last_seen=last_seen or NEVER)

    def close(self) -> None:
        """Close what is open; the next call opens it again."""
        with self._lock:
            sender, self._sender = self._sender, None
        if sender is not None:
            sender.close()

    @staticmethod
    def _exchange(sender: "Sender", call: "PendingCall") -> "Answer | None":
        return Answer(sender.receive(call)) if sender.send(call) else None

    def _handle(self, host: str, bean: str) -> None:
        with self._lock:
            found = self._handles.get((host, bean))
        if found is not None and found.until_s > time.monotonic():
            return
        if not self._look_up(host, bean, fresh=False):
            raise self.unavailable(host, bean)

    def _look_up(self, host: str, bean: str, *, fresh: bool) -> bool:
        answer = self._ask_station(host, bean, fresh=fresh)
        if answer is not None:
            handle = answer["handle"]
            found = (handle["version"], handle["instance"]) if handle else None
        else:
            found = self._ask_exchange(host, bean)
        if found is None:
            return False
        version, instance = found
        ours = _bean_class(bean).version
        if version != ours:
            raise InterfaceMismatch(
                host=host, bean=bean, method="", problem="versions", theirs=version, ours=ours
            )
        with self._lock:
            self._handles[host, bean] = Found(version, instance, time.monotonic() + HANDLE_FRESH_S)
            if len(self._handles) > HANDLES_LIMIT:
                self._handles.popitem(last=False)
        return True

    def _ask_station(self, host: str, bean: str, *, fresh: bool) -> dict[str, Any] | None:
        """Ask this host's station; `None` when there is none to ask."""
        own = self.settings.host.name
        if not own:
            return None
        sender = self._make_sender()
        spec = self.method_spec(own, STATION, "find")
        body = {"host": host, "bean": bean, "fresh": fresh}
        version = _bean_class(STATION).version
        call = sender.new_call(own, STATION, spec, body, 0, version, FIND_TIMEOUT_S)
        try:
            result = self._exchange(sender, call)
        except (BeanLost, BeanTimeout):
            return None
        if result is None:
            return None
        answer: dict[str, Any] = self._check_result(own, STATION, spec, result.value)
        return answer

    def _ask_exchange(self, host: str, bean: str) -> tuple[str, str] | None:
        from broker.lookup import query

        handles = query(self.settings, host, bean)
        return (handles[0].version, handles[0].instance) if handles else None

    def _make_sender(self) -> "Sender":
        with self._lock:
            if self._sender is None:
                from beans.sender import Sender

                self._sender = Sender(self.settings)
            return self._sender

    def _depth(self, host: str, bean: str, method: str) -> int:
        from beans.base import current_call
        from beans.schemas import MAX_DEPTH

        within: Call | None = current_call()
        if within is None:
            return 0
        own = self.settings.host.name
        if within.peer and host != own:
            raise PeerNotLeaf(host=host, bean=bean, method=method, ours=own, problem="peer")
        if within.depth + 1 > MAX_DEPTH:
            raise CallTooDeep(
                host=host,
                bean=bean,
                method=method,
                depth=within.depth + 1,
                limit=MAX_DEPTH,
                problem="depth",
            )
        return within.depth + 1

    @staticmethod
    def _check_arguments(
        host: str, bean: str, spec: "MethodSpec | JobSpec", arguments: dict[str, Any]
    ) -> dict[str, Any]:
        from marshmallow import ValidationError

        from beans.schemas import flatten

        names = {"host": host, "bean": bean, "method": spec.name}
        try:
            dumped: dict[str, Any] = spec.args.dump(arguments)
            problems = spec.args.validate({**arguments, **dumped})
        except (ValidationError, ValueError, TypeError, AttributeError) as error:
            raise BadArguments(**names, problem=f"{error}") from error
        if problems:
            raise BadArguments(**names, problem=flatten(problems))
        return dumped

    @staticmethod
    def _check_result(host: str, bean: str, spec: "MethodSpec", result: Any) -> Any:
        from marshmallow import ValidationError

        from beans.schemas import flatten

        names = {"host": host, "bean": bean, "method": spec.name}
        if spec.result is None:
            if result is not None:
                raise BadResult(**names, problem="None was declared")
            return None
        try:
            return spec.result.load(result)
        except ValidationError as error:
            raise BadResult(**names, problem=flatten(error.messages)) from error


def _bean_class(bean: str) -> "type[Bean]":
    from beans.registry import bean_class

    return bean_class(bean)
