"""Operations on a replication set that touch both its hosts, all or nothing.

Each is noted as an intent in the configuration store before its first step and dropped after its
last. An intent found later (the bean was killed, the other host did not answer) is carried out:
create and enable are undone, disable and delete are finished. Whoever does that holds the set's
name, so that nobody's running operation is taken for an abandoned one.
"""

import logging
import uuid
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from beans.proxy import BeanProxy, Federation
from beans.replication_side import ReplicationSide
from facade.config_store import ConfigStore, Intent, SetRecord
from facade.contract.errors import TrellisError
from facade.contract.events import now
from facade.errors import SetBusy
from facade.replication_plan import (
    SERVICE,
    CreateRequest,
    SideFacts,
    SideOrder,
    plan_create,
)

_log = logging.getLogger(__name__)

Post = Callable[..., None]

# What an intent is called: the word of the command.
CREATE: Final = "create"
ENABLE: Final = "enable"
DISABLE: Final = "disable"
DELETE: Final = "delete"


class ReplicationOperations:
    """Runs operations over both hosts from the primary's, and carries out abandoned ones."""

    def __init__(
        self,
        host: str,
        store: ConfigStore,
        side: ReplicationSide,
        federation: Federation,
        post: Post,
    ) -> None:
        """Take this host's side, the way to the other's, and where events go."""
        self._host = host
        self._store = store
        self._side = side
        self._federation = federation
        self._post = post

    def peer(self, host: str) -> BeanProxy:
        """Give the replication bean of another host."""
        return self._federation.proxy(host, SERVICE)

    def create(self, request: CreateRequest, block_bytes: int) -> str:
        """Make a set on both hosts and return its id; after an error neither has any of it."""
        mine, theirs = self._facts(request, block_bytes)
        set_id = uuid.uuid4().hex
        orders = plan_create(request, set_id, mine, theirs, block_bytes)
        body = {"release": list(mine.release), "peer_release": list(theirs.release)}
        intent = self._intend(CREATE, request.name, set_id, theirs.host, body)
        try:
            self._make(orders, theirs.host)
            self._store.drop_intent(intent.id)
        except BaseException:
            self._carry_out_later(intent)
            raise
        self._post(
            "set_created",
            request.name,
            peer=theirs.host,
            primary=f"{mine.host}:{mine.volume}",
            secondary=f"{theirs.host}:{theirs.volume}",
        )
        return set_id

    def enable(self, record: SetRecord, *, fresh: bool) -> None:
        """Enable a set on both hosts, its changes unknown unless it is `fresh` and identical.

        A side that is enabled already is disabled first: a set of which one side has lost its
        record of changes begins anew on both.
        """
        host = record.spec["peer_host"]
        intent = self._intend(ENABLE, record.name, record.set_id, host, {})
        init = "clean" if fresh and record.spec["identical"] else "dirty"
        try:
            if not fresh:
                self._disable_both(intent)
            self._side.enable(record.set_id, init)
            self.peer(host).peer_enable(set_id=record.set_id, init=init)
            self._store.drop_intent(intent.id)
        except BaseException:
            self._carry_out_later(intent)
            raise

    def disable(self, record: SetRecord) -> None:
        """Disable a set on both hosts."""
        self._run(DISABLE, record)

    def delete(self, record: SetRecord) -> None:
        """Delete a set on both hosts."""
        self._run(DELETE, record)

    def delete_here(self, record: SetRecord) -> None:
        """Delete this host's side, with whatever was still intended for the set."""
        self._side.delete(record.set_id)
        for intent in self._intents(record.name):
            self._store.drop_intent(intent.id)
        peer = record.spec["peer_host"]
        self._post("set_deleted_one_side", record.name, peer=peer)

    def settle(self, name: str) -> None:
        """Carry out what was intended for a set and never ended; raises what stands in the way."""
        for intent in self._intents(name):
            self._carry_out(intent)

    def sweep(self, hold: Callable[[str, str], Any]) -> None:
        """Carry out every abandoned intent that can be; the others stay for the next sweep."""
        for intent in self._store.intents(SERVICE):
            name = intent.body["name"]
            try:
                with hold(name, f"clean-up after {intent.operation}"):
                    self.settle(name)
            except SetBusy:
                continue  # it is being run, not abandoned
            except TrellisError as error:
                _log.info("%s of %s is still to be settled: %s", intent.operation, name, error)

    # Steps

    def _facts(self, request: CreateRequest, block_bytes: int) -> tuple[SideFacts, SideFacts]:
        mine = self._side.check(
            request.name,
            "primary",
            request.primary.volume,
            request.primary.bitmap,
            0,
            block_bytes,
        )
        theirs = self.peer(request.secondary.host).peer_check(
            name=request.name,
            role="secondary",
            volume=request.secondary.volume,
            bitmap=request.secondary.bitmap,
            size_bytes=mine.size_bytes,
            block_bytes=block_bytes,
        )
        return mine, SideFacts(**{**theirs, "release": tuple(theirs["release"])})

    def _make(self, orders: tuple[SideOrder, SideOrder], peer_host: str) -> None:
        self._side.create(orders[0])
        self.peer(peer_host).peer_create(side=asdict(orders[1]))

    def _run(self, operation: str, record: SetRecord) -> None:
        host = record.spec["peer_host"]
        self._carry_out(self._intend(operation, record.name, record.set_id, host, {}))

    def _carry_out_later(self, intent: Intent) -> None:
        # The failed operation's own error is what the caller is told.
        try:
            self._carry_out(intent)
        except Exception:
            _log.warning("%s is left to the sweep", intent.body, exc_info=True)

    def _carry_out(self, intent: Intent) -> None:
        body = intent.body
        set_id, name, peer_host = body["set_id"], body["name"], body["peer_host"]
        event: str | None = None
        if intent.operation == CREATE:
            self._side.undo(set_id, body["release"])
            self.peer(peer_host).peer_undo(set_id=set_id, release=body["peer_release"])
            event = "set_create_undone"
        elif intent.operation == DELETE:
            self._side.delete(set_id)
            self.peer(peer_host).peer_delete(set_id=set_id)
            event = "set_deleted"
        else:
            self._disable_both(intent)
        self._store.drop_intent(intent.id)
        if event is not None:
            self._post(event, name, peer=peer_host)

    def _disable_both(self, intent: Intent) -> None:
        self._side.disable(intent.body["set_id"])
        self.peer(intent.body["peer_host"]).peer_disable(set_id=intent.body["set_id"])

    def _intend(
        self, operation: str, name: str, set_id: str, peer_host: str, more: dict[str, Any]
    ) -> Intent:
        body = {"name": name, "set_id": set_id, "peer_host": peer_host, **more}
        intent = Intent(uuid.uuid4().hex, SERVICE, operation, body, now())
        self._store.put_intent(intent)
        return intent

    def _intents(self, name: str) -> list[Intent]:
        return [one for one in self._store.intents(SERVICE) if one.body["name"] == name]
