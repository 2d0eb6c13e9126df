"""A host inside the test whose volume, bitmap and journal lose power at one moment."""

from __future__ import annotations

from pathlib import Path

from facade.bitmap_size import bitmap_bytes
from facade.engine.bitmap_header import SLOT_BYTES, BitmapHeader, newest
from facade.engine.file_volume import FileVolume
from facade.engine.job import Job
from facade.engine.power_cut_volume import PowerCutVolume, PowerSupply
from facade.engine.replica_source import SyncRequest
from facade.engine.replica_spec import ReplicaSpec
from tests.engine.hosts_inside import JOB_TIMEOUT_S, Host


class HostPower(PowerSupply):
    """Takes the journal from the host with the power: a dead host records nothing any more."""

    host: PoweredHost

    def cut(self, seed: int | None = None) -> None:
        journal = self.host.journal
        with journal._lock:
            journal._db.close()
            super().cut(seed)


class PoweredHost(Host):
    """One boot of a host; the next one finds in the same folder what the cut left."""

    def __init__(self, folder: Path, name: str, seed: int, flush_delay_us: int = 0) -> None:
        super().__init__(folder, name)
        self.power = HostPower(seed=seed, flush_delay_us=flush_delay_us)
        self.power.host = self
        self.files: list[FileVolume] = []

    def open_backing(self, name: str, size_bytes: int) -> PowerCutVolume:
        path = self.folder / name
        if not path.exists():
            with path.open("wb") as file:
                file.truncate(size_bytes)
        opened = self.volumes.open(name, path, serve=False)
        self.files.append(opened.image)
        backing = PowerCutVolume(opened.image, self.power)
        opened.file = backing
        opened.stack.set_top(backing)
        return backing

    def engage(
        self, set_id: str, role: str, size_bytes: int, block_bytes: int, init: str
    ) -> ReplicaSpec:
        """Open volume and bitmap and engage the side: what a boot does with `resume`."""
        self.data = self.open_backing("data", size_bytes)
        self.bitmap = self.open_backing("bits", bitmap_bytes(size_bytes, block_bytes))
        self.volume = self.volumes.get("data")
        peer = "b" if role == "primary" else "a"
        self.spec = ReplicaSpec(
            set_id, "pair", role, "sync", "data", self.folder / "bits", size_bytes, block_bytes,
            peer, "data", "127.0.0.1:1",
        )  # fmt: skip
        self.replicas.enable(self.spec, init, "bits")
        return self.spec

    def start_sync_to(self, other: Host, kind: str = "update") -> Job:
        request = SyncRequest(kind, "primary", other.address)
        return self.replicas.sync(self.spec.set_id, request)

    def sync_to(self, other: Host, kind: str = "update") -> Job:
        job = self.start_sync_to(other, kind)
        assert job.ended.wait(JOB_TIMEOUT_S), "the job does not end"
        return job

    def header(self) -> BitmapHeader | None:
        """Return the header that a start would find."""
        slots = [self.files[1].pread(at, SLOT_BYTES) for at in (0, SLOT_BYTES)]
        return newest(slots)

    def dirty(self) -> set[int]:
        runs = self.replica.changes.runs()
        return {first + i for first, count in runs for i in range(count)}

    def image(self) -> bytes:
        return self.data.pread(0, self.spec.size_bytes)

    def bury(self) -> None:
        """Let go of everything that a dead host had: nothing of it reaches a disk."""
        if not self.power.is_off:
            self.power.cut()
        self.link.stop()
        self.replicas.close()
        for opened in self.volumes.all():
            opened.stack.close()
        for file in self.files:
            file.close()
        self._sockets.cleanup()

    close = bury
