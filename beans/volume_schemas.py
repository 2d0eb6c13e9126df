"""Messages of the volume bean.

method    arguments                     result
list      -                             [Volume]
show      name                          Volume
create    name, size_bytes              Volume
enable    name, export, local,          Volume     under SVI control, or STE
          read_only
resize    name, size_bytes,             Volume     refused while a set uses it
          may_shrink
disable   name                          Volume     refused while a set uses it
uses      name                          [Use]
uri       name                          Uri
attach    name, path, helper, read_only Volume     a local path, until detach
detach    name                          Volume     refused while the path is in use
suit      name, role, min_size_bytes    Suitability
describe  name                          Suitability (of no role)
"""

from marshmallow import fields, validate

from beans.schemas import Strict
from facade.contract.settings_table import CERTIFICATE_NAME_CHARACTERS_MAX

CLIENTS_MAX = 256
"""Names in one volume's list of clients."""


class NameArgs(Strict):
    """Names one volume of the bean's host."""

    name = fields.String(required=True)


class CreateArgs(Strict):
    """What volume to make."""

    name = fields.String(required=True)
    size_bytes = fields.Integer(required=True, strict=True)


class AttachArgs(Strict):
    """Which volume gets which path on the bean's host; `helper` null: the best there is."""

    name = fields.String(required=True)
    path = fields.String(required=True)
    helper = fields.String(
        load_default=None, allow_none=True, validate=validate.OneOf(["nbd", "nbdfuse"])
    )
    read_only = fields.Boolean(load_default=False)


class ResizeArgs(Strict):
    """How long to make a volume; without a size as long as its file or device has become."""

    name = fields.String(required=True)
    size_bytes = fields.Integer(load_default=None, allow_none=True, strict=True)
    may_shrink = fields.Boolean(load_default=False)


class ExportArgs(Strict):
    """Who may use an export."""

    plain = fields.Boolean(required=True)
    clients = fields.List(
        fields.String(validate=validate.Length(1, CERTIFICATE_NAME_CHARACTERS_MAX)),
        required=True,
        validate=validate.Length(max=CLIENTS_MAX),
    )


class EnableArgs(Strict):
    """Which volume to put under control, and how it is to be reached.

    `export`: over TCP by others too (null leaves that as it is); `local`: no longer by others.
    `read_only`: nobody may write it, and no set use it, until it is disabled.
    """

    name = fields.String(required=True)
    export = fields.Nested(ExportArgs, load_default=None, allow_none=True)
    local = fields.Boolean(load_default=False)
    read_only = fields.Boolean(load_default=False)


class Export(Strict):
    """How a volume is exported."""

    plain = fields.Boolean(required=True)
    clients = fields.List(fields.String(), required=True)  # who may use it
    is_default = fields.Boolean(required=True)  # the list is the settings'
    connected = fields.Integer(required=True, strict=True)


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


class Attached(Strict):
    """Where local programs reach a volume, and whether that works."""

    path = fields.String(required=True)
    helper = fields.String(required=True)  # nbd, nbdfuse
    target = fields.String(required=True)  # what the path is a symbolic link to
    read_only = fields.Boolean(required=True)
    state = fields.String(required=True)  # up, waiting (for the engine), broken
    reason = fields.String(required=True, allow_none=True)  # why it is not up


class Volume(Strict):
    """A volume, as everybody sees it (DESIGN section 9)."""

    host = fields.String(required=True)
    name = fields.String(required=True)
    path = fields.String(required=True)
    kind = fields.String(required=True)  # file, block
    size_bytes = fields.Integer(required=True, strict=True)
    control = fields.String(required=True)  # none, svi, ste
    read_only = fields.Boolean(required=True)
    uri = fields.String(required=True, allow_none=True)
    local_uri = fields.String(required=True, allow_none=True)  # on its own host
    export = fields.Nested(Export, required=True, allow_none=True)
    uses = fields.List(fields.Nested(Use), required=True)
    attached = fields.Nested(Attached, required=True, allow_none=True)
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
