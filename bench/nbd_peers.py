"""The servers that NBD benches compare, each in a process of its own, and fio to drive them.

Ours serves a file through the whole stack but without the rest of the engine. The peers run with
their best options for a file in the page cache: nbdkit with its default 16 threads a connection,
qemu-nbd with write-back, io_uring and trim.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("nbdkit", "qemu-nbd")
TOOLS = ("fio", *PEERS)
READY_TIMEOUT_S = 20
FIO_GRACE_S = 60
PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Server:
    """A running server: where it listens and whose processor time counts."""

    uri: str
    pid: int


@dataclass(frozen=True)
class Case:
    """One way to drive a server; `fsync` flushes after each write."""

    name: str
    rw: str
    block_bytes: int
    depth: int
    jobs: int = 1
    fsync: bool = False


@dataclass(frozen=True)
class Run:
    """What one fio run showed."""

    rate_per_s: float
    cpu_s_per_100k: float


def make_image(path: Path, size_bytes: int) -> Path:
    """Make an image without holes, so that every read finds data."""
    piece = os.urandom(PIECE_BYTES)
    with path.open("wb") as image:
        for _ in range(size_bytes // PIECE_BYTES):
            image.write(piece)
        image.flush()
        os.fsync(image.fileno())
    return path


@contextmanager
def serving(
    names: tuple[str, ...], image: Path, simple: bool = False
) -> Iterator[dict[str, Server]]:
    """Run these servers on one and the same image: `ours` or one of PEERS."""
    with ExitStack() as running:
        yield {name: running.enter_context(one_server(name, image, simple)) for name in names}


@contextmanager
def one_server(name: str, image: Path, simple: bool) -> Iterator[Server]:
    path = image.parent / f"{name}.sock"
    commands = {
        "ours": [sys.executable, "-m", "bench.nbd_peers", str(image), str(path)],
        "nbdkit": ["nbdkit", "-f", "-U", str(path), "file", str(image)],
        "qemu-nbd": [
            "qemu-nbd", "--persistent", "--shared=0", "--cache=writeback", "--aio=io_uring",
            "--discard=unmap", "--format=raw", f"--socket={path}", str(image),
        ],
    }  # fmt: skip
    command = commands[name] + (["--simple"] if simple and name == "ours" else [])
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        wait_for_file(path, process)
        yield Server(f"nbd+unix:///?socket={quote(str(path))}", process.pid)
    finally:
        process.terminate()
        process.wait(READY_TIMEOUT_S)
        path.unlink(missing_ok=True)


def wait_for_file(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Return once `path` is there; raise RuntimeError when its maker ends or takes too long."""
    pause = threading.Event()
    for _ in range(READY_TIMEOUT_S * 100):
        if path.exists():
            return
        if process.poll() is not None:
            break
        pause.wait(0.01)
    raise RuntimeError(f"{path.name} did not appear")


def run_fio(server: Server, case: Case, seconds: int, span_bytes: int) -> Run:
    """Drive a server once within the first `span_bytes`."""
    command = [
        "fio", f"--name={case.name}", "--ioengine=nbd", f"--uri={server.uri}", f"--rw={case.rw}",
        f"--bs={case.block_bytes}", f"--iodepth={case.depth}", f"--numjobs={case.jobs}",
        f"--size={span_bytes}", "--time_based", f"--runtime={seconds}", "--group_reporting",
        "--output-format=json", "--thread", "--randrepeat=0",
    ]  # fmt: skip
    if case.fsync:
        command.append("--fsync=1")
    before = cpu_seconds(server.pid)
    finished = subprocess.run(
        command, check=True, capture_output=True, timeout=seconds + FIO_GRACE_S
    )
    used_s = cpu_seconds(server.pid) - before
    report = json.loads(finished.stdout[finished.stdout.index(b"{") :])["jobs"][0]
    side = report["read" if "read" in case.rw else "write"]
    return Run(side["iops"], used_s / side["total_ios"] * 100_000)


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks_per_s: int = os.sysconf("SC_CLK_TCK")
    return (int(fields[11]) + int(fields[12])) / ticks_per_s


def serve(image: Path, socket_path: Path, simple: bool) -> None:
    """Serve `image` until SIGTERM, with simple replies only if `simple`."""
    from facade.engine.file_volume import FileVolume
    from facade.engine.nbd_server import NbdServer
    from facade.engine.volume_stack import VolumeStack

    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    volume = FileVolume(image)
    stack = VolumeStack(volume)
    server = NbdServer(stack, socket_path, can_trim=volume.can_punch, structured=not simple)
    server.start()
    ended.wait()
    server.stop()
    stack.close()
    volume.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Our server alone, until SIGTERM.")
    parser.add_argument("image", type=Path)
    parser.add_argument("socket", type=Path)
    parser.add_argument("--simple", action="store_true")
    given = parser.parse_args()
    serve(given.image, given.socket, given.simple)
