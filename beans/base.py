"""What a bean is: a class whose exported methods are declared once, with their schemas.

    class VolumeBean(Bean):
        name = "volume"

        @method(args={"name": fields.String(required=True)}, result=VolumeSchema)
        def show(self, name: str) -> dict[str, Any]:
            ...

    BEAN = VolumeBean          # how the module `beans.volume` makes its bean known

A method takes keyword arguments only, each declared in `args`, and gives a value that `result`
accepts (a mapping; a list of mappings with `many=True`; `None` where no result is declared). Both
are checked on both sides. It runs on one of the worker's threads, beside others: what it shares it
locks. It raises leaves of `TrellisError`, which the caller catches as the same class with the same
fields; anything else reaches the caller as `BeanCrashed`.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from marshmallow import Schema

from beans.schemas import SchemaSpec, schema_of

if TYPE_CHECKING:
    from beans.proxy import Federation
    from broker.outbox import Outbox
    from facade.contract.events import Event
    from facade.contract.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_TIMEOUT_S = 10.0
"""How long a caller waits for an answer, unless the method says otherwise."""
_SPEC = "_trellis_spec"


@dataclass(frozen=True)
class MethodSpec:
    """The declaration of one exported method."""

    name: str
    args: Schema
    result: Schema | None
    timeout_s: float = DEFAULT_TIMEOUT_S
    idempotent: bool = True
    """Doing it twice is as good as once; otherwise the bean remembers the call's id and answer."""
    coordinates: bool = False
    """It calls beans of other hosts: at most half of the pool does so at a time."""
    peer: bool = False
    """A leaf, called by the same bean on another host: it may call only its own host."""


@dataclass(frozen=True)
class JobSpec:
    """The declaration of one task on `<host>.<bean>.jobs` that follows a job's record."""

    name: str
    args: Schema


@dataclass(frozen=True)
class Call:
    """Facts about the call that is being answered on this thread."""

    caller: str
    """The broker user that sent it, checked by RabbitMQ: a host's name, or another user's."""
    call_id: str
    depth: int
    method: str
    peer: bool = False
    """Made in a peer operation: calls to other hosts are refused."""


_current: ContextVar[Call | None] = ContextVar("trellis_call", default=None)


def current_call() -> Call | None:
    """Give the call that this thread is answering, `None` outside of one."""
    return _current.get()


@contextmanager
def answering(call: Call) -> Iterator[None]:
    """Mark this thread as answering a call."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)


def method(
    *,
    args: SchemaSpec = None,
    result: SchemaSpec = None,
    many: bool = False,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    idempotent: bool = True,
    coordinates: bool = False,
    peer: bool = False,
) -> Callable[[F], F]:
    """Declare an exported method of a bean.

    Args:
        args: schema class or mapping of fields of the keyword arguments; `None`: it takes none.
        result: schema of the answer; `None`: the answer is `None`.
        many: the answer is a list of what `result` describes.
        timeout_s: how long a caller waits, and after which an unread call expires.
        idempotent: False makes the bean remember call ids, so that a retry is not done twice.
        coordinates: it calls other hosts; one more than half of the pool gets `BeanBusy`.
        peer: a leaf that other hosts' beans call; calls to further hosts are refused in it.
    """
    if coordinates and peer:
        raise TypeError("a peer operation is a leaf and cannot coordinate other hosts")

    def declare(function: F) -> F:
        spec = MethodSpec(
            name=function.__name__,
            args=schema_of(args),
            result=None if result is None else schema_of(result, many=many),
            timeout_s=timeout_s,
            idempotent=idempotent,
            coordinates=coordinates,
            peer=peer,
        )
        setattr(function, _SPEC, spec)
        return function

    return declare


def job(*, args: SchemaSpec = None) -> Callable[[F], F]:
    """Declare a task that follows a job's record until it ends, on `<host>.<bean>.jobs`.

    Its method takes `progress`, a `Progress`, and the declared keyword arguments. It is
    acknowledged before it starts and may be lost, or run beside a second copy of itself: it only
    reads the record and reports. Work itself belongs into the engine.
    """

    def declare(function: F) -> F:
        setattr(function, _SPEC, JobSpec(name=function.__name__, args=schema_of(args)))
        return function

    return declare


class Progress:
    """What a job's task reports with; Flower and the command line show it."""

    def __init__(self, report: Callable[[dict[str, Any]], None], stopping: threading.Event) -> None:
        """Take the function that sends a report on, and the flag of the worker's end."""
        self._report = report
        self.stopping = stopping
        """Set when the worker is to end: return soon, the job itself goes on without us."""

    def __call__(self, **numbers: Any) -> None:
        """Report, for example `progress(done_bytes=4096, total_bytes=65536)`."""
        self._report(numbers)


class Bean:
    """Base of every bean; one instance per worker process, made before the worker is ready."""

    name: ClassVar[str]
    """Lower case, the same as its module's: `replication` for `beans.replication`."""
    version: ClassVar[str] = "1"
    """Of its interface; a caller whose own class has another one gets `InterfaceMismatch`."""
    methods: ClassVar[dict[str, MethodSpec]] = {}
    jobs: ClassVar[dict[str, JobSpec]] = {}

    def __init__(self, settings: "Settings", federation: "Federation", outbox: "Outbox") -> None:
        """Take what the worker gives; a bean that needs more does so in `start`."""
        self.settings = settings
        self.host: str = settings.host.name
        self.federation = federation
        self._outbox = outbox
        self.stopping = threading.Event()
        """Set when the worker is to end; whatever waits in a method looks at it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Gather the declarations of the class and of its bases."""
        super().__init_subclass__(**kwargs)
        cls.methods, cls.jobs = dict(cls.methods), dict(cls.jobs)
        for attribute in vars(cls).values():
            spec = getattr(attribute, _SPEC, None)
            if isinstance(spec, MethodSpec):
                cls.methods[spec.name] = spec
            elif isinstance(spec, JobSpec):
                cls.jobs[spec.name] = spec

    def start(self) -> None:
        """Run once in the bean's worker before it is announced; must not call other beans."""

    def start_jobs(self) -> None:
        """Run once in the jobs worker when it is ready: follow what its records say runs."""

    def stop(self) -> None:
        """Run once when the worker ends, after `stopping` was set."""

    def caller(self) -> str:
        """Give the broker user (a host's name, as a rule) that made the call being answered."""
        call = current_call()
        return call.caller if call else self.host

    def post(self, event: "Event") -> None:
        """Put an event into this host's outbox, from where the station relays it.

        Durable when it returns, needs no broker, and a second post of the same id is nothing.
        """
        self._outbox.put(event)

    def follow(self, job_name: str, **arguments: Any) -> str:
        """Send a task to this bean's own jobs worker; gives its task id.

        Raises:
            BrokerUnavailable: the task was not sent; the job itself is not touched by that.
        """
        return self.federation.follow(self.host, self.name, job_name, **arguments)
