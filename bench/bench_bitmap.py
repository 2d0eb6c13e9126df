"""What tracking costs: a volume whose every write is tracked against the same volume without a set.

One engine, two volumes; `data` belongs to a set in logging whose bitmap is clean before the run.

* Hot regions: fio's 4 KiB random writes over 1 GiB in /dev/shm, plain and tracked in turn.
* On a disk (`--disk`): writes with FUA, then writes with a flush, at depth 1, the same offset on
  both in turn. `cold`: each opens a cold extent. `opened`: first writes to clean blocks, 16 an
  extent, its opening among them. `hot`: blocks written before. A round's figure is that of its
  median extent (what others do on the same disk would decide a mean).
* The bitmap of 1 TiB with 1 % of the bits set at random: load, count and iterate; memory when idle.

Medians over the rounds.

    python bench/bench_bitmap.py [--rounds 5] [--seconds 2] [--disk DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import array
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.figures import Figure, load, print_figures, store
from facade.bitmap_size import BLOCK_BYTES, bitmap_bytes
from facade.engine.bitmap_header import BitmapHeader
from facade.engine.change_map import ChangeMap
from facade.engine.file_volume import FileVolume
from tests.engine.harness import MIB, EngineProcess, Pair, new_secret
from tests.engine.nbd_raw import FLUSH, FUA, RawClient, request, write

SHM_BYTES = 1024 * MIB
DISK_BYTES = 2048 * MIB
EXTENT_BYTES = 4 * MIB
TERABYTE = 1 << 40
COLD_SHARE = 2  # cold openings have the first half of the disk's volume, the rest the second
WRITES_AN_EXTENT = 16
EXTENTS_A_ROUND = 20
DATA = b"\xa7" * 4096


@contextmanager
def volumes(folder: Path, size_bytes: int) -> Iterator[tuple[str, str]]:
    """Addresses of a plain volume and of one in a clean set; the other side takes no part."""
    base = Path(tempfile.mkdtemp(prefix="trellis-bench-", dir=folder))
    secret = new_secret()
    engines = [EngineProcess(base, host, secret).start() for host in ("host_a", "host_b")]
    try:
        pair = Pair(engines[0], engines[1], size_bytes)
        engines[0].make_volume("plain", size_bytes)
        for name in ("data", "plain"):
            with (engines[0].volume_dir / name).open("r+b") as image:
                for _ in range(size_bytes // MIB):
                    image.write(b"\x5a" * MIB)
                os.fsync(image.fileno())
        pair.enable("clean")
        yield engines[0].uri("plain"), engines[0].uri("data")
    finally:
        for engine in engines:
            engine.dispose()
        shutil.rmtree(base)


# ---- hot regions in memory ---------------------------------------------------------------------


def fio_rate(uri: str, depth: int, seconds: int) -> float:
    """Return 4 KiB random writes a second."""
    command = [
        "fio", "--name=w", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k",
        f"--iodepth={depth}", f"--size={SHM_BYTES}", "--time_based", f"--runtime={seconds}",
        "--thread", "--randrepeat=0", "--output-format=json",
    ]  # fmt: skip
    out = subprocess.run(command, check=True, capture_output=True).stdout
    return float(json.loads(out[out.index(b"{") :])["jobs"][0]["write"]["iops"])


def hot_regions(rounds: int, seconds: int) -> Iterator[Figure]:
    """Rates with the bitmap against without, every block written before."""
    with volumes(Path("/dev/shm"), SHM_BYTES) as (plain, tracked):
        for depth in (1, 32):
            rates: dict[str, list[float]] = {plain: [], tracked: []}
            fio_rate(tracked, 32, seconds)
            for number in range(rounds):
                for uri in (plain, tracked) if number % 2 else (tracked, plain):
                    rates[uri].append(fio_rate(uri, depth, seconds))
            ratio = statistics.median(
                t / p for t, p in zip(rates[tracked], rates[plain], strict=True)
            )
            middle = {uri: statistics.median(found) for uri, found in rates.items()}
            about = f"{middle[tracked]:.0f}/s with, {middle[plain]:.0f}/s without"
            yield Figure(f"bitmap hot rate qd{depth}", ratio, target=0.95, about=about)


# ---- durable writes on a disk --------------------------------------------------------------------


class Writer:
    """One NBD connection at depth 1."""

    def __init__(self, uri: str) -> None:
        """Connect to a Unix socket's address."""
        self._client = RawClient(Path(uri.split("socket=", 1)[1]))

    def fua(self, offset: int) -> float:
        """Write 4 KiB durably; return the seconds it took."""
        return self._timed(write(offset, DATA, flags=FUA))

    def flushed(self, offset: int) -> float:
        """Write 4 KiB, then flush."""
        return self._timed(write(offset, DATA)) + self._timed(request(FLUSH))

    def _timed(self, message: bytes) -> float:
        sock = self._client.socket
        begun = time.perf_counter()
        sock.sendall(message)
        reply = sock.recv(16)
        took = time.perf_counter() - begun
        assert len(reply) == 16
        assert reply[4:8] == bytes(4)
        return took


def typical(
    groups: list[list[int]], plain: Callable[[int], float], tracked: Callable[[int], float]
) -> tuple[float, float]:
    """Mean seconds a write of both, at the same offsets in turn, in the median group."""
    took: tuple[list[float], list[float]] = ([], [])
    for group in groups:
        sums = [0.0, 0.0]
        for number, offset in enumerate(group):
            for which in (0, 1) if number % 2 else (1, 0):
                sums[which] += (plain, tracked)[which](offset)
        for which in (0, 1):
            took[which].append(sums[which] / len(group))
    return statistics.median(took[0]), statistics.median(took[1])


def durable_writes(folder: Path, rounds: int) -> Iterator[Figure]:
    """Latencies with the bitmap against without."""
    rng = random.Random(7)
    half = DISK_BYTES // EXTENT_BYTES // COLD_SHARE
    # Every other one: none opens its neighbour.
    cold = rng.sample(range(0, half, 2), half // 2)
    warm = rng.sample(range(half, 2 * half), half)
    found: dict[str, list[tuple[float, float]]] = {"cold": [], "opened": [], "hot": [], "flush": []}
    with volumes(folder, DISK_BYTES) as uris:
        plain, tracked = (Writer(uri) for uri in uris)
        for _ in range(rounds):
            groups = [[cold.pop() * EXTENT_BYTES] for _ in range(half // 2 // rounds)]
            found["cold"].append(typical(groups, plain.fua, tracked.fua))
            groups = []
            for extent in (warm.pop() for _ in range(EXTENTS_A_ROUND)):
                blocks = rng.sample(range(EXTENT_BYTES // BLOCK_BYTES), WRITES_AN_EXTENT)
                groups.append([extent * EXTENT_BYTES + block * BLOCK_BYTES for block in blocks])
            found["opened"].append(typical(groups, plain.fua, tracked.fua))
            found["hot"].append(typical(groups, plain.fua, tracked.fua))
            found["flush"].append(typical(groups, plain.flushed, tracked.flushed))
    limits = {"cold": 1.8, "opened": 1.3, "hot": None}
    for name, pairs in found.items():
        without, with_map = (1e6 * statistics.median(column) for column in zip(*pairs, strict=True))
        about = f"{with_map:.0f} us with, {without:.0f} us without"
        ratio = statistics.median(t / p for p, t in pairs)
        if name == "flush":
            title = "bitmap hot write+flush rate"
            yield Figure(title, 1 / ratio, target=0.9, about=about)
        else:
            title = f"bitmap FUA latency {name}"
            yield Figure(title, ratio, target=limits[name], is_lower_better=True, about=about)


# ---- one tebibyte --------------------------------------------------------------------------------


def resident_bytes() -> int:
    """Memory of this process that is its own."""
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def large_map(rounds: int) -> Iterator[Figure]:
    """Load, count, iterate; memory."""
    blocks = TERABYTE // BLOCK_BYTES
    rng = random.Random(7)
    words = array.array("Q", bytes(blocks // 8))
    for block in rng.sample(range(blocks), blocks // 100):
        words[block >> 6] |= 1 << (block & 63)
    header = BitmapHeader(bytes(16), "primary", "logging", frozenset(), BLOCK_BYTES, TERABYTE)
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.truncate(bitmap_bytes(TERABYTE))
        volume = FileVolume(file.name)
        made = ChangeMap(volume, TERABYTE, BLOCK_BYTES)
        made.format(header, False)
        made.merge(0, words.tobytes())
        made.sync()
        made.close()
        del made
        took, idle_bytes = [], []
        for _ in range(rounds):
            before = resident_bytes()
            begun = time.perf_counter()
            changes = ChangeMap(volume, TERABYTE, BLOCK_BYTES)
            why = changes.load(bytes(16))
            count = changes.dirty_blocks
            runs = changes.run_array(limit=count)
            took.append(time.perf_counter() - begun)
            assert why is None
            assert sum(runs[1::2]) == count == blocks // 100
            del runs
            idle_bytes.append(resident_bytes() - before)
            del changes
        volume.close()
    yield Figure(
        "bitmap 1 TiB load, count, iterate",
        1e3 * statistics.median(took),
        "ms",
        50,
        is_lower_better=True,
        about=f"{blocks // 100} bits set at random",
    )
    yield Figure(
        "bitmap 1 TiB memory",
        statistics.median(idle_bytes) / MIB,
        "MiB",
        5,
        is_lower_better=True,
    )


def main() -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="a folder on a disk")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = [*large_map(options.rounds), *durable_writes(options.disk, options.rounds)]
    figures += hot_regions(options.rounds, options.seconds)
    print_figures(figures)
    print(load())
    store(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
