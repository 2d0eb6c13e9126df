"""The language in which faults are ordered."""

from __future__ import annotations

import errno

import pytest

from facade.contract.fault_script import (
    BadFaultScript,
    FaultOrder,
    PowerCut,
    parse,
    parse_power_cut,
)


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("write 3 EIO", FaultOrder("write", 3, 3, "fail", errno.EIO)),
        ("flush ENOSPC", FaultOrder("flush", 1, 0, "fail", errno.ENOSPC)),
        ("any 2-4 EIO", FaultOrder("any", 2, 4, "fail", errno.EIO)),
        ("trim 7+ EIO", FaultOrder("trim", 7, 0, "fail", errno.EIO)),
        ("write 5 short 512", FaultOrder("write", 5, 5, "short", errno.EIO, 512)),
        ("write short 0 ENOSPC", FaultOrder("write", 1, 0, "short", errno.ENOSPC, 0)),
        ("write 1 torn", FaultOrder("write", 1, 1, "torn", errno.EIO)),
        ("read delay 50ms", FaultOrder("read", 1, 0, "delay", 0, 0, 50_000)),
        ("zero 1 delay 2s", FaultOrder("zero", 1, 1, "delay", 0, 0, 2_000_000)),
    ],
)
def test_an_order_is_understood(text: str, order: FaultOrder) -> None:
    assert parse(text) == (order,)


def test_a_script_has_many_orders() -> None:
    assert [o.operation for o in parse(" write 1 EIO;flush 2 EIO ; ")] == ["write", "flush"]


@pytest.mark.parametrize(
    "text",
    ["", ";", "write", "write 3", "scribble 1 EIO", "write 0 EIO", "write 3-2 EIO", "write EWHAT",
     "write 1 EAGAIN", "write 1 EIO EIO", "read 1 short 5", "write short", "write short x",
     "read delay", "read delay 5", "read delay 61s", "write 1x EIO", "flush 1 torn",
     ";".join(["write 1 EIO"] * 17)],
)  # fmt: skip
def test_what_is_not_understood_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(BadFaultScript) as caught:
        parse(text)
    assert len(str(caught.value)) > 10


def test_a_power_cut_is_ordered_by_change_and_seed() -> None:
    assert parse_power_cut("40 seed 7") == PowerCut(40, 7)
    for text in ("", "40", "0 seed 1", "x seed 1", "4 seed -1"):
        with pytest.raises(BadFaultScript):
            parse_power_cut(text)
