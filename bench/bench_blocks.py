"""Block kernels against `qemu-img`, `nbdcopy`, `cp` and plain memcmp, on files in the page cache.

Two equal files without holes, in /dev/shm and on a disk. In each round every side runs once, in
turn; medians over the rounds. Ours runs in this process, the peers' times include their start
(about 0.02 s). memcmp is the C library's over both files mapped and touched before, so no byte is
copied: what no reader by requests can reach.

    python bench/bench_blocks.py [--rounds 5] [--mib 1024] [--disk FOLDER] [--json FILE]
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.figures import Figure, load, print_figures, store  # noqa: E402
from facade.engine.block_copy import CopyJob  # noqa: E402
from facade.engine.block_job import BlockJob  # noqa: E402
from facade.engine.block_scan import CompareJob, DigestJob, ZeroScanJob  # noqa: E402
from facade.engine.file_volume import FileVolume  # noqa: E402

MIB = 1 << 20
GB = 1e9
THREADS = len(os.sched_getaffinity(0))
Sides = dict[str, Callable[[], None]]


def medians(sides: Sides, rounds: int) -> dict[str, float]:
    """Run all sides in turn, the order turned round each time; return the median seconds."""
    for run in sides.values():
        run()
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            begun = time.perf_counter()
            sides[name]()
            spent[name].append(time.perf_counter() - begun)
    return {name: statistics.median(found) for name, found in spent.items()}


def program(*command: str | Path) -> Callable[[], None]:
    """A side that runs a program to its good end."""
    return lambda: subprocess.run([str(one) for one in command], check=True, capture_output=True)


class Mapped:
    """Both files mapped, for plain memcmp."""

    def __init__(self, paths: list[Path]) -> None:
        self.maps = []
        for path in paths:
            with path.open("r+b") as image:
                self.maps.append(mmap.mmap(image.fileno(), 0, flags=mmap.MAP_SHARED))
        self.keep = [ctypes.c_char.from_buffer(one) for one in self.maps]
        self.at = [ctypes.addressof(one) for one in self.keep]
        self.size = len(self.maps[0])
        self.memcmp = ctypes.CDLL(None).memcmp
        self.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

    def compare(self, threads: int) -> None:
        """Compare all of it, each thread a part of its own."""
        part = self.size // threads
        equal: list[bool] = []

        def body(start: int) -> None:
            equal.append(self.memcmp(self.at[0] + start, self.at[1] + start, part) == 0)

        workers = [threading.Thread(target=body, args=(n * part,)) for n in range(threads)]
        for one in workers:
            one.start()
        for one in workers:
            one.join()
        if equal != [True] * threads:
            raise RuntimeError("the files are not equal")

    def close(self) -> None:
        """Unmap."""
        self.keep.clear()
        for one in self.maps:
            one.close()


def whole(make: Callable[[], BlockJob]) -> Callable[[], None]:
    """A side that makes a job anew and runs it."""

    def run() -> None:
        make().run()

    return run


def measure_compare(place: str, paths: list[Path], rounds: int) -> list[Figure]:
    """Ours against qemu-img and memcmp, on these equal files."""
    left, right = (FileVolume(path, read_only=True) for path in paths)
    mapped = Mapped(paths)
    sides: Sides = {
        "ours": whole(lambda: CompareJob(left, right)),
        "ours_1": whole(lambda: CompareJob(left, right, threads=1)),
        "memcmp": lambda: mapped.compare(THREADS),
        "memcmp_1": lambda: mapped.compare(1),
        "qemu-img": program("qemu-img", "compare", "-f", "raw", "-F", "raw", *paths),
    }
    try:
        spent = medians(sides, rounds)
    finally:
        mapped.close()
        left.close()
        right.close()
    rate = {name: left.size_bytes / seconds / GB for name, seconds in spent.items()}
    words = ", ".join(f"{name} {value:.2f}" for name, value in rate.items()) + " GB/s of each file"
    return [
        Figure(f"blocks_compare_{place}", rate["ours"] / rate["qemu-img"], target=1.0, about=words),
        Figure(f"blocks_compare_{place}_one_thread", rate["ours_1"] / rate["qemu-img"]),
        Figure(f"blocks_memcmp_share_{place}", rate["ours"] / rate["memcmp"]),
        Figure(f"blocks_memcmp_share_{place}_one_thread", rate["ours_1"] / rate["memcmp_1"]),
    ]


def measure_copy(path: Path, rounds: int) -> list[Figure]:
    """Ours against the copying programs, each into a new file, none flushed."""
    source = FileVolume(path, read_only=True)

    def fresh(name: str) -> Path:
        target = path.with_name(f"copy-{name}")
        target.unlink(missing_ok=True)
        return target

    def ours() -> None:
        target = fresh("ours")
        with target.open("wb") as image:
            image.truncate(source.size_bytes)
        volume = FileVolume(target)
        CopyJob(source, volume, target_is_zero=True, durable=False).run()
        volume.close()

    convert = ("qemu-img", "convert", "-f", "raw", "-O", "raw")
    sides: Sides = {
        "ours": ours,
        "qemu-img": lambda: program(*convert, path, fresh("qemu"))(),
        "nbdcopy": lambda: program("nbdcopy", path, fresh("nbdcopy"))(),
        "cp": lambda: program("cp", "--sparse=always", path, fresh("cp"))(),
    }
    try:
        spent = medians(sides, rounds)
    finally:
        source.close()
    rate = {name: source.size_bytes / seconds / GB for name, seconds in spent.items()}
    words = ", ".join(f"{name} {value:.2f}" for name, value in rate.items()) + " GB/s"
    return [
        Figure(f"blocks_copy_to_{name}", rate["ours"] / rate[name], about=words)
        for name in ("qemu-img", "nbdcopy", "cp")
    ]


def measure_scans(path: Path, rounds: int) -> list[Figure]:
    """Digests of the file, and a zero scan of zeroes that were written."""
    zeroes = path.with_name("zeroes")
    with zeroes.open("wb") as image:
        for _ in range(path.stat().st_size // MIB):
            image.write(bytes(MIB))
    volume, zero_volume = FileVolume(path, read_only=True), FileVolume(zeroes, read_only=True)
    sides: Sides = {
        "digest": whole(lambda: DigestJob(volume, bytes(32))),
        "digest_one_thread": whole(lambda: DigestJob(volume, bytes(32), threads=1)),
        "zero_scan": whole(lambda: ZeroScanJob(zero_volume)),
        "zero_scan_one_thread": whole(lambda: ZeroScanJob(zero_volume, threads=1)),
    }
    try:
        spent = medians(sides, rounds)
    finally:
        volume.close()
        zero_volume.close()
    return [
        Figure(f"blocks_{name}", volume.size_bytes / seconds / GB, "GB/s")
        for name, seconds in spent.items()
    ]


def make_pair(folder: Path, size_bytes: int) -> list[Path]:
    """Two equal files without holes, read once."""
    paths = [folder / "left", folder / "right"]
    pieces = [os.urandom(MIB) for _ in range(16)]
    for path in paths:
        with path.open("wb") as image:
            for number in range(size_bytes // MIB):
                image.write(pieces[number % len(pieces)])
            image.flush()
            os.fsync(image.fileno())
    return paths


def main() -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=1024, help="size of each file")
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures: list[Figure] = []
    print(f"{THREADS} threads, {load()}", flush=True)
    for place, parent in (("memory", Path("/dev/shm")), ("disk", arguments.disk)):
        folder = Path(tempfile.mkdtemp(prefix="trellis-bench-", dir=parent))
        try:
            paths = make_pair(folder, arguments.mib * MIB)
            figures += measure_compare(place, paths, arguments.rounds)
            if place == "memory":
                paths[1].unlink()
                figures += measure_copy(paths[0], arguments.rounds)
                figures += measure_scans(paths[0], arguments.rounds)
        finally:
            shutil.rmtree(folder)
    print_figures(figures)
    print(load())
    store(arguments.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
