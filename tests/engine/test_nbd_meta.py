"""The handshake of structured replies and metadata contexts: bytes in, bytes out."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facade.engine.nbd_meta import META_QUERIES_MAX, MetaQueryRefused, parse_meta
from facade.engine.nbd_wire import Export, Handshake, Outcome, export_flags
from tests.engine.nbd_raw import (
    OPT_EXPORT_NAME,
    OPT_GO,
    OPT_LIST_META,
    OPT_SET_META,
    OPT_STRUCTURED,
    go_data,
    meta_data,
    option,
)
from tests.engine.test_nbd_handshake import replies

ACK, INFO, META = 1, 3, 4
UNSUP, INVALID, UNKNOWN, TOO_BIG = (2**31 + n for n in (1, 3, 6, 9))
DF, FAST_ZERO, CACHE = 1 << 7, 1 << 11, 1 << 10
ALLOCATION, FIRST, SECOND = "base:allocation", "qemu:dirty-bitmap:s1", "qemu:dirty-bitmap:s2"
EXPORT = Export("Volume_a", 1 << 40, export_flags(read_only=False, can_trim=True),
                (ALLOCATION, FIRST, SECOND))  # fmt: skip
OTHER = Export("Volume_b", 1 << 20, EXPORT.flags, (ALLOCATION,))


def begin(*options: bytes, structured: bool = True) -> Handshake:
    handshake = Handshake({EXPORT.name: EXPORT, OTHER.name: OTHER}, EXPORT.name)
    handshake.receive(struct.pack(">I", 3))
    if structured:
        assert replies(handshake.receive(option(OPT_STRUCTURED))) == [(OPT_STRUCTURED, ACK, b"")]
    for one in options:
        handshake.receive(one)
    return handshake


def kinds(handshake: Handshake, sent: bytes) -> list[int]:
    return [kind for _, kind, _ in replies(handshake.receive(sent))]


def names(handshake: Handshake, number: int, *queries: str | bytes) -> dict[str, int]:
    told = replies(handshake.receive(option(number, meta_data(queries))))
    assert told.pop()[:2] == (number, ACK)
    assert all(kind == META for _, kind, _ in told)
    return {data[4:].decode(): int.from_bytes(data[:4]) for _, _, data in told}


def flags_told(handshake: Handshake) -> int:
    told = replies(handshake.receive(option(OPT_GO, go_data())))
    return int(struct.unpack(">HQH", told[0][2])[2])


def test_df_is_told_only_with_structured_replies() -> None:
    assert not flags_told(begin(structured=False)) & DF
    assert flags_told(begin()) & DF
    old = begin().receive(option(OPT_EXPORT_NAME))
    assert struct.unpack(">QH", old)[1] & DF


def test_writable_exports_tell_fast_zero_and_all_tell_cache() -> None:
    assert export_flags(read_only=False, can_trim=False) & (FAST_ZERO | CACHE) == FAST_ZERO | CACHE
    assert export_flags(read_only=True, can_trim=True) & (FAST_ZERO | CACHE) == CACHE


def test_structured_replies_take_no_data() -> None:
    handshake = begin(structured=False)
    assert kinds(handshake, option(OPT_STRUCTURED, b"x")) == [INVALID]
    assert handshake.structured is False


def test_structured_replies_that_are_not_offered() -> None:
    export = dataclasses.replace(EXPORT, can_structured=False)
    handshake = Handshake({export.name: export}, export.name)
    handshake.receive(struct.pack(">I", 3))
    assert kinds(handshake, option(OPT_STRUCTURED)) == [UNSUP]
    assert kinds(handshake, option(OPT_LIST_META, meta_data(()))) == [UNSUP]
    assert handshake.structured is False


@pytest.mark.parametrize(("queries", "expected"), [
    ((), {ALLOCATION, FIRST, SECOND}),
    (("base:",), {ALLOCATION}),
    (("base:allocation", "base:allocation"), {ALLOCATION}),
    (("base:allocatio",), set()),
    (("qemu:",), {FIRST, SECOND}),
    (("qemu:dirty-bitmap:",), {FIRST, SECOND}),
    ((SECOND, "x-unknown:", "qemu:allocation-depth"), {SECOND}),
])  # fmt: skip
def test_list(queries: tuple[str, ...], expected: set[str]) -> None:
    handshake = begin()
    listed = names(handshake, OPT_LIST_META, *queries)
    assert set(listed) == expected
    assert set(listed.values()) <= {0}
    assert handshake.contexts == ()


@pytest.mark.parametrize(("queries", "expected"), [
    ((), {}),
    (("base:",), {}),
    (("qemu:dirty-bitmap:",), {}),
    ((ALLOCATION,), {ALLOCATION: 1}),
    ((SECOND, ALLOCATION, "x-unknown:y"), {ALLOCATION: 1, SECOND: 2}),
])  # fmt: skip
def test_set(queries: tuple[str, ...], expected: dict[str, int]) -> None:
    handshake = begin()
    assert names(handshake, OPT_SET_META, *queries) == expected
    handshake.receive(option(OPT_GO, go_data()))
    assert handshake.contexts == tuple(expected)
    assert handshake.outcome is Outcome.TRANSMISSION


@pytest.mark.parametrize("number", [OPT_LIST_META, OPT_SET_META])
def test_contexts_need_structured_replies_first(number: int) -> None:
    handshake = begin(structured=False)
    assert kinds(handshake, option(number, meta_data((ALLOCATION,)))) == [INVALID]
    assert handshake.contexts == ()


@pytest.mark.parametrize("after", [
    option(OPT_SET_META, meta_data(())),
    option(OPT_SET_META, meta_data((ALLOCATION,), b"no such export")),
    option(OPT_SET_META, b"\0"),
    option(OPT_SET_META, meta_data((ALLOCATION,), b"Volume_b")),
])  # fmt: skip
def test_the_last_set_counts_even_when_it_fails(after: bytes) -> None:
    handshake = begin(option(OPT_SET_META, meta_data((FIRST,))), after)
    handshake.receive(option(OPT_GO, go_data(b"Volume_a")))
    assert handshake.contexts == ()


def test_the_empty_name_and_the_exports_own_are_one() -> None:
    handshake = begin(option(OPT_SET_META, meta_data((FIRST,))))
    handshake.receive(option(OPT_GO, go_data(b"Volume_a")))
    assert handshake.contexts == (FIRST,)


@pytest.mark.parametrize("data", [
    b"", b"\0\0", struct.pack(">I", 9) + b"short", struct.pack(">I", 0),
    struct.pack(">II", 0, 1), struct.pack(">III", 0, 1, 2**32 - 1) + b"base:",
    meta_data((ALLOCATION,)) + b"x", meta_data(("no colon",)), meta_data((":leaf",)),
    meta_data((b"base:\xff",)), meta_data(("x:" + "y" * 4096,)),
])  # fmt: skip
@pytest.mark.parametrize("number", [OPT_LIST_META, OPT_SET_META])
def test_malformed_queries_are_invalid(number: int, data: bytes) -> None:
    handshake = begin()
    assert kinds(handshake, option(number, data)) == [INVALID]
    handshake.receive(option(OPT_GO, go_data()))
    assert handshake.outcome is Outcome.TRANSMISSION


def test_too_many_queries_are_too_big() -> None:
    data = meta_data((ALLOCATION,) * (META_QUERIES_MAX + 1))
    assert kinds(begin(), option(OPT_SET_META, data)) == [TOO_BIG]


def test_contexts_of_an_unknown_export() -> None:
    assert kinds(begin(), option(OPT_LIST_META, meta_data((), b"other"))) == [UNKNOWN]


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_data_is_parsed_or_refused(data: bytes) -> None:
    try:
        found = parse_meta(data)
    except MetaQueryRefused:
        return
    assert meta_data(found.queries, found.export) == data
