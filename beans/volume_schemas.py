"""Messages of the volume bean.

method    arguments                     result
list      -                             [Volume]
show      name                          Volume
create    name, size_bytes              Volume
enable    name                          Volume     under SVI control
disable   name                          Volume     refused while a set uses it
uses      name                          [Use]
uri       name                          Uri
suit      name, role, min_size_bytes    Suitability
describe  name                          Suitability (of no role)
"""

from marshmallow import fields, validate

from beans.schemas import Strict


class NameArgs(Strict):
    """Names one volume of the bean's host."""

    name = fields.String(required=True)


class CreateArgs(Strict):
    """What volume to make."""

    name = fields.String(required=True)
    size_bytes = fields.Integer(required=True, strict=True)


class SuitArgs(Strict):
    """Which volume, for what."""

    name = fields.String(required=True)
    role = fields.String(required=True, validate=validate.OneOf(["primary", "secondary", "bitmap"]))
    min_size_bytes = fields.Integer(load_default=0, strict=True)


class Use(Strict):
    """Who uses a volume, and as what."""

    service = fields.String(required=True)
    set = fields.String(required=True)
    role = fields.String(required=True)


class Volume(Strict):
    """A volume, as everybody sees it (DESIGN section 9)."""

    host = fields.String(required=True)
    name = fields.String(required=True)
    path = fields.String(required=True)
    kind = fields.String(required=True)  # file, block
    size_bytes = fields.Integer(required=True, strict=True)
    control = fields.String(required=True)  # none, svi, ste
    uri = fields.String(required=True, allow_none=True)
    uses = fields.List(fields.Nested(Use), required=True)
    problem = fields.String(required=True, allow_none=True)  # why no service could use it now


class Uri(Strict):
    """Where applications reach a volume."""

    host = fields.String(required=True)
    name = fields.String(required=True)
    uri = fields.String(required=True)


class Suitability(Strict):
    """A volume that suits, with what a planner has to know of it."""

    name = fields.String(required=True)
    path = fields.String(required=True)
    size_bytes = fields.Integer(required=True, strict=True)
    control = fields.String(required=True)
