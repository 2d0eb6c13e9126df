"""Memory of an engine: at rest, and with 1,000 idle connections.

A real engine process with one volume of 1 GiB and one client that has come and gone. Then clients
that have done the handshake; then after each has read and written 4 KiB and been silent for a
while. Memory is the resident set (RSS) and, of the connections, what it grew by; the proportional
set (PSS), which counts shared libraries once, is told beside it.

    python bench/bench_memory.py [--connections 1000] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.figures import Figure, print_figures, store
from tests.engine.harness import MIB, EngineProcess, new_secret, wait_for
from tests.engine.nbd_raw import READ, RawClient, request, write

VOLUME_BYTES = 1024 * MIB
REST_LIMIT_MIB = 60.0
CONNECTIONS_LIMIT_MIB = 64.0
# Longer than a connection keeps buffers that it does not use (nbd_connection.IDLE_RELEASE_S).
SILENCE_S = 5.0
DESCRIPTORS_SPARE = 200
BLOCK = bytes(4096)


@dataclass(frozen=True)
class Memory:
    """What a process has in memory, in MiB."""

    rss: float
    pss: float


def memory_of(pid: int) -> Memory:
    """Return the resident and the proportional set of a process."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            found[name] = int(rest.split()[0]) / 1024
    return Memory(found["Rss"], found["Pss"])


def use(client: RawClient, number: int) -> None:
    """Read and write once."""
    offset = number * len(BLOCK)
    client.send(request(READ, offset, len(BLOCK), cookie=1))
    client.take(16 + len(BLOCK))
    client.send(write(offset, BLOCK, cookie=2))
    client.take(16)


def measure(base: Path, connections: int) -> list[Figure]:
    """Start an engine and look at it three times."""
    engine = EngineProcess(base, "host_a", new_secret()).start()
    clients: list[RawClient] = []
    try:
        engine.make_volume("data", VOLUME_BYTES)
        assert engine.process is not None
        pid = engine.process.pid
        path = Path(parse_qs(urlsplit(engine.uri("data")).query)["socket"][0])
        first = RawClient(path)
        use(first, 0)
        first.socket.close()
        time.sleep(SILENCE_S)
        rest = memory_of(pid)
        clients = [RawClient(path) for _ in range(connections)]

        def connected() -> bool:
            (volume,) = engine.call("volume.list")
            return int(volume["clients"]) == connections

        wait_for(connected, what=f"{connections} clients")
        idle = memory_of(pid)
        for number, client in enumerate(clients):
            use(client, number)
        time.sleep(SILENCE_S)
        used = memory_of(pid)
    finally:
        for client in clients:
            client.socket.close()
        engine.dispose()

    def more(name: str, after: Memory) -> Figure:
        return Figure(
            name, after.rss - rest.rss, "MiB", CONNECTIONS_LIMIT_MIB, is_lower_better=True,
            about=f"PSS {after.pss - rest.pss:.1f} MiB more",
        )  # fmt: skip

    return [
        Figure(
            "engine at rest", rest.rss, "MiB", REST_LIMIT_MIB, is_lower_better=True,
            about=f"RSS; PSS {rest.pss:.1f} MiB",
        ),
        more(f"{connections} connections, handshake done", idle),
        more(f"{connections} connections, after use", used),
    ]  # fmt: skip


def main() -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    options = parser.parse_args()
    needed = options.connections + DESCRIPTORS_SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        print(f"bench_memory needs {needed} file descriptors; {hard} allowed", file=sys.stderr)
        return 1
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    base = Path(tempfile.mkdtemp(prefix="trellis-bench-", dir="/dev/shm"))
    try:
        figures = measure(base, options.connections)
    finally:
        shutil.rmtree(base)
    print_figures(figures)
    store(options.json, figures)
    return 0


if __name__ == "__main__":
    os.environ.pop("TRELLIS_CONFIG", None)
    sys.exit(main())
