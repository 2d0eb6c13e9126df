"""Calls between hosts: values, typed errors, checks on both sides, limits."""

import threading
import time
import uuid

import pytest

from beans.errors import (
    BadArguments,
    BadEnvelope,
    BadResult,
    BeanBusy,
    BeanCrashed,
    BeanTimeout,
    CallTooDeep,
    InterfaceMismatch,
    PeerNotLeaf,
    UnknownBean,
    UnknownMethod,
)
from beans.schemas import Envelope
from beans.sender import PendingCall, Sender
from tests.federation.conftest import wait_until
from tests.federation.probe import ProbeBean, ProbeBusy


@pytest.fixture(scope="module")
def sender(cluster):
    made = Sender(cluster.settings["host_a"])
    yield made
    made.close()


def raw_call(method, body, *, call_id=None, version="1", depth=0, timeout_s=5.0):
    """A call that skips the caller's checks."""
    envelope = Envelope(depth=depth, version=version)
    call_id = call_id or str(uuid.uuid4())
    return PendingCall(call_id, "host_b", "probe", method, body, envelope, timeout_s)


def test_call_on_another_host_gives_its_answer(cluster):
    assert cluster.proxy("host_b").echo(text="grüße") == {"text": "grüße"}


def test_host_names_compare_without_case(cluster):
    assert cluster.proxy("Host_B").echo(text="x") == {"text": "x"}


def test_bean_knows_the_caller(cluster):
    assert cluster.proxy("host_b").who() == {"caller": "host_a"}


def test_typed_error_is_caught_as_its_class_with_its_fields(cluster):
    with pytest.raises(ProbeBusy) as caught:
        cluster.proxy("host_b").refuse(volume="Volume_b")
    assert caught.value.volume == "Volume_b"
    assert caught.value.used_by == [{"service": "replication", "set": "S"}]


def test_unforeseen_exception_is_typed(cluster):
    with pytest.raises(BeanCrashed) as caught:
        cluster.proxy("host_b").crash()
    assert (caught.value.kind, caught.value.host) == ("ZeroDivisionError", "host_b")


def test_system_exit_in_a_method_is_typed_and_the_worker_goes_on(cluster):
    pid = cluster.hosts["host_b"].children()["probe"]
    with pytest.raises(BeanCrashed) as caught:
        cluster.proxy("host_b").exit()
    assert caught.value.kind == "SystemExit"
    assert cluster.proxy("host_b").echo(text="x") == {"text": "x"}
    assert cluster.hosts["host_b"].children()["probe"] == pid


def test_caller_refuses_arguments_that_do_not_fit(cluster):
    with pytest.raises(BadArguments, match="text"):
        cluster.proxy("host_b").echo(text=None)
    with pytest.raises(BadArguments, match="extra"):
        cluster.proxy("host_b").echo(text="x", extra=1)
    with pytest.raises(BadArguments, match="text"):
        cluster.proxy("host_b").echo()


def test_bean_refuses_arguments_that_do_not_fit(sender):
    call = raw_call("echo", {"text": 7})
    assert sender.send(call)
    with pytest.raises(BadArguments, match="text"):
        sender.receive(call)


def test_bean_refuses_an_answer_that_does_not_fit(cluster):
    with pytest.raises(BadResult, match="many"):
        cluster.proxy("host_b").lie()


def test_caller_refuses_an_answer_that_does_not_fit(cluster, monkeypatch):
    # The caller takes `echo` for a method of another form.
    monkeypatch.setitem(ProbeBean.methods, "echo", _other_result(ProbeBean))
    with pytest.raises(BadResult, match="text"):
        cluster.proxy("host_b").echo(text="x")


def _other_result(bean):
    from dataclasses import replace

    return replace(bean.methods["echo"], result=bean.methods["lie"].result)


def test_unknown_bean_and_method(cluster):
    with pytest.raises(UnknownBean):
        cluster.federation.proxy("host_b", "teapot")
    with pytest.raises(UnknownMethod):
        cluster.proxy("host_b").brew()


def test_another_version_of_the_interface_is_refused(sender):
    call = raw_call("echo", {"text": "x"}, version="99")
    assert sender.send(call)
    with pytest.raises(InterfaceMismatch):
        sender.receive(call)


def test_malformed_envelope_is_refused(sender):
    call = raw_call("echo", {"text": "x"}, depth="deep")
    assert sender.send(call)
    with pytest.raises(BadEnvelope, match="depth"):
        sender.receive(call)


def test_call_that_takes_too_long_ends_in_time(cluster):
    before_s = time.monotonic()
    with pytest.raises(BeanTimeout):
        cluster.federation.call("host_b", "probe", "slow", {"seconds": 2.0}, timeout_s=0.3)
    assert time.monotonic() - before_s < 1.5


def test_a_call_sent_twice_is_done_once(cluster, sender):
    before = cluster.proxy("host_b").done_so_far()["done"]
    call = raw_call("once", {"seconds": 0.3}, call_id="aaaaaaaa-0001")
    assert sender.send(call)
    assert sender.send(call)
    first = sender.receive(call)
    assert sender.send(call)
    assert sender.receive(call) == first == {"done": before + 1}
    assert cluster.proxy("host_b").done_so_far()["done"] == before + 1


def test_calls_within_calls_over_hosts(cluster):
    hosts = ["host_a", "host_b", "host_a"]
    assert cluster.proxy("host_b").chain(hosts=hosts) == {"depth": 3}


def test_a_circle_of_calls_ends_with_a_typed_error(cluster):
    with pytest.raises(CallTooDeep):
        cluster.proxy("host_b").chain(hosts=["host_a", "host_b"] * 3)


def test_peer_operation_may_call_its_own_host_only(cluster):
    cluster.proxy("host_b").wander(host="host_b")
    with pytest.raises(PeerNotLeaf):
        cluster.proxy("host_b").wander(host="host_a")


def test_coordinating_calls_hold_half_of_the_pool(cluster):
    outcomes = []

    def one():
        try:
            outcomes.append(cluster.proxy("host_a").coordinate(host="host_b", seconds=2.0))
        except BeanBusy as error:
            outcomes.append(error.limit)

    threads = [threading.Thread(target=one) for _ in range(18)]
    for thread in threads:
        thread.start()
    # The other half still answers meanwhile.
    assert cluster.proxy("host_a").echo(text="x") == {"text": "x"}
    for thread in threads:
        thread.join(20)
    assert outcomes.count({"text": "done"}) == 16
    assert outcomes.count(16) == 2


def test_job_is_followed_on_the_jobs_queue_and_reports(cluster):
    seen = []
    with cluster.task_events(seen.append):
        task_id = cluster.proxy("host_a").begin()["task_id"]

        def events(kind):
            return [e for e in seen if e.get("uuid") == task_id and e["type"] == kind]

        progress = wait_until(lambda: events("task-progress"))
        wait_until(lambda: events("task-succeeded"))
    assert progress[0]["total_bytes"] == 3
    assert progress[0]["hostname"] == "probe.jobs@host_a"
