"""Attachments of a host: volumes that local programs reach by a path (DESIGN section 9).

What was asked for stands in the configuration store until `detach`; helper process and mount are
made anew whenever they are found gone (helper killed, engine or machine restarted). The record
comes first and goes last, so that whatever a crash leaves behind is found again.
"""

import contextlib
import errno
import os
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from facade import attachment_host, attachment_plan
from facade.attachment_errors import (
    AttachmentFailed,
    AttachmentInUse,
    AttachPathTaken,
    DetachUnflushed,
    VolumeAttached,
)
from facade.attachment_host import AttachmentHost, Helper, HelperFailed
from facade.attachment_plan import NBD, NBDFUSE, Found, Verdict
from facade.config_store import Attachment, ConfigStore
from facade.contract.errors import TrellisError, UnreachableError
from facade.contract.settings import HostSettings
from facade.errors import PathRefused, VolumeNotControlled
from facade.native import EngineClient

ENGINE_QUESTION_TIMEOUT_S: Final = 5.0

USER_END_WAIT_S: Final = 1.0
"""How long `detach` waits for a user to go: `umount` of a loop mount frees the device later."""

_POLL_S: Final = 0.02


@dataclass(frozen=True)
class Restored:
    """An attachment that was found broken; `error`: why it could not be made anew."""

    record: Attachment
    reason: str
    error: TrellisError | None


@dataclass(frozen=True)
class _Engine:
    """What the engine says: when it started, and its volumes."""

    started: int
    volumes: dict[str, dict[str, Any]]


class Attachments:
    """The attachments of one host. One change at a time is the caller's matter."""

    def __init__(
        self,
        host: HostSettings,
        store: ConfigStore,
        engine: EngineClient,
        machine: AttachmentHost | None = None,
    ) -> None:
        """Take where mounts go, what was asked for, who serves, and the machine."""
        self._name = host.name
        # The kernel tells mounts by their real path.
        self._folder = Path(os.path.realpath(host.run_dir)) / "attach"
        self._store = store
        self._engine = engine
        self._machine = machine or AttachmentHost()

    def views(self) -> dict[str, dict[str, Any]]:
        """Return where volumes are attached and whether that works, as JSON, by volume."""
        records = self._store.attachments()
        engine = self._ask() if records else None
        helpers = self._machine.helpers() if records else []
        return {record.volume: self._view(record, engine, helpers) for record in records}

    def attach(
        self, volume: str, path: str, helper: str | None = None, read_only: bool = False,
        who: str = "",
    ) -> Attachment | None:  # fmt: skip
        """Give a volume a path; one that it has already is made to work, and gives None.

        Raises VolumeNotControlled, VolumeAttached (elsewhere), AttachPathTaken, PathRefused,
        AttachmentUnavailable, AttachmentFailed, EngineUnreachable; then nothing is left.
        """
        uri = self._uri(volume)
        known = self._store.attachment(volume)
        if known is not None:
            if known.path != path or known.read_only != read_only:
                raise VolumeAttached(volume=volume, path=known.path, host=self._name)
            restored = self._restore(known, self._ask())
            if restored is not None and restored.error is not None:
                raise restored.error
            self._link(known)
            return None
        self._check_path(volume, path)
        means = self._machine.means()
        chosen = attachment_plan.choose(means, volume, self._name, helper)
        target = str(means.free_device) if chosen == NBD else self._file(volume)
        record = Attachment(volume, path, chosen, target, read_only)
        self._store.put_attachment(record, who)
        try:
            self._link(record)
            self._start(record, uri)
        except BaseException:
            self._take_down(record)
            self._unlink(record)
            self._store.drop_attachment(volume, who)
            raise
        return record

    def detach(self, volume: str, who: str = "") -> Attachment | None:
        """Take a volume's path away; None where it had none.

        Raises AttachmentInUse, and then nothing is changed; DetachUnflushed when it is detached but
        its last flush failed. One whose helper is dead can save nothing, and is not refused.
        """
        record = self._store.attachment(volume)
        if record is None:
            return None
        failure = None
        if self._judge(record, self._ask()).state == "up":
            self._check_unused(record)
            failure = attachment_host.flush(record.target)
            self._release(record)
        self._take_down(record)
        self._unlink(record)
        self._store.drop_attachment(volume, who)
        if failure is not None:
            raise DetachUnflushed(volume=volume, path=record.path, reason=failure)
        return record

    def look(self, besides: Collection[str] = ()) -> list[Restored]:
        """Make every broken attachment anew, and return those that were broken.

        The volumes `besides` are left as they are.
        """
        records = [one for one in self._store.attachments() if one.volume not in besides]
        if not records:
            return []
        engine, helpers = self._ask(), self._machine.helpers()
        tried = [self._restore(each, engine, helpers) for each in records]
        return [one for one in tried if one is not None]

    def suspend(self) -> None:
        """End all helpers and mounts; `look` makes them anew. For an engine that ends in order."""
        for record in self._store.attachments():
            self._take_down(record)

    # What there is

    def _view(
        self, record: Attachment, engine: _Engine | None, helpers: list[Helper]
    ) -> dict[str, Any]:
        verdict = self._judge(record, engine, helpers)
        return {
            "path": record.path,
            "helper": record.helper,
            "target": record.target,
            "read_only": record.read_only,
            "state": verdict.state,
            "reason": verdict.reason,
        }

    def _judge(
        self, record: Attachment, engine: _Engine | None, helpers: list[Helper] | None = None
    ) -> Verdict:
        pid = self._helper_of(record, helpers)
        served = None if engine is None else engine.volumes.get(record.volume)
        found = Found(
            helper_started=None if pid is None else attachment_host.started_ticks(pid),
            is_served=self._is_served(record),
            engine_started=None if engine is None else engine.started,
            clients=None if served is None else int(served["clients"]),
        )
        return attachment_plan.judge(found)

    def _helper_of(self, record: Attachment, helpers: list[Helper] | None = None) -> int | None:
        for helper in self._machine.helpers() if helpers is None else helpers:
            if attachment_plan.is_helper(helper.argv, record.helper, record.target, record.volume):
                return helper.pid
        return None

    def _is_served(self, record: Attachment) -> bool:
        if record.helper == NBD:
            return self._machine.is_connected(record.target)
        return attachment_host.is_mounted(Path(record.target).parent)

    def _ask(self) -> _Engine | None:
        """Return what the engine says, None when it does not answer."""
        try:
            pid = int(self._engine.call("engine.info", ENGINE_QUESTION_TIMEOUT_S)["pid"])
            volumes = self._engine.call("volume.list", ENGINE_QUESTION_TIMEOUT_S)
        except UnreachableError:
            return None
        started = attachment_host.started_ticks(pid)
        by_name = {volume["name"]: volume for volume in volumes}
        return None if started is None else _Engine(started, by_name)

    def _uri(self, volume: str) -> str:
        if self._store.volume(volume) is not None:
            for found in self._engine.call("volume.list"):
                if found["name"] == volume and found["uri"]:
                    return str(found["uri"])
        raise VolumeNotControlled(volume=volume, host=self._name)

    def _check_path(self, volume: str, path: str) -> None:
        if not Path(path).is_absolute() or os.path.normpath(path) != path:
            raise PathRefused(path=path, reason="it is not an absolute path without `.` and `..`")
        if os.path.lexists(path):
            raise AttachPathTaken(path=path, volume=volume, host=self._name)
        if not Path(path).parent.is_dir():
            raise PathRefused(path=path, reason=f"there is no folder {Path(path).parent}")

    def _check_unused(self, record: Attachment) -> None:
        deadline_s = time.monotonic() + USER_END_WAIT_S
        while (user := self._machine.user_of(record.target)) is not None:
            if time.monotonic() > deadline_s:
                raise AttachmentInUse(volume=record.volume, path=record.path, user=user)
            time.sleep(_POLL_S)

    # Steps

    def _file(self, volume: str) -> str:
        """Return what nbdfuse makes of a volume."""
        return str(self._folder / volume / "mount" / volume)

    def _link(self, record: Attachment) -> None:
        try:
            Path(record.path).symlink_to(record.target)
        except FileExistsError:
            if not _is_link_to(record.path, record.target):
                raise AttachPathTaken(
                    path=record.path, volume=record.volume, host=self._name
                ) from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise PathRefused(path=record.path, reason=reason) from error

    def _unlink(self, record: Attachment) -> None:
        """Remove the link, if it is still the one that was made."""
        if _is_link_to(record.path, record.target):
            with contextlib.suppress(OSError):
                Path(record.path).unlink()

    def _start(self, record: Attachment, uri: str) -> None:
        """Start the helper and wait until it serves. Raises AttachmentFailed."""
        folder = self._folder / record.volume
        pid_file = folder / "pid"
        program = self._machine.program(record.helper) or attachment_plan.PROGRAMS[record.helper]
        argv = attachment_plan.command(
            program, record.helper, uri, record.target, str(pid_file), record.read_only
        )
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            pid_file.unlink(missing_ok=True)
            if record.helper == NBDFUSE:
                Path(record.target).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._machine.start(
                argv,
                folder / "log",
                # nbdfuse writes the file once it serves; the mount comes a moment earlier.
                lambda: self._is_served(record) and (record.helper == NBD or pid_file.exists()),
            )
        except (HelperFailed, OSError) as error:
            raise AttachmentFailed(
                volume=record.volume, host=self._name, reason=str(error),
                helper=attachment_plan.PROGRAMS[record.helper],
            ) from error  # fmt: skip

    def _release(self, record: Attachment) -> None:
        """End a helper that works: the kernel has the last word on whether it is in use."""
        pid = self._helper_of(record)
        if record.helper == NBD:
            self._disconnect(record)
        else:
            try:
                attachment_host.unmount(Path(record.target).parent)
            except OSError as error:
                user = self._machine.user_of(record.target) or "open in a program"
                if error.errno != errno.EBUSY:
                    user = f"held ({error.strerror})"
                raise AttachmentInUse(volume=record.volume, path=record.path, user=user) from error
        self._machine.end(pid)

    def _take_down(self, record: Attachment) -> None:
        """Remove what there is of helper and mount, in whatever state, whoever uses it."""
        pid = self._helper_of(record)
        if record.helper == NBD:
            if pid is not None:
                self._disconnect(record)
            self._machine.end(pid)
            return
        mount = Path(record.target).parent
        with contextlib.suppress(OSError):
            while attachment_host.is_mounted(mount):
                attachment_host.unmount(mount, lazily=True)
        # After a lazy unmount it goes on for as long as somebody has the file open.
        self._machine.end(pid, grace_s=0.2)
        with contextlib.suppress(OSError):
            mount.rmdir()

    def _disconnect(self, record: Attachment) -> None:
        program = self._machine.program(NBD)
        if program is not None:
            self._machine.run(attachment_plan.disconnect_command(program, record.target))

    def _restore(
        self, record: Attachment, engine: _Engine | None, helpers: list[Helper] | None = None
    ) -> Restored | None:
        """Make an attachment anew where it is broken; None where it works or has to wait."""
        verdict = self._judge(record, engine, helpers)
        if verdict.state != "broken":
            return None
        self._take_down(record)
        try:
            if record.helper == NBD:
                record = self._moved(record)
            self._link(record)
            self._start(record, self._uri(record.volume))
        except TrellisError as error:
            self._take_down(record)
            return Restored(record, str(verdict.reason), error)
        return Restored(record, str(verdict.reason), None)

    def _moved(self, record: Attachment) -> Attachment:
        """Return the record with a device that is free now; the path follows."""
        device = self._machine.means().free_device
        if device is None or device == record.target:
            return record
        moved = replace(record, target=device)
        self._unlink(record)
        self._store.put_attachment(moved)
        return moved


def _is_link_to(path: str, target: str) -> bool:
    try:
        return str(Path(path).readlink()) == target
    except OSError:  # none there, or no link
        return False
