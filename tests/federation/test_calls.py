"""Calls between hosts: values, typed errors, checks on both sides."""

import pytest

from tests.federation.probe import ProbeBusy


def test_call_on_another_host_gives_its_answer(cluster):
    assert cluster.proxy("host_b").echo(text="grüße") == {"text": "grüße"}


def test_bean_knows_the_caller(cluster):
    assert cluster.proxy("host_b").who() == {"caller": "host_a"}


def test_typed_error_is_caught_as_its_class_with_its_fields(cluster):
    with pytest.raises(ProbeBusy) as caught:
        cluster.proxy("host_b").refuse(volume="Volume_b")
    assert caught.value.volume == "Volume_b"
    assert caught.value.used_by == [{"service": "replication", "set": "S"}]
