"""The handshake machine alone: bytes in, bytes out."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facade.engine.nbd_wire import (
    OPTION_DATA_MAX_BYTES,
    OPTION_SKIP_MAX_BYTES,
    OPTIONS_MAX,
    Export,
    Handshake,
    Outcome,
    export_flags,
)
from tests.engine.nbd_raw import (
    OPT_ABORT,
    OPT_EXPORT_NAME,
    OPT_GO,
    OPT_INFO,
    OPT_LIST,
    REPLY_MAGIC,
    go_data,
    meta_data,
    option,
)

ACK, SERVER, INFO = 1, 2, 3
UNSUP, INVALID, UNKNOWN, TOO_BIG = (2**31 + n for n in (1, 3, 6, 9))
FLAGS = struct.pack(">I", 3)
EXPORT = Export("Volume_a", 1 << 40, export_flags(read_only=False, can_trim=True))


def begin(flags: int | None = 3) -> Handshake:
    handshake = Handshake({EXPORT.name: EXPORT}, EXPORT.name)
    if flags is not None:
        assert handshake.receive(struct.pack(">I", flags)) == b""
    return handshake


def replies(data: bytes) -> list[tuple[int, int, bytes]]:
    found = []
    while data:
        magic, number, kind, length = struct.unpack_from(">QIII", data)
        assert magic == REPLY_MAGIC
        found.append((number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return found


def test_greeting_offers_fixed_newstyle_without_zeroes() -> None:
    assert begin(None).greeting() == b"NBDMAGICIHAVEOPT\x00\x03"


@pytest.mark.parametrize("name", [b"", b"Volume_a"])
def test_go_tells_size_and_flags_and_begins(name: bytes) -> None:
    handshake = begin()
    told = replies(handshake.receive(option(OPT_GO, go_data(name))))
    assert told == [(OPT_GO, INFO, struct.pack(">HQH", 0, 1 << 40, EXPORT.flags)),
                    (OPT_GO, ACK, b"")]  # fmt: skip
    assert handshake.outcome is Outcome.TRANSMISSION
    assert handshake.export == EXPORT


def test_info_tells_the_same_and_does_not_begin() -> None:
    handshake = begin()
    wanted = replies(handshake.receive(option(OPT_INFO, go_data(b"", (1, 3, 2, 77)))))
    assert [kind for _, kind, _ in wanted] == [INFO, INFO, INFO, ACK]
    assert wanted[1][2] == struct.pack(">H", 1) + b"Volume_a"
    assert wanted[2][2] == struct.pack(">HIII", 3, 1, 4096, 32 << 20)
    assert handshake.outcome is Outcome.NEGOTIATING


def test_bytes_behind_go_are_kept_for_transmission() -> None:
    handshake = begin()
    handshake.receive(option(OPT_GO, go_data()) + b"the first request")
    assert handshake.leftover == b"the first request"


@pytest.mark.parametrize(("flags", "padding"), [(1, 124), (3, 0), (0, 124)])
def test_export_name_answers_the_old_way(flags: int, padding: int) -> None:
    handshake = begin(flags)
    told = handshake.receive(option(OPT_EXPORT_NAME, b"Volume_a"))
    assert told == struct.pack(">QH", 1 << 40, EXPORT.flags) + bytes(padding)
    assert handshake.outcome is Outcome.TRANSMISSION


@pytest.mark.parametrize("name", [b"other", b"\xff\xfe", b"x" * 5000])
def test_unknown_exports_are_refused(name: bytes) -> None:
    handshake = begin()
    assert replies(handshake.receive(option(OPT_GO, go_data(name))))[0][1] == UNKNOWN
    assert handshake.outcome is Outcome.NEGOTIATING
    assert handshake.receive(option(OPT_EXPORT_NAME, name)) == b""
    assert handshake.outcome is Outcome.ENDED


def test_list_names_the_export() -> None:
    told = replies(begin().receive(option(OPT_LIST)))
    assert told == [(OPT_LIST, SERVER, struct.pack(">I", 8) + b"Volume_a"), (OPT_LIST, ACK, b"")]
    assert replies(begin().receive(option(OPT_LIST, b"data")))[0][1] == INVALID


def test_abort_is_acknowledged_and_ends() -> None:
    handshake = begin()
    assert replies(handshake.receive(option(OPT_ABORT, b"ignored"))) == [(OPT_ABORT, ACK, b"")]
    assert handshake.outcome is Outcome.ENDED


@pytest.mark.parametrize("number", [0, 4, 5, 12, 2**32 - 1])
def test_unknown_options_are_unsupported_and_the_next_is_parsed(number: int) -> None:
    handshake = begin()
    assert replies(handshake.receive(option(number, b"some data")))[0][:2] == (number, UNSUP)
    handshake.receive(option(OPT_GO, go_data()))
    assert handshake.outcome is Outcome.TRANSMISSION


@pytest.mark.parametrize("data", [b"", b"\0\0\0\0", struct.pack(">I", 2**32 - 1) + b"\0\0",
                                  struct.pack(">IH", 0, 9), go_data() + b"x",
                                  struct.pack(">I", 3) + b"ab\0\0"])  # fmt: skip
def test_malformed_go_is_invalid(data: bytes) -> None:
    assert replies(begin().receive(option(OPT_GO, data)))[0][1] == INVALID


def test_long_option_is_skipped() -> None:
    handshake = begin()
    data = option(9, bytes(OPTION_DATA_MAX_BYTES + 1))
    answer = b"".join(handshake.receive(data[at : at + 1000]) for at in range(0, len(data), 1000))
    assert [kind for _, kind, _ in replies(answer)] == [TOO_BIG]
    handshake.receive(option(OPT_GO, go_data()))
    assert handshake.outcome is Outcome.TRANSMISSION


@pytest.mark.parametrize("sent", [
    FLAGS + struct.pack(">QII", 0x49484156454F5054, 9, OPTION_SKIP_MAX_BYTES + 1),
    FLAGS + option(OPT_GO, go_data(), magic=0x1234),
    struct.pack(">I", 4),
    struct.pack(">I", 2**31),
    FLAGS + option(99) * (OPTIONS_MAX + 1),
])  # fmt: skip
def test_breaking_the_rules_ends_it(sent: bytes) -> None:
    handshake = begin(None)
    handshake.receive(sent)
    assert handshake.outcome is Outcome.ENDED
    assert handshake.reason
    assert handshake.receive(option(OPT_GO, go_data())) == b""


def test_read_only_export_offers_no_writes() -> None:
    flags = export_flags(read_only=True, can_trim=True)
    assert flags & 2
    assert not flags & (1 << 5 | 1 << 6)


@given(st.integers(min_value=1, max_value=40), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_how_bytes_are_cut_makes_no_difference(piece: int, dice: random.Random) -> None:
    conversation = [option(OPT_LIST), option(77, b"what"), option(OPT_INFO, go_data(b"no")),
                    option(OPT_INFO, go_data(b"", (3,))), option(5)]  # fmt: skip
    dice.shuffle(conversation)
    sent = FLAGS + b"".join(conversation) + option(OPT_GO, go_data())
    whole, cut = begin(None), begin(None)
    answer = b"".join(cut.receive(sent[at : at + piece]) for at in range(0, len(sent), piece))
    assert answer == whole.receive(sent)
    assert cut.outcome is whole.outcome is Outcome.TRANSMISSION


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_survived_and_nothing_grows(noise: bytes) -> None:
    handshake = begin()
    handshake.receive(noise)
    handshake.receive(option(OPT_LIST) + noise)
    assert len(handshake.leftover) <= 2 * len(noise) + 100


EXTENDED, STRUCTURED, SET_META = 11, 8, 10
EXT_HEADER_REQD = 2**31 + 10


def flags_told(answer: bytes) -> int:
    return int(struct.unpack_from(">HQH", replies(answer)[0][2])[2])


def test_extended_headers_come_with_structured_replies_and_before_them() -> None:
    handshake = begin()
    assert replies(handshake.receive(option(EXTENDED))) == [(EXTENDED, ACK, b"")]
    assert (handshake.structured, handshake.extended) == (True, True)
    assert replies(handshake.receive(option(EXTENDED)))[0][1] == ACK
    assert replies(handshake.receive(option(STRUCTURED)))[0][1] == EXT_HEADER_REQD
    handshake.receive(option(OPT_GO, go_data()))
    assert handshake.outcome is Outcome.TRANSMISSION
    assert (handshake.structured, handshake.extended) == (True, True)


def test_extended_headers_after_structured_replies() -> None:
    handshake = begin()
    assert replies(handshake.receive(option(STRUCTURED)))[0][1] == ACK
    assert replies(handshake.receive(option(EXTENDED)))[0][1] == ACK
    assert handshake.extended


def test_extended_headers_take_no_data() -> None:
    handshake = begin()
    assert replies(handshake.receive(option(EXTENDED, b"x")))[0][1] == INVALID
    assert not handshake.extended


def test_export_name_is_not_for_extended_headers() -> None:
    handshake = begin()
    handshake.receive(option(EXTENDED))
    assert handshake.receive(option(OPT_EXPORT_NAME)) == b""
    assert handshake.outcome is Outcome.ENDED


def test_the_filter_of_block_status_is_for_who_can_use_it() -> None:
    export = replace(EXPORT, contexts=("base:allocation",))
    filter_flag = 1 << 12
    for agreed in (STRUCTURED, EXTENDED):
        handshake = Handshake({export.name: export}, export.name)
        handshake.receive(FLAGS + option(agreed))
        assert not flags_told(handshake.receive(option(OPT_INFO, go_data()))) & filter_flag
        handshake.receive(option(SET_META, meta_data(("base:allocation",))))
        told = flags_told(handshake.receive(option(OPT_GO, go_data())))
        assert bool(told & filter_flag) is (agreed == EXTENDED)


def test_where_there_are_no_structured_replies_there_are_no_extended_headers() -> None:
    export = replace(EXPORT, can_structured=False)
    handshake = Handshake({export.name: export}, export.name)
    assert replies(handshake.receive(FLAGS + option(EXTENDED)))[0][1] == UNSUP
