"""What a worker does with a call: check it, run the bean's method, give a typed answer.

Whatever happens inside comes out as a value or as `CallFailed`; a `BaseException` that left here
would be swallowed by the thread pool, and the caller would wait in vain.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from celery import Celery
from marshmallow import ValidationError

from beans.base import Bean, Call, JobSpec, MethodSpec, Progress, answering
from beans.errors import (
    BadArguments,
    BadEnvelope,
    BadResult,
    BeanBusy,
    BeanCrashed,
    BeanTimeout,
    CallTooDeep,
    InterfaceMismatch,
)
from beans.schemas import HEADER, KNOWS, MAX_DEPTH, Envelope, flatten, read_envelope
from beans.wire import CallFailed, to_call_failed
from facade.contract.errors import TrellisError

log = logging.getLogger(__name__)

REMEMBERED_CALLS_LIMIT = 2_000
"""Answers of non-idempotent calls that a bean keeps, for callers that ask again."""
SEEN_CALLS_LIMIT = 10_000
TEXT_LIMIT_CHARACTERS = 500


class CallMemory:
    """Answers of calls by caller and id, so that a call that comes twice is done once."""

    def __init__(self, limit: int = REMEMBERED_CALLS_LIMIT) -> None:
        """Keep the latest `limit` answers."""
        self._limit = limit
        self._lock = threading.Lock()
        self._calls: OrderedDict[tuple[str, str], _Remembered] = OrderedDict()

    def once(
        self, caller: str, call_id: str, run: Callable[[], Any], wait_s: float
    ) -> tuple[bool, Any]:
        """Run a call that is new here; else wait for the first one's outcome.

        Returns whether it has an outcome, and it. An exception of the first run is raised again.
        """
        key = (caller, call_id)
        with self._lock:
            known = self._calls.get(key)
            if known is None:
                mine = self._calls[key] = _Remembered()
                self._forget()
        if known is None:
            return True, mine.run(run)
        return known.outcome(wait_s)

    def _forget(self) -> None:
        for key in list(self._calls):
            if len(self._calls) <= self._limit:
                return
            if self._calls[key].done.is_set():
                del self._calls[key]


class SeenCalls:
    """Ids of calls that came to this worker, so that callers can ask whether it has theirs."""

    def __init__(self, limit: int = SEEN_CALLS_LIMIT) -> None:
        """Keep the latest `limit` ids."""
        self._limit = limit
        self._lock = threading.Lock()
        self._ids: OrderedDict[str, None] = OrderedDict()

    def note(self, call_id: str) -> None:
        """Note a call that has come."""
        with self._lock:
            self._ids[call_id] = None
            if len(self._ids) > self._limit:
                self._ids.popitem(last=False)

    def has(self, call_id: Any) -> bool:
        """Tell whether the call has come."""
        with self._lock:
            return call_id in self._ids


class _Remembered:
    """One call: running, or done with a value or an error."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None

    def run(self, run: Callable[[], Any]) -> Any:
        try:
            self._value = run()
            return self._value
        except BaseException as error:
            self._error = error
            raise
        finally:
            self.done.set()

    def outcome(self, wait_s: float) -> tuple[bool, Any]:
        if not self.done.wait(wait_s):
            return False, None
        if self._error is not None:
            raise self._error
        return True, self._value


class Dispatcher:
    """Answers the calls of one bean in one worker."""

    def __init__(self, bean: Bean, pool_threads: int) -> None:
        """Take the bean and the size of the pool, half of which may coordinate other hosts."""
        self._bean = bean
        self._coordinators_limit = max(1, pool_threads // 2)
        self._coordinators = threading.BoundedSemaphore(self._coordinators_limit)
        self._memory = CallMemory()
        self._seen = SeenCalls()

    def register(self, app: Celery) -> None:
        """Make a Celery task of every exported method, and the one that tells of calls in hand."""
        self._register(app, KNOWS, self._knows_task())
        for spec in self._bean.methods.values():
            self._register(app, spec.name, self._method_task(spec))

    def register_jobs(self, app: Celery) -> None:
        """Make a Celery task of every declared job."""
        for spec in self._bean.jobs.values():
            self._register(app, spec.name, self._job_task(spec))

    def _register(self, app: Celery, name: str, function: Callable[..., Any]) -> None:
        # Failures are answers, not bugs of the worker: `throws` keeps tracebacks out of its log.
        app.task(
            function,
            name=f"{self._bean.name}.{name}",
            bind=True,
            typing=False,
            throws=(CallFailed,),
        )

    def _knows_task(self) -> Callable[..., Any]:
        def knows(_task: Any, **arguments: Any) -> bool:
            return self._seen.has(arguments.get("call_id"))

        return knows

    def _method_task(self, spec: MethodSpec) -> Callable[..., Any]:
        def run(task: Any, **arguments: Any) -> Any:
            self._seen.note(task.request.id)
            return self._guarded(spec.name, lambda: self._answer(spec, task.request, arguments))

        run.__name__ = spec.name
        return run

    def _job_task(self, spec: JobSpec) -> Callable[..., Any]:
        def run(task: Any, **arguments: Any) -> Any:
            return self._guarded(spec.name, lambda: self._follow(spec, task, arguments))

        run.__name__ = spec.name
        return run

    def _guarded(self, method: str, run: Callable[[], Any]) -> Any:
        try:
            return run()
        except CallFailed:
            raise
        except TrellisError as error:
            raise to_call_failed(error) from None
        except BaseException as error:
            log.exception("%s.%s crashed", self._bean.name, method)
            raise to_call_failed(self._crashed(method, error)) from error

    def _crashed(self, method: str, error: BaseException) -> BeanCrashed:
        return BeanCrashed(
            host=self._bean.host,
            bean=self._bean.name,
            method=method,
            kind=type(error).__name__,
            text=str(error)[:TEXT_LIMIT_CHARACTERS],
        )

    def _answer(self, spec: MethodSpec, request: Any, arguments: dict[str, Any]) -> Any:
        envelope = self._envelope(spec, request)
        loaded = self._load(spec, arguments)
        call = Call(
            caller=request.properties["user_id"],
            call_id=request.id,
            depth=envelope.depth,
            method=spec.name,
            peer=spec.peer,
        )

        def run() -> Any:
            return self._run(spec, call, loaded)

        if spec.idempotent:
            return run()
        known, outcome = self._memory.once(call.caller, call.call_id, run, spec.timeout_s)
        if not known:
            raise BeanTimeout(
                host=self._bean.host,
                bean=self._bean.name,
                method=spec.name,
                timeout_s=spec.timeout_s,
            )
        return outcome

    def _run(self, spec: MethodSpec, call: Call, arguments: dict[str, Any]) -> Any:
        if spec.coordinates and not self._coordinators.acquire(blocking=False):
            raise BeanBusy(
                host=self._bean.host, bean=self._bean.name, limit=self._coordinators_limit
            )
        try:
            with answering(call):
                answer = getattr(self._bean, spec.name)(**arguments)
        except TrellisError as error:
            # Kept in this form, so that a repeated call gets an error of its own, not this object.
            raise to_call_failed(error) from None
        finally:
            if spec.coordinates:
                self._coordinators.release()
        return self._dump(spec, answer)

    def _envelope(self, spec: MethodSpec, request: Any) -> Envelope:
        names = {"host": self._bean.host, "bean": self._bean.name, "method": spec.name}
        try:
            envelope = read_envelope(request.get(HEADER))
        except ValidationError as error:
            raise BadEnvelope(**names, problem=flatten(error.messages)) from error
        if envelope.depth > MAX_DEPTH:
            raise CallTooDeep(**names, depth=envelope.depth, limit=MAX_DEPTH)
        if envelope.version and envelope.version != self._bean.version:
            raise InterfaceMismatch(
                **names, problem="versions", theirs=self._bean.version, ours=envelope.version
            )
        return envelope

    def _load(self, spec: MethodSpec | JobSpec, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = spec.args.load(arguments)
        except ValidationError as error:
            raise BadArguments(
                host=self._bean.host,
                bean=self._bean.name,
                method=spec.name,
                problem=flatten(error.messages),
            ) from error
        return loaded

    def _dump(self, spec: MethodSpec, answer: Any) -> Any:
        names = {"host": self._bean.host, "bean": self._bean.name, "method": spec.name}
        if spec.result is None:
            if answer is not None:
                raise BadResult(**names, problem=f"None was declared, not {answer!r:.100}")
            return None
        try:
            dumped = spec.result.dump(answer)
            problems = spec.result.validate(dumped)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise BadResult(**names, problem=f"{type(error).__name__}: {error}") from error
        if problems:
            raise BadResult(**names, problem=flatten(problems))
        return dumped

    def _follow(self, spec: JobSpec, task: Any, arguments: dict[str, Any]) -> Any:
        loaded = self._load(spec, arguments)

        def report(numbers: dict[str, Any]) -> None:
            task.update_state(state="PROGRESS", meta=numbers)
            task.send_event("task-progress", **numbers)

        getattr(self._bean, spec.name)(Progress(report, self._bean.stopping), **loaded)
