"""How long `trellis up` takes until every bean answers, and how much memory two hosts need.

Memory is the sum of the proportional set sizes of every process of the federation, engines
included, once it is ready and has run a synchronisation.

    python bench/bench_federation.py [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
UP_LIMIT_S = 20.0
MEMORY_LIMIT_MIB = 1536.0


def trellis(folder: Path, *words: str) -> Any:
    """Run a command with --json; returns its document."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TRELLIS_")}
    done = subprocess.run(
        [str(BIN / "trellis"), *words, "--json"],
        env={**environ, "TRELLIS_DIR": str(folder)},
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    return json.loads(done.stdout) if done.stdout else None


def processes(folder: Path) -> dict[int, str]:
    """Return every process of the federation: what the records name, and what those started."""
    known: dict[int, str] = {}
    for record in ("children.json", "engines.json"):
        document = json.loads((folder / "run" / record).read_text())
        known |= {entry[0]: name for name, entry in document["processes"].items()}
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = dict(known)
    grown = True
    while grown:
        grown = False
        for pid, parent in parents.items():
            if parent in found and pid not in found:
                found[pid] = found[parent]
                grown = True
    return found


def memory_mib(pid: int) -> float:
    """Return the proportional set size of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no proportional set size")


def one_round(folder: Path) -> tuple[float, dict[str, float]]:
    """Bring a federation up, use it, look at its memory, take it down."""
    started = time.monotonic()
    trellis(folder, "up", "--detach")
    ready_s = time.monotonic() - started
    try:
        for host, name in (("host_a", "va"), ("host_b", "vb")):
            trellis(folder, "volume", "create", name, "--size", "64M", "--host", host)
        sides = ("--primary", "host_a:va", "--secondary", "host_b:vb")
        trellis(folder, "replica", "create", "pair", *sides)
        trellis(folder, "replica", "sync", "pair", "--full")
        memory: dict[str, float] = {}
        for pid, name in processes(folder).items():
            memory[name] = memory.get(name, 0.0) + memory_mib(pid)
        return ready_s, memory
    finally:
        trellis(folder, "down")


def main() -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    times, memories = [], []
    for _ in range(arguments.rounds):
        folder = Path(tempfile.mkdtemp(prefix="trellis-bench-"))
        try:
            ready_s, memory = one_round(folder / "federation")
        finally:
            shutil.rmtree(folder)
        times.append(ready_s)
        memories.append(memory)
    total = statistics.median(sum(memory.values()) for memory in memories)
    result: dict[str, Any] = {
        "up_ready_s": statistics.median(times),
        "up_ready_limit_s": UP_LIMIT_S,
        "memory_mib": total,
        "memory_limit_mib": MEMORY_LIMIT_MIB,
    }
    for name in sorted(memories[-1]):
        result[f"memory_mib {name}"] = memories[-1][name]
    for name, value in result.items():
        print(f"{name:28} {value:10.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
