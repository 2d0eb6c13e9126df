"""One host's part of the replication bean: what it owns, and what the other host's bean calls.

`beans.replication` adds the commands that people call.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import facade.replication_events
from beans import replication_schemas as messages
from beans.base import Bean, Progress, job, method
from beans.replication_operations import ReplicationOperations
from beans.replication_side import OperationLocks, ReplicationSide
from facade.config_store import ConfigStore
from facade.contract.errors import TrellisError, UnreachableError
from facade.contract.events import new_event
from facade.native import EngineClient
from facade.replication import ReplicationSystem
from facade.replication_plan import SERVICE, SideOrder

if TYPE_CHECKING:
    from beans.proxy import Federation
    from broker.outbox import Outbox
    from facade.contract.settings import Settings

SWEEP_INTERVAL_S: Final = 5.0
"""How often abandoned operations are looked for, and how soon they are tried again."""

SWEEP_WAIT_S: Final = 0.05
"""How long the sweep waits for a set's name: who holds it has not abandoned its operation."""

FOLLOW_INTERVAL_S: Final = 0.5
"""How often the task that follows a job reports."""

LEAF_TIMEOUT_S: Final = 20.0
"""For what one host does for another."""

_log = logging.getLogger(__name__)


class ReplicationSideBean(Bean):
    """This host's sides of replication sets."""

    name = SERVICE

    def __init__(self, settings: "Settings", federation: "Federation", outbox: "Outbox") -> None:
        """Open nothing yet: this may run before a fork."""
        super().__init__(settings, federation, outbox)
        self._locks = OperationLocks()
        self._store: ConfigStore
        self._system: ReplicationSystem
        self._side: ReplicationSide
        self._operations: ReplicationOperations

    def start(self) -> None:
        """Open the store, and carry out what an earlier process left undone."""
        self._open()
        threading.Thread(target=self._sweep, name="sweep-intents", daemon=True).start()

    def start_jobs(self) -> None:
        """Follow every synchronisation that runs."""
        self._open()
        try:
            for running in self._system.running_jobs():
                self._follow(running["job_id"])
        except UnreachableError as error:
            _log.info("no job is followed: %s", error)

    def stop(self) -> None:
        """Close the store."""
        self._store.close()

    # What the replication bean of the other host calls

    @method(args=messages.CheckArgs, result=messages.SideFacts, timeout_s=LEAF_TIMEOUT_S, peer=True)
    def peer_check(self, **side: Any) -> Mapping[str, Any]:
        """Give the facts of a side that could be made here, or raise what speaks against it."""
        return asdict(self._side.check(**side))

    @method(args=messages.SideOrderArgs, timeout_s=LEAF_TIMEOUT_S, peer=True)
    def peer_create(self, side: Mapping[str, Any]) -> None:
        """Make this host's side."""
        self._side.create(SideOrder(**side))

    @method(args=messages.UndoArgs, timeout_s=LEAF_TIMEOUT_S, peer=True)
    def peer_undo(self, set_id: str, release: Sequence[str]) -> None:
        """Take back what `peer_create` has made."""
        self._side.undo(set_id, release)

    @method(args=messages.EnableArgs, timeout_s=LEAF_TIMEOUT_S, peer=True)
    def peer_enable(self, set_id: str, init: str) -> None:
        """Enable this host's side."""
        self._side.enable(set_id, init)

    @method(args=messages.SetIdArgs, timeout_s=LEAF_TIMEOUT_S, peer=True)
    def peer_disable(self, set_id: str) -> None:
        """Disable this host's side."""
        self._side.disable(set_id)

    @method(args=messages.SetIdArgs, timeout_s=LEAF_TIMEOUT_S, peer=True)
    def peer_delete(self, set_id: str) -> None:
        """Delete this host's side."""
        self._side.delete(set_id)

    @method(args=messages.SetIdArgs, timeout_s=LEAF_TIMEOUT_S, peer=True)
    def peer_log(self, set_id: str) -> None:
        """Let this host's side go logging."""
        self._side.log(set_id)

    @method(args=messages.SetIdsArgs, result=messages.PeerSet, many=True, peer=True)
    def peer_show(self, set_ids: Sequence[str]) -> Sequence[Mapping[str, Any]]:
        """Give what this host knows of some sets."""
        return [asdict(truth) for truth in self._system.truths(set_ids)]

    @method(args=messages.PeerJobArgs, result=messages.Job, peer=True)
    def peer_job(self, job_id: str, operation: str) -> Mapping[str, Any]:
        """Give or cancel a job of this host's engine. Raises UnknownJob."""
        return self._system.cancel(job_id) if operation == "cancel" else self._system.job(job_id)

    # Jobs

    @job(args=messages.FollowArgs)
    def follow_sync(self, progress: Progress, job_id: str) -> None:
        """Report a synchronisation until it has ended."""
        while not progress.stopping.is_set():
            found = self._system.job(job_id)
            keys = ("name", "state", "done_bytes", "total_bytes", "rate_bytes_per_s", "sent_bytes")
            progress(**{key: found[key] for key in keys})
            if found["state"] != "running":
                return
            progress.stopping.wait(FOLLOW_INTERVAL_S)

    def _follow(self, job_id: str) -> None:
        try:
            self.follow("follow_sync", job_id=job_id)
        except UnreachableError as error:
            # The synchronisation goes on; only its task in Flower is missing.
            _log.info("the job %s is not followed: %s", job_id, error)

    # Inside

    def _open(self) -> None:
        self._store = ConfigStore(self.settings.host.config_path, host=self.host)
        self._system = ReplicationSystem(self.settings, self._store, EngineClient(self.settings))
        self._side = ReplicationSide(self.host, self._system, self.federation)
        self._operations = ReplicationOperations(
            self.host, self._store, self._side, self.federation, self._post
        )

    def _post(self, event: str, subject: str, **data: Any) -> None:
        service = facade.replication_events.SERVICE
        self.post(new_event(service, event, self.host, subject, **data))

    def _sweep(self) -> None:
        while not self.stopping.is_set():
            try:
                self._operations.sweep(
                    lambda name, what: self._locks.hold(name, what, SWEEP_WAIT_S)
                )
            except TrellisError as error:
                _log.warning("abandoned operations cannot be looked for: %s", error)
            self.stopping.wait(SWEEP_INTERVAL_S)
