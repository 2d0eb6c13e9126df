"""Declarations of beans, the plan of restarts, and what a call's answer may claim to be."""

import pytest
from marshmallow import fields

from beans.base import Bean, job, method
from beans.dispatch import CallMemory
from beans.errors import BeanBusy
from beans.supervise import (
    BACK_OFF_FIRST_S,
    BACK_OFF_LIMIT_S,
    STEADY_S,
    ChildSpec,
    ChildState,
    Family,
)
from beans.wire import from_result, to_call_failed
from facade.contract.errors import RemoteError


class Base(Bean):
    name = "base"

    @method(args={"x": fields.Integer()}, timeout_s=3)
    def one(self, x):
        """Do nothing."""


class Derived(Base):
    name = "derived"

    @job()
    def watch(self, progress):
        """Do nothing."""


def test_declarations_are_inherited_and_not_shared():
    assert set(Derived.methods) == {"one"}
    assert set(Derived.jobs) == {"watch"}
    assert Base.jobs == {}
    assert Bean.methods == {}
    assert Derived.methods["one"].timeout_s == 3


def test_leaf_cannot_coordinate():
    with pytest.raises(TypeError):
        method(coordinates=True, peer=True)


def test_error_keeps_class_and_fields_through_a_result():
    error = from_result(to_call_failed(BeanBusy(host="host_a", bean="x", limit=16)))
    assert type(error) is BeanBusy
    assert error.limit == 16


@pytest.mark.parametrize("claimed", [SystemExit(3), KeyboardInterrupt(), 7, None, "text"])
def test_hostile_result_is_only_a_remote_error(claimed):
    assert isinstance(from_result(claimed), RemoteError)


def test_field_that_is_no_json_becomes_text():
    failed = to_call_failed(BeanBusy(host="host_a", bean=object, limit=1))
    assert "object" in failed.wire()["data"]["bean"]


def test_call_memory_repeats_values_and_errors():
    memory, runs = CallMemory(), []

    def run():
        runs.append(1)
        return len(runs)

    def fail():
        runs.append(1)
        raise ValueError("no")

    assert [memory.once("a", "1", run, 1) for _ in range(2)] == [(True, 1), (True, 1)]
    # Another caller's call of the same id is another call.
    assert memory.once("b", "1", run, 1) == (True, 2)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            memory.once("a", "2", fail, 1)
    assert len(runs) == 3


def test_call_memory_is_limited():
    memory, runs = CallMemory(limit=2), []
    for call_id in ("1", "2", "3", "1"):
        memory.once("a", call_id, lambda: runs.append(1), 1)
    assert len(runs) == 4


def test_restart_backs_off_and_starts_anew_after_a_steady_life():
    state = ChildState(ChildSpec("volume", False))
    pauses = []
    now_s = 0.0
    for _ in range(8):
        state.started(1, now_s)
        pauses.append(state.ended(now_s + 0.1))
    assert pauses[:3] == [BACK_OFF_FIRST_S, BACK_OFF_FIRST_S * 2, BACK_OFF_FIRST_S * 4]
    assert max(pauses) == BACK_OFF_LIMIT_S
    state.started(1, now_s)
    assert state.ended(now_s + STEADY_S) == BACK_OFF_FIRST_S


def test_family_waits_for_the_next_start():
    family = Family([ChildState(ChildSpec("a", False)), ChildState(ChildSpec("b", False))])
    assert len(family.due(0.0)) == 2
    for state in family.states:
        state.started(7, 0.0)
    assert family.wait_s(0.0, 5.0) == 5.0
    family.states[0].ended(1.0)
    assert family.wait_s(1.0, 5.0) == BACK_OFF_FIRST_S
    assert [s.spec.bean for s in family.due(2.0)] == ["a"]
