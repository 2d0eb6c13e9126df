"""What happened, in a form that a person understands at 3 am.

A data service declares each kind of event once (name, severity, sentence, what to do) and registers
it. The one who makes the event fills the templates, so that whoever reads it (the notifier, the
command line, a mail) needs no catalogue.
"""

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Final

from facade.contract.errors import fields_of, fill

SEVERITIES: Final = ("info", "warning", "error", "critical")

_kinds: dict[tuple[str, str], "EventKind"] = {}


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened on a host; `id` is the same on every retry."""

    id: str
    time: str  # ISO 8601, UTC
    host: str
    service: str
    subject: str  # the set or volume it is about; "" where it is the whole host
    severity: str
    name: str
    data: dict[str, Any]
    text: str
    advice: str  # "" where nothing has to be done

    def routing_key(self) -> str:
        """Return `<host>.<service>.<severity>.<event>`."""
        return f"{self.host}.{self.service}.{self.severity}.{self.name}"

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON object of this event."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class EventKind:
    """Entry of the catalogue: `sentence` and `advice` are templates.

    Their fields are the event's data, and `host` and `subject`.
    """

    service: str
    name: str
    severity: str
    sentence: str
    advice: str = ""

    def data_fields(self) -> set[str]:
        """Return the fields that the event's data must have."""
        return (fields_of(self.sentence) | fields_of(self.advice)) - {"host", "subject"}


def register(*kinds: EventKind) -> None:
    """Add kinds to the catalogue. Raises ValueError for a second kind of the same name."""
    for kind in kinds:
        if kind.severity not in SEVERITIES:
            raise ValueError(f"event {kind.name}: severity {kind.severity} is none of {SEVERITIES}")
        if _kinds.setdefault((kind.service, kind.name), kind) != kind:
            raise ValueError(f"event {kind.service}.{kind.name} is declared twice")


def known_kinds() -> list[EventKind]:
    """Return every kind registered in this process, by service and name."""
    return [_kinds[key] for key in sorted(_kinds)]


def kind(service: str, name: str) -> EventKind:
    """Return a registered kind. Raises KeyError: an event outside the catalogue is a bug."""
    return _kinds[(service, name)]


def new_event(
    service: str,
    name: str,
    host: str,
    subject: str,
    *,
    event_id: str | None = None,
    time: str | None = None,
    **data: Any,
) -> Event:
    """Return an event of a registered kind, its templates filled.

    `event_id` is given where the same event may be made again (a retry, the engine's numbered
    events). Raises KeyError for an unknown kind or a missing data field: both are bugs.
    """
    entry = kind(service, name)
    values = {**data, "host": host, "subject": subject}
    return Event(
        id=event_id or uuid.uuid4().hex,
        time=time or now(),
        host=host,
        service=service,
        subject=subject,
        severity=entry.severity,
        name=name,
        data=dict(data),
        text=fill(entry.sentence, values),
        advice=fill(entry.advice, values),
    )


def event_from_wire(wire: Mapping[str, Any]) -> Event:
    """Return the event of a JSON object; unknown keys of a later version are dropped.

    Raises ValueError when a key is missing or has the wrong type.
    """
    values = {field.name: wire.get(field.name) for field in fields(Event)}
    for name, value in values.items():
        expected = dict if name == "data" else str
        if not isinstance(value, expected):
            raise ValueError(f"event without a proper {name}: {value!r}")
    return Event(**values)  # type: ignore[arg-type]  # checked in the loop above


def now() -> str:
    """Return the present time, ISO 8601 in UTC, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
