"""The volume bean: which volumes a host has, what suits, what is under control, who uses what."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import facade.volume_events
from beans.base import Bean, method
from beans.volume_schemas import (
    AttachArgs,
    CreateArgs,
    EnableArgs,
    NameArgs,
    ResizeArgs,
    Suitability,
    SuitArgs,
    Uri,
    Use,
    Volume,
)
from facade.attachment_errors import DetachUnflushed
from facade.config_store import ConfigStore, VolumeRecord
from facade.contract.errors import TrellisError, UnreachableError
from facade.contract.events import new_event
from facade.errors import ExportNobody, ExportUnavailable, VolumeBusy, VolumeWritable
from facade.native import EngineClient
from facade.volumes import VolumeSystem

if TYPE_CHECKING:
    from beans.proxy import Federation
    from broker.outbox import Outbox
    from facade.contract.settings import Settings

SERVICE: Final = facade.volume_events.VOLUME_SERVICE

RECONCILE_INTERVAL_S: Final = 30.0
"""How often the bean looks for volumes under control that the engine does not serve."""

ATTACHMENTS_INTERVAL_S: Final = 2.0
"""How often the bean looks whether attachments work; broken ones are made anew."""

ATTACH_TIMEOUT_S: Final = 45.0
"""For `attach` and `detach`: a helper's start or end, and a flush of all that was written."""

CHANGE_WAIT_S: Final = 5.0
"""How long a change of a volume's control waits for another one to end."""

_log = logging.getLogger(__name__)


class VolumeBean(Bean):
    """The volumes of one host."""

    name = "volume"

    def __init__(self, settings: "Settings", federation: "Federation", outbox: "Outbox") -> None:
        """Open the store when the worker starts, not here: this may run before a fork."""
        super().__init__(settings, federation, outbox)
        self._engine = EngineClient(settings)
        self._opened: tuple[ConfigStore, VolumeSystem] | None = None
        self._changing = threading.Lock()
        self._missing: set[str] = set()
        self._broken: set[str] = set()

    def start(self) -> None:
        """Open the store, and begin to look after the volumes under control."""
        store = ConfigStore(self.settings.host.config_path, host=self.host)
        self._opened = (store, VolumeSystem(self.settings.host, store, self._engine))
        threading.Thread(target=self._look_after, name="look-after-volumes", daemon=True).start()

    def stop(self) -> None:
        """Close the store."""
        if self._opened is not None:
            self._opened[0].close()

    @property
    def _volumes(self) -> VolumeSystem:
        if self._opened is None:
            raise RuntimeError("the volume bean was called before it was started")
        return self._opened[1]

    @method(result=Volume, many=True)
    def list(self) -> Sequence[Mapping[str, Any]]:
        """Give every volume of the host, by name."""
        return self._volumes.every()

    @method(args=NameArgs, result=Volume)
    def show(self, name: str) -> Mapping[str, Any]:
        """Give one volume. Raises BadName, UnknownVolume."""
        return self._volumes.show(name)

    @method(args=CreateArgs, result=Volume, timeout_s=30.0, idempotent=False)
    def create(self, name: str, size_bytes: int) -> Mapping[str, Any]:
        """Make an image file. Raises BadName, SizeRefused, VolumeExists, SpaceShort."""
        volume = self._volumes.create(name, size_bytes)
        self._post("volume_created", name, size_bytes=size_bytes)
        return volume

    @method(args=EnableArgs, result=Volume, timeout_s=30.0)
    def enable(
        self,
        name: str,
        export: Mapping[str, Any] | None = None,
        local: bool = False,
        read_only: bool = False,
    ) -> Mapping[str, Any]:
        """Put a volume under control: SVI, or STE with `export`; STE becomes SVI with `local`.

        One that is under control is served again if it was not, and clients of its own host do not
        notice; whether it can be written stays as it is. Raises UnknownVolume, VolumeUnsuitable,
        VolumeWritable, EngineUnreachable, ExportUnavailable, ExportNobody, VolumeBusy; then nothing
        is changed.
        """
        with self._change(name):
            before = self._volumes.describe(name)
            path = before.path
            if before.control == "none":
                path = self._volumes.suit(name, "a volume under control").path
                self._config.put_volume(name=name, path=path, control="svi", read_only=read_only)
                try:
                    self._volumes.open(name, path, read_only)
                except TrellisError:
                    self._config.drop_volume(name=name)
                    raise
                self._post("volume_enabled", name)
            elif read_only and not self._volumes.is_read_only(name):
                raise VolumeWritable(volume=name, host=self.host)
            else:
                self._volumes.open(name, path, self._volumes.is_read_only(name))
            if export is not None:
                self._export(name, path, export)
            elif local and before.control == "ste":
                self._unexport(name, path)
            elif before.control == "ste":
                self._volumes.export(name, self._volumes.export_of(name))
        return self._volumes.show(name)

    @method(args=ResizeArgs, result=Volume, timeout_s=150.0)
    def resize(
        self, name: str, size_bytes: int | None = None, may_shrink: bool = False
    ) -> Mapping[str, Any]:
        """Make a volume longer, or with `may_shrink` shorter, under its clients.

        Raises VolumeNotControlled, VolumeBusy, SizeRefused, ShrinkRefused, SpaceShort, PathRefused;
        then nothing has changed.
        """
        with self._change(name):
            before = self._volumes.describe(name).size_bytes
            volume = self._volumes.resize(name, size_bytes, may_shrink)
            if volume["size_bytes"] != before or size_bytes is None:
                self._post("volume_resized", name, size_bytes=volume["size_bytes"])
        return volume

    def _export(self, name: str, path: str, export: Mapping[str, Any]) -> None:
        before = self._volumes.export_of(name)
        uri = self._volumes.export(name, export)
        if before != export:
            # Recorded once it is done: what the engine refuses is not tried at each start.
            self._put(name, path, "ste", export)
            self._post("volume_exported", name, uri=uri)

    def _unexport(self, name: str, path: str) -> None:
        self._volumes.export(name, None)
        self._put(name, path, "svi", None)
        self._post("volume_unexported", name)

    def _put(self, name: str, path: str, control: str, export: Mapping[str, Any] | None) -> None:
        read_only = self._volumes.is_read_only(name)
        self._config.put_volume(
            name=name, path=path, control=control, export=export, read_only=read_only
        )

    @property
    def _config(self) -> Any:
        return self.federation.proxy(self.host, "config")

    @method(args=NameArgs, result=Volume, timeout_s=20.0)
    def disable(self, name: str) -> Mapping[str, Any]:
        """Take a volume out of control. Raises VolumeAttached, VolumeBusy (a set, a client)."""
        with self._change(name):
            if self._volumes.describe(name).control != "none":
                self._volumes.close(name)
                self._config.drop_volume(name=name)
                self._post("volume_disabled", name)
        return self._volumes.show(name)

    @method(args=NameArgs, result=Use, many=True)
    def uses(self, name: str) -> Sequence[Mapping[str, Any]]:
        """Give who uses a volume, and how."""
        return self._volumes.uses(name)

    @method(args=NameArgs, result=Uri)
    def uri(self, name: str) -> Mapping[str, Any]:
        """Give a volume's NBD address. Raises VolumeNotControlled."""
        return {"host": self.host, "name": name, "uri": self._volumes.uri(name)}

    @method(args=AttachArgs, result=Volume, timeout_s=ATTACH_TIMEOUT_S)
    def attach(
        self, name: str, path: str, helper: str | None = None, read_only: bool = False
    ) -> Mapping[str, Any]:
        """Give a volume under control a path on this host, until `detach`.

        Raises VolumeNotControlled, VolumeAttached, AttachPathTaken, PathRefused,
        AttachmentUnavailable, AttachmentFailed, EngineUnreachable; then nothing is left of it.
        """
        with self._change(name):
            self._volumes.find(name)
            made = self._volumes.attachments.attach(name, path, helper, read_only, self.caller())
            self._broken.discard(name)
        if made is not None:
            self._post("volume_attached", name, path=path, helper=made.helper)
        return self._volumes.show(name)

    @method(args=NameArgs, result=Volume, timeout_s=ATTACH_TIMEOUT_S)
    def detach(self, name: str) -> Mapping[str, Any]:
        """Take a volume's path away; one that has none is fine.

        Raises AttachmentInUse, and then nothing is changed; DetachUnflushed when it is done.
        """
        with self._change(name):
            self._volumes.find(name)
            try:
                ended = self._volumes.attachments.detach(name, self.caller())
            except DetachUnflushed as error:
                self._post("volume_detached", name, path=error.path)
                raise
            self._broken.discard(name)
        if ended is not None:
            self._post("volume_detached", name, path=ended.path)
        return self._volumes.show(name)

    @method(args=SuitArgs, result=Suitability)
    def suit(self, name: str, role: str, min_size_bytes: int = 0) -> Mapping[str, Any]:
        """Give a volume that can take a role, or raise why it cannot."""
        return asdict(self._volumes.suit(name, role, min_size_bytes))

    @method(args=NameArgs, result=Suitability)
    def describe(self, name: str) -> Mapping[str, Any]:
        """Give the facts of a volume, whatever state it is in."""
        return asdict(self._volumes.describe(name))

    def _change(self, name: str) -> "_Held":
        return _Held(self._changing, name)

    def _post(self, event: str, subject: str, **data: Any) -> None:
        self.post(new_event(SERVICE, event, self.host, subject, **data))

    def _look_after(self) -> None:
        """Let the engine open what it should serve: after a crash between record and opening.

        And make attachments anew that have lost their helper, their engine or their machine.
        """
        due_s = 0.0
        while not self.stopping.is_set():
            is_due = time.monotonic() >= due_s
            try:
                with self._changing:
                    if is_due:
                        due_s = time.monotonic() + RECONCILE_INTERVAL_S
                        self._reconcile()
                    self._look_at_attachments(again=is_due)
            except UnreachableError:
                pass  # an engine that starts opens everything by itself
            except TrellisError as error:
                _log.warning("cannot look after the volumes: %s", error)
            self.stopping.wait(ATTACHMENTS_INTERVAL_S)

    def _look_at_attachments(self, again: bool) -> None:
        """`again`: also those that could not be made anew the last time."""
        for found in self._volumes.attachments.look(besides=() if again else self._broken):
            record = found.record
            if found.error is None:
                self._broken.discard(record.volume)
                self._post(
                    "attachment_restored", record.volume, path=record.path, reason=found.reason
                )
            elif record.volume not in self._broken:
                self._broken.add(record.volume)
                self._post(
                    "attachment_broken",
                    record.volume,
                    path=record.path,
                    reason=found.reason,
                    error=found.error.message,
                )

    def _reconcile(self) -> None:
        missing = {record.name: record for record in self._volumes.missing()}
        self._missing &= missing.keys()
        for name, record in missing.items():
            try:
                self._volumes.open(name, record.path, record.read_only)
                if record.control == "ste":
                    self._volumes.export(name, record.export)
            except UnreachableError:
                raise
            except TrellisError as error:
                self._tell_missing(record, error)

    def _tell_missing(self, record: VolumeRecord, error: TrellisError) -> None:
        if record.name not in self._missing:
            self._missing.add(record.name)
            if isinstance(error, ExportUnavailable | ExportNobody):
                self._post("export_failed", record.name, reason=error.message)
            else:
                self._post("volume_missing", record.name, reason=error.message, path=record.path)


class _Held:
    """One change of control at a time; another one is waited for, with a limit."""

    def __init__(self, lock: threading.Lock, name: str) -> None:
        self._lock = lock
        self._name = name

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=CHANGE_WAIT_S):
            raise VolumeBusy(volume=self._name, used_by="another command", role="its subject")

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


BEAN = VolumeBean
