"""Rate and processor time of our NBD export against `nbdkit file` and `qemu-nbd`, page cache hot.

All three serve the same file over Unix sockets, fio drives them in turn. Reported are medians over
the rounds, as ratios of ours to the better peer's: that is the one with the higher rate in that
case. Processor time is user and system time of the server process per 100,000 requests.

    python bench/bench_nbd.py [--rounds 5] [--seconds 2] [--json FILE] [--case NAME]... [--simple]
                              [--folder DIR]

fio's NBD library agrees on structured replies with all; with `--simple` ours offers none. The file
lies in /dev/shm unless `--folder` names another place.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.figures import Figure, load, print_figures, store
from bench.nbd_peers import PEERS, TOOLS, Case, Run, make_image, run_fio, serving

IMAGE_BYTES = 1 << 30
SERVERS = ("ours", *PEERS)
# Depth 32 at 4 KiB, depth 1, 1 MiB: ratios of the rate, and of the processor time at depth 32.
RATE_AT_32, RATE_AT_32_WANTED = 1.1, 1.3
CPU_AT_32, CPU_AT_32_WANTED = 0.6, 0.5
RATE_AT_1 = 1.2
RATE_LARGE = 1.0

CASES = (
    Case("randread-4k-qd1", "randread", 4096, 1),
    Case("randwrite-4k-qd1", "randwrite", 4096, 1),
    Case("randread-4k-qd32", "randread", 4096, 32),
    Case("randwrite-4k-qd32", "randwrite", 4096, 32),
    Case("randread-4k-qd32-4c", "randread", 4096, 32, 4),
    Case("randwrite-4k-qd32-4c", "randwrite", 4096, 32, 4),
    Case("read-1m-qd8", "read", 1 << 20, 8),
    Case("write-1m-qd8", "write", 1 << 20, 8),
)


@dataclass(frozen=True)
class Result:
    """Medians of one case by server."""

    case: Case
    rate_per_s: dict[str, float]
    cpu_s_per_100k: dict[str, float]

    @property
    def better(self) -> str:
        """The peer with the higher rate."""
        return max(PEERS, key=lambda name: self.rate_per_s[name])

    def figures(self) -> list[Figure]:
        """Return the ratios to the better peer, with their targets."""
        rate, cpu, peer = self.rate_per_s, self.cpu_s_per_100k, self.better
        is_deep = self.case.block_bytes == 4096 and self.case.depth > 1
        target, wanted = RATE_LARGE if self.case.block_bytes > 4096 else RATE_AT_1, None
        if is_deep:
            target, wanted = RATE_AT_32, RATE_AT_32_WANTED
        rates = ", ".join(f"{name} {rate[name]:.0f}" for name in SERVERS)
        costs = ", ".join(f"{name} {cpu[name]:.2f}" for name in SERVERS)
        return [
            Figure(
                f"{self.case.name} rate", rate["ours"] / rate[peer], "x", target, wanted,
                about=f"{rates} /s",
            ),
            Figure(
                f"{self.case.name} processor time", cpu["ours"] / cpu[peer], "x",
                CPU_AT_32 if is_deep else None, CPU_AT_32_WANTED if is_deep else None,
                is_lower_better=True, about=f"{costs} s/100k (better by rate: {peer})",
            ),
        ]  # fmt: skip


def main() -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="length of one fio run")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("--simple", action="store_true", help="offer no structured replies")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        print(f"bench_nbd needs {' and '.join(missing)}; install them first", file=sys.stderr)
        return 1
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-nbd-") as folder:
        image = make_image(Path(folder) / "image", IMAGE_BYTES)
        with serving(SERVERS, image, options.simple) as servers:
            for case in CASES:
                if options.case and case.name not in options.case:
                    continue
                runs: dict[str, list[Run]] = {name: [] for name in SERVERS}
                for number in range(options.rounds):
                    first = number % len(SERVERS)
                    for name in (*SERVERS[first:], *SERVERS[:first]):
                        run = run_fio(servers[name], case, options.seconds, IMAGE_BYTES)
                        runs[name].append(run)
                results.append(summarise(case, runs))
                print(f"{case.name}: done, {load()}", file=sys.stderr, flush=True)
    figures = [figure for result in results for figure in result.figures()]
    print_figures(figures)
    store(options.json, figures, cases=[asdict(result) for result in results])
    return 0


def summarise(case: Case, runs: dict[str, list[Run]]) -> Result:
    """Return the medians."""
    rates = {n: statistics.median(run.rate_per_s for run in found) for n, found in runs.items()}
    costs = {n: statistics.median(run.cpu_s_per_100k for run in found) for n, found in runs.items()}
    return Result(case, rates, costs)


if __name__ == "__main__":
    sys.exit(main())
