"""The volumes that this engine has open: backing file, stack, NBD export."""

from __future__ import annotations

import hashlib
import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from facade.engine.faulty_backings import VOLUME, FaultyBackings
from facade.engine.file_volume import FileVolume
from facade.engine.nbd_server import NbdServer
from facade.engine.volume import Volume
from facade.engine.volume_stack import VolumeStack
from facade.errors import PathRefused, UnknownVolume, VolumeBusy

log = logging.getLogger("trellis.volumes")

SOCKET_PATH_BYTES_MAX: Final = 100
STOP_TIMEOUT_S: Final = 10.0


@dataclass
class OpenVolume:
    """A volume under SVI; `sets` are the ids of the sets that use it as data volume."""

    name: str
    path: Path
    image: FileVolume
    file: Volume  # the lowest layer: the image, or the faults that are ordered for it
    stack: VolumeStack
    server: NbdServer
    sets: set[str] = field(default_factory=set)
    backings: FaultyBackings = field(default_factory=FaultyBackings)

    @property
    def uri(self) -> str:
        """The NBD address."""
        return self.server.uri

    def serve(self) -> None:
        """Begin to export it. Raises PathRefused."""
        try:
            self.server.start()
        except OSError as error:
            raise PathRefused(
                path=str(self.server.socket_path), reason=error.strerror or str(error)
            ) from error

    def to_wire(self) -> dict[str, Any]:
        """Return the volume object of the control socket, without how it is exported over TCP."""
        return {
            "name": self.name,
            "path": str(self.path),
            "size_bytes": self.stack.size_bytes,
            "read_only": self.image.read_only,
            "uri": self.uri,
            "clients": self.server.clients,
            "sets": sorted(self.sets),
            "faults": self.backings.of(VOLUME, self.name),
        }


def socket_path(folder: Path, name: str) -> Path:
    """Where a volume's socket goes: under its name, or a digest where that would be too long."""
    path = folder / name
    if len(str(path).encode()) < SOCKET_PATH_BYTES_MAX:
        return path
    return folder / hashlib.sha256(name.encode()).hexdigest()[:16]


class OpenVolumes:
    """All open volumes of the engine, by name; threads may share it."""

    def __init__(self, nbd_dir: Path, host: str, backings: FaultyBackings | None = None) -> None:
        """Sockets go to `nbd_dir`, which exists; `backings`: the faults that are ordered."""
        self.nbd_dir = nbd_dir
        self.backings = backings or FaultyBackings()
        self.host = host
        # Held by who changes what a volume is for others: a set enabled, a new size, an end.
        self.changing = threading.Lock()
        self._lock = threading.Lock()
        self._volumes: dict[str, OpenVolume] = {}

    def open(
        self, name: str, path: Path, read_only: bool = False, *, serve: bool = True
    ) -> OpenVolume:
        """Open a volume and, with `serve`, export it; the same one again is the one there is.

        A read-only one is never written, by clients or sets.

        Raises PathRefused, VolumeBusy (the file is served by another engine).
        """
        with self._lock:
            known = self._volumes.get(name)
            if known is not None:
                if known.path != path:
                    raise VolumeBusy(volume=name, role="volume", used_by=str(known.path))
                return known
            try:
                image = FileVolume(path, name, read_only)
            except OSError as error:
                raise PathRefused(path=str(path), reason=error.strerror or str(error)) from error
            file = self.backings.wrap(VOLUME, name, image)
            stack = VolumeStack(file, name, read_only)
            server = NbdServer(
                stack, socket_path(self.nbd_dir, name), name, can_trim=image.can_punch
            )
            volume = OpenVolume(name, path, image, file, stack, server, backings=self.backings)
            if serve:
                try:
                    volume.serve()
                except PathRefused:
                    image.close()
                    raise
            self._volumes[name] = volume
            return volume

    def close(self, name: str) -> None:
        """Stop exporting a volume; one that is not open is closed already.

        Raises VolumeBusy, and PathRefused when its last flush failed: it is closed then.
        """
        with self.changing, self._lock:
            volume = self._volumes.get(name)
            if volume is None:
                return
            if volume.sets:
                raise VolumeBusy(volume=name, role="data volume", used_by="a replication set")
            if volume.server.clients:
                raise VolumeBusy(
                    volume=name, role="export", used_by=f"{volume.server.clients} NBD client(s)"
                )
            del self._volumes[name]
            try:
                self._end(volume)
            except OSError as error:
                reason = f"its last flush failed ({error.strerror}); it is closed all the same"
                raise PathRefused(path=str(volume.path), reason=reason) from error

    def resize(self, name: str, size_bytes: int | None) -> OpenVolume:
        """Make a volume longer or shorter under its clients; None: as its file or device now is.

        Raises UnknownVolume, VolumeBusy while a set uses it, PathRefused; then nothing has changed,
        but where a flush failed after a cut: `size_bytes` is true in every case.
        """
        with self.changing:
            volume = self.get(name)
            if volume.image.read_only:
                raise PathRefused(path=str(volume.path), reason="it is served read-only")
            if volume.sets or volume.stack.top is not volume.file or volume.stack.read_only:
                raise VolumeBusy(volume=name, role="data or bitmap volume", used_by="a set")
            try:
                volume.stack.resize(size_bytes)
            except OSError as error:
                reason = error.strerror or str(error)
                raise PathRefused(path=str(volume.path), reason=reason) from error
            return volume

    def give_up(self, name: str) -> None:
        """Close a volume that was never exported: it must not be written without its set."""
        with self._lock:
            volume = self._volumes.pop(name, None)
        if volume is not None:
            volume.stack.close()
            volume.image.close()

    def protect(self, name: str | None) -> None:
        """Refuse writes to a bitmap volume whose set could not be taken up."""
        with self._lock:
            volume = None if name is None else self._volumes.get(name)
        if volume is not None:
            volume.stack.set_read_only(True)

    def get(self, name: str) -> OpenVolume:
        """Return an open volume. Raises UnknownVolume."""
        with self._lock:
            volume = self._volumes.get(name)
        if volume is None:
            raise UnknownVolume(volume=name, host=self.host)
        return volume

    def all(self) -> list[OpenVolume]:
        """Return every open volume, by name."""
        with self._lock:
            return [self._volumes[name] for name in sorted(self._volumes)]

    def stop_serving(self) -> bool:
        """End all exports; layers stay, so that what is in flight is answered.

        False: some volume does not answer its requests.
        """
        ended = True
        for volume in self.all():
            try:
                volume.server.stop(STOP_TIMEOUT_S)
            except TimeoutError as error:
                log.error("%s", error)
                ended = False
        return ended

    def close_all(self) -> bool:
        """Flush and close every volume: the engine stops and its layers are off.

        False: some could not be, and what was not flushed of it may be lost. The others are.
        """
        closed = True
        with self._lock:
            for volume in self._volumes.values():
                try:
                    self._end(volume)
                except OSError as error:
                    log.error("%s is not flushed and closed: %s", volume.name, error)
                    closed = False
            self._volumes.clear()
        return closed

    @staticmethod
    def _end(volume: OpenVolume) -> None:
        """Raises OSError; then it is closed all the same, unless it has requests in flight."""
        volume.server.stop(STOP_TIMEOUT_S)
        try:
            volume.stack.flush()
        finally:
            volume.stack.close()
            volume.image.close()
