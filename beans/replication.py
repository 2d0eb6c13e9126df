"""The replication bean: sets over two hosts, from one command typed on either.

The primary's host coordinates; a command that reaches the other one is handed on to it.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final

from beans import replication_schemas as messages
from beans.base import method
from beans.errors import BeanUnavailable
from beans.proxy import BeanProxy
from beans.replication_side_bean import LEAF_TIMEOUT_S, ReplicationSideBean
from facade.attachment_errors import VolumeAttached
from facade.bitmap_size import BLOCK_BYTES
from facade.config_store import SetRecord
from facade.contract.errors import UnreachableError
from facade.errors import (
    PeerUnreachable,
    SetDiffers,
    SetNotEnabled,
    SideUnreachable,
    UnknownJob,
    Unsupported,
)
from facade.replication_plan import (
    SERVICE,
    CreateRequest,
    SideRequest,
    check_request,
    side_hosts,
)
from facade.replication_view import SideTruth, set_view

COORDINATED_TIMEOUT_S: Final = 45.0
"""For operations over two hosts: the other host's answers included."""

_log = logging.getLogger(__name__)


class ReplicationBean(ReplicationSideBean):
    """Replication sets, as people command them."""

    # What the console calls

    @method(
        args=messages.CreateArgs,
        result=messages.ReplicationSet,
        timeout_s=COORDINATED_TIMEOUT_S,
        idempotent=False,
        coordinates=True,
    )
    def create(
        self,
        name: str,
        primary: Mapping[str, Any],
        secondary: Mapping[str, Any],
        **options: Any,
    ) -> Mapping[str, Any]:
        """Make a set on both hosts, all or nothing. Raises whatever speaks against it."""
        request = check_request(
            CreateRequest(name, SideRequest(**primary), SideRequest(**secondary), **options)
        )
        if request.primary.host != self.host:
            handed_on: Mapping[str, Any] = self._at(request.primary.host).create(**asdict(request))
            return handed_on
        with self._operation(name, "create"):
            self._operations.create(request, BLOCK_BYTES)
        return self._view(self._system.record(name))

    @method(result=messages.ReplicationSet, many=True, timeout_s=LEAF_TIMEOUT_S, coordinates=True)
    def list(self) -> Sequence[Mapping[str, Any]]:
        """Give every set of this host; the other hosts are asked once each."""
        records = self._system.records()
        truths = {truth.set_id: truth for truth in self._system.truths([r.set_id for r in records])}
        peers: dict[str, SideTruth] = {}
        for host in sorted({record.spec["peer_host"] for record in records}):
            ids = [record.set_id for record in records if record.spec["peer_host"] == host]
            peers |= {truth.set_id: truth for truth in self._ask_or_nothing(host, ids)}
        return [set_view(r, truths[r.set_id], peers.get(r.set_id)) for r in records]

    @method(
        args=messages.NameArgs,
        result=messages.ReplicationSet,
        timeout_s=LEAF_TIMEOUT_S,
        coordinates=True,
    )
    def show(self, name: str) -> Mapping[str, Any]:
        """Give a set as both its hosts together know it. Raises UnknownSet."""
        return self._view(self._system.record(name))

    @method(
        args=messages.NameArgs,
        result=messages.ReplicationSet,
        timeout_s=COORDINATED_TIMEOUT_S,
        coordinates=True,
    )
    def enable(self, name: str) -> Mapping[str, Any]:
        """Enable a set on both hosts; one that is enabled stays as it is."""
        record = self._system.record(name)
        if not self._leads(record):
            return self._handed_on(record).enable(name=name)  # type: ignore[no-any-return]
        with self._operation(name, "enable"):
            record = self._system.record(name)
            sides = self._working_sides(record)
            if not all(side.enabled and side.engine is not None for side in sides):
                fresh = not any(side.enabled or side.engine is not None for side in sides)
                self._operations.enable(record, fresh=fresh)
        return self._view(self._system.record(name))

    @method(
        args=messages.NameArgs,
        result=messages.ReplicationSet,
        timeout_s=COORDINATED_TIMEOUT_S,
        coordinates=True,
    )
    def disable(self, name: str) -> Mapping[str, Any]:
        """Disable a set on both hosts; one that is disabled stays so."""
        record = self._system.record(name)
        if not self._leads(record):
            return self._handed_on(record).disable(name=name)  # type: ignore[no-any-return]
        with self._operation(name, "disable"):
            record = self._system.record(name)
            if any(side.enabled or side.engine is not None for side in self._both_sides(record)):
                self._operations.disable(record)
        return self._view(self._system.record(name))

    @method(
        args=messages.DeleteArgs,
        result=messages.Deleted,
        timeout_s=COORDINATED_TIMEOUT_S,
        coordinates=True,
    )
    def delete(self, name: str, force: bool = False) -> Mapping[str, Any]:
        """Delete a set on both hosts; its volumes stay under control, with their data.

        Where the other host does not answer, raises PeerUnreachable, or with `force` deletes this
        host's side only and says so.
        """
        record = self._system.record(name)
        host = record.spec["peer_host"]
        try:
            if not self._leads(record):
                leader = self._handed_on(record)
                return leader.delete(name=name, force=force)  # type: ignore[no-any-return]
            with self._operation(name, "delete"):
                self._both_sides(record)
                self._operations.delete(record)
        except SetDiffers:
            # The other host has no such set (any more): there is nothing to delete on it.
            return self._delete_here(record, None)
        except BeanUnavailable as error:
            if not force:
                raise PeerUnreachable(name=name, done="deleted", host=host) from error
            return self._delete_here(record, f"Only {self.host} was cleared: {error}")
        return _deleted(record, [self.host, host], None)

    @method(
        args=messages.SyncArgs,
        result=messages.Job,
        timeout_s=COORDINATED_TIMEOUT_S,
        idempotent=False,
        coordinates=True,
    )
    def sync(
        self, name: str, kind: str = "update", keep: str | None = None, reverse: bool = False
    ) -> Mapping[str, Any]:
        """Start a synchronisation and give its job.

        Raises SetNotEnabled, VolumeAttached (the target has a local path), and the engine's own.
        """
        if reverse:
            raise Unsupported(
                what="A reverse synchronisation",
                why="copies go from the primary to the secondary only",
                instead="Leave --reverse out.",
            )
        record = self._system.record(name)
        if not self._leads(record):
            return self._handed_on(record).sync(  # type: ignore[no-any-return]
                name=name, kind=kind, keep=keep, reverse=reverse
            )
        with self._operation(name, "sync"):
            record = self._system.record(name)
            mine, theirs = self._working_sides(record)
            for side in (mine, theirs):
                if not side.enabled or side.engine is None:
                    raise SetNotEnabled(name=name, host=side.host)
            # Programs that have the target open would see it change under them.
            if theirs.attached is not None:
                raise VolumeAttached(
                    volume=record.spec["peer_volume"], path=theirs.attached, host=theirs.host
                )
            if record.spec["peer_link"] != theirs.link:
                record = self._side.move_link(record, theirs.link)
            started = self._system.sync(record, kind, keep, theirs.link)
        self._follow(started["job_id"])
        return started

    @method(
        args=messages.NameArgs,
        result=messages.ReplicationSet,
        timeout_s=COORDINATED_TIMEOUT_S,
        coordinates=True,
    )
    def log(self, name: str) -> Mapping[str, Any]:
        """Let a set go logging on both hosts; on this one also while the other does not answer."""
        record = self._system.record(name)
        self._side.log(record.set_id)
        try:
            self._at(record.spec["peer_host"]).peer_log(set_id=record.set_id)
        except UnreachableError as error:
            _log.info("%s goes logging without %s: %s", name, record.spec["peer_host"], error)
        return self._view(record)

    @method(args=messages.JobArgs, result=messages.Job, timeout_s=LEAF_TIMEOUT_S, coordinates=True)
    def job(self, name: str | None = None, job_id: str | None = None) -> Mapping[str, Any]:
        """Give a job, or the latest of a set. Raises UnknownJob, UnknownSet."""
        return self._job_of_set("job", name) if name else self._job_by_id("job", job_id or "")

    @method(args=messages.JobArgs, result=messages.Job, timeout_s=LEAF_TIMEOUT_S, coordinates=True)
    def cancel(self, name: str | None = None, job_id: str | None = None) -> Mapping[str, Any]:
        """Cancel a job, or the latest of a set; one that has ended stays as it is."""
        return self._job_of_set("cancel", name) if name else self._job_by_id("cancel", job_id or "")

    # Inside

    def _at(self, host: str) -> BeanProxy:
        return self.federation.proxy(host, SERVICE)

    def _leads(self, record: SetRecord) -> bool:
        return side_hosts(self.host, record.spec)["primary"] == self.host

    def _handed_on(self, record: SetRecord) -> BeanProxy:
        """Give the other host's bean, once it is sure that it means the same set by the name."""
        host = record.spec["peer_host"]
        if not self._ask(host, [record.set_id])[0].known:
            raise SetDiffers(name=record.name, host=self.host, peer=host)
        return self._at(host)

    @contextmanager
    def _operation(self, name: str, operation: str) -> Iterator[None]:
        with self._locks.hold(name, operation):
            self._operations.settle(name)
            yield

    def _both_sides(self, record: SetRecord) -> tuple[SideTruth, SideTruth]:
        """Return what both hosts know, or raise why an operation over both cannot begin."""
        theirs = self._ask(record.spec["peer_host"], [record.set_id])[0]
        if not theirs.known:
            raise SetDiffers(name=record.name, host=self.host, peer=theirs.host)
        return self._system.truth(record.set_id), theirs

    def _working_sides(self, record: SetRecord) -> tuple[SideTruth, SideTruth]:
        """As `_both_sides`, and both engines run."""
        sides = self._both_sides(record)
        for side in sides:
            if side.engine_error is not None:
                raise SideUnreachable(
                    name=record.name, host=side.host, reason=side.engine_error["message"]
                )
        return sides

    def _ask(self, host: str, set_ids: Sequence[str]) -> Sequence[SideTruth]:
        return [SideTruth(**truth) for truth in self._at(host).peer_show(set_ids=set_ids)]

    def _ask_or_nothing(self, host: str, set_ids: Sequence[str]) -> Sequence[SideTruth]:
        try:
            return self._ask(host, set_ids)
        except UnreachableError as error:
            _log.info("%s is left out of the answer: %s", host, error)
            return []

    def _view(self, record: SetRecord) -> Mapping[str, Any]:
        theirs = self._ask_or_nothing(record.spec["peer_host"], [record.set_id])
        own = self._system.truth(record.set_id)
        return set_view(record, own, theirs[0] if theirs else None)

    def _delete_here(self, record: SetRecord, note: str | None) -> Mapping[str, Any]:
        with self._locks.hold(record.name, "delete"):
            self._operations.delete_here(record)
        return _deleted(record, [self.host], note)

    def _job_of_set(self, operation: str, name: str) -> Mapping[str, Any]:
        record = self._system.record(name)
        if not self._leads(record):
            handed_on: Mapping[str, Any] = getattr(self._handed_on(record), operation)(name=name)
            return handed_on
        latest = self._system.latest_job(record)
        return self._system.cancel(latest["job_id"]) if operation == "cancel" else latest

    def _job_by_id(self, operation: str, job_id: str) -> Mapping[str, Any]:
        try:
            return self.peer_job(job_id=job_id, operation=operation)
        except UnknownJob:
            leaders = {r.spec["peer_host"] for r in self._system.records() if not self._leads(r)}
            return self._job_elsewhere(operation, job_id, sorted(leaders))

    def _job_elsewhere(
        self, operation: str, job_id: str, hosts: Iterable[str]
    ) -> Mapping[str, Any]:
        for host in hosts:
            try:
                found: Mapping[str, Any] = self._at(host).peer_job(
                    job_id=job_id, operation=operation
                )
                return found
            except UnknownJob:
                continue
        raise UnknownJob(job=job_id, host=self.host)


def _deleted(record: SetRecord, hosts: Sequence[str], note: str | None) -> Mapping[str, Any]:
    return {"name": record.name, "set_id": record.set_id, "hosts": hosts, "note": note}


BEAN = ReplicationBean
