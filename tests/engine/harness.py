"""Real engines as child processes, and what tests do with them."""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from facade.bitmap_size import bitmap_bytes
from facade.config_store import ConfigStore, SetRecord, Use, VolumeRecord
from facade.contract.settings import HostSettings, LinkSettings, Settings, dump
from facade.errors import EngineUnreachable
from facade.native import EngineClient

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 20.0
KIB = 1024
MIB = 1024 * KIB
BLOCK_BYTES = 32 * KIB


def free_port() -> int:
    """Return a TCP port of the loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(fact: Callable[[], Any], timeout_s: float = 15.0, what: str = "") -> Any:
    """Return the first true value of `fact`; fail with `what` when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = fact()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or fact}; last {value!r}")
        time.sleep(0.01)


class EngineProcess:
    """One host's engine: folder, settings, process, client."""

    def __init__(self, base: Path, host: str, secret: str, data_root: Path | None = None) -> None:
        self.host = host
        self.data_dir = (data_root or base) / host
        self.run_dir = Path(tempfile.mkdtemp(prefix="tr-", dir="/tmp"))
        self.volume_dir = self.data_dir / "volumes"
        self.volume_dir.mkdir(parents=True)
        self.address = f"127.0.0.1:{free_port()}"
        self.settings = Settings(
            host=HostSettings(
                name=host,
                data_dir=self.data_dir,
                volume_dirs=(self.volume_dir,),
                run_dir=self.run_dir,
            ),
            link=LinkSettings(listen=self.address, advertise=self.address, secret=secret),
        )
        self.config = self.data_dir / "trellis.toml"
        self.config.write_text(dump(self.settings))
        (self.data_dir / "metadata").mkdir(exist_ok=True)
        self.client = EngineClient(self.run_dir)
        self.process: subprocess.Popen[bytes] | None = None
        self.log_path = self.data_dir / "engine.log"

    def start(self, **environ: str) -> EngineProcess:
        env = {k: v for k, v in os.environ.items() if not k.startswith("TRELLIS_")}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "facade.engine.process", "--config", str(self.config)],
                cwd=ROOT,
                env={**env, **environ},
                stdout=log,
                stderr=log,
            )
        wait_for(self.answers, READY_TIMEOUT_S, f"engine of {self.host}: {self.log_path}")
        return self

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log_path.read_text()
        try:
            self.call("engine.info")
        except EngineUnreachable:
            return False
        return True

    def call(self, method: str, **params: Any) -> Any:
        return self.client.call(method, timeout_s=30, **params)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def dispose(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        for path in sorted(self.run_dir.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self.run_dir.rmdir()

    def make_volume(self, name: str, size_bytes: int) -> Path:
        path = self.volume_dir / name
        with path.open("wb") as file:
            file.truncate(size_bytes)
        self.open_volume(name)
        return path

    def open_volume(self, name: str) -> dict[str, Any]:
        path = str(self.volume_dir / name)
        with ConfigStore(self.settings.host.config_path) as store:
            store.put_volume(VolumeRecord(name, path, "svi"))
        opened: dict[str, Any] = self.call("volume.open", name=name, path=path)
        return opened

    def uri(self, name: str) -> str:
        return next(str(v["uri"]) for v in self.call("volume.list") if v["name"] == name)

    def digest(self, name: str) -> str:
        with (self.volume_dir / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def events(self) -> list[str]:
        return [e["name"] for e in self.call("events.take", after=0, limit=500)["events"]]


class Pair:
    """A replication set between two engines."""

    def __init__(
        self, a: EngineProcess, b: EngineProcess, size_bytes: int, secondary_bytes: int = 0
    ) -> None:
        self.a, self.b = a, b
        self.size_bytes = size_bytes
        self.set_id = uuid.uuid4().hex
        self.autosync = False
        self.peer_link = b.address
        a.make_volume("data", size_bytes)
        b.make_volume("data", secondary_bytes or size_bytes)

    def spec(self, engine: EngineProcess, block_bytes: int = BLOCK_BYTES) -> dict[str, Any]:
        other = self.b if engine is self.a else self.a
        bitmap = engine.data_dir / "metadata" / "pair.bitmap"
        if not bitmap.exists():
            with bitmap.open("wb") as file:
                file.truncate(bitmap_bytes(self.size_bytes, block_bytes))
        return {
            "set_id": self.set_id,
            "name": "pair",
            "role": "primary" if engine is self.a else "secondary",
            "mode": "sync",
            "group": None,
            "volume": "data",
            "bitmap": None,
            "bitmap_path": str(bitmap),
            "size_bytes": self.size_bytes,
            "block_bytes": block_bytes,
            "autosync": self.autosync,
            "peer_host": other.host,
            "peer_volume": "data",
            "peer_bitmap": None,
            "peer_link": other.address,
        }

    def enable(self, init: str = "dirty", block_bytes: int = BLOCK_BYTES) -> Pair:
        for engine in (self.a, self.b):
            spec = self.spec(engine, block_bytes)
            record = SetRecord("replication", "pair", self.set_id, True, spec)
            with ConfigStore(engine.settings.host.config_path) as store:
                store.put_set(record, [Use("data", "replication", "pair", str(spec["role"]))])
            engine.call("set.enable", spec=spec, init=init)
        return self

    def show(self, engine: EngineProcess | None = None) -> dict[str, Any]:
        shown: dict[str, Any] = (engine or self.a).call("set.show", set_id=self.set_id)
        return shown

    def start_sync(self, kind: str = "update", keep: str | None = None) -> dict[str, Any]:
        job: dict[str, Any] = self.a.call(
            "set.sync", set_id=self.set_id, kind=kind, keep=keep, peer_link=self.peer_link
        )
        return job

    def wait_job(self, job: dict[str, Any], timeout_s: float = 60.0) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            now: dict[str, Any] = self.a.call("job.show", job_id=job["job_id"])
            return None if now["state"] == "running" else now

        found: dict[str, Any] = wait_for(ended, timeout_s, f"the job {job}")
        return found

    def sync(self, kind: str = "update", keep: str | None = None) -> dict[str, Any]:
        return self.wait_job(self.start_sync(kind, keep))

    def assert_equal(self) -> None:
        assert self.a.digest("data") == self.b.digest("data")


def new_secret() -> str:
    return secrets.token_hex(16)
