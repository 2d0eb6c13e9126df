"""What tracking costs: a volume whose every write is tracked against the same volume without a set.

One engine, two volumes in /dev/shm. `tracked` belongs to a set in logging whose bitmap is clean
before the run, so the first write to each block sets its bit durably; `hot` is run again with all
bits set. fio drives plain and tracked in turn; medians over the rounds.

    python bench/bench_bitmap.py [--rounds 5] [--seconds 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.engine.harness import MIB, EngineProcess, Pair, new_secret  # noqa: E402

SIZE_BYTES = 1024 * MIB
DEPTHS = (1, 32)


def rate(uri: str, depth: int, seconds: int) -> float:
    """Return 4 KiB random writes a second."""
    command = [
        "fio", "--name=w", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k",
        f"--iodepth={depth}", f"--size={SIZE_BYTES}", "--time_based", f"--runtime={seconds}",
        "--thread", "--randrepeat=0", "--output-format=json",
    ]  # fmt: skip
    out = subprocess.run(command, check=True, capture_output=True).stdout
    return float(json.loads(out[out.index(b"{") :])["jobs"][0]["write"]["iops"])


def prepare(base: Path) -> tuple[EngineProcess, EngineProcess, Pair]:
    """Start an engine with a plain volume and one in a clean set; the other side takes no part."""
    secret = new_secret()
    a, b = (EngineProcess(base, host, secret).start() for host in ("host_a", "host_b"))
    pair = Pair(a, b, SIZE_BYTES)
    for name in ("data", "plain"):
        if name == "plain":
            a.make_volume(name, SIZE_BYTES)
        with (a.volume_dir / name).open("r+b") as image:
            for _ in range(SIZE_BYTES // MIB):
                image.write(b"\x5a" * MIB)
    pair.enable("clean")
    return a, b, pair


def measure(base: Path, rounds: int, seconds: int) -> dict[str, float]:
    """Run plain and tracked in turn, first clean, then hot."""
    a, b, pair = prepare(base)
    try:
        result: dict[str, float] = {}
        plain, tracked = a.uri("plain"), a.uri("data")
        rate(plain, 32, 1)
        result["first_writes_ratio_depth32"] = rate(tracked, 32, seconds) / rate(plain, 32, seconds)
        for depth in DEPTHS:
            rates: dict[str, list[float]] = {plain: [], tracked: []}
            for number in range(rounds):
                for uri in (plain, tracked) if number % 2 else (tracked, plain):
                    rates[uri].append(rate(uri, depth, seconds))
            middle = {uri: statistics.median(found) for uri, found in rates.items()}
            result[f"plain_per_s_depth{depth}"] = middle[plain]
            result[f"tracked_per_s_depth{depth}"] = middle[tracked]
            result[f"ratio_depth{depth}"] = middle[tracked] / middle[plain]
        result["dirty_blocks"] = float(pair.show()["dirty_blocks"])
        return result
    finally:
        for engine in (a, b):
            engine.dispose()


def main() -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="trellis-bench-", dir="/dev/shm"))
    try:
        result = measure(base, arguments.rounds, arguments.seconds)
    finally:
        shutil.rmtree(base)
    for name, value in result.items():
        print(f"{name:28} {value:12.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
