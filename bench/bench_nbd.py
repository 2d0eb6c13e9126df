"""Rate and processor time of our NBD export against `nbdkit file`, side by side.

Both serve a file of their own in /dev/shm over a Unix socket, fio drives them in turn, each run of
ours next to one of theirs. Reported are medians over the rounds, the ratio ours/theirs of the rate
and of the server's processor time (user and system) per 100,000 requests.

    python bench/bench_nbd.py [--rounds 5] [--seconds 2] [--json FILE] [--case NAME]... [--simple]

fio's NBD library agrees on structured replies with both; with `--simple` ours offers none.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

IMAGE_BYTES = 1 << 30
READY_TIMEOUT_S = 20
FIO_GRACE_S = 30


@dataclass(frozen=True)
class Case:
    """One way to drive a server."""

    name: str
    rw: str
    block_bytes: int
    depth: int
    jobs: int = 1


CASES = (
    Case("randread-4k-qd1", "randread", 4096, 1),
    Case("randwrite-4k-qd1", "randwrite", 4096, 1),
    Case("randread-4k-qd1-4c", "randread", 4096, 1, 4),
    Case("randread-4k-qd32", "randread", 4096, 32),
    Case("randwrite-4k-qd32", "randwrite", 4096, 32),
    Case("randread-4k-qd32-4c", "randread", 4096, 32, 4),
    Case("randwrite-4k-qd32-4c", "randwrite", 4096, 32, 4),
    Case("read-1m-qd8", "read", 1 << 20, 8),
    Case("write-1m-qd8", "write", 1 << 20, 8),
)


@dataclass(frozen=True)
class Run:
    """What one fio run showed."""

    rate_per_s: float
    cpu_s_per_100k: float


@dataclass(frozen=True)
class Result:
    """Medians of one case."""

    case: str
    ours_per_s: float
    theirs_per_s: float
    rate_ratio: float
    ours_cpu_s_per_100k: float
    theirs_cpu_s_per_100k: float
    cpu_ratio: float


@dataclass(frozen=True)
class Server:
    """A running server: where it listens and whose processor time counts."""

    uri: str
    pid: int


def main() -> int:
    """Run the bench, or with --serve the server that it measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="length of one fio run")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("--simple", action="store_true", help="offer no structured replies")
    parser.add_argument("--serve", nargs=2, metavar=("IMAGE", "SOCKET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(Path(options.serve[0]), Path(options.serve[1]), options.simple)
        return 0
    missing = [tool for tool in ("fio", "nbdkit") if shutil.which(tool) is None]
    if missing:
        print(f"bench_nbd needs {' and '.join(missing)}; install them first", file=sys.stderr)
        return 1
    cases = [case for case in CASES if not options.case or case.name in options.case]
    results = compare(cases, options.rounds, options.seconds, options.simple)
    print_table(results)
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=2))
    return 0


def serve(image: Path, socket_path: Path, is_simple: bool) -> None:
    """Serve `image` until SIGTERM, with simple replies only if `is_simple`."""
    from facade.engine.file_volume import FileVolume
    from facade.engine.nbd_server import NbdServer
    from facade.engine.volume_stack import VolumeStack

    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    volume = FileVolume(image)
    stack = VolumeStack(volume)
    server = NbdServer(stack, socket_path, can_trim=volume.can_punch, structured=not is_simple)
    server.start()
    print("ready", flush=True)
    ended.wait()
    server.stop()
    stack.close()
    volume.close()


def compare(cases: list[Case], rounds: int, seconds: int, is_simple: bool) -> list[Result]:
    """Measure every case, our runs and theirs alternating, who is first alternating too."""
    results = []
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="bench-nbd-") as folder:
        here = Path(folder)
        with our_server(here, is_simple) as ours, their_server(here) as theirs:
            for case in cases:
                runs: dict[str, list[Run]] = {"ours": [], "theirs": []}
                for number in range(rounds):
                    pair = [("ours", ours), ("theirs", theirs)]
                    for who, server in pair if number % 2 == 0 else reversed(pair):
                        runs[who].append(run_fio(server, case, seconds))
                results.append(summarise(case, runs["ours"], runs["theirs"]))
                print(f"{case.name}: rate ratio {results[-1].rate_ratio:.2f}", file=sys.stderr)
    return results


def summarise(case: Case, ours: list[Run], theirs: list[Run]) -> Result:
    """Return the medians of both and their ratios."""

    def middle(runs: list[Run], field: str) -> float:
        return float(statistics.median(getattr(run, field) for run in runs))

    rates = middle(ours, "rate_per_s"), middle(theirs, "rate_per_s")
    costs = middle(ours, "cpu_s_per_100k"), middle(theirs, "cpu_s_per_100k")
    return Result(case.name, *rates, rates[0] / rates[1], *costs, costs[0] / costs[1])


def print_table(results: list[Result]) -> None:
    """Print one line a case."""
    print(f"{'case':<22}{'ours/s':>10}{'nbdkit/s':>10}{'ratio':>7}"
          f"{'cpu s/100k':>12}{'nbdkit':>8}{'ratio':>7}")  # fmt: skip
    for one in results:
        print(f"{one.case:<22}{one.ours_per_s:>10.0f}{one.theirs_per_s:>10.0f}"
              f"{one.rate_ratio:>7.2f}{one.ours_cpu_s_per_100k:>12.2f}"
              f"{one.theirs_cpu_s_per_100k:>8.2f}{one.cpu_ratio:>7.2f}")  # fmt: skip


def make_image(path: Path) -> Path:
    """Make an image without holes, so that every read finds a page."""
    piece = os.urandom(1 << 20)
    with path.open("wb") as image:
        for _ in range(IMAGE_BYTES // len(piece)):
            image.write(piece)
    return path


@contextmanager
def our_server(folder: Path, is_simple: bool) -> Iterator[Server]:
    """Run our server in a process of its own."""
    image, path = make_image(folder / "ours.img"), folder / "ours.sock"
    command = [sys.executable, __file__, "--serve", str(image), str(path)]
    command += ["--simple"] if is_simple else []
    root = str(Path(__file__).resolve().parent.parent)
    environ = {**os.environ, "PYTHONPATH": root}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environ)
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != b"ready":
            raise RuntimeError("our server did not start")
        yield Server(f"nbd+unix:///?socket={path}", process.pid)
    finally:
        process.terminate()
        process.wait(READY_TIMEOUT_S)


@contextmanager
def their_server(folder: Path) -> Iterator[Server]:
    """Run `nbdkit file` in the foreground of a child process."""
    image, path = make_image(folder / "theirs.img"), folder / "theirs.sock"
    process = subprocess.Popen(["nbdkit", "-f", "-U", str(path), "file", str(image)])
    try:
        wait_for_file(path, process)
        yield Server(f"nbd+unix:///?socket={path}", process.pid)
    finally:
        process.terminate()
        process.wait(READY_TIMEOUT_S)


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


def run_fio(server: Server, case: Case, seconds: int) -> Run:
    """Drive a server once."""
    command = [
        "fio", f"--name={case.name}", "--ioengine=nbd", f"--uri={server.uri}", f"--rw={case.rw}",
        f"--bs={case.block_bytes}", f"--iodepth={case.depth}", f"--numjobs={case.jobs}",
        f"--size={IMAGE_BYTES}", "--time_based", f"--runtime={seconds}", "--group_reporting",
        "--output-format=json", "--thread", "--randrepeat=0",
    ]  # fmt: skip
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


if __name__ == "__main__":
    sys.exit(main())
