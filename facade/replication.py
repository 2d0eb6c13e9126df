"""The replication sets of a host as objects: what was asked for, and what the engine does with it.

One side only: what the two hosts of a set do together is the bean's matter.
"""

import dataclasses
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import facade.replication_events
import facade.volume_events
from facade.bitmap_size import bitmap_bytes
from facade.config_store import ConfigStore, SetRecord
from facade.contract.errors import UnreachableError, error_to_wire
from facade.contract.names import check_set
from facade.contract.settings import Settings
from facade.errors import (
    EngineUnreachable,
    SetExists,
    SetNotEnabled,
    UnknownJob,
    UnknownSet,
)
from facade.image_files import make_allocated_file, remove_file
from facade.native import EngineClient
from facade.replication_plan import SERVICE, SideOrder, check_claims
from facade.replication_view import SideTruth

EVENT_SERVICE: Final = facade.replication_events.SERVICE

ENGINE_ENABLE_TIMEOUT_S: Final = 15.0
"""Writing a whole new bitmap takes a while on a slow disk."""

# Keys that stand in the stored spec for the beans only; the engine's spec has no such key.
_BEAN_KEYS: Final = frozenset({"identical"})


class ReplicationSystem:
    """The sides of replication sets that lie on this host."""

    def __init__(self, settings: Settings, store: ConfigStore, engine: EngineClient) -> None:
        """Take where made bitmaps lie, what was asked for, and who does it."""
        self.host = settings.host.name
        self.link = settings.link.advertise
        self._metadata = settings.host.metadata_dir
        self._store = store
        self._engine = engine
        self._making = threading.Lock()

    # What was asked for

    def records(self) -> list[SetRecord]:
        """Return the sets of this host, by name."""
        return self._store.sets(SERVICE)

    def record(self, name: str) -> SetRecord:
        """Return a set. Raises BadName, UnknownSet."""
        found = self._store.set(SERVICE, check_set(name))
        if found is None:
            raise UnknownSet(service=SERVICE, name=name, host=self.host)
        return found

    def by_id(self, set_id: str) -> SetRecord | None:
        """Return a set by its id, None where this host has none."""
        return self._store.set_by_id(set_id)

    def check_free(self, name: str, volumes: Iterable[str]) -> None:
        """Raise SetExists or VolumeBusy when a name or volume is taken on this host."""
        if self._store.set(SERVICE, name) is not None:
            raise SetExists(service=SERVICE, name=name, host=self.host)
        check_claims(volumes, self._store.uses())

    def new_record(self, order: SideOrder, bitmap_path: Path) -> SetRecord:
        """Return the record, not yet enabled, of one side that is to be made."""
        spec = {**order.spec, "bitmap_path": str(bitmap_path)}
        return SetRecord(SERVICE, order.name, order.set_id, False, spec)

    def made_bitmap_path(self, name: str) -> Path:
        """Return where Trellis makes a set's bitmap when no volume was named for it."""
        return self._metadata / f"{name}.bitmap"

    def make_bitmap(self, order: SideOrder) -> None:
        """Make the bitmap of a set for which no volume was named, all its blocks allocated."""
        needed = bitmap_bytes(order.size_bytes, order.spec["block_bytes"])
        with self._making:
            make_allocated_file(self.made_bitmap_path(order.name), needed)

    def remove_bitmap(self, record: SetRecord) -> None:
        """Remove a bitmap that Trellis made; a bitmap volume stays."""
        if record.spec["bitmap"] is None:
            remove_file(Path(record.spec["bitmap_path"]))

    # What the engine does

    def check_engine(self) -> None:
        """Raise EngineUnreachable when this host's engine does not run."""
        self._engine.call("engine.info")

    def enable(self, record: SetRecord, init: str) -> dict[str, Any]:
        """Let the engine take up a set; one that it has is left as it is."""
        spec = {key: value for key, value in record.spec.items() if key not in _BEAN_KEYS}
        found = self._engine_set(record.set_id)
        if found is not None:
            return found
        answer = self._engine.call("set.enable", ENGINE_ENABLE_TIMEOUT_S, spec=spec, init=init)
        return dict(answer)

    def disable(self, set_id: str) -> None:
        """Let the engine forget a set; one that it does not have is fine."""
        if self._engine_set(set_id) is not None:
            self._engine.call("set.disable", set_id=set_id)

    def forget(self, set_id: str) -> None:
        """As `disable`, and an engine that does not run has forgotten it already.

        Only for a set whose record is dropped too: the engine would else take it up at its start.
        """
        try:
            self.disable(set_id)
        except EngineUnreachable:
            pass

    def log(self, record: SetRecord) -> dict[str, Any]:
        """Let a set go logging. Raises SetNotEnabled."""
        self._need_enabled(record)
        return dict(self._engine.call("set.log", set_id=record.set_id))

    def sync(self, record: SetRecord, kind: str, keep: str | None, link: str) -> dict[str, Any]:
        """Start a synchronisation to the engine at `link` and return the job."""
        self._need_enabled(record)
        job = self._engine.call(
            "set.sync", set_id=record.set_id, kind=kind, keep=keep, peer_link=link
        )
        return self.job_view(job, record.name)

    def update_link(self, record: SetRecord, link: str) -> SetRecord:
        """Return the record with the other engine's new address, after telling the engine."""
        moved = dataclasses.replace(record, spec={**record.spec, "peer_link": link})
        spec = {key: value for key, value in moved.spec.items() if key not in _BEAN_KEYS}
        self._engine.call("set.update", spec=spec)
        return moved

    def truth(self, set_id: str) -> SideTruth:
        """Return what this host knows of a set, whether it knows it or not."""
        return self.truths([set_id])[0]

    def truths(self, set_ids: Iterable[str]) -> list[SideTruth]:
        """Return what this host knows of some sets, with one question to the engine."""
        failure: dict[str, Any] | None = None
        engine_sets: dict[str, dict[str, Any]] = {}
        try:
            engine_sets = {found["set_id"]: found for found in self._engine.call("set.list")}
        except UnreachableError as error:
            failure = error_to_wire(error)
        return [self._truth(set_id, engine_sets.get(set_id), failure) for set_id in set_ids]

    # Jobs

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job of this host's engine. Raises UnknownJob."""
        return self._named(self._job(job_id))

    def latest_job(self, record: SetRecord) -> dict[str, Any]:
        """Return the latest job of a set, running or ended. Raises UnknownJob."""
        jobs = self._engine.call("job.list", set_id=record.set_id)
        if not jobs:
            raise UnknownJob(job=f"of the set {record.name}", host=self.host)
        return self.job_view(max(jobs, key=lambda job: job["started_at"]), record.name)

    def running_jobs(self) -> list[dict[str, Any]]:
        """Return the jobs that this host's engine is at."""
        return [self._named(job) for job in self._engine.call("job.list") if _runs(job)]

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job; one that has ended is left as it is. Raises UnknownJob."""
        if not _runs(self._job(job_id)):
            return self.job(job_id)
        return self._named(self._engine.call("job.cancel", job_id=job_id))

    def job_view(self, job: dict[str, Any], name: str) -> dict[str, Any]:
        """Return the engine's job object with the set's name and this host."""
        keys = ("job_id", "set_id", "kind", "state", "done_bytes", "total_bytes",
                "rate_bytes_per_s", "sent_bytes", "error", "started_at", "ended_at")  # fmt: skip
        return {**{key: job.get(key) for key in keys}, "name": name, "host": self.host}

    # Inside

    def _job(self, job_id: str) -> dict[str, Any]:
        for job in self._engine.call("job.list"):
            if job["job_id"] == job_id:
                return dict(job)
        raise UnknownJob(job=job_id, host=self.host)

    def _named(self, job: dict[str, Any]) -> dict[str, Any]:
        record = self._store.set_by_id(job["set_id"])
        return self.job_view(job, record.name if record is not None else job["set_id"])

    def _need_enabled(self, record: SetRecord) -> None:
        if not record.enabled:
            raise SetNotEnabled(name=record.name, host=self.host)

    def _engine_set(self, set_id: str) -> dict[str, Any] | None:
        for found in self._engine.call("set.list"):
            if found["set_id"] == set_id:
                return dict(found)
        return None

    def _truth(
        self, set_id: str, engine_set: dict[str, Any] | None, failure: dict[str, Any] | None
    ) -> SideTruth:
        record = self._store.set_by_id(set_id)
        attached = None if record is None else self._store.attachment(record.spec["volume"])
        return SideTruth(
            host=self.host,
            set_id=set_id,
            known=record is not None,
            enabled=record is not None and record.enabled,
            link=self.link,
            engine=engine_set,
            engine_error=failure,
            attached=None if attached is None else attached.path,
        )


def _runs(job: dict[str, Any]) -> bool:
    return bool(job["state"] == "running")
