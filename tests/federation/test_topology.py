"""What the workers declare at the broker, and what they leave there."""

import pytest

from beans.app import make_client_app
from broker.definitions import definitions
from broker.lookup import Handle, read_handle
from tests.federation.conftest import HOSTS, wait_until


@pytest.fixture
def queues(cluster):
    def read():
        found = cluster.servers.api(f"queues/{cluster.domain}")
        return {q["name"]: q for q in found}

    return wait_until(lambda: (q := read()) and all(f"{h}.probe" in q for h in HOSTS) and q, 10)


def test_no_delay_queues_and_no_default_queue(queues):
    own = {"trellis.dead"}
    for name in queues:
        proper = name in own or name.startswith(("host_a.", "host_b.", "trellis.notifier."))
        assert proper or name.endswith(".celery.pidbox") or name.startswith("celeryev."), name
    assert "celery" not in queues


def test_call_queues_end_with_their_worker_and_jobs_queues_last(queues):
    call, jobs = queues["host_a.probe"], queues["host_a.probe.jobs"]
    assert (call["durable"], call["auto_delete"]) == (False, True)
    assert (jobs["durable"], jobs["type"]) == (True, "quorum")
    assert jobs["arguments"]["x-dead-letter-exchange"] == "trellis.dead"
    assert jobs["arguments"]["x-delivery-limit"] == 3


def test_a_client_declares_nothing(domain, servers):
    settings = domain()
    before = servers.api(f"queues/{settings.host.domain}")
    app = make_client_app(settings)
    with app.connection_for_write() as connection:
        connection.default_channel  # noqa: B018  (opens it)
    assert servers.api(f"queues/{settings.host.domain}") == before


def test_caller_never_keeps_trying_to_store_results(cluster):
    app = make_client_app(cluster.settings["host_a"])
    assert not app.conf.result_backend_always_retry


def test_flower_user_sees_every_worker_by_name(cluster):
    seen = []
    with cluster.task_events(seen.append):
        names = {f"{bean}@{host}" for bean in ("probe", "probe.jobs", "station") for host in HOSTS}
        wait_until(lambda: names <= {event["hostname"] for event in seen}, 10)


def test_flower_user_may_ask_workers_and_hosts_may_not(cluster, tmp_path):
    from amqp.exceptions import AccessRefused
    from kombu.exceptions import OperationalError

    from broker.definitions import OPS_USER

    ops = make_client_app(cluster.servers.settings(cluster.domain, tmp_path, OPS_USER))
    names = ["probe@host_a", "station@host_b"]
    answers = ops.control.ping(destination=names, timeout=3)
    assert sorted(name for answer in answers for name in answer) == names
    host = make_client_app(cluster.settings["host_a"])
    with pytest.raises((AccessRefused, OperationalError)):
        host.control.ping(destination=names, timeout=1)


def test_definitions_need_every_password():
    with pytest.raises(KeyError):
        definitions("trellis", ["host_a"], {"host_a": "x"})


@pytest.mark.parametrize(
    "change",
    [
        {"host": ""},
        {"lease_s": 0},
        {"lease_s": True},
        {"lease_s": 1e9},
        {"queue": "host_b.x"},
        {"version": 3},
        {"bean": "x" * 1000},
    ],
)
def test_malformed_announcement_is_refused(change):
    proper = Handle("host_a", "x", "i", "1", "host_a.x").to_wire()
    assert read_handle(proper).bean == "x"
    with pytest.raises(ValueError, match=next(iter(change))):
        read_handle({**proper, **change})
