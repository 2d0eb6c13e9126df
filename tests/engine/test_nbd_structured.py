"""Structured replies, spoken to in bytes: chunks, holes, errors in words."""

from __future__ import annotations

import errno
import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from facade.engine.fault_volume import FaultVolume
from facade.engine.file_volume import FileVolume
from facade.engine.nbd_server import NbdServer
from facade.engine.volume_stack import VolumeStack
from tests.engine import nbd_raw as raw
from tests.engine.nbd_raw import Chunk, RawClient, serve
from tests.engine.test_volume_stack import wait_until
from tests.engine.volume_makers import file_volume

SIZE_BYTES = 64 << 20
MIB = 1 << 20
ALLOCATION = "base:allocation"


@pytest.fixture
def bottom(tmp_path: Path) -> Iterator[FileVolume]:
    with file_volume(tmp_path, SIZE_BYTES) as volume:
        yield volume


@pytest.fixture(params=["direct", "pending"])
def layer(request: pytest.FixtureRequest, bottom: FileVolume) -> Iterator[FaultVolume]:
    """Requests that end at once, and such that end in another thread."""
    volume = FaultVolume(bottom, is_async=request.param == "pending")
    yield volume
    volume.close()


@pytest.fixture
def server(layer: FaultVolume) -> Iterator[NbdServer]:
    with serve(VolumeStack(layer)) as running:
        yield running


@pytest.fixture
def client(server: NbdServer) -> Iterator[RawClient]:
    with RawClient(server.socket_path, structured=True, contexts=(ALLOCATION,)) as connected:
        yield connected


def assemble(chunks: list[Chunk], offset: int, length: int) -> bytes:
    """Put a read together; every byte is told exactly once."""
    data, told = bytearray(length), bytearray(length)
    for chunk in chunks:
        (at,) = struct.unpack_from(">Q", chunk.payload)
        at -= offset
        if chunk.kind == raw.OFFSET_DATA:
            piece = chunk.payload[8:]
        else:
            assert chunk.kind == raw.OFFSET_HOLE
            piece = bytes(struct.unpack_from(">I", chunk.payload, 8)[0])
        assert piece
        assert 0 <= at <= length - len(piece)
        assert not any(told[at : at + len(piece)])
        data[at : at + len(piece)] = piece
        told[at : at + len(piece)] = b"\1" * len(piece)
    assert all(told)
    return bytes(data)


def read(client: RawClient, offset: int, length: int, flags: int = 0) -> list[Chunk]:
    client.send(raw.request(raw.READ, offset, length, flags=flags, cookie=offset))
    chunks = client.take_chunks()
    assert chunks[0].cookie == offset
    return chunks


def error_of(client: RawClient, sent: bytes) -> tuple[int, str]:
    client.send(sent)
    (chunk,) = client.take_chunks()
    assert chunk.kind == raw.ERROR
    error, length = struct.unpack_from(">IH", chunk.payload)
    assert len(chunk.payload) == 6 + length
    return error, chunk.payload[6:].decode()


# ---- reads


@pytest.mark.parametrize("length", [1, 4096, 65_535, 65_536, 65_537, 300_000, 32 << 20])
@pytest.mark.parametrize("flags", [0, raw.DF])
def test_data_of_any_length_survives(client: RawClient, length: int, flags: int) -> None:
    data = random.Random(length).randbytes(length)
    assert client.ask(raw.write(4096 - 7, data)) == 0
    chunks = read(client, 4096 - 7, length, flags)
    assert len(chunks) == 1
    assert assemble(chunks, 4096 - 7, length) == data


def test_small_reads_are_data_even_in_holes(client: RawClient) -> None:
    (chunk,) = read(client, 0, 65_536)
    assert (chunk.kind, chunk.payload) == (raw.OFFSET_DATA, bytes(8 + 65_536))


def test_a_read_of_nothing_is_an_empty_success(client: RawClient) -> None:
    (chunk,) = read(client, 77, 0)
    assert chunk == (True, raw.NONE, 77, b"")


def test_a_hole_costs_no_data(client: RawClient) -> None:
    (chunk,) = read(client, MIB + 5, 32 << 20)
    assert chunk.kind == raw.OFFSET_HOLE
    assert chunk.payload == struct.pack(">QI", MIB + 5, 32 << 20)


def test_holes_and_data_take_turns(client: RawClient) -> None:
    first, second = b"\1" * 100_000, b"\2" * MIB
    client.ask(raw.write(MIB, first))
    client.ask(raw.write(4 * MIB, second))
    chunks = read(client, 10, 6 * MIB)
    assert [chunk.kind for chunk in chunks] == [raw.OFFSET_HOLE, raw.OFFSET_DATA] * 2 + [2]
    assert sum(len(chunk.payload) for chunk in chunks) < 1_300_000
    data = assemble(chunks, 10, 6 * MIB)
    assert data[MIB - 10 :][: len(first)] == first
    assert data[4 * MIB - 10 :][: len(second)] == second
    assert data.count(0) == 6 * MIB - len(first) - len(second)


def test_do_not_fragment_gets_one_chunk_of_data(client: RawClient) -> None:
    client.ask(raw.write(MIB, b"x"))
    (chunk,) = read(client, 0, 2 * MIB, raw.DF)
    assert chunk.kind == raw.OFFSET_DATA
    assert chunk.payload[8:] == bytes(MIB) + b"x" + bytes(MIB - 1)


def test_many_holes_are_told_in_a_limited_number_of_chunks(client: RawClient) -> None:
    for number in range(100):
        client.ask(raw.write(number * 65_536, b"%08d" % number))
    chunks = read(client, 0, 8 * MIB)
    assert len(chunks) == 31
    data = assemble(chunks, 0, 8 * MIB)
    assert [data[n * 65_536 :][:8] for n in range(100)] == [b"%08d" % n for n in range(100)]


def test_a_hole_written_to_is_data_at_once(client: RawClient) -> None:
    for number in range(64):
        offset, length = number * MIB, 100_000
        assert read(client, offset, length)[0].kind == raw.OFFSET_HOLE
        client.ask(raw.write(offset + 50_000, b"new"))
        data = assemble(read(client, offset, length), offset, length)
        assert data[50_000:50_003] == b"new"


def test_data_trimmed_reads_as_zeroes(client: RawClient) -> None:
    client.ask(raw.write(0, b"\xff" * 4 * MIB))
    assert set(assemble(read(client, 0, 4 * MIB), 0, 4 * MIB)) == {255}
    client.ask(raw.request(raw.TRIM, MIB, MIB))
    data = assemble(read(client, 0, 4 * MIB), 0, 4 * MIB)
    assert data == b"\xff" * MIB + bytes(MIB) + b"\xff" * 2 * MIB


def test_random_reads_and_writes_with_a_model(client: RawClient) -> None:
    model, dice = bytearray(4 * MIB), random.Random(4)
    for _ in range(20):
        for _ in range(dice.randrange(1, 12)):
            length, offset = random_range(dice, len(model))
            data = dice.choice([bytes(length), dice.randbytes(length)])
            model[offset : offset + length] = data
            sent = raw.write(offset, data) if any(data) else raw.request(raw.TRIM, offset, length)
            assert client.ask(sent) == 0
        ranges = [random_range(dice, len(model)) for _ in range(dice.randrange(1, 40))]
        stream = b"".join(raw.request(raw.READ, offset, length, cookie=cookie)
                          for cookie, (length, offset) in enumerate(ranges))  # fmt: skip
        sender = threading.Thread(target=client.send, args=(stream,))
        sender.start()
        for _ in ranges:
            chunks = client.take_chunks()
            length, offset = ranges[chunks[0].cookie]
            assert assemble(chunks, offset, length) == model[offset : offset + length]
        sender.join()


def random_range(dice: random.Random, size_bytes: int) -> tuple[int, int]:
    """Return a length and an offset."""
    length = dice.choice([1, 4096, 70_000, 300_000, MIB])
    return length, dice.randrange(size_bytes - length)


def test_a_flood_of_requests_is_answered_in_full(client: RawClient) -> None:
    client.ask(raw.write(0, b"\7" * MIB))
    count, dice = 1500, random.Random(9)
    lengths = [dice.choice([1, 4096, 70_000, 300_000]) for _ in range(count)]
    stream = b"".join(raw.request(raw.READ, MIB - 50_000, n, cookie=at)
                      for at, n in enumerate(lengths))  # fmt: skip
    sender = threading.Thread(target=client.send, args=(stream,))
    sender.start()
    answered = set()
    for _ in range(count):
        chunks = client.take_chunks()
        number = chunks[0].cookie
        data = assemble(chunks, MIB - 50_000, lengths[number])
        assert data.rstrip(b"\0") == b"\7" * min(50_000, lengths[number])
        answered.add(number)
    sender.join()
    assert len(answered) == count


# ---- errors


@pytest.mark.parametrize(("sent", "expected", "words"), [
    (raw.request(raw.READ, SIZE_BYTES, 1), raw.EINVAL, "past the volume's end"),
    (raw.request(raw.READ, 0, (32 << 20) + 1), raw.EOVERFLOW, "32 MiB"),
    (raw.request(raw.READ, 0, 1, flags=raw.NO_HOLE), raw.EINVAL, "flag"),
    (raw.write(SIZE_BYTES, b"x"), raw.ENOSPC, "past the volume's end"),
    (raw.request(raw.TRIM, SIZE_BYTES, 1), raw.EINVAL, "past the volume's end"),
    (raw.request(raw.FLUSH, 1, 0), raw.EINVAL, "flush"),
    (raw.request(999), raw.EINVAL, "type"),
    (raw.request(raw.WRITE_ZEROES, 0, 1, flags=raw.FAST_ZERO | raw.NO_HOLE), raw.ENOTSUP, "slow"),
    (raw.request(raw.BLOCK_STATUS, SIZE_BYTES, 1), raw.EINVAL, "past the volume's end"),
    (raw.request(raw.BLOCK_STATUS, SIZE_BYTES - 1, 2), raw.EINVAL, "past the volume's end"),
    (raw.request(raw.BLOCK_STATUS, 0, 0), raw.EINVAL, "at least one"),
    (raw.request(raw.BLOCK_STATUS, 0, 1, flags=raw.DF), raw.EINVAL, "flag"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_words(
    client: RawClient, sent: bytes, expected: int, words: str
) -> None:
    error, why = error_of(client, sent)
    assert error == expected
    assert words in why
    assert len(read(client, 0, 16)) == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ENOMEM, errno.ESHUTDOWN])
@pytest.mark.parametrize("length", [512, 300_000])
def test_errors_of_the_volume_are_chunks(
    layer: FaultVolume, client: RawClient, number: int, length: int
) -> None:
    client.ask(raw.write(100_000, b"data"))  # the long read has holes and data
    for sent in (raw.request(raw.READ, 0, length), raw.write(0, bytes(length)),
                 raw.request(raw.FLUSH), raw.request(raw.READ, 8 * MIB, length)):  # fmt: skip
        layer.fail("any", number)
        error, why = error_of(client, sent)
        assert error == number
        assert why
    assert assemble(read(client, 0, 300_000), 0, 300_000).strip(b"\0") == b"data"


def test_read_only_says_so(bottom: FileVolume) -> None:
    with (
        serve(VolumeStack(bottom, read_only=True)) as server,
        RawClient(server.socket_path, structured=True) as client,
    ):
        assert error_of(client, raw.write(0, b"x")) == (raw.EPERM, "the export is read-only")


def test_simple_clients_are_answered_simply(server: NbdServer) -> None:
    with RawClient(server.socket_path) as client:
        assert client.ask(raw.request(raw.READ, 0, 100_000), 100_000) == bytes(100_000)
        assert client.ask(raw.request(raw.READ, 0, 1, flags=raw.DF)) == raw.EINVAL
        assert client.ask(raw.request(raw.BLOCK_STATUS, 0, 1)) == raw.EINVAL


def test_a_client_that_vanishes_amid_chunks_leaves_nothing(server: NbdServer) -> None:
    with RawClient(server.socket_path, structured=True, contexts=(ALLOCATION,)) as client:
        client.send(b"".join(raw.request(raw.READ, 0, 8 * MIB) + raw.request(raw.BLOCK_STATUS, 0, 9)
                             for _ in range(50)))  # fmt: skip
    wait_until(lambda: server.clients == 0)
