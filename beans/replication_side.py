"""What one host does for its side of a replication set, whoever asked for it.

Everything here is idempotent by the set's id, stays on this host, and goes through the host's own
volume bean (who takes volumes under control), facade (who asks the engine) and config bean (who
keeps what was asked for).
"""

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

from beans.proxy import BeanProxy, Federation
from facade.attachment_errors import VolumeAttached
from facade.config_store import SetRecord
from facade.contract.errors import TrellisError
from facade.errors import SetBusy, UnknownSet, UnknownVolume, VolumeBusy
from facade.replication import ReplicationSystem
from facade.replication_plan import (
    SERVICE,
    SideFacts,
    SideOrder,
    check_bitmap,
    claims,
    volumes_of,
)

OPERATION_WAIT_S: Final = 5.0
"""How long an operation on a set waits for another one on the same set to end."""


class OperationLocks:
    """One operation at a time for each key (a set's name, a set's id)."""

    def __init__(self) -> None:
        """Begin with none held."""
        self._held: dict[str, str] = {}
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, key: str, operation: str, wait_s: float = OPERATION_WAIT_S) -> Iterator[None]:
        """Hold a key for an operation. Raises SetBusy, naming the other operation, after a wait."""
        with self._changed:
            if not self._changed.wait_for(lambda: key not in self._held, timeout=wait_s):
                raise SetBusy(name=key, operation=self._held[key])
            self._held[key] = operation
        try:
            yield
        finally:
            with self._changed:
                del self._held[key]
                self._changed.notify_all()


class ReplicationSide:
    """This host's side of its replication sets."""

    def __init__(self, host: str, system: ReplicationSystem, federation: Federation) -> None:
        """Take the facade, and the way to the host's other beans."""
        self._host = host
        self._system = system
        self._federation = federation
        self._locks = OperationLocks()

    def check(
        self,
        name: str,
        role: str,
        volume: str,
        bitmap: str | None,
        size_bytes: int,
        block_bytes: int,
    ) -> SideFacts:
        """Return the facts of a side that could be made here, or raise what speaks against it."""
        self._system.check_free(name, [volume] if bitmap is None else [volume, bitmap])
        found = self._volume.suit(name=volume, role=role, min_size_bytes=size_bytes)
        suited = [found]
        if bitmap is not None:
            suited.append(self._volume.suit(name=bitmap, role="bitmap", min_size_bytes=0))
            check_bitmap(bitmap, suited[1]["size_bytes"], found["size_bytes"], block_bytes)
        self._system.check_engine()
        release = tuple(each["name"] for each in suited if each["control"] == "none")
        return SideFacts(self._host, volume, found["size_bytes"], self._system.link, release)

    def create(self, order: SideOrder) -> None:
        """Make this side: claim its volumes, make its bitmap, take it under control, enable it."""
        with self._locks.hold(order.set_id, "create"):
            record = self._system.by_id(order.set_id)
            if record is None:
                record = self._system.new_record(order, self._bitmap_path(order))
                self._put(record)
                if order.spec["bitmap"] is None:
                    self._system.make_bitmap(order)
            for volume in volumes_of(record.spec):
                self._volume.enable(name=volume)
            if order.enable:
                self._enable(record, order.init)

    def undo(self, set_id: str, release: Sequence[str]) -> None:
        """Take back what `create` has made, as far as it came."""
        with self._locks.hold(set_id, "create"):
            self._remove(set_id)
            for volume in release:
                self._release(volume)

    def enable(self, set_id: str, init: str) -> None:
        """Let the engine take up the set. Raises UnknownSet."""
        with self._locks.hold(set_id, "enable"):
            record = self._record(set_id)
            for volume in volumes_of(record.spec):
                self._volume.enable(name=volume)
            self._enable(record, init)

    def disable(self, set_id: str) -> None:
        """Let the engine forget the set; one that is not enabled, or not here, is fine."""
        with self._locks.hold(set_id, "disable"):
            record = self._system.by_id(set_id)
            if record is not None:
                # The record first: from here on nobody vouches for the bitmap, so an engine that
                # starts between the two must not take it up again.
                if record.enabled:
                    self._put(dataclasses.replace(record, enabled=False))
                self._system.forget(set_id)

    def delete(self, set_id: str) -> None:
        """Forget the set, and remove the bitmap that was made for it; its volumes stay."""
        with self._locks.hold(set_id, "delete"):
            self._remove(set_id)

    def log(self, set_id: str) -> None:
        """Let the set go logging. Raises UnknownSet, SetNotEnabled."""
        self._system.log(self._record(set_id))

    def move_link(self, record: SetRecord, link: str) -> SetRecord:
        """Keep and use a new address of the other host's engine."""
        moved = self._system.update_link(record, link)
        self._put(moved)
        return moved

    @property
    def _volume(self) -> BeanProxy:
        return self._federation.proxy(self._host, "volume")

    @property
    def _config(self) -> BeanProxy:
        return self._federation.proxy(self._host, "config")

    def _record(self, set_id: str) -> SetRecord:
        record = self._system.by_id(set_id)
        if record is None:
            raise UnknownSet(service=SERVICE, name=set_id, host=self._host)
        return record

    def _put(self, record: SetRecord) -> None:
        uses = [asdict(use) for use in claims(record.name, record.spec)]
        self._config.put_set(record=asdict(record), uses=uses)

    def _bitmap_path(self, order: SideOrder) -> Path:
        if order.spec["bitmap"] is None:
            return self._system.made_bitmap_path(order.name)
        return Path(self._volume.describe(name=order.spec["bitmap"])["path"])

    def _enable(self, record: SetRecord, init: str) -> None:
        self._system.enable(record, init)
        if not record.enabled:
            spec = {**record.spec, "identical": False}
            try:
                self._put(dataclasses.replace(record, enabled=True, spec=spec))
            except TrellisError:
                self._system.disable(record.set_id)
                raise

    def _remove(self, set_id: str) -> None:
        record = self._system.by_id(set_id)
        if record is not None:
            self._system.forget(set_id)
            # The bitmap goes before the record that names it: a crash between leaves no orphan.
            self._system.remove_bitmap(record)
            self._config.drop_set(service=SERVICE, name=record.name)

    def _release(self, volume: str) -> None:
        try:
            self._volume.disable(name=volume)
        except (VolumeBusy, VolumeAttached, UnknownVolume):
            pass  # somebody has found a use for it meanwhile, or it is gone
