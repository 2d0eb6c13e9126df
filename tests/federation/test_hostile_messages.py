"""Odd and hostile messages on a call queue: dropped, and the worker answers after each of them."""

import json
import uuid
import zlib
from pathlib import Path

import pika
import pytest

from broker import topology as t
from broker.connection import connect
from tests.federation.conftest import wait_until


def headers(**changes):
    """The headers of a proper call of `probe.echo`, changed."""
    made = {
        "lang": "py",
        "task": "probe.echo",
        "id": str(uuid.uuid4()),
        "root_id": str(uuid.uuid4()),
        "parent_id": None,
        "group": None,
        "retries": 0,
        "eta": None,
        "expires": None,
        "timelimit": [None, None],
        "argsrepr": "()",
        "kwargsrepr": "{}",
        "origin": "test",
        "ignore_result": False,
        "trellis": {"depth": 0, "version": "1", "interface": "1"},
    }
    return {**made, **changes}


def body(arguments=(), keywords=None, **embedded):
    return json.dumps([list(arguments), keywords or {"text": "x"}, embedded]).encode()


POKE = {
    "task": "probe.poke",
    "args": [],
    "kwargs": {"subject": "x", "count": 1},
    "options": {"exchange": t.BEANS, "routing_key": "host_a.probe"},
}
CASES = {
    "body is a number": (headers(), b"7"),
    "body is no JSON": (headers(), b"\x00\xff{"),
    "body is empty": (headers(), b""),
    "body nests too deep": (headers(), b"[" * 100_000),
    "arguments nest too deep": (
        headers(),
        ('[[], {"text": ' + "[" * 200 + "]" * 200 + "}, {}]").encode(),
    ),
    "body is an object": (headers(), b'{"task": 3, "id": 4}'),
    "body is two lists": (headers(), b"[[], {}]"),
    "keywords are a list": (headers(), b"[[], [1], {}]"),
    "positional arguments": (headers(), body(["x"])),
    "task is a table": (headers(task={"a": 1}), body()),
    "task is not known": (headers(task="os.system"), body()),
    "task is built in": (headers(task="celery.backend_cleanup"), body()),
    "task of another bean": (headers(task="volume.destroy"), body()),
    "no task": ({}, body()),
    "id is a table": (headers(id={"a": 1}), body()),
    "id is odd": (headers(id="../../x"), body()),
    "time limit is text": (headers(timelimit="soon"), body()),
    "time limit is set": (headers(timelimit=[1, 1]), body()),
    "stamped headers are a number": (headers(stamped_headers=5), body()),
    "stamps": (headers(stamped_headers=["a"], stamps={"a": 1}), body()),
    "eta far away": (headers(eta="2999-01-01T00:00:00+00:00"), body()),
    "eta is no time": (headers(eta="later"), body()),
    "expiry is a table": (headers(expires={"a": 1}), body()),
    "retries is text": (headers(retries="many"), body()),
    "group is a table": (headers(group={"a": 1}), body()),
    "root id is a list": (headers(root_id=[1]), body()),
    "shadow is a number": (headers(shadow=3), body()),
    "origin is long": (headers(origin="x" * 5000), body()),
    "representation is a table": (headers(kwargsrepr={"a": 1}), body()),
    "ignore_result is text": (headers(ignore_result="no"), body()),
    "replaced nesting is text": (headers(replaced_task_nesting={"a": 1}), body()),
    "envelope is text": (headers(trellis="x"), body()),
    "callbacks": (headers(), body(callbacks=[POKE])),
    "error callbacks": (headers(), body(errbacks=[POKE])),
    "chain": (headers(), body(chain=[POKE])),
    "chord": (headers(), body(chord=POKE)),
    "typed value": (headers(), body(keywords={"text": {"__type__": "x", "__value__": 1}})),
    "too big": (headers(), body(keywords={"text": "x" * 2_000_000})),
}


@pytest.fixture(scope="module")
def channel(cluster):
    """host_a's own channel: whoever has a host's password can do no more than this."""
    connection = connect(cluster.settings["host_a"])
    channel = connection.channel()
    channel.confirm_delivery()
    yield channel
    if connection.is_open:
        connection.close()


def send(channel, message_headers, content, **changes):
    properties = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "user_id": "host_a",
        "headers": message_headers,
        **changes,
    }
    properties = {key: value for key, value in properties.items() if value is not None}
    channel.basic_publish(
        t.BEANS, "host_b.probe", content, pika.BasicProperties(**properties), mandatory=True
    )


@pytest.fixture
def alive(cluster):
    """The worker is the same process afterwards, and answers."""
    pid = cluster.hosts["host_b"].children()["probe"]
    yield
    assert cluster.proxy("host_b").echo(text="after") == {"text": "after"}
    assert cluster.hosts["host_b"].children()["probe"] == pid


@pytest.fixture
def unharmed(cluster, alive):
    """The guard saw the message, and the worker lives."""
    refused = count_refused(cluster)
    yield
    wait_until(lambda: count_refused(cluster) > refused, 5)


def count_refused(cluster):
    return cluster.hosts["host_b"].log.read_text().count("refused a message")


@pytest.mark.parametrize("case", CASES)
def test_message_is_dropped(channel, unharmed, case):
    send(channel, *CASES[case])


def test_message_without_its_sender_is_dropped(channel, unharmed):
    send(channel, headers(), body(), user_id=None)


@pytest.mark.parametrize(
    "content_type",
    ["application/x-python-serialize", "application/x-yaml", "application/data", None],
)
def test_other_content_is_dropped(channel, unharmed, content_type):
    send(channel, headers(), b"cos\nsystem\n(S'true'\ntR.", content_type=content_type)


def test_compressed_content_is_never_unpacked(cluster, channel, alive):
    # The largest that a process had in memory shows whether 400 MB were ever unpacked.
    bomb = zlib.compress(b"x" * 400_000_000)
    send(channel, headers(compression="application/x-gzip"), bomb)
    assert cluster.proxy("host_b").echo(text="after") == {"text": "after"}
    status = Path(f"/proc/{cluster.hosts['host_b'].children()['probe']}/status").read_text()
    peak_kb = next(int(li.split()[1]) for li in status.splitlines() if li.startswith("VmHWM"))
    assert peak_kb < 300_000


def test_hostile_embedded_tasks_reached_nobody(cluster, channel):
    history = cluster.proxy("host_a", "station").events(limit=100)
    assert not [event for event in history if event["subject"] == "x"]


def test_a_proper_message_of_the_same_form_is_answered(cluster, channel):
    # Otherwise the tests above would pass for the wrong reason.
    from celery.result import AsyncResult

    from beans.app import make_client_app

    app = make_client_app(cluster.settings["host_a"])
    task_id = str(uuid.uuid4())
    send(channel, headers(id=task_id), body())
    result = AsyncResult(task_id, app=app)
    assert wait_until(lambda: result.state == "SUCCESS" and result.result, 5) == {"text": "x"}
