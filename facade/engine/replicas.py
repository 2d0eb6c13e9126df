"""All sides of replication sets in this engine, and the operations on them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from facade.contract.errors import TrellisError
from facade.engine import states
from facade.engine.autosync import Autosync
from facade.engine.bitmap_cooler import BitmapCooler
from facade.engine.control_errors import EngineFault
from facade.engine.job import DONE, FAILED, Job
from facade.engine.journal import Journal
from facade.engine.link_connection import Identity, LinkConnection
from facade.engine.link_errors import PeerNotReady
from facade.engine.open_volumes import OpenVolumes
from facade.engine.replica import OPERATION_WAIT_S, Replica
from facade.engine.replica_source import Leaving, Source, SyncRequest
from facade.engine.replica_spec import ReplicaSpec
from facade.engine.replica_target import Target
from facade.errors import (
    PathRefused,
    SetBusy,
    SetNotEnabled,
    UnknownJob,
    VolumeBusy,
)

log = logging.getLogger("trellis.replicas")

COMMAND_REASON: Final = "by command"


class Replicas:
    """The sides that are enabled here, by set id; threads may share it."""

    def __init__(self, volumes: OpenVolumes, journal: Journal, who: Identity) -> None:
        """Start with none."""
        self.volumes = volumes
        self.journal = journal
        self.who = who
        self.host = who.host
        self._lock = threading.Lock()
        self._replicas: dict[str, Replica] = {}
        self._sources: dict[str, Source] = {}
        self._targets: dict[str, Target] = {}
        self._autosyncs: dict[str, Autosync] = {}
        self._closing = False
        self._cooler = BitmapCooler(self.all)

    # ---- which there are ----------------------------------------------------------------------

    def get(self, set_id: str) -> Replica:
        """Return an enabled side. Raises SetNotEnabled."""
        with self._lock:
            replica = self._replicas.get(set_id)
        if replica is None:
            raise SetNotEnabled(name=set_id, host=self.host)
        return replica

    def all(self) -> list[Replica]:
        """Return every enabled side."""
        with self._lock:
            return list(self._replicas.values())

    @contextmanager
    def _operation(self, replica: Replica, name: str) -> Iterator[None]:
        if not replica.operation.acquire(timeout=OPERATION_WAIT_S):
            raise SetBusy(name=replica.spec.name, operation=name)
        try:
            yield
        finally:
            replica.operation.release()

    # ---- enable and disable ---------------------------------------------------------------------

    def enable(self, spec: ReplicaSpec, init: str, bitmap: str | None) -> Replica:
        """Engage a side; the same one again is the one there is.

        `bitmap` names the bitmap's volume when it has one: nobody else writes it from now on.
        Raises VolumeBusy, BitmapTooSmall, SizeDiffers, PathRefused, UnknownVolume; then nothing
        is engaged.
        """
        with self.volumes.changing, self._lock:
            known = self._replicas.get(spec.set_id)
            if known is not None:
                return known
            volume = self.volumes.get(spec.volume)
            holder = None if bitmap is None else self.volumes.get(bitmap)
            for used in (volume, holder):
                if used is not None and used.image.read_only:
                    raise PathRefused(path=str(used.path), reason="it is served read-only")
            if volume.sets:
                raise VolumeBusy(volume=spec.volume, role="data volume", used_by="another set")
            replica = None
            try:
                if holder is not None:
                    holder.stack.set_read_only(True)
                replica = Replica(
                    spec,
                    volume,
                    self.journal,
                    None if holder is None else holder.file,
                    init == "resume",
                )
                replica.enable(init)
            except BaseException as error:
                volume.stack.set_top(volume.file)
                if replica is not None:
                    replica.let_go()
                if holder is not None and not holder.sets:
                    holder.stack.set_read_only(False)
                if isinstance(error, OSError):
                    reason = error.strerror or str(error)
                    raise PathRefused(path=str(spec.bitmap_path), reason=reason) from error
                raise
            for used in (volume, holder):
                if used is not None:
                    used.sets.add(spec.set_id)
            self._replicas[spec.set_id] = replica
            self._cooler.start()
            set_id = spec.set_id
            self._autosyncs[set_id] = Autosync(spec.name, lambda: self._sync_quietly(set_id))
            self._link_lost(replica)
            return replica

    def _link_lost(self, replica: Replica) -> None:
        """Begin to try again, where the sides were joined and that was asked for."""
        spec = replica.spec
        wanted = spec.autosync and spec.role == "primary" and not self._closing
        if wanted and self.journal.is_following(spec.set_id):
            self._autosyncs[spec.set_id].begin()

    def _sync_quietly(self, set_id: str) -> Job:
        address = self.get(set_id).spec.peer_link
        return self.sync(set_id, SyncRequest("update", None, address, quiet=True))

    def update(self, spec: ReplicaSpec) -> Replica:
        """Take over what may change while a set is enabled. Raises SetNotEnabled."""
        replica = self.get(spec.set_id)
        replica.spec = replace(replica.spec, peer_link=spec.peer_link, autosync=spec.autosync)
        return replica

    def disable(self, set_id: str) -> None:
        """Take a side off; one that is not enabled is off already.

        Raises SetBusy, TimeoutError; and sqlite3.Error: the journal is full, and the side may be
        off all the same.
        """
        with self._lock:
            replica = self._replicas.get(set_id)
        if replica is None:
            return
        with self._ended_link(replica, Leaving("the set is disabled", for_good=True)), self._lock:
            if self._replicas.get(set_id) is not replica:
                return
            try:
                replica.disable()
            finally:
                # Also when that is not on record: a side without its layer tracks nothing, and
                # must not pass for one that is enabled.
                if replica.state == states.DISABLED:
                    self._forget(set_id)

    def _forget(self, set_id: str) -> None:
        """Under _lock, with the layer off: others may have its volumes now."""
        for volume in self.volumes.all():
            if set_id in volume.sets:
                volume.sets.discard(set_id)
                volume.stack.set_read_only(volume.image.read_only)
        del self._replicas[set_id]

    # ---- synchronise and log --------------------------------------------------------------------

    def sync(self, set_id: str, request: SyncRequest) -> Job:
        """Start a synchronisation of a primary; the job runs on by itself.

        Raises SetNotEnabled, SetBusy, PeerNotReady.
        """
        replica = self.get(set_id)
        with self._operation(replica, "sync"):
            source = self._sources.get(set_id)
            if source is not None and source.runs_job:
                raise SetBusy(name=replica.spec.name, operation="a synchronisation")
            if replica.state == states.REPLICATING and request.kind == "update":
                return self._nothing_to_do(replica, request)
            self._check_can_sync(replica, request)
            if source is not None:
                source.stop(Leaving("a new link begins", for_good=False))
            job = Job(set_id, request.kind)
            source = Source(replica, job, self.who, on_lost=lambda: self._link_lost(replica))
            self.journal.put_job(job.to_wire())
            thread = threading.Thread(
                target=source.run, args=(request,), name=f"sync:{replica.spec.name}", daemon=True
            )
            replica.job = job
            self._sources[set_id] = source
            try:
                thread.start()
            except RuntimeError as error:
                job.finish(FAILED, EngineFault(reason=str(error)))
                raise
        return job

    def _check_can_sync(self, replica: Replica, request: SyncRequest) -> None:
        problem = None
        if self._closing or (request.quiet and not self.journal.is_following(replica.spec.set_id)):
            # A try that had begun when the command came, or the stop, and comes after it.
            problem = "its link has been ended on purpose"
        elif replica.spec.role != "primary":
            problem = "a synchronisation is started on its primary host"
        elif replica.state != states.LOGGING:
            problem = f"it is {replica.state}; put it into logging first"
        elif replica.changes.failed_errno:
            problem = "its bitmap volume has failed; disable and enable it with one that works"
        if problem:
            raise PeerNotReady(host=self.host, name=replica.spec.name, reason=problem)

    def _nothing_to_do(self, replica: Replica, request: SyncRequest) -> Job:
        """Return the job of an update of sides that are equal already: done, nothing sent."""
        job = Job(replica.spec.set_id, request.kind)
        job.finish(DONE)
        self.journal.put_job(job.to_wire())
        replica.job = job
        return job

    def log(self, set_id: str) -> Replica:
        """End the link of a side; changes are only tracked from then on."""
        replica = self.get(set_id)
        with self._ended_link(replica, Leaving(COMMAND_REASON, for_good=True)):
            return replica

    @contextmanager
    def _ended_link(self, replica: Replica, leaving: Leaving) -> Iterator[None]:
        """Hold the side's operation with no link, job or try left; ended in order if possible."""
        set_id = replica.spec.set_id
        if leaving.for_good:
            self.journal.set_following(set_id, False)
        self._autosyncs[set_id].end()
        target = self._targets.get(set_id)
        if target is not None:
            target.leave(leaving.reason, leaving.for_good)
        with self._operation(replica, "link"):
            # A try that had begun before end() has its source by now, or will be refused one.
            source = self._sources.get(set_id)
            if source is not None:
                source.leave(leaving)
            if leaving.for_good:
                # Its job may have ended well meanwhile, and then its link by itself.
                self.journal.set_following(set_id, False)
                self._autosyncs[set_id].end()
            yield

    def serve(self, connection: LinkConnection, set_id: str) -> None:
        """Body of an incoming link's thread."""
        try:
            replica = self.get(set_id)
            if connection.host != replica.spec.peer_host:
                raise PeerNotReady(
                    host=self.host,
                    name=replica.spec.name,
                    reason=f"its other side is {replica.spec.peer_host}",
                )
            # A source that comes again has given up its old link, whether we know it yet or not.
            old = self._targets.get(set_id)
            if old is not None:
                old.cut()
            with self._operation(replica, "link"):
                if self._replicas.get(set_id) is not replica:
                    raise SetNotEnabled(name=replica.spec.name, host=self.host)
                target = Target(replica, connection, self.host)
                self._targets[set_id] = target
                try:
                    target.run()
                finally:
                    self._targets.pop(set_id, None)
        except TrellisError as error:
            connection.refuse(error)

    # ---- jobs -----------------------------------------------------------------------------------

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job, running or on record. Raises UnknownJob."""
        for replica in self.all():
            if replica.job is not None and replica.job.job_id == job_id:
                return replica.job.to_wire()
        record = self.journal.job(job_id)
        if record is None:
            raise UnknownJob(job=job_id, host=self.host)
        return record

    def jobs(self, set_id: str | None) -> list[dict[str, Any]]:
        """Return the jobs on record, live ones as they stand now."""
        live = {r.job.job_id: r.job.to_wire() for r in self.all() if r.job is not None}
        return [live.get(record["job_id"], record) for record in self.journal.jobs(set_id)]

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job; one that has ended stays as it ended. Raises UnknownJob."""
        for replica in self.all():
            job = replica.job
            if job is not None and job.job_id == job_id:
                job.cancelled.set()
                job.ended.wait(OPERATION_WAIT_S)
                return job.to_wire()
        return self.job(job_id)

    # ---- the end of the engine -------------------------------------------------------------------

    def close(self) -> None:
        """End every link and take every layer off, bits durable: the engine stops."""
        self._closing = True
        self._cooler.stop()
        for replica in self.all():
            try:
                with self._ended_link(replica, Leaving("the engine stops", for_good=False)):
                    replica.close()
            except Exception:
                log.exception("%s at the stop", replica.spec.name)
