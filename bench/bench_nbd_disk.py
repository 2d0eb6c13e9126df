"""NBD on a real disk: cold random reads against the better peer, and write-then-flush at depth 1.

Cold: before each run the file is dropped from the page cache (fsync, then posix_fadvise DONTNEED);
then 4 KiB random reads at depth 32, no block twice. Flush: an engine with a plain volume and one
that a set in logging tracks (its bitmap covers the region before the run: hot), 4 KiB random writes
at depth 1 with a flush after each, against `nbdkit file`. All in turn, medians over the rounds.

    python bench/bench_nbd_disk.py [--rounds 5] [--seconds 2] [--json FILE] [--only cold|flush]
                                   [--folder DIR]

The folder must lie on a disk, not in memory: /var/tmp unless `--folder` names another one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.figures import Figure, load, print_figures, store
from bench.nbd_peers import (
    PEERS,
    TOOLS,
    Case,
    Run,
    Server,
    make_image,
    one_server,
    run_fio,
    serving,
)
from tests.engine.harness import MIB, EngineProcess, Pair, new_secret

COLD_BYTES = 2048 * MIB
FLUSH_BYTES = 64 * MIB
COLD = Case("randread-4k-qd32-cold", "randread", 4096, 32)
FLUSH = Case("write-flush-4k-qd1", "randwrite", 4096, 1, fsync=True)
SERVERS = ("ours", *PEERS)
COLD_TARGET = 1.0
FLUSH_PLAIN_TARGET = 1.0
FLUSH_TRACKED_TARGET = 0.9
# Of the file, still in the page cache after it was dropped.
CACHED_SHARE_MAX = 0.01


def make_cold(path: Path) -> None:
    """Drop a file from the page cache; RuntimeError when much of it stays there."""
    with path.open("rb") as image:
        os.fsync(image.fileno())
        os.posix_fadvise(image.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]
    cached = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if cached > COLD_BYTES * CACHED_SHARE_MAX:
        raise RuntimeError(
            f"{path}: {cached} bytes stay in the page cache; the folder must lie on a disk"
        )


def cold(folder: Path, rounds: int, seconds: int) -> list[Figure]:
    """Compare cold reads."""
    image = make_image(folder / "image", COLD_BYTES)
    runs: dict[str, list[Run]] = {name: [] for name in SERVERS}
    with serving(SERVERS, image) as servers:
        for number in range(rounds):
            first = number % len(SERVERS)
            for name in (*SERVERS[first:], *SERVERS[:first]):
                make_cold(image)
                runs[name].append(run_fio(servers[name], COLD, seconds, COLD_BYTES))
    image.unlink()
    rate = {name: statistics.median(r.rate_per_s for r in found) for name, found in runs.items()}
    cost = {n: statistics.median(r.cpu_s_per_100k for r in found) for n, found in runs.items()}
    peer = max(PEERS, key=lambda name: rate[name])
    words = ", ".join(f"{name} {rate[name]:.0f}" for name in SERVERS)
    costs = ", ".join(f"{name} {cost[name]:.2f}" for name in SERVERS)
    return [
        Figure(
            f"{COLD.name} rate", rate["ours"] / rate[peer], "x", COLD_TARGET, about=f"{words} /s",
        ),
        Figure(
            f"{COLD.name} processor time", cost["ours"] / cost[peer], "x", is_lower_better=True,
            about=f"{costs} s/100k (better by rate: {peer})",
        ),
    ]  # fmt: skip


def flush(folder: Path, rounds: int, seconds: int) -> list[Figure]:
    """Compare write-then-flush."""
    secret = new_secret()
    image = make_image(folder / "image", FLUSH_BYTES)
    a, b = (EngineProcess(folder, host, secret).start() for host in ("host_a", "host_b"))
    runs: dict[str, list[float]] = {"plain": [], "tracked": [], "nbdkit": []}
    try:
        pair = Pair(a, b, FLUSH_BYTES)
        a.make_volume("plain", FLUSH_BYTES)
        for name in ("data", "plain"):
            fill(a.volume_dir / name)
        pair.enable("clean")
        assert a.process is not None
        with one_server("nbdkit", image, False) as nbdkit:
            servers = {
                "plain": Server(a.uri("plain"), a.process.pid),
                "tracked": Server(a.uri("data"), a.process.pid),
                "nbdkit": nbdkit,
            }
            heat(servers["tracked"])
            blocks = FLUSH_BYTES // pair.show()["block_bytes"]
            if pair.show()["dirty_blocks"] != blocks:
                raise RuntimeError("the region is not hot: some of its bits are not set")
            names = tuple(servers)
            for number in range(rounds):
                first = number % len(names)
                for name in (*names[first:], *names[:first]):
                    run = run_fio(servers[name], FLUSH, seconds, FLUSH_BYTES)
                    runs[name].append(run.rate_per_s)
    finally:
        a.dispose()
        b.dispose()
    rate = {name: statistics.median(found) for name, found in runs.items()}
    words = ", ".join(f"{name} {found:.0f}" for name, found in rate.items())
    return [
        Figure(
            f"{FLUSH.name} no bitmap", rate["plain"] / rate["nbdkit"], "x", FLUSH_PLAIN_TARGET,
            about=f"{words} /s",
        ),
        Figure(
            f"{FLUSH.name} hot bitmap", rate["tracked"] / rate["nbdkit"], "x",
            FLUSH_TRACKED_TARGET, about=f"{rate['tracked'] / rate['plain']:.2f} of no bitmap",
        ),
    ]  # fmt: skip


def fill(path: Path) -> None:
    """Write the whole file durably, so that no run meets holes."""
    with path.open("r+b") as image:
        for _ in range(FLUSH_BYTES // MIB):
            image.write(b"\x5a" * MIB)
        image.flush()
        os.fsync(image.fileno())


def heat(server: Server) -> None:
    """Write every block once, so that its bit is set."""
    command = [
        "fio", "--name=heat", "--ioengine=nbd", f"--uri={server.uri}", "--rw=write", "--bs=1m",
        f"--size={FLUSH_BYTES}", "--thread", "--end_fsync=1",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)


def main() -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="length of one fio run")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("--only", choices=("cold", "flush"))
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    missing = [tool for tool in (*TOOLS, "fincore") if shutil.which(tool) is None]
    if missing:
        print(f"bench_nbd_disk needs {' and '.join(missing)}; install them first", file=sys.stderr)
        return 1
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-disk-") as folder:
        for name, measure in (("cold", cold), ("flush", flush)):
            if options.only in (None, name):
                figures += measure(Path(folder), options.rounds, options.seconds)
                print(f"{name}: done, {load()}", file=sys.stderr, flush=True)
    print_figures(figures)
    store(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
