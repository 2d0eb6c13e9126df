"""Rate of `nbdcopy` to and from our TLS export against `nbdkit --tls=require`, page cache hot.

Both serve the same file over TCP on the loopback, in turn, with the same certificates, each to a
client that shows one. Reported are medians over the rounds, as ratios of the rate (above 1 is
better than nbdkit), and of the processor time of the server process.

    python bench/bench_tls.py [--rounds 5] [--size-mib 512] [--json FILE] [--connections 0]

`--connections 0` leaves nbdcopy its own choice. Reading goes to `null:`, writing comes from a file
in /dev/shm; the image lies there too.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.figures import Figure, load, print_figures, store
from bench.nbd_peers import READY_TIMEOUT_S, ROOT, Server, cpu_seconds, make_image
from broker.embedded import free_ports
from console.supervisor_certificates import make_certificates
from console.supervisor_plan import CLIENT_NAME

HOST = "localhost"
EXPORT = "image"
SERVERS = ("ours", "nbdkit")
DIRECTIONS = ("read", "write")
TARGET = 1.0
COPY_TIMEOUT_S = 300


@dataclass(frozen=True)
class Run:
    """One copy."""

    mib_per_s: float
    cpu_s_per_gib: float


def main() -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size-mib", type=int, default=512)
    parser.add_argument("--connections", type=int, default=0, help="of nbdcopy; 0: its choice")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument(
        "--serve", nargs=3, metavar=("IMAGE", "TLS", "PORT"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.serve:
        serve(Path(options.serve[0]), Path(options.serve[1]), int(options.serve[2]))
        return 0
    missing = [tool for tool in ("nbdcopy", "nbdkit", "openssl") if shutil.which(tool) is None]
    if missing:
        print(f"bench_tls needs {' and '.join(missing)}; install them first", file=sys.stderr)
        return 1
    runs: dict[str, dict[str, list[Run]]] = {d: {s: [] for s in SERVERS} for d in DIRECTIONS}
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="bench-tls-") as folder:
        tls = Path(folder) / "tls"
        make_certificates(tls, [HOST])
        source = make_image(Path(folder) / "source", options.size_mib << 20)
        image = make_image(Path(folder) / EXPORT, options.size_mib << 20)
        for number in range(options.rounds):
            for name in SERVERS if number % 2 == 0 else reversed(SERVERS):
                with serving(name, image, tls) as server:
                    for direction in DIRECTIONS:
                        run = copy(server, direction, source, options)
                        runs[direction][name].append(run)
            print(f"round {number + 1}: done, {load()}", file=sys.stderr, flush=True)
    figures = [one for direction in DIRECTIONS for one in figures_of(direction, runs[direction])]
    print_figures(figures)
    raw = {d: {s: [asdict(run) for run in runs[d][s]] for s in SERVERS} for d in DIRECTIONS}
    store(options.json, figures, runs=raw)
    return 0


def figures_of(direction: str, runs: dict[str, list[Run]]) -> list[Figure]:
    """Return the ratios of the medians."""
    rate = {s: statistics.median(run.mib_per_s for run in runs[s]) for s in SERVERS}
    cost = {s: statistics.median(run.cpu_s_per_gib for run in runs[s]) for s in SERVERS}
    return [
        Figure(
            f"nbdcopy over TLS, {direction}, rate", rate["ours"] / rate["nbdkit"], "x", TARGET,
            about=", ".join(f"{name} {rate[name]:.0f} MiB/s" for name in SERVERS),
        ),
        Figure(
            f"nbdcopy over TLS, {direction}, processor time", cost["ours"] / cost["nbdkit"], "x",
            is_lower_better=True,
            about=", ".join(f"{name} {cost[name]:.2f} s/GiB" for name in SERVERS),
        ),
    ]  # fmt: skip


@contextmanager
def serving(name: str, image: Path, tls: Path) -> Iterator[Server]:
    """Run one server on a port of its own."""
    (port,) = free_ports(1)
    commands = {
        "ours": [sys.executable, __file__, "--serve", str(image), str(tls), str(port)],
        "nbdkit": [
            "nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "--tls=require",
            "--tls-verify-peer", f"--tls-certificates={tls / HOST}", "file", str(image),
        ],
    }  # fmt: skip
    process = subprocess.Popen(commands[name], cwd=ROOT)
    try:
        wait_for_port(port, process)
        certificates = quote(str(tls / "client"))
        uri = f"nbds://127.0.0.1:{port}/{EXPORT}?tls-certificates={certificates}"
        yield Server(uri, process.pid)
    finally:
        process.terminate()
        process.wait(READY_TIMEOUT_S)


def copy(server: Server, direction: str, source: Path, options: argparse.Namespace) -> Run:
    """Copy the whole image once."""
    ends = [server.uri, "null:"] if direction == "read" else [str(source), server.uri]
    more = ["-C", str(options.connections)] if options.connections else []
    before, began = cpu_seconds(server.pid), time.perf_counter()
    subprocess.run(["nbdcopy", *more, *ends], check=True, timeout=COPY_TIMEOUT_S)
    spent_s = time.perf_counter() - began
    used_s = cpu_seconds(server.pid) - before
    return Run(options.size_mib / spent_s, used_s * 1024 / options.size_mib)


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return once somebody listens; raise RuntimeError when it ends or takes too long."""
    pause = threading.Event()
    for _ in range(READY_TIMEOUT_S * 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        pause.wait(0.01)
    raise RuntimeError(f"nobody listens on port {port}")


def serve(image: Path, tls: Path, port: int) -> None:
    """Export `image` with TLS until SIGTERM."""
    from facade.contract.settings import ExportSettings
    from facade.engine.file_volume import FileVolume
    from facade.engine.nbd_server import NbdServer
    from facade.engine.tcp_exports import TcpExports
    from facade.engine.volume_stack import VolumeStack

    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    volume = FileVolume(image)
    stack = VolumeStack(volume)
    server = NbdServer(stack, image.parent / "sock", EXPORT, can_trim=volume.can_punch)
    server.start()
    settings = ExportSettings(
        listen=f"127.0.0.1:{port}",
        certificate=tls / HOST / "server-cert.pem",
        key=tls / HOST / "server-key.pem",
        ca=tls / HOST / "ca-cert.pem",
    )
    exports = TcpExports(settings, HOST, lambda *_, **__: None)
    exports.add(server, False, (CLIENT_NAME,))
    ended.wait()
    exports.stop()
    server.stop()
    stack.close()
    volume.close()


if __name__ == "__main__":
    sys.exit(main())
