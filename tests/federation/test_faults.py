"""RabbitMQ and Redis killed under the beans: typed errors at once, and everything again after."""

import contextlib
import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from beans.errors import BeanLost, BeanUnavailable, ResultStoreUnavailable
from beans.proxy import Federation
from broker.definitions import NOTIFIER_USER
from broker.errors import BrokerUnavailable
from broker.events import EventSubscriber
from broker.lookup import query
from tests.federation.conftest import wait_until


@contextlib.contextmanager
def soon(limit_s=4.0):
    """Hold what is within to a time limit."""
    before_s = time.monotonic()
    yield
    took_s = time.monotonic() - before_s
    print(f"took {took_s:.2f} s")
    assert took_s < limit_s


@pytest.fixture
def notifier(cluster, tmp_path):
    """A durable subscriber of host_a's events; gives what it got."""
    got = []
    settings = cluster.servers.settings(cluster.domain, tmp_path, NOTIFIER_USER)
    subscriber = EventSubscriber(settings, got.append, name="test", patterns=["host_a.probe.#"])
    subscriber.start()
    assert subscriber.ready.wait(10)
    yield got
    subscriber.stop()


def test_events_posted_by_a_bean_reach_a_subscriber_and_the_history(cluster, notifier):
    cluster.proxy("host_a").poke(subject="S1", count=3)
    wait_until(lambda: len(notifier) == 3, 10)
    assert [e.data["count"] for e in notifier] == [0, 1, 2]
    history = cluster.proxy("host_a", "station").events(limit=3)
    assert [e["text"] for e in history] == [f"S1 was poked {n} times" for n in range(3)]
    later = cluster.proxy("host_a", "station").events(limit=10, after=history[0]["number"])
    assert [e["data"]["count"] for e in later] == [1, 2]


def test_call_in_hand_of_a_killed_worker_ends_soon(cluster):
    pid = cluster.hosts["host_b"].children()["probe"]
    outcome = []

    def call():
        try:
            cluster.proxy("host_b").once(seconds=8.0)
        except BeanLost as error:
            outcome.append(error)

    done = cluster.proxy("host_b").done_so_far()["done"]
    thread = threading.Thread(target=call)
    thread.start()
    wait_until(lambda: cluster.proxy("host_b").done_so_far()["done"] == done + 1, 5)
    os.kill(pid, signal.SIGKILL)
    thread.join(4)
    assert [type(e) for e in outcome] == [BeanLost]
    wait_until(lambda: cluster.answers("host_b", "probe"), 20)


def test_redis_killed(cluster):
    redis = cluster.servers.redis
    os.kill(redis.pids["redis"], signal.SIGKILL)
    redis.stop()
    with soon(), pytest.raises(ResultStoreUnavailable) as caught:
        cluster.proxy("host_b").echo(text="x")
    fresh = Federation(cluster.settings["host_a"])
    with soon(), pytest.raises(ResultStoreUnavailable):
        fresh.proxy("host_b", "probe").echo(text="x")
    fresh.close()
    assert caught.value.exit_status == 3
    redis.start()
    redis.wait_ready()
    wait_until(lambda: cluster.answers("host_b", "probe"), 10)


def test_broker_killed_and_restarted(cluster, notifier):
    pids = {host: h.children() for host, h in cluster.hosts.items()}
    cluster.proxy("host_a").poke(subject="before", count=1)
    wait_until(lambda: len(notifier) == 1, 10)
    cluster.servers.kill_broker()
    with soon(), pytest.raises(BrokerUnavailable) as caught:
        cluster.proxy("host_b").echo(text="x")
    assert caught.value.exit_status == 3
    fresh = Federation(cluster.settings["host_a"])
    with soon(), pytest.raises(BrokerUnavailable):
        fresh.proxy("host_b", "probe").echo(text="x")
    fresh.close()
    with soon(), pytest.raises(BrokerUnavailable):
        query(cluster.settings["host_a"])
    _post_from_outside(cluster, 50)
    cluster.servers.start_broker()
    assert wait_until(lambda: query(cluster.settings["host_a"], "host_b", "probe"), 30)
    # Whoever is announced takes calls.
    assert cluster.proxy("host_b").echo(text="x") == {"text": "x"}
    for host in cluster.hosts:
        wait_until(lambda host=host: cluster.answers(host, "probe"), 30)
    wait_until(lambda: len(notifier) >= 51, 15)
    assert [e.data["count"] for e in notifier if e.subject == "away"] == list(range(50))
    # Nobody had to be started again.
    assert {host: h.children() for host, h in cluster.hosts.items()} == pids


def test_last_seen_is_known_without_a_station(cluster):
    a, b = cluster.hosts["host_a"], cluster.hosts["host_b"]
    with a.killed("station"), b.killed("probe"), pytest.raises(BeanUnavailable) as caught:
        cluster.proxy("host_b").echo(text="x")
    seen = datetime.fromisoformat(caught.value.last_seen)
    assert timedelta(0) < datetime.now(UTC) - seen < timedelta(minutes=10)
    for host in cluster.hosts:
        wait_until(lambda host=host: cluster.answers(host, "probe"), 30)
        wait_until(lambda host=host: cluster.answers(host, "station"), 30)


def _post_from_outside(cluster, count):
    """Put events into host_a's outbox from another process of that host, as a bean does."""
    from broker.outbox import Outbox
    from facade.contract.events import new_event

    outbox = Outbox(cluster.settings["host_a"].host.events_path)
    for number in range(count):
        outbox.put(new_event("probe", "poked", "host_a", "away", count=number))
    assert outbox.waiting_count() >= count
    outbox.close()
