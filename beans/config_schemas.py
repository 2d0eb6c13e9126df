"""Messages of the config bean.

method       arguments               result
show         -                       Configuration
list         service (or null)       [SetRecord]
get          service, name           SetRecord
history      limit                   [Change]
put_set      record, uses            SetRecord    claims the volumes, all or nothing
drop_set     service, name           -            succeeds where there is none
put_volume   name, path, control,    VolumeRecord
             export
drop_volume  name                    -            refused while a set uses it
"""

from marshmallow import fields, validate

from beans.schemas import Strict


class VolumeExport(Strict):
    """How a volume under STE is exported."""

    plain = fields.Boolean(required=True)
    clients = fields.List(fields.String(), required=True)  # none: the default list


class VolumeRecord(Strict):
    """A volume under control."""

    name = fields.String(required=True)
    path = fields.String(required=True)
    control = fields.String(required=True, validate=validate.OneOf(["none", "svi", "ste"]))
    export = fields.Nested(VolumeExport, load_default=None, allow_none=True)
    read_only = fields.Boolean(load_default=False)


class SetRecord(Strict):
    """A set of one data service, as this host was asked to have it."""

    service = fields.String(required=True)
    name = fields.String(required=True)
    set_id = fields.String(required=True)
    enabled = fields.Boolean(required=True)
    spec = fields.Dict(keys=fields.String(), required=True)


class VolumeUse(Strict):
    """A claim: one volume in one role of one set."""

    volume = fields.String(required=True)
    service = fields.String(required=True)
    set_name = fields.String(required=True)
    role = fields.String(required=True)


class PutSetArgs(Strict):
    """The set, and every volume that it uses."""

    record = fields.Nested(SetRecord, required=True)
    uses = fields.List(fields.Nested(VolumeUse), required=True)


class SetArgs(Strict):
    """Names one set."""

    service = fields.String(required=True)
    name = fields.String(required=True)


class ListArgs(Strict):
    """Which service's sets; null: all."""

    service = fields.String(load_default=None, allow_none=True)


class VolumeNameArgs(Strict):
    """Names one volume."""

    name = fields.String(required=True)


class HistoryArgs(Strict):
    """How many changes to show, the newest first."""

    limit = fields.Integer(load_default=100, strict=True, validate=validate.Range(1, 1000))


class Change(Strict):
    """One change of the configuration."""

    number = fields.Integer(required=True, strict=True)
    time = fields.String(required=True)
    who = fields.String(required=True)
    what = fields.String(required=True)
    detail = fields.Dict(keys=fields.String(), required=True)


class Configuration(Strict):
    """Everything that this host was asked to have."""

    host = fields.String(required=True)
    volumes = fields.List(fields.Nested(VolumeRecord), required=True)
    sets = fields.List(fields.Nested(SetRecord), required=True)
    uses = fields.List(fields.Nested(VolumeUse), required=True)
