"""The engine of a host: volumes, sets, link, journal and control socket put together."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import uuid
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import facade.replication_events
import facade.volume_events  # noqa: F401  # both register the events that the engine makes
from facade.attachments import Attachments
from facade.config_store import ConfigStore, SetRecord, VolumeRecord
from facade.contract.errors import TrellisError, error_to_wire
from facade.contract.events import new_event, now
from facade.contract.settings import Settings
from facade.engine.control import ControlServer
from facade.engine.control_errors import AddressTaken, EngineFault, EngineRunning, RequestRefused
from facade.engine.faulty_backings import FaultyBackings
from facade.engine.job import FAILED
from facade.engine.journal import Journal
from facade.engine.link_connection import Identity
from facade.engine.link_server import LinkServer
from facade.engine.open_volumes import OpenVolume, OpenVolumes
from facade.engine.replica_source import SyncRequest
from facade.engine.replica_spec import ReplicaSpec
from facade.engine.replicas import Replicas
from facade.engine.tcp_exports import TcpExports
from facade.errors import PathRefused, Unsupported
from facade.native import EngineClient

log = logging.getLogger("trellis.engine")

EVENTS_WAIT_S_MAX: Final = 60.0
EVENTS_TAKEN_MAX: Final = 500
SYNC_KINDS: Final = ("full", "update")
INITS: Final = ("dirty", "clean", "resume")


class Engine:
    """Serves one host's volumes. Needs no broker, no Redis and no bean."""

    def __init__(self, settings: Settings) -> None:
        """Take the folder for itself, open the journal and bind. Raises TrellisError, OSError."""
        host = settings.host
        self.settings = settings
        self.boot_id = uuid.uuid4().hex
        self.started_at = now()
        for folder in (host.data_dir, host.metadata_dir, host.run_dir, host.nbd_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_file = _lock(host.data_dir)
        self.journal = Journal(host.journal_path, host.name)
        self.exports = TcpExports(settings.export, host.name, self._tell_volume)
        self.backings = FaultyBackings(settings.faults)
        self.volumes = OpenVolumes(host.nbd_dir, host.name, self.backings)
        who = Identity(host.name, settings.link.secret, settings.link.plain)
        self.replicas = Replicas(self.volumes, self.journal, who)
        self._left_out: set[str] = set()  # volumes that may not be exported without their set
        self._stopped = threading.Event()
        try:
            self.link = LinkServer(settings.link.listen, who, self.replicas.serve)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise AddressTaken(address=settings.link.listen, reason=reason) from error
        self.control = ControlServer(host.engine_socket, self._methods())

    def start(self) -> None:
        """Open what the configuration store says, then answer."""
        clean = self.journal.begin_run()
        stopped = EngineFault(reason="the engine ended while it ran")
        self.journal.end_stale_jobs(FAILED, error_to_wire(stopped), now())
        self._boot()
        name = "engine_started" if clean else "engine_recovered"
        self.journal.record(new_event("engine", name, self.settings.host.name, ""))
        self.link.start()
        self.control.start()
        log.info("engine of %s serves, process %d", self.settings.host.name, os.getpid())

    def _boot(self) -> None:
        """Open volumes, engage sets, then export: no write may pass a set that is to see it.

        What cannot be opened is told and left out, with a volume whose set cannot be engaged; the
        rest is served.
        """
        with ConfigStore(
            self.settings.host.config_path, read_only=True, host=self.settings.host.name
        ) as store:
            volumes, sets = store.volumes(), store.sets("replication")
        for volume in volumes:
            if volume.control == "none":
                continue
            try:
                self.volumes.open(volume.name, Path(volume.path), volume.read_only, serve=False)
            except (TrellisError, OSError) as error:
                self._not_opened(volume.name, volume.path, error)
        for record in sets:
            if not record.enabled:
                continue
            try:
                self._resume(record)
            except (TrellisError, OSError) as error:
                self._not_opened(record.name, str(record.spec.get("bitmap_path")), error)
        for opened in self.volumes.all():
            try:
                opened.serve()
            except TrellisError as error:
                self._not_opened(opened.name, str(opened.path), error)
        self._boot_exports(volumes)

    def _boot_exports(self, volumes: list[VolumeRecord]) -> None:
        """Export the STE volumes that are served; local clients have theirs whatever comes of it.

        A volume that comes to be served later is exported by whoever sees to that.
        """
        self.exports.start()
        served = {opened.name for opened in self.volumes.all() if opened.server.is_open}
        for volume in volumes:
            if volume.control == "ste" and volume.name in served:
                try:
                    self.volume_export(volume.name, volume.export)
                except TrellisError as error:
                    log.error("%s", error)
                    self._tell_volume("export_failed", volume.name, reason=str(error))

    def _resume(self, record: SetRecord) -> None:
        """Engage a set again; its volume stays closed when that fails. Raises as set_enable."""
        volume = str(record.spec.get("volume"))
        try:
            self.set_enable({**record.spec, "set_id": record.set_id}, "resume")
        except BaseException:
            self._left_out.add(volume)
            self.volumes.give_up(volume)
            self.volumes.protect(record.spec.get("bitmap"))
            raise
        self._left_out.discard(volume)

    def _missing_set(self, volume: str) -> SetRecord | None:
        """Return the enabled set that this volume may not be exported without, if there is one."""
        if volume not in self._left_out:
            return None
        host = self.settings.host
        with ConfigStore(host.config_path, read_only=True, host=host.name) as store:
            sets = store.sets("replication")
        return next((r for r in sets if r.enabled and r.spec.get("volume") == volume), None)

    def _tell_volume(self, event: str, subject: str, **data: Any) -> None:
        name = self.settings.host.name
        self.journal.record(new_event("volume", event, name, subject, **data))

    def _not_opened(self, name: str, path: str, error: Exception) -> None:
        log.error("%s is not served: %s", name, error)
        self.journal.record(
            new_event(
                "volume",
                "volume_missing",
                self.settings.host.name,
                name,
                path=path,
                reason=str(error),
            )
        )

    def stop(self) -> None:
        """Flush everything and end: nothing acknowledged is lost, the next start is a clean one.

        A volume that cannot be flushed keeps no other from it; the next start is no clean one then.
        """
        self.control.stop()
        self._suspend_attachments()
        self.link.stop()
        self.exports.stop()
        answered = self.volumes.stop_serving()
        self.replicas.close()
        if self.volumes.close_all() and answered:
            try:
                self.journal.end_run()
            except sqlite3.Error as error:
                log.error("the clean stop is not on record: %s", error)
        self.journal.close()
        os.close(self._lock_file)
        self._stopped.set()

    def _suspend_attachments(self) -> None:
        """End the helpers of local paths: what they serve is about to end.

        After the control socket, so that no bean makes them anew for this engine.
        """
        host = self.settings.host
        try:
            with ConfigStore(host.config_path, read_only=True) as store:
                Attachments(host, store, EngineClient(self.settings)).suspend()
        except TrellisError as error:
            log.warning("local paths of volumes are left as they are: %s", error)

    # ---- methods of the control socket -----------------------------------------------------------

    def _methods(self) -> dict[str, Callable[..., Any]]:
        return {
            "engine.info": self.info,
            "volume.open": self.volume_open,
            "volume.close": self.volume_close,
            "volume.export": self.volume_export,
            "volume.list": self.volume_list,
            "volume.resize": self.volume_resize,
            "set.enable": self.set_enable,
            "set.disable": self.set_disable,
            "set.update": self.set_update,
            "set.show": self.set_show,
            "set.list": self.set_list,
            "set.sync": self.set_sync,
            "set.log": self.set_log,
            "job.show": self.job_show,
            "job.list": self.job_list,
            "job.cancel": self.job_cancel,
            "events.take": self.events_take,
            "events.done": self.events_done,
        }

    def info(self) -> dict[str, Any]:
        """`engine.info`."""
        return {
            "host": self.settings.host.name,
            "pid": os.getpid(),
            "version": _version(),
            "boot_id": self.boot_id,
            "started_at": self.started_at,
            "faults": self.backings.to_wire(),
        }

    def volume_open(self, name: str, path: str, read_only: bool = False) -> dict[str, Any]:
        """`volume.open`; one that was left out at the start is served with its set, or not."""
        missing = self._missing_set(name)
        opened = self.volumes.open(name, Path(path), bool(read_only), serve=missing is None)
        if missing is not None:
            self._resume(missing)
            opened.serve()
        return self._show(opened)

    def volume_close(self, name: str) -> dict[str, Any]:
        """`volume.close`."""
        try:
            self.volumes.close(name)
        except PathRefused:  # closed, though its last flush failed
            self.exports.remove(name)
            raise
        self.exports.remove(name)
        return {}

    def volume_export(self, name: str, export: dict[str, Any] | None) -> dict[str, Any]:
        """`volume.export`."""
        opened = self.volumes.get(name)
        if export is None:
            self.exports.remove(name)
        else:
            plain, clients = export.get("plain"), export.get("clients")
            if not isinstance(plain, bool) or not isinstance(clients, list):
                raise RequestRefused(reason="export wants `plain` and a list of `clients`")
            self.exports.add(opened.server, plain, tuple(map(str, clients)))
        return self._show(opened)

    def volume_list(self) -> list[dict[str, Any]]:
        """`volume.list`."""
        return [self._show(volume) for volume in self.volumes.all()]

    def _show(self, volume: OpenVolume) -> dict[str, Any]:
        return {**volume.to_wire(), "export": self.exports.show(volume.name)}

    def volume_resize(self, name: str, size_bytes: int | None = None) -> dict[str, Any]:
        """`volume.resize`."""
        return self._show(self.volumes.resize(name, size_bytes))

    def set_enable(self, spec: dict[str, Any], init: str) -> dict[str, Any]:
        """`set.enable`."""
        if init not in INITS:
            raise RequestRefused(reason=f"init is {init}, not one of {', '.join(INITS)}")
        bitmap = spec.get("bitmap")
        return self.replicas.enable(ReplicaSpec.from_wire(spec), init, bitmap).show()

    def set_disable(self, set_id: str) -> dict[str, Any]:
        """`set.disable`."""
        self.replicas.disable(set_id)
        return {}

    def set_update(self, spec: dict[str, Any]) -> dict[str, Any]:
        """`set.update`."""
        return self.replicas.update(ReplicaSpec.from_wire(spec)).show()

    def set_show(self, set_id: str) -> dict[str, Any]:
        """`set.show`."""
        return self.replicas.get(set_id).show()

    def set_list(self) -> list[dict[str, Any]]:
        """`set.list`."""
        return [replica.show() for replica in self.replicas.all()]

    def set_sync(
        self, set_id: str, kind: str, keep: str | None = None, peer_link: str | None = None
    ) -> dict[str, Any]:
        """`set.sync`."""
        if kind not in SYNC_KINDS:
            raise RequestRefused(reason=f"kind is {kind}, not one of {', '.join(SYNC_KINDS)}")
        if keep not in (None, "primary"):
            raise Unsupported(
                what=f"--keep {keep}",
                why="copies go from the primary to the secondary only",
                instead="Leave it out, or say `--keep primary`.",
            )
        address = peer_link or self.replicas.get(set_id).spec.peer_link
        return self.replicas.sync(set_id, SyncRequest(kind, keep, address)).to_wire()

    def set_log(self, set_id: str) -> dict[str, Any]:
        """`set.log`."""
        return self.replicas.log(set_id).show()

    def job_show(self, job_id: str) -> dict[str, Any]:
        """`job.show`."""
        return self.replicas.job(job_id)

    def job_list(self, set_id: str | None = None) -> list[dict[str, Any]]:
        """`job.list`."""
        return self.replicas.jobs(set_id)

    def job_cancel(self, job_id: str) -> dict[str, Any]:
        """`job.cancel`."""
        return self.replicas.cancel(job_id)

    def events_take(self, after: int = 0, limit: int = 100, wait_s: float = 0) -> dict[str, Any]:
        """`events.take`."""
        found = self.journal.wait_events(
            after, min(limit, EVENTS_TAKEN_MAX), min(wait_s, EVENTS_WAIT_S_MAX)
        )
        return {
            "events": [event for _, event in found],
            "last": found[-1][0] if found else after,
        }

    def events_done(self, up_to: int) -> dict[str, Any]:
        """`events.done`."""
        self.journal.events_done(up_to)
        return {}


def _lock(data_dir: Path) -> int:
    """Take the host's folder for this process. Raises EngineRunning."""
    descriptor = os.open(data_dir / "engine.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
        os.close(descriptor)
        raise EngineRunning(pid=pid, data_dir=str(data_dir)) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _version() -> str:
    try:
        return version("trellis")
    except PackageNotFoundError:
        return "0"
