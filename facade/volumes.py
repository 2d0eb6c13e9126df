"""The volumes of a host as objects: what there is, what suits, what is under control.

A volume is an image file in one of the configured folders, or a block device, and has one name: the
file's, or the kernel's for a device. Of several things with one name the one under control wins,
then the earlier folder's file, then a device.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from facade.attachment_errors import VolumeAttached
from facade.attachments import Attachments
from facade.block_devices import Candidate, block_devices
from facade.config_store import ConfigStore, VolumeRecord
from facade.contract.errors import UnreachableError
from facade.contract.names import check_volume
from facade.contract.settings import HostSettings
from facade.errors import (
    ShrinkRefused,
    UnknownVolume,
    VolumeBusy,
    VolumeExists,
    VolumeNotControlled,
    VolumeTooSmall,
    VolumeUnguarded,
    VolumeUnsuitable,
)
from facade.image_files import (
    check_growth,
    check_size,
    image_file,
    image_files,
    make_image_file,
    same_thing,
)
from facade.native import EngineClient
from facade.volume_use import writer_of

RESIZE_TIMEOUT_S: Final = 120.0
"""How long the engine may take to resize a volume: its file is flushed."""

ENGINE_QUESTION_TIMEOUT_S: Final = 5.0
"""How long a listing waits for the engine; without an answer the addresses are missing."""


@dataclass(frozen=True)
class Suitability:
    """A volume that suits a role, with what a planner has to know."""

    name: str
    path: str
    size_bytes: int
    control: str


class VolumeSystem:
    """The volumes of one host."""

    def __init__(self, host: HostSettings, store: ConfigStore, engine: EngineClient) -> None:
        """Take where volumes lie, what was asked for, and who serves them."""
        self.host = host.name
        self._folders = host.volume_dirs
        self._store = store
        self._engine = engine
        self._making = threading.Lock()
        self.attachments = Attachments(host, store, engine)

    def every(self) -> list[dict[str, Any]]:
        """Return every volume of the host as a JSON object, by name."""
        found = {device.name: device for device in block_devices()}
        found |= {file.name: file for file in image_files(self._folders)}
        found |= {record.name: self._recorded(record) for record in self._store.volumes()}
        served, attached = self._served(), self.attachments.views()
        return [self._view(found[name], served, attached) for name in sorted(found)]

    def show(self, name: str) -> dict[str, Any]:
        """Return one volume as a JSON object. Raises BadName, UnknownVolume."""
        return self._view(self.find(name), self._served(), self.attachments.views())

    def uses(self, name: str) -> list[dict[str, str]]:
        """Return who uses a volume, and how. Raises BadName, UnknownVolume."""
        self.find(name)
        return self._uses(name)

    def uri(self, name: str) -> str:
        """Return a volume's NBD address. Raises VolumeNotControlled, EngineUnreachable."""
        record = self._store.volume(self.find(name).name)
        if record is not None and record.control != "none":
            for volume in self._engine.call("volume.list"):
                if volume["name"] == name:
                    return str(_served_uri(record.control, volume) or volume["uri"])
        raise VolumeNotControlled(volume=name, host=self.host)

    def create(self, name: str, size_bytes: int) -> dict[str, Any]:
        """Make an image file in the first folder. Raises BadName, SizeRefused, VolumeExists, ..."""
        check_volume(name)
        check_size(size_bytes)
        with self._making:
            try:
                self.find(name)
            except UnknownVolume:
                make_image_file(self._folders[0], name, size_bytes, self.host)
                return self.show(name)
        raise VolumeExists(volume=name, host=self.host)

    def suit(self, name: str, role: str, min_size_bytes: int = 0) -> Suitability:
        """Return a volume that can take a role, or raise why it cannot.

        Who else has a claim on it is the configuration store's matter, when the claim is made.
        Raises UnknownVolume, VolumeUnsuitable, VolumeTooSmall.
        """
        candidate = self.find(name)
        reason = candidate.problem or self._other_user(candidate)
        if self.is_read_only(name):
            reason = "it is enabled read-only"
        if reason is not None:
            raise VolumeUnsuitable(volume=name, host=self.host, role=role, reason=reason)
        if candidate.size_bytes < min_size_bytes:
            raise VolumeTooSmall(
                volume=name, size_bytes=candidate.size_bytes, needed_bytes=min_size_bytes
            )
        return self.describe(name)

    def describe(self, name: str) -> Suitability:
        """Return the facts of a volume, whatever state it is in. Raises UnknownVolume."""
        candidate = self.find(name)
        return Suitability(
            name, str(candidate.path), candidate.size_bytes, self._control(candidate.name)
        )

    def find(self, name: str) -> Candidate:
        """Return what a name stands for. Raises BadName, UnknownVolume."""
        check_volume(name)
        record = self._store.volume(name)
        if record is not None:
            return self._recorded(record)
        for folder in self._folders:
            file = image_file(folder / name)
            if file is not None:
                return file
        for device in block_devices():
            if device.name == name:
                return device
        raise UnknownVolume(volume=name, host=self.host)

    def is_read_only(self, name: str) -> bool:
        """Whether a volume is under control to be read only."""
        record = self._store.volume(name)
        return record is not None and record.control != "none" and record.read_only

    def open(self, name: str, path: str, read_only: bool = False) -> None:
        """Let the engine serve a volume; one that it serves already is fine.

        Raises VolumeUnguarded where an enabled set is to follow its writes and does not: the
        engine's next start would trust a bitmap that lacks them.
        """
        engaged = {found["set_id"] for found in self._engine.call("set.list")}
        for use in self._store.uses(name):
            record = self._store.set(use.service, use.set_name)
            if record is not None and record.enabled and record.set_id not in engaged:
                raise VolumeUnguarded(volume=name, host=self.host, set=use.set_name)
        self._engine.call("volume.open", name=name, path=path, read_only=read_only)

    def resize(self, name: str, size_bytes: int | None, may_shrink: bool) -> dict[str, Any]:
        """Make a volume under control longer or shorter; None: as its file or device now is.

        Clients stay connected. Raises VolumeNotControlled, VolumeBusy while a set (also a disabled
        one) uses it, SizeRefused, ShrinkRefused, SpaceShort, PathRefused; then nothing has changed.
        """
        record = self._store.volume(self.find(name).name)
        served = {volume["name"]: volume for volume in self._engine.call("volume.list")}
        if record is None or record.control == "none" or name not in served:
            raise VolumeNotControlled(volume=name, host=self.host)
        for use in self._uses(name):
            raise VolumeBusy(volume=name, used_by=use["set"], role=use["role"])
        before = int(served[name]["size_bytes"])
        path = Path(record.path)
        if size_bytes is not None:
            check_size(size_bytes)
            if size_bytes < before and not may_shrink:
                raise ShrinkRefused(
                    volume=name, host=self.host, size_bytes=before, wanted_bytes=size_bytes
                )
            if size_bytes > before and not path.is_block_device():
                check_growth(path, before, size_bytes)
        self._engine.call("volume.resize", RESIZE_TIMEOUT_S, name=name, size_bytes=size_bytes)
        return self.show(name)

    def export(self, name: str, export: Mapping[str, Any] | None) -> str | None:
        """Let the engine export an open volume over TCP as recorded, or no more; its address then.

        Raises ExportUnavailable, ExportNobody; VolumeBusy where clients would be cut off.
        """
        shown = self._engine.call("volume.export", name=name, export=export)["export"]
        return None if shown is None else str(shown["uri"])

    def export_of(self, name: str) -> dict[str, Any] | None:
        """Return how a volume was asked to be exported, None where it was not."""
        record = self._store.volume(name)
        return record.export if record is not None and record.control == "ste" else None

    def close(self, name: str) -> None:
        """Let the engine no longer serve a volume.

        Raises VolumeAttached while it has a local path, VolumeBusy while it is used.
        """
        attached = self._store.attachment(name)
        if attached is not None:
            raise VolumeAttached(volume=name, path=attached.path, host=self.host)
        for use in self._uses(name):
            raise VolumeBusy(volume=name, used_by=use["set"], role=use["role"])
        served = {volume["name"] for volume in self._engine.call("volume.list")}
        if name in served:
            self._engine.call("volume.close", name=name)

    def missing(self) -> list[VolumeRecord]:
        """Return the volumes under control that the engine does not serve as recorded."""
        served = {volume["name"]: volume for volume in self._engine.call("volume.list")}
        return [
            record
            for record in self._store.volumes()
            if record.name not in served
            or (record.control == "ste" and served[record.name].get("export") is None)
        ]

    def _recorded(self, record: VolumeRecord) -> Candidate:
        path = Path(record.path)
        if path.is_block_device():
            for device in block_devices():
                if device.path == path:
                    return Candidate(record.name, path, "block", device.size_bytes, device.problem)
        file = image_file(path)
        if file is not None:
            return Candidate(record.name, path, "file", file.size_bytes, file.problem)
        return Candidate(record.name, path, "file", 0, "it is gone")

    def _other_user(self, candidate: Candidate) -> str | None:
        records = {Path(r.path): r.name for r in self._store.volumes() if r.name != candidate.name}
        same = same_thing(candidate.path, list(records))
        if same is not None or candidate.path in records:
            return f"it is the volume {records[same or candidate.path]} under another name"
        writer = writer_of(candidate.path, besides=self._engine_pids())
        return None if writer is None else f"{writer} has it open for writing"

    def _engine_pids(self) -> list[int]:
        try:
            return [int(self._engine.call("engine.info", ENGINE_QUESTION_TIMEOUT_S)["pid"])]
        except UnreachableError:
            return []

    def _control(self, name: str) -> str:
        record = self._store.volume(name)
        return "none" if record is None else record.control

    def _served(self) -> dict[str, dict[str, Any]]:
        try:
            volumes = self._engine.call("volume.list", ENGINE_QUESTION_TIMEOUT_S)
        except UnreachableError:
            return {}
        return {volume["name"]: volume for volume in volumes}

    def _uses(self, name: str) -> list[dict[str, str]]:
        found = [
            {"service": use.service, "set": use.set_name, "role": use.role}
            for use in self._store.uses(name)
        ]
        attached = self._store.attachment(name)
        if attached is not None:
            found.append({"service": "volume", "set": attached.path, "role": "attached"})
        return found

    def _view(
        self,
        candidate: Candidate,
        served: dict[str, dict[str, Any]],
        attached: dict[str, dict[str, Any]],
    ) -> dict[str, Any]:
        record = self._store.volume(candidate.name)
        control = "none" if record is None else record.control
        engines = served.get(candidate.name, {}) if control != "none" else {}
        problem = candidate.problem
        if control == "ste" and engines and engines.get("export") is None:
            problem = problem or "it is not exported; the engine's log says why"
        return {
            "host": self.host,
            "name": candidate.name,
            "path": str(candidate.path),
            "kind": candidate.kind,
            "size_bytes": candidate.size_bytes,
            "control": control,
            "read_only": self.is_read_only(candidate.name),
            "uri": _served_uri(control, engines),
            "local_uri": engines.get("uri"),
            "export": _export_view(record, engines),
            "uses": self._uses(candidate.name),
            "attached": attached.get(candidate.name),
            "problem": problem,
        }


def _served_uri(control: str, engines: Mapping[str, Any]) -> str | None:
    """Where applications reach a volume: over TCP under STE, else on its own host."""
    if control != "ste":
        return engines.get("uri")
    export = engines.get("export")
    return None if export is None else str(export["uri"])


def _export_view(record: VolumeRecord | None, engines: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a volume is exported: who may use it, and whether that is the default's list."""
    if record is None or record.control != "ste" or record.export is None:
        return None
    shown = engines.get("export") or {}
    return {
        "plain": record.export["plain"],
        "clients": shown.get("clients", record.export["clients"]),
        "is_default": not record.export["plain"] and not record.export["clients"],
        "connected": shown.get("connected", 0),
    }
