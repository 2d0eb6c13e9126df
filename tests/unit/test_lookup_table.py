"""The table of handles: leases by a monotonic clock, instances, what was last seen."""

import threading

import pytest

from broker import lookup
from broker.lookup import LookupTable, make_handle
from facade.contract.settings import BrokerSettings, HostSettings, Settings


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def table(clock):
    return LookupTable(clock)


def test_handle_is_there_for_its_lease(table, clock):
    handle = make_handle("host_a", "volume", "1")
    assert table.announce(handle) is True
    clock.now_s += 5.9
    assert table.find("host_a", "volume") == handle
    clock.now_s += 0.2
    assert table.find("host_a", "volume") is None
    assert table.handles() == []
    assert table.last_seen("host_a", "volume") is not None


def test_renewal_prolongs_and_is_no_news(table, clock):
    handle = make_handle("host_a", "volume", "1")
    table.announce(handle)
    clock.now_s += 5
    assert table.announce(handle) is False
    clock.now_s += 5
    assert table.find("host_a", "volume") == handle


def test_return_after_the_lease_and_a_new_instance_are_news(table, clock):
    handle = make_handle("host_a", "volume", "1")
    table.announce(handle)
    clock.now_s += 10
    assert table.announce(handle) is True
    assert table.announce(make_handle("host_a", "volume", "1")) is True


def test_late_goodbye_of_an_earlier_instance_changes_nothing(table):
    old, new = make_handle("host_a", "volume", "1"), make_handle("host_a", "volume", "1")
    table.announce(old)
    table.announce(new)
    assert table.depart(old) is False
    assert table.find("host_a", "volume") == new
    assert table.depart(new) is True
    assert table.find("host_a", "volume") is None


def test_full_table_leaves_newcomers_out_and_renews_the_others(table, monkeypatch):
    monkeypatch.setattr(lookup, "TABLE_LIMIT_HANDLES", 1)
    first = make_handle("host_a", "volume", "1")
    table.announce(first)
    assert table.announce(make_handle("host_b", "volume", "1")) is False
    table.announce(first)
    assert table.handles() == [first]


def test_waiting_for_an_answer_takes_only_a_later_announcement(table, clock):
    handle = make_handle("host_a", "volume", "1")
    table.announce(handle)
    clock.now_s += 1
    since = table.now()
    assert table.wait_for("host_a", "volume", since, 0.01) is None
    table.announce(handle)
    assert table.wait_for("host_a", "volume", since, 0.01) == handle


class Channel:
    """Notes what is published."""

    def __init__(self):
        self.keys = []

    def basic_publish(self, exchange, key, body, properties):
        self.keys.append(key)


def test_a_registrar_announces_only_while_its_bean_takes_calls():
    settings = Settings(
        host=HostSettings(name="host_a", domain="t"),
        broker=BrokerSettings(urls=("amqp://host_a@localhost",)),
    )
    consuming, channel = threading.Event(), Channel()
    handle = make_handle("host_a", "volume", "1")
    registrar = lookup.Registrar(settings, [handle], consuming)
    registrar.tick(channel)
    assert channel.keys == []
    consuming.set()
    registrar.tick(channel)
    registrar.tick(channel)
    assert channel.keys == ["announce.host_a.volume"]
    consuming.clear()
    registrar.tick(channel)
    registrar.tick(channel)
    assert channel.keys == ["announce.host_a.volume", "depart.host_a.volume"]
