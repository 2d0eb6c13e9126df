"""Messages of the replication bean.

For the console (on any host of the set; each is forwarded to the primary's host where it must be):

    method   arguments                                              result
    create   name, primary, secondary {host, volume, bitmap|null},  ReplicationSet
             mode, group, queue, autosync, enable, identical
    list     -                                                      [ReplicationSet]
    show     name                                                   ReplicationSet
    enable   name                                                   ReplicationSet
    disable  name                                                   ReplicationSet
    delete   name, force                                            Deleted
    sync     name, kind (full|update), keep (null|primary|          Job
             secondary), reverse
    log      name                                                   ReplicationSet
    job      name or job_id                                         Job
    cancel   name or job_id                                         Job

For the replication bean of the other host (leaves, idempotent by `set_id`):

    peer_check    name, role, volume, bitmap, size_bytes, block_bytes   SideFacts
    peer_create   side (SideOrder)                                      -
    peer_undo     set_id, release                                       -
    peer_enable   set_id, init                                          -
    peer_disable  set_id                                                -
    peer_delete   set_id                                                -
    peer_log      set_id                                                -
    peer_show     set_ids                                               [PeerSet]
    peer_job      job_id, operation (job|cancel)                        Job
"""

from typing import Any

from marshmallow import ValidationError, fields, validate, validates_schema

from beans.schemas import Strict


class SideArgs(Strict):
    """One side of a set that is to be made."""

    host = fields.String(required=True)
    volume = fields.String(required=True)
    bitmap = fields.String(load_default=None, allow_none=True)


class CreateArgs(Strict):
    """A set that is to be made on two hosts."""

    name = fields.String(required=True)
    primary = fields.Nested(SideArgs, required=True)
    secondary = fields.Nested(SideArgs, required=True)
    mode = fields.String(load_default="sync", validate=validate.OneOf(["sync", "async"]))
    group = fields.String(load_default=None, allow_none=True)
    queue = fields.String(load_default=None, allow_none=True)
    autosync = fields.Boolean(load_default=False)
    enable = fields.Boolean(load_default=True)
    identical = fields.Boolean(load_default=False)


class NameArgs(Strict):
    """Names one set."""

    name = fields.String(required=True)


class DeleteArgs(Strict):
    """Which set to delete; `force` goes on where the other host does not answer."""

    name = fields.String(required=True)
    force = fields.Boolean(load_default=False)


class SyncArgs(Strict):
    """Which synchronisation to start."""

    name = fields.String(required=True)
    kind = fields.String(load_default="update", validate=validate.OneOf(["full", "update"]))
    keep = fields.String(
        load_default=None, allow_none=True, validate=validate.OneOf(["primary", "secondary"])
    )
    reverse = fields.Boolean(load_default=False)


class JobArgs(Strict):
    """A job by its id, or the latest of a set by the set's name (just one of them)."""

    name = fields.String(load_default=None, allow_none=True)
    job_id = fields.String(load_default=None, allow_none=True)

    @validates_schema
    def _just_one(self, data: dict[str, Any], **_: Any) -> None:
        if (data.get("name") is None) == (data.get("job_id") is None):
            raise ValidationError("give either name or job_id")


class PeerJobArgs(Strict):
    """Which job, and what to do with it."""

    job_id = fields.String(required=True)
    operation = fields.String(required=True, validate=validate.OneOf(["job", "cancel"]))


class FollowArgs(Strict):
    """Which job to follow."""

    job_id = fields.String(required=True)


class Side(Strict):
    """One side of a set."""

    host = fields.String(required=True)
    volume = fields.String(required=True)
    bitmap = fields.String(required=True, allow_none=True)  # null: Trellis made it


class Progress(Strict):
    """How far a synchronisation is."""

    done_bytes = fields.Integer(required=True, strict=True)
    total_bytes = fields.Integer(required=True, strict=True)
    rate_bytes_per_s = fields.Float(required=True)


class ReplicationSet(Strict):
    """A set as both sides together know it (DESIGN section 9)."""

    name = fields.String(required=True)
    set_id = fields.String(required=True)
    group = fields.String(required=True, allow_none=True)
    mode = fields.String(required=True)
    state = fields.String(required=True)
    flags = fields.List(fields.String(), required=True)
    dirty_blocks = fields.Integer(required=True, strict=True, allow_none=True)  # null: not known
    block_bytes = fields.Integer(required=True, strict=True)
    autosync = fields.Boolean(required=True)
    primary = fields.Nested(Side, required=True)
    secondary = fields.Nested(Side, required=True)
    progress = fields.Nested(Progress, required=True, allow_none=True)
    job_id = fields.String(required=True, allow_none=True)
    last_error = fields.Dict(keys=fields.String(), required=True, allow_none=True)
    connected = fields.Boolean(required=True)
    note = fields.String(required=True, allow_none=True)  # null when both sides' truth is in it
    unreachable = fields.List(fields.String(), required=True)  # hosts that did not answer


class Deleted(Strict):
    """What a delete did."""

    name = fields.String(required=True)
    set_id = fields.String(required=True)
    hosts = fields.List(fields.String(), required=True)  # where it is gone now
    note = fields.String(required=True, allow_none=True)


class Job(Strict):
    """A synchronisation: running in the engine of the primary's host, or ended."""

    job_id = fields.String(required=True)
    set_id = fields.String(required=True)
    name = fields.String(required=True)
    host = fields.String(required=True)  # whose engine runs it
    kind = fields.String(required=True)
    state = fields.String(
        required=True, validate=validate.OneOf(["running", "done", "failed", "cancelled"])
    )
    done_bytes = fields.Integer(required=True, strict=True)
    total_bytes = fields.Integer(required=True, strict=True)
    rate_bytes_per_s = fields.Float(required=True)
    sent_bytes = fields.Integer(required=True, strict=True)
    error = fields.Dict(keys=fields.String(), required=True, allow_none=True)
    started_at = fields.String(required=True)
    ended_at = fields.String(required=True, allow_none=True)


class CheckArgs(Strict):
    """What a host is asked before a set is made there."""

    name = fields.String(required=True)
    role = fields.String(required=True, validate=validate.OneOf(["primary", "secondary"]))
    volume = fields.String(required=True)
    bitmap = fields.String(required=True, allow_none=True)
    size_bytes = fields.Integer(required=True, strict=True)  # least size of the data volume
    block_bytes = fields.Integer(required=True, strict=True)


class SideFacts(Strict):
    """What a planner has to know of one side."""

    host = fields.String(required=True)
    volume = fields.String(required=True)
    size_bytes = fields.Integer(required=True, strict=True)
    link = fields.String(required=True)  # address that the other engine dials
    release = fields.List(fields.String(), required=True)  # volumes not under control yet


class SideOrder(Strict):
    """One side of a planned set, enough to make it."""

    set_id = fields.String(required=True)
    name = fields.String(required=True)
    spec = fields.Dict(keys=fields.String(), required=True)
    size_bytes = fields.Integer(required=True, strict=True)
    enable = fields.Boolean(required=True)
    init = fields.String(required=True, validate=validate.OneOf(["dirty", "clean"]))


class SideOrderArgs(Strict):
    """Carries one side to its host."""

    side = fields.Nested(SideOrder, required=True)


class SetIdArgs(Strict):
    """Names a set by its id, which no other set ever has."""

    set_id = fields.String(required=True)


class UndoArgs(Strict):
    """Which set was not made after all, and which volumes go out of control again."""

    set_id = fields.String(required=True)
    release = fields.List(fields.String(), required=True)


class EnableArgs(Strict):
    """Which set to enable, and what its bitmap says at first."""

    set_id = fields.String(required=True)
    init = fields.String(required=True, validate=validate.OneOf(["dirty", "clean"]))


class SetIdsArgs(Strict):
    """Names sets by their ids."""

    set_ids = fields.List(fields.String(), required=True, validate=validate.Length(max=1000))


class PeerSet(Strict):
    """What one host knows of a set: its record, and the engine's object where there is one."""

    host = fields.String(required=True)
    set_id = fields.String(required=True)
    known = fields.Boolean(required=True)
    enabled = fields.Boolean(required=True)
    link = fields.String(required=True)
    engine = fields.Dict(keys=fields.String(), required=True, allow_none=True)
    engine_error = fields.Dict(keys=fields.String(), required=True, allow_none=True)
    attached = fields.String(required=True, allow_none=True)
