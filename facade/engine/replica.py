"""One side of a replication set in the engine: its state, its bitmap, its layer, its link.

Locks: `operation` is held while an operation changes the side (start of a sync, log, disable) and
as long as a link serves it as target, so that there is one at a time. `lock` guards state, flags
and which link is the current one; the end of a link and a change of state are told apart under it.
It is never held while the network is waited for. `operation` is taken first.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
from dataclasses import replace
from typing import Any, Final

from facade.bitmap_size import HEADER_SLOTS, SLOT_BYTES, bitmap_bytes
from facade.contract.events import Event
from facade.engine import states
from facade.engine.bitmap_header import BitmapHeader
from facade.engine.change_map import ChangeMap
from facade.engine.faulty_backings import BITMAP
from facade.engine.file_volume import FileVolume
from facade.engine.job import Job
from facade.engine.journal import Journal
from facade.engine.link_errors import SizeDiffers
from facade.engine.nbd_context import BitmapContext
from facade.engine.open_volumes import OpenVolume
from facade.engine.replica_spec import ReplicaSpec
from facade.engine.replication import ReplicationLayer
from facade.engine.volume import Volume

log = logging.getLogger("trellis.replica")

OPERATION_WAIT_S: Final = 10.0  # how long a command waits for another one on the same set


class Replica:
    """One side of a set. `enable` engages the layer, `disable` takes it off."""

    def __init__(
        self,
        spec: ReplicaSpec,
        volume: OpenVolume,
        journal: Journal,
        bitmap: Volume | None = None,
        resumes: bool = False,
    ) -> None:
        """Take an open volume; nothing happens to it yet.

        `bitmap` is the volume that holds the bitmap when it is open here already; without it the
        file at `spec.bitmap_path` is opened, and is the side's own; with `resumes` it is made as
        long as it must be when it is shorter. Raises SizeDiffers,
        BitmapTooSmall, OSError.
        """
        self.spec = spec
        self.volume = volume
        self.journal = journal
        self.operation = threading.Lock()
        self.job: Job | None = None
        self.last_error: dict[str, Any] | None = None
        self.connected = False
        self.lock = threading.RLock()
        self._state = states.DISABLED
        self._flags: frozenset[str] = frozenset()
        _check_size(spec, volume)
        self._own_bitmap: FileVolume | None = None
        self._bitmap_was_short = False
        if bitmap is None:
            bitmap, self._bitmap_was_short = open_bitmap(spec, resumes)
            self._own_bitmap = bitmap
            holder = volume.backings.wrap(BITMAP, spec.name, bitmap)
        else:
            holder = bitmap
        try:
            self.changes = ChangeMap(holder, spec.size_bytes, spec.block_bytes)
        except BaseException:
            self._close_own_bitmap()
            raise
        self.layer = ReplicationLayer(volume.file, self.changes, self._bitmap_failed)
        self.context = BitmapContext(spec.name, self.changes)

    # ---- what is ----------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """The state of this side."""
        return self._state

    @property
    def flags(self) -> frozenset[str]:
        """The flags of this side."""
        flags = self._flags
        return flags | {"volume_failed"} if self.layer.volume_failed else flags

    def dirty_blocks(self) -> int:
        """Blocks that the other side lacks, as memory has it."""
        if self._state == states.REPLICATING:
            return self.changes.active_writes
        return self.changes.dirty_blocks

    def show(self) -> dict[str, Any]:
        """Return the set object of the control socket."""
        job = self.job
        running = job is not None and not job.ended.is_set()
        return {
            "set_id": self.spec.set_id,
            "name": self.spec.name,
            "role": self.spec.role,
            "state": self._state,
            # A target that is followed is always applying: that is what the state says. The mark
            # matters after a crash, when it has become sync_needed.
            "flags": sorted(self.flags - {"applying"}),
            "dirty_blocks": self.dirty_blocks(),
            "block_bytes": self.spec.block_bytes,
            "progress": job.progress() if job is not None and running else None,
            "job_id": None if job is None else job.job_id,
            "last_error": self.last_error,
            "connected": self.connected,
        }

    # ---- life -------------------------------------------------------------------------------

    def enable(self, init: str) -> None:
        """Engage the layer. `init`: `dirty`, `clean` or `resume` (what the bitmap volume says).

        Raises OSError, TimeoutError; then nothing is engaged.
        """
        set_id = bytes.fromhex(self.spec.set_id)
        events: list[Event] = []
        if init == "resume":
            flags = self._resume(set_id, events)
        else:
            flags = frozenset()
            # A secondary tracks its own applications' writes only: what it lacks, the primary
            # knows, so its map begins clean.
            dirty = init == "dirty" and self.spec.role == "primary"
            self.changes.format(self._first_header(set_id), dirty)
        self.volume.stack.set_top(self.layer)
        with self.lock:
            self._state = states.LOGGING
            self._flags = flags
        for event in events:
            self.journal.record(event)
        enabled = None if init == "resume" else self._event("set_enabled")
        self._journal_change(self._state, flags, enabled)
        # Last: from here on the bitmap is true, and whoever undoes this has it off again.
        self.volume.server.add_context(self.context)

    def _take_layer_off(self) -> None:
        """Raises TimeoutError when requests in flight do not end; then nothing has changed."""
        # First: a bitmap that misses a write is not to be read.
        self.volume.server.remove_context(self.context.name)
        try:
            self.volume.stack.set_top(self.volume.file)
        except TimeoutError:
            self.volume.server.add_context(self.context)
            raise

    def _first_header(self, set_id: bytes) -> BitmapHeader:
        return BitmapHeader(
            set_id=set_id,
            role=self.spec.role,
            state=states.LOGGING,
            flags=frozenset(),
            block_bytes=self.spec.block_bytes,
            size_bytes=self.changes.size_bytes,
        )

    def _resume(self, set_id: bytes, events: list[Event]) -> frozenset[str]:
        why = self.changes.load(set_id)
        recorded = self.journal.side(self.spec.set_id)
        sequence = self.journal.bitmap_sequence(self.spec.set_id)
        flags = recorded[1] if recorded else frozenset()
        header = self.changes.header
        if header is not None:
            flags |= header.flags
        if self._bitmap_was_short:
            why = "it was shorter than its volume needs"
        elif why is None and "bitmap_failed" in flags:
            why = "writing it had failed before the engine stopped"
        elif why is None and header is not None and header.sequence < sequence:
            why = (
                f"it is an older copy: its header has number {header.sequence}, the last one "
                f"written here {sequence}"
            )
        if why is not None:
            events.append(self._event("bitmap_untrusted", reason=why))
        if "applying" in flags:
            # Writes applied and not yet flushed may be lost, in any order.
            flags = flags - {"applying"} | {"sync_needed"}
            events.append(self._event("sync_needed"))
        flags -= {"bitmap_failed"}
        if header is None or why is not None:
            first = self._first_header(set_id)
            # Past every number that was in use, so that an older copy is known as one.
            number = max(sequence, header.sequence if header else 0) + 1
            self.changes.format(replace(first, sequence=number, flags=flags), True)
        else:
            self.changes.sync()
            self.changes.write_header(header.next(state=states.LOGGING, flags=flags))
        return flags

    def disable(self) -> None:
        """Take the layer off; the bitmap's content is given up.

        Raises TimeoutError when requests in flight do not end; then nothing has changed. Raises
        sqlite3.Error when it is not on record; then it is off all the same.
        """
        self._take_layer_off()
        with self.lock:
            self._state = states.DISABLED
        try:
            self.journal.forget(self.spec.set_id, self._event("set_disabled"))
        finally:
            # What is left on record harms nobody: enabling writes it anew.
            self.let_go()

    def close(self) -> None:
        """Put bits on disk and let go: the engine stops."""
        self._take_layer_off()
        try:
            self.changes.sync_exact()
            # A copy of the bitmap made while the engine ran is an older one from now on.
            if self.changes.header is not None:
                self.changes.write_header(self.changes.header.next())
                self.journal.note_bitmap(self.spec.set_id, self.changes.header.sequence)
        except (OSError, sqlite3.Error) as error:
            # Its bits cover every difference as they are; its header is no older than the record.
            log.warning("%s: bitmap or journal not written at the stop: %s", self.spec.name, error)
        self.let_go()

    def cool_bitmap(self) -> None:
        """Close extents of the bitmap that are hot without need; to be called now and then."""
        if self.changes.failed_errno:
            return
        try:
            self.changes.cool()
        except OSError as error:
            log.error("%s: its bitmap volume failed: %s", self.spec.name, error)
            if self.changes.failed_errno and self._bitmap_failed(self.changes.failed_errno):
                self.changes.go_memory_only()

    def let_go(self) -> None:
        """Give up the bitmap volume; the layer is off. Doing it again does nothing."""
        self.changes.close()
        self._close_own_bitmap()

    def _close_own_bitmap(self) -> None:
        if self._own_bitmap is not None:
            self._own_bitmap.close()

    # ---- changes of state -------------------------------------------------------------------

    def change(
        self,
        trigger: str,
        event_name: str | None,
        add: frozenset[str] = frozenset(),
        remove: frozenset[str] = frozenset(),
        **data: Any,
    ) -> None:
        """Make a transition: header, then journal with its event, both durable at return.

        Flags that are added are durable before anything that needs them; one that is removed
        stays until both records agree (the union counts at boot). Raises OSError when the bitmap
        volume fails; the state in memory has changed all the same.
        """
        with self.lock:
            self._state = states.next_state(self._state, trigger)
            self._flags = self._flags - remove | add
            state, flags = self._state, self._flags
        event = None if event_name is None else self._event(event_name, **data)
        try:
            header = self.changes.header or self._first_header(bytes.fromhex(self.spec.set_id))
            self.changes.write_header(header.next(state=state, flags=flags))
        except OSError as error:
            # Like bits that cannot be written: it is told, and after a restart everything is dirty.
            if self._bitmap_failed(error.errno or errno.EIO):
                self.changes.go_memory_only()
            raise
        finally:
            with self.lock:
                flags = self._flags
            self._journal_change(state, flags, event)

    def _journal_change(self, state: str, flags: frozenset[str], event: Event | None) -> None:
        header = self.changes.header  # the last one that was written: a failed one leaves it
        sequence = None if header is None else header.sequence
        self.journal.change(self.spec.set_id, self.spec.name, state, flags, event, sequence)

    def record(self, event_name: str, **data: Any) -> None:
        """Record an event that changes no state."""
        self.journal.record(self._event(event_name, **data))

    def _event(self, name: str, **data: Any) -> Event:
        data.setdefault("state", self._state)
        return self.journal.event(name, self.spec.name, peer=self.spec.peer_host, **data)

    def _bitmap_failed(self, error: int) -> bool:
        """Called by the data path: put the failure on durable record, once."""
        with self.lock:
            if "bitmap_failed" in self._flags:
                return True
            flags = self._flags | {"bitmap_failed"}
            event = self._event("bitmap_failed", reason=os.strerror(error))
            try:
                self._journal_change(self._state, flags, event)
            except sqlite3.Error as failure:
                log.error("%s: bitmap and journal fail: %s", self.spec.name, failure)
                return False
            self._flags = flags
            return True


def open_bitmap(spec: ReplicaSpec, resumes: bool) -> tuple[FileVolume, bool]:
    """Open a bitmap file of our own; one that was cut is made longer, and that is told."""
    file = FileVolume(spec.bitmap_path)
    needed_bytes = bitmap_bytes(spec.size_bytes, spec.block_bytes)
    if not resumes or file.is_device or file.size_bytes >= needed_bytes:
        return file, False
    # No intact header first: what is added reads as clean blocks.
    try:
        headers_bytes = min(file.size_bytes, HEADER_SLOTS * SLOT_BYTES)
        file.pwrite(0, bytes(headers_bytes), fua=True)
    finally:
        file.close()
    os.truncate(spec.bitmap_path, needed_bytes)
    return FileVolume(spec.bitmap_path), True


def _check_size(spec: ReplicaSpec, volume: OpenVolume) -> None:
    """Refuse a volume that is not as long as the set: what lies past its end would be lost."""
    size_bytes = volume.file.size_bytes
    fits = (
        size_bytes == spec.size_bytes if spec.role == "primary" else size_bytes >= spec.size_bytes
    )
    if not fits:
        raise SizeDiffers(
            volume=spec.volume,
            name=spec.name,
            size_bytes=size_bytes,
            set_bytes=spec.size_bytes,
        )
