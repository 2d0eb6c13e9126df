"""What a host's broker user may not do, tried on a real RabbitMQ."""

import json

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from broker import topology as t
from broker.connection import connect
from broker.definitions import NOTIFIER_USER
from broker.errors import BrokerRefused
from broker.events import EventPublisher
from broker.lookup import make_handle
from facade.contract.events import new_event


@pytest.fixture
def channel(domain):
    connection = connect(domain("host_a"))
    channel = connection.channel()
    channel.confirm_delivery()
    yield channel
    if connection.is_open:
        connection.close()


def refused(action):
    with pytest.raises(ChannelClosedByBroker) as caught:
        action()
    return caught.value.reply_code in (403, 406)


def publish(channel, exchange, key, user="host_a"):
    properties = pika.BasicProperties(user_id=user)
    channel.basic_publish(exchange, key, b"{}", properties)


def test_own_queues_are_allowed(channel):
    channel.queue_declare("host_a.probe", auto_delete=True)
    channel.queue_bind("host_a.probe", t.BEANS, "host_a.probe")
    channel.queue_declare("host_a.probe.jobs", durable=True, arguments=t.JOBS_QUEUE_ARGUMENTS)
    publish(channel, t.BEANS, "host_b.probe")
    publish(channel, t.EVENTS, "host_a.probe.info.x")
    publish(channel, t.LOOKUP, "query.host_b.probe")


@pytest.mark.parametrize("queue", ["host_b.probe", "host_b.probe.jobs", "amq.gen-x", "celery"])
def test_queues_of_others_cannot_be_declared(channel, queue):
    assert refused(lambda: channel.queue_declare(queue))


def test_queue_of_another_host_cannot_be_consumed_or_deleted(channel, domain):
    other = connect(domain("host_b"))
    other.channel().queue_declare("host_b.probe", auto_delete=True)
    assert refused(lambda: channel.basic_consume("host_b.probe", lambda *_: None))
    assert refused(lambda: other_channel(channel).queue_delete("host_b.probe"))
    other.close()


def other_channel(channel):
    return channel.connection.channel()


def test_calls_to_another_host_cannot_be_listened_to(channel):
    channel.queue_declare("host_a.spy", auto_delete=True)
    assert refused(lambda: channel.queue_bind("host_a.spy", t.BEANS, "host_b.probe"))


@pytest.mark.parametrize(
    ("exchange", "key"),
    [
        (t.EVENTS, "host_b.replication.info.x"),
        (t.LOOKUP, "announce.host_b.volume"),
        (t.LOOKUP, "depart.host_b.volume"),
        (t.BEANS, "host_b.replication.jobs"),
        (t.LOGS, "host_b.volume.info"),
        (t.CONTROL, ""),
        ("", "host_b.probe"),
    ],
)
def test_nothing_is_published_under_another_name(channel, exchange, key):
    assert refused(lambda: publish(channel, exchange, key))


def test_another_user_id_is_refused(channel):
    assert refused(lambda: publish(channel, t.BEANS, "host_b.probe", user="host_b"))


@pytest.mark.parametrize("exchange", [t.BEANS, t.EVENTS, t.TASK_EVENTS])
def test_no_exchange_can_be_deleted(channel, exchange):
    assert refused(lambda: channel.exchange_delete(exchange))


def test_notifier_publishes_nothing(domain):
    connection = connect(domain(NOTIFIER_USER))
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare(f"{NOTIFIER_USER}.events.mail")
    channel.queue_bind(f"{NOTIFIER_USER}.events.mail", t.EVENTS, "#")
    assert refused(lambda: publish(channel, t.BEANS, "host_a.probe", NOTIFIER_USER))
    connection.close()


def test_publisher_of_a_foreign_event_gets_a_typed_error(domain):
    publisher = EventPublisher(domain("host_a"))
    with pytest.raises(BrokerRefused):
        publisher.publish(new_event("probe", "poked", "host_b", "S", count=1))
    publisher.publish(new_event("probe", "poked", "host_a", "S", count=1))
    publisher.close()


def test_forged_announcement_in_an_allowed_key_is_dropped(domain):
    from broker.lookup import LookupTable, Watcher
    from tests.federation.conftest import wait_until

    table = LookupTable()
    watcher = Watcher(domain("host_b"), table, lambda handle, alive: None)
    watcher.start()
    assert watcher.ready.wait(10)
    connection = connect(domain("host_a"))
    channel = connection.channel()
    for host in ("host_b", "host_a"):
        body = json.dumps(make_handle(host, "volume", "1").to_wire()).encode()
        key = t.announce_key("host_a", "volume")
        channel.basic_publish(t.LOOKUP, key, body, pika.BasicProperties(user_id="host_a"))
    wait_until(lambda: table.find("host_a", "volume"), 5)
    assert table.find("host_b", "volume") is None
    connection.close()
    watcher.stop()
