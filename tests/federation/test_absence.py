"""A bean that is not there: known in milliseconds, said with when it was last seen, found again."""

import time

import pytest

from beans.errors import BeanUnavailable
from beans.sender import Sender
from broker.lookup import LookupTable, Registrar, Watcher, make_handle, query
from tests.federation.conftest import ended, wait_until
from tests.federation.test_calls import raw_call


def test_no_route_is_known_in_milliseconds(cluster):
    sender = Sender(cluster.settings["host_a"])
    try:
        call = raw_call("echo", {"text": "x"})
        assert sender.send(call)
        sender.receive(call)
        absent = raw_call("echo", {"text": "x"})
        absent.host = "host_z"
        before_s = time.monotonic()
        assert not sender.send(absent)
        assert time.monotonic() - before_s < 0.25
    finally:
        sender.close()


def test_unknown_host_is_unavailable_and_never_seen(cluster):
    before_s = time.monotonic()
    with pytest.raises(BeanUnavailable) as caught:
        cluster.proxy("host_z").echo(text="x")
    assert (caught.value.host, caught.value.bean) == ("host_z", "probe")
    assert caught.value.last_seen == "never"
    assert caught.value.exit_status == 3
    assert time.monotonic() - before_s < 3


def test_killed_worker_is_unavailable_then_started_again_and_found(cluster):
    host = cluster.hosts["host_b"]
    assert cluster.proxy("host_b").echo(text="x")
    with host.killed("probe") as pid:
        # The handle is still kept here and in the station; the queue has gone with the worker.
        with pytest.raises(BeanUnavailable) as caught:
            cluster.proxy("host_b").echo(text="x")
    assert caught.value.last_seen != "never"
    wait_until(lambda: cluster.answers("host_b", "probe"), 20)
    assert host.children()["probe"] != pid


def test_children_die_with_a_killed_parent(servers, domain, tmp_path):
    from tests.federation.conftest import Host

    host = Host(domain())
    host.start()
    pids = wait_until(lambda: len(host.children()) == 3 and host.children())
    host.process.kill()
    host.process.wait()
    wait_until(lambda: all(ended(pid) for pid in pids.values()), 10)


def test_station_sees_a_clean_leave_at_once_and_a_killed_registrar_by_its_lease(cluster, domain):
    settings = domain()
    table = LookupTable()
    watcher = Watcher(settings, table, lambda handle, alive: None)
    watcher.start()
    assert watcher.ready.wait(10)
    polite = Registrar(settings, [make_handle("host_a", "polite", "1")])
    polite.start()
    wait_until(lambda: table.find("host_a", "polite"), 5)
    polite.stop()
    wait_until(lambda: table.find("host_a", "polite") is None, 1)
    assert table.last_seen("host_a", "polite") is not None
    watcher.stop()


def test_station_drops_killed_host_after_its_lease(cluster):
    station = cluster.proxy("host_a", "station")
    assert {"host": "host_b", "beans": ["probe", "station"]} in station.hosts()
    host = cluster.hosts["host_b"]
    host.process.kill()
    host.process.wait()
    before_s = time.monotonic()
    wait_until(lambda: [h["host"] for h in station.hosts()] == ["host_a"], 9)
    assert 2 < time.monotonic() - before_s < 8
    found = station.find(host="host_b", bean="probe", fresh=False)
    assert found["handle"] is None
    assert found["last_seen"].endswith("Z")
    host.start()
    cluster.wait_ready("host_b")


def test_query_without_a_station(cluster):
    settings = cluster.settings["host_a"]
    assert [(h.host, h.bean) for h in query(settings, "host_b", "probe")] == [("host_b", "probe")]
    assert query(settings, "host_b", "nobody", wait_s=0.3) == []
    everyone = {(h.host, h.bean) for h in query(settings)}
    assert everyone == {(h, b) for h in ("host_a", "host_b") for b in ("probe", "station")}


def test_call_without_a_station_goes_over_the_lookup_exchange(cluster):
    from beans.proxy import Federation

    host = cluster.hosts["host_a"]
    federation = Federation(cluster.settings["host_a"])
    try:
        with host.killed("station"):
            assert federation.proxy("host_b", "probe").echo(text="x") == {"text": "x"}
    finally:
        federation.close()
        cluster.wait_ready("host_a")
