"""Round trip of a bean call with its typed answer, beside a plain Celery task on the same servers.

A private RabbitMQ and Redis, one host with its station bean under the narrow permissions of a real
federation; one caller, warm. Beside it a plain Celery worker (prefork 2, its own defaults, durable
queue, Redis results) with a task that does nothing.

    python bench/bench_bean_call.py [--calls 2000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from beans.proxy import Federation  # noqa: E402
from broker.definitions import NOTIFIER_USER, OPS_USER, definitions, password_hash  # noqa: E402
from broker.embedded import EmbeddedBroker, EmbeddedRedis  # noqa: E402
from facade.contract.errors import UnreachableError  # noqa: E402
from facade.contract.settings import (  # noqa: E402
    BrokerSettings,
    HostSettings,
    RedisSettings,
    Settings,
    dump,
)

PASSWORD = "bench-bench-bench-bench"
DOMAIN = "trellis"
PEER = "peer"
WARM_CALLS = 200
READY_S = 60.0
MEDIAN_LIMIT_MS = 6.0
P99_LIMIT_MS = 20.0


def peer_definitions() -> dict[str, Any]:
    """The federation's definitions, and an own virtual host where plain Celery may do anything."""
    users = ("host_a", NOTIFIER_USER, OPS_USER)
    made = definitions(DOMAIN, ["host_a"], dict.fromkeys(users, PASSWORD))
    made["vhosts"].append({"name": PEER})
    made["users"].append(
        {
            "name": PEER,
            "password_hash": password_hash(PASSWORD),
            "hashing_algorithm": "rabbit_password_hashing_sha256",
            "tags": [],
        }
    )
    made["permissions"].append(
        {"user": PEER, "vhost": PEER, "configure": ".*", "write": ".*", "read": ".*"}
    )
    return made


def station(config: Path) -> int:
    """Run the station bean alone, as `trellis-beans` does."""
    from beans.process import Parent
    from beans.supervise import ChildSpec
    from facade.contract.settings import load

    return Parent(load(config, {}), [ChildSpec("station", False)]).run()


def peer_app(amqp: str, redis: str) -> Any:
    """A Celery application as its manual makes one."""
    from celery import Celery

    app = Celery("peer", broker=amqp, backend=redis)

    @app.task(name="peer.nothing")
    def nothing() -> dict[str, str]:
        return {"text": "x"}

    return app


def until(fact: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + READY_S
    while not fact():
        if time.monotonic() > deadline_s:
            raise TimeoutError("not ready in time")
        time.sleep(0.1)


def measure(call: Callable[[], Any], count: int) -> dict[str, float]:
    """Median, 99th percentile and maximum of warm calls, in milliseconds."""
    for _ in range(WARM_CALLS):
        call()
    times_ms = []
    for _ in range(count):
        before = time.perf_counter()
        call()
        times_ms.append((time.perf_counter() - before) * 1e3)
    times_ms.sort()
    return {
        "median_ms": round(times_ms[count // 2], 2),
        "p99_ms": round(times_ms[int(count * 0.99)], 2),
        "max_ms": round(times_ms[-1], 2),
    }


def run(count: int, base: Path) -> dict[str, Any]:
    broker = EmbeddedBroker(base / "rabbitmq", peer_definitions())
    redis = EmbeddedRedis(base / "redis", socket_path=base / "r.sock")
    children: list[subprocess.Popen[bytes]] = []
    try:
        broker.start()
        redis.start()
        broker.wait_ready()
        redis.wait_ready()
        address = f"127.0.0.1:{broker.amqp_port}"
        settings = Settings(
            host=HostSettings(name="host_a", domain=DOMAIN, data_dir=base, run_dir=base),
            broker=BrokerSettings(urls=(f"amqp://host_a:{PASSWORD}@{address}",)),
            redis=RedisSettings(url=redis.url),
        )
        config = base / "host.toml"
        config.write_text(dump(settings))
        peer_urls = (f"amqp://{PEER}:{PASSWORD}@{address}/{PEER}", redis.url)
        log = (base / "workers.log").open("wb")
        for arguments in (["--station", str(config)], ["--peer", *peer_urls]):
            command = [sys.executable, __file__, *arguments]
            children.append(subprocess.Popen(command, stdout=log, stderr=log))
        federation = Federation(settings)
        proxy = federation.proxy("host_a", "station")
        app = peer_app(*peer_urls)

        def bean_ready() -> bool:
            try:
                return bool(proxy.hosts())
            except UnreachableError:
                return False

        until(bean_ready)
        app.send_task("peer.nothing").get(timeout=READY_S)
        # In turn, twice each, and the better of both: the machine may be shared.
        bean = [measure(proxy.hosts, count), measure(proxy.hosts, count)]
        plain = [measure(lambda: app.send_task("peer.nothing").get(), count) for _ in range(2)]
        federation.close()
        return {
            "bean_call": min(bean, key=lambda row: row["median_ms"]),
            "plain_celery": min(plain, key=lambda row: row["median_ms"]),
        }
    finally:
        for child in children:
            child.send_signal(signal.SIGTERM)
        for child in children:
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        broker.stop()
        redis.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--station", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.station:
        return station(options.station)
    if options.peer:
        peer_app(*options.peer).worker_main(["worker", "-c", "2", "--loglevel=ERROR"])
        return 0
    with tempfile.TemporaryDirectory(prefix="tb", dir="/tmp") as folder:
        figures = run(options.calls, Path(folder))
    for name, row in figures.items():
        print(f"{name:14}" + "".join(f"  {key} {value:7.2f}" for key, value in row.items()))
    bean = figures["bean_call"]
    good = bean["median_ms"] < MEDIAN_LIMIT_MS and bean["p99_ms"] < P99_LIMIT_MS
    figures["limits_kept"] = good
    print(f"median under {MEDIAN_LIMIT_MS} ms and p99 under {P99_LIMIT_MS} ms: {good}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    os.environ.pop("TRELLIS_CONFIG", None)
    sys.exit(main())
