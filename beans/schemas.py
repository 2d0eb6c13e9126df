"""Schemas of bean calls: how a bean declares its arguments and results, and the call envelope."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, fields, validate

Fields = Mapping[str, fields.Field[Any]]
SchemaSpec = type[Schema] | Fields | None

HEADER = "trellis"
"""Name of the message header that carries the envelope."""
KNOWS = "knows"
"""Name of the task that every bean has beside its methods: has it seen the call of this id?"""
INTERFACE = "1"
"""Version of the envelope itself; a bean refuses calls of another one."""
MAX_DEPTH = 4
"""Longest chain of calls within calls; one more gets `CallTooDeep`."""
DEPTH_READABLE = 1_000
"""A depth beyond this is no depth but rubbish."""


class Strict(Schema):
    """Base of bean schemas: a key that is not declared is an error, on both sides."""

    class Meta:
        """Marshmallow's options."""

        unknown = RAISE


class Nothing(Strict):
    """Takes no key at all."""


def schema_of(spec: SchemaSpec, *, many: bool = False) -> Schema:
    """Make a schema from a class or from a mapping of fields; `None` takes nothing."""
    if spec is None:
        return Nothing(many=many)
    if isinstance(spec, type):
        return spec(many=many)
    return Strict.from_dict(dict(spec))(many=many)


def flatten(problems: Any, path: str = "") -> str:
    """One line of marshmallow's nested messages: `name: Missing data ...; size: ...`."""
    if isinstance(problems, Mapping):
        parts = [flatten(v, f"{path}.{k}" if path else str(k)) for k, v in problems.items()]
        return "; ".join(parts)
    if isinstance(problems, list | tuple):
        text = " ".join(str(p) for p in problems)
    else:
        text = str(problems)
    return f"{path}: {text}" if path else text


@dataclass(frozen=True)
class Envelope:
    """What travels beside the arguments of a call, in the header `trellis`.

    The id of a call is its task's id, the same on every retry of it.
    """

    depth: int = 0
    """Number of calls that this one is within."""
    version: str = ""
    """Of the bean's interface, as the caller knows it."""
    interface: str = INTERFACE
    """Of this envelope."""

    def to_wire(self) -> dict[str, Any]:
        """Give the header's value."""
        return asdict(self)


class EnvelopeSchema(Schema):
    """Checks the envelope; keys of later versions are left aside."""

    class Meta:
        """Marshmallow's options."""

        unknown = EXCLUDE

    depth = fields.Integer(required=True, strict=True, validate=validate.Range(0, DEPTH_READABLE))
    version = fields.String(required=True, validate=validate.Length(0, 32))
    interface = fields.String(required=True, validate=validate.Equal(INTERFACE))


def read_envelope(header: Any) -> Envelope:
    """Check a header and make an envelope of it.

    Raises:
        marshmallow.ValidationError: when it is no envelope.
    """
    if not isinstance(header, Mapping):
        raise ValidationError("the call has no envelope")
    return Envelope(**EnvelopeSchema().load(header))
