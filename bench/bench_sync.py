"""Full synchronisation over the loopback against `nbdcopy` between two `nbdkit file` on TCP.

Both move the same image in /dev/shm: random data in the first half, holes in the second. Ours runs
two engines and a set of its own; the rounds of both are interleaved. Reported are medians of the
time, the rates over the volume's size, their ratio, and the processor seconds of the servers. Then
the set logs, UPDATE_WRITES scattered 4 KiB writes are made, and an update brings them over:
reported are what crossed the link, and the time as a share of the full synchronisation's.

    python bench/bench_sync.py [--rounds 5] [--size-mib 1024] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.figures import Figure, print_figures, store  # noqa: E402
from tests.engine.harness import (  # noqa: E402  # found through the line above
    MIB,
    EngineProcess,
    Pair,
    free_port,
    new_secret,
    wait_for,
)

UPDATE_WRITES = 5376  # 21 MiB
WRITE_BYTES = 4096
# In 2 GiB; QEMU's bitmap backup at 64 KiB moves 324 MB for the same, rsync 125 MB.
UPDATE_LIMIT_MB = 30

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(*pids: int) -> float:
    """Return user and system seconds of these processes so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


def make_image(path: Path, size_bytes: int) -> None:
    """Write random data into the first half; the second half is a hole."""
    rng = random.Random(7)
    with path.open("wb") as file:
        for _ in range(size_bytes // 2 // MIB):
            file.write(rng.randbytes(MIB))
        file.truncate(size_bytes)


def empty(path: Path, size_bytes: int) -> None:
    """Give back every page of a file without changing its size."""
    os.truncate(path, 0)
    os.truncate(path, size_bytes)


@contextmanager
def nbdkit(path: Path, port: int, *options: str) -> Iterator[int]:
    """Serve a file on TCP; gives the process id."""
    server = subprocess.Popen(
        ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), *options, "file", str(path)]
    )
    try:
        wait_for(lambda: port_answers(port), 10, "nbdkit")
        yield server.pid
    finally:
        server.terminate()
        server.wait(10)


def port_answers(port: int) -> bool:
    """Tell whether somebody listens."""
    return (
        subprocess.run(
            ["nbdinfo", "--size", f"nbd://127.0.0.1:{port}"], capture_output=True, check=False
        ).returncode
        == 0
    )


def time_nbdcopy(source: Path, target: Path, size_bytes: int) -> tuple[float, float]:
    """Return seconds and processor seconds of one copy."""
    empty(target, size_bytes)
    a, b = free_port(), free_port()
    with nbdkit(source, a, "-r") as pid_a, nbdkit(target, b) as pid_b:
        before, started = cpu_s(pid_a, pid_b), time.monotonic()
        used = os.times()
        subprocess.run(
            ["nbdcopy", "--flush", f"nbd://127.0.0.1:{a}", f"nbd://127.0.0.1:{b}"], check=True
        )
        spent_s = time.monotonic() - started
        after = os.times()
        client = after.children_user + after.children_system
        client -= used.children_user + used.children_system
        return spent_s, cpu_s(pid_a, pid_b) - before + client


def time_sync(pair: Pair, size_bytes: int) -> tuple[float, float]:
    """Return seconds and processor seconds of one full synchronisation."""
    if pair.show()["state"] != "logging":
        pair.a.call("set.log", set_id=pair.set_id)
        wait_for(lambda: pair.show(pair.b)["state"] == "logging")
    empty(pair.b.volume_dir / "data", size_bytes)
    assert pair.a.process is not None
    assert pair.b.process is not None
    pids = (pair.a.process.pid, pair.b.process.pid)
    before, started = cpu_s(*pids), time.monotonic()
    job = pair.sync("full")
    spent_s = time.monotonic() - started
    assert job["state"] == "done", job
    return spent_s, cpu_s(*pids) - before


def time_update(pair: Pair, size_bytes: int) -> tuple[float, float]:
    """Return seconds and megabytes on the link of one update after scattered writes."""
    pair.a.call("set.log", set_id=pair.set_id)
    wait_for(lambda: pair.show(pair.b)["state"] == "logging")
    subprocess.run(
        ["fio", "--name=scatter", "--ioengine=nbd", f"--uri={pair.a.uri('data')}",
         "--rw=randwrite", f"--bs={WRITE_BYTES}", "--iodepth=16", f"--size={size_bytes}",
         f"--io_size={UPDATE_WRITES * WRITE_BYTES}", "--randrepeat=0", "--refill_buffers"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    started = time.monotonic()
    job = pair.sync("update")
    assert job["state"] == "done", job
    return time.monotonic() - started, job["sent_bytes"] / 1e6


def measure(rounds: int, size_bytes: int, base: Path) -> list[Figure]:
    """Run the rounds, ours and theirs in turn."""
    image, copy = base / "image", base / "copy"
    make_image(image, size_bytes)
    copy.touch()
    secret = new_secret()
    engines = [EngineProcess(base, host, secret) for host in ("host_a", "host_b")]
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    try:
        for engine in engines:
            engine.start()
        pair = Pair(engines[0], engines[1], size_bytes)
        subprocess.run(["cp", "--sparse=always", image, engines[0].volume_dir / "data"], check=True)
        pair.enable()
        for _ in range(rounds):
            ours.append(time_sync(pair, size_bytes))
            theirs.append(time_nbdcopy(image, copy, size_bytes))
        updates = [time_update(pair, size_bytes) for _ in range(rounds)]
        pair.assert_equal()
    finally:
        for engine in engines:
            engine.dispose()
    return summary(ours, theirs, updates, size_bytes)


def summary(
    ours: list[tuple[float, float]],
    theirs: list[tuple[float, float]],
    updates: list[tuple[float, float]],
    size_bytes: int,
) -> list[Figure]:
    """Return medians and ratios."""
    our_s = statistics.median(t for t, _ in ours)
    their_s = statistics.median(t for t, _ in theirs)
    our_cpu_s, their_cpu_s = (statistics.median(c for _, c in side) for side in (ours, theirs))
    update_s = statistics.median(t for t, _ in updates)
    mib = size_bytes / MIB
    return [
        Figure("full sync rate", their_s / our_s, target=1.0,
               about=f"ours {mib / our_s:.0f}, nbdcopy {mib / their_s:.0f} MiB/s"),
        Figure("full sync processor time", our_cpu_s / their_cpu_s, is_lower_better=True,
               about=f"ours {our_cpu_s:.2f}, nbdcopy and nbdkits {their_cpu_s:.2f} s"),
        Figure("update after 21 MiB of 4 KiB writes", statistics.median(m for _, m in updates),
               "MB", target=UPDATE_LIMIT_MB, is_lower_better=True, about="on the link, both ways"),
        Figure("update time / full", update_s / our_s, is_lower_better=True,
               about=f"{update_s:.2f} of {our_s:.2f} s"),
    ]  # fmt: skip


def main() -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="trellis-bench-", dir="/dev/shm"))
    try:
        result = measure(arguments.rounds, arguments.size_mib * MIB, base)
    finally:
        shutil.rmtree(base)
    print_figures(result)
    store(arguments.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
