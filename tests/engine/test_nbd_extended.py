"""Extended headers, spoken to in bytes: 64-bit lengths, payloads, filters, long requests."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from facade.engine.bitmap import Bitmap
from facade.engine.fault_volume import FaultVolume
from facade.engine.file_volume import FileVolume
from facade.engine.nbd_context import BitmapContext
from facade.engine.nbd_server import NbdServer
from facade.engine.volume_stack import VolumeStack
from tests.engine import nbd_raw as raw
from tests.engine.nbd_raw import Chunk, RawClient, extended, serve
from tests.engine.test_nbd_structured import assemble
from tests.engine.test_volume_stack import wait_until
from tests.engine.volume_makers import file_volume

MIB = 1 << 20
GIB = 1 << 30
SIZE_BYTES = 64 * GIB  # sparse
BLOCK_BYTES = 32 << 10
ALLOCATION = "base:allocation"
DIRTY = "qemu:dirty-bitmap:set_a"
PIECE_BYTES = 64 * MIB  # nbd_transmission.LONG_PIECE_BYTES


@pytest.fixture
def bottom(tmp_path: Path) -> Iterator[FileVolume]:
    with file_volume(tmp_path, SIZE_BYTES) as volume:
        yield volume


@pytest.fixture(params=["direct", "pending"])
def layer(request: pytest.FixtureRequest, bottom: FileVolume) -> Iterator[FaultVolume]:
    volume = FaultVolume(bottom, is_async=request.param == "pending")
    yield volume
    volume.close()


@pytest.fixture
def held(bottom: FileVolume) -> Iterator[FaultVolume]:
    """Whose requests can be held back."""
    volume = FaultVolume(bottom, is_async=True)
    yield volume
    volume.release()
    volume.close()


@pytest.fixture
def slow(held: FaultVolume) -> Iterator[NbdServer]:
    with serve(VolumeStack(held)) as running:
        yield running


@pytest.fixture
def server(layer: FaultVolume) -> Iterator[NbdServer]:
    with serve(VolumeStack(layer)) as running:
        yield running


@pytest.fixture
def client(server: NbdServer) -> Iterator[RawClient]:
    with RawClient(server.socket_path, extended=True, contexts=(ALLOCATION,)) as connected:
        yield connected


def ask(client: RawClient, sent: bytes) -> list[Chunk]:
    client.send(sent)
    return client.take_chunks(struct.unpack_from(">Q", sent, 16)[0])


def error_of(client: RawClient, sent: bytes) -> tuple[int, str]:
    """Return error and words of the one chunk of a reply; 0 when it is the chunk of success."""
    (chunk,) = ask(client, sent)
    if chunk.kind == raw.NONE:
        assert chunk.payload == b""
        return 0, ""
    assert chunk.kind == raw.ERROR
    number, length = struct.unpack_from(">IH", chunk.payload)
    assert length == len(chunk.payload) - 6
    return number, chunk.payload[6:].decode()


def read(client: RawClient, offset: int, length: int, flags: int = 0) -> bytes:
    chunks = ask(client, extended(raw.READ, offset, length, flags=flags, cookie=offset ^ 77))
    assert {chunk.cookie for chunk in chunks} == {offset ^ 77}
    return assemble(chunks, offset, length)


def status(client: RawClient, offset: int, length: int, *, flags: int = 0,
           only: tuple[int, ...] = ()) -> dict[int, list[tuple[int, int]]]:  # fmt: skip
    """Return the extents of each context, by its number; with `only` the filter is sent."""
    data = struct.pack(f">Q{len(only)}I", length, *only) if only else b""
    told = {}
    for chunk in ask(client, extended(raw.BLOCK_STATUS, offset, length, flags=flags, data=data)):
        assert chunk.kind == raw.STATUS_EXT
        number, count = struct.unpack_from(">II", chunk.payload)
        assert len(chunk.payload) == 8 + 16 * count
        told[number] = list(struct.iter_unpack(">QQ", chunk.payload[8:]))
    return told


def test_write_read_and_everything_else_answer_in_chunks(client: RawClient) -> None:
    data = random.Random(2).randbytes(200_000)
    assert error_of(client, extended(raw.WRITE, 5 * GIB + 3, data=data)) == (0, "")
    assert error_of(client, extended(raw.WRITE, 7, data=b"small", flags=raw.FUA)) == (0, "")
    assert error_of(client, extended(raw.FLUSH)) == (0, "")
    assert error_of(client, extended(raw.CACHE, 5 * GIB, MIB)) == (0, "")
    assert read(client, 5 * GIB + 3, len(data)) == data
    assert read(client, 5 * GIB + 3, len(data), raw.DF) == data
    assert read(client, 7, 5) == b"small"
    assert error_of(client, extended(raw.WRITE_ZEROES, 7, 2)) == (0, "")
    assert read(client, 6, 7) == b"\0\0\0all\0"
    assert error_of(client, extended(raw.TRIM, 0, 4096)) == (0, "")
    assert read(client, 0, 16) == bytes(16)


def test_a_long_read_goes_around_holes(client: RawClient) -> None:
    error_of(client, extended(raw.WRITE, 8 * GIB, data=b"d" * MIB))
    chunks = ask(client, extended(raw.READ, 8 * GIB - MIB, 4 * MIB))
    assert [chunk.kind for chunk in chunks] == [raw.OFFSET_HOLE, raw.OFFSET_DATA, raw.OFFSET_HOLE]
    assert assemble(chunks, 8 * GIB - MIB, 4 * MIB) == bytes(MIB) + b"d" * MIB + bytes(2 * MIB)


def test_the_largest_payloads(client: RawClient) -> None:
    data = random.Random(1).randbytes(32 * MIB)
    assert error_of(client, extended(raw.WRITE, GIB, data=data)) == (0, "")
    assert read(client, GIB, 32 * MIB) == data
    assert error_of(client, extended(raw.READ, 0, 32 * MIB + 1))[0] == raw.EOVERFLOW
    assert error_of(client, extended(raw.READ, 0, 1 << 40))[0] == raw.EOVERFLOW


@pytest.mark.parametrize("length", [32 * MIB + 1, 1 << 32, 2**64 - 1])
@pytest.mark.parametrize("command", [raw.WRITE, raw.READ, 99])
def test_a_payload_past_the_limit_ends_the_connection(
    server: NbdServer, command: int, length: int
) -> None:
    with RawClient(server.socket_path, extended=True) as client:
        client.send(extended(command, 0, length, flags=raw.PAYLOAD_LEN))
        assert client.is_ended()


@pytest.mark.parametrize("size", [1, 4096, 100_000, 4 * MIB])
@pytest.mark.parametrize("command", [raw.READ, raw.FLUSH, raw.TRIM, raw.WRITE_ZEROES, raw.CACHE, 9])
def test_a_payload_where_there_is_none_is_skipped(
    client: RawClient, command: int, size: int
) -> None:
    error, words = error_of(client, extended(command, 0, data=b"\xff" * size))
    assert error == raw.EINVAL
    assert "flag" in words
    assert read(client, 0, 16) == bytes(16)


def test_a_write_says_that_it_has_a_payload(client: RawClient) -> None:
    error, words = error_of(client, extended(raw.WRITE, 0, 4096))
    assert (error, "PAYLOAD_LEN" in words) == (raw.EINVAL, True)
    assert error_of(client, extended(raw.WRITE, 0, 0, flags=raw.PAYLOAD_LEN)) == (0, "")


@pytest.mark.parametrize("magic", [raw.REQUEST_MAGIC, 0])
def test_a_compact_request_ends_the_connection(server: NbdServer, magic: int) -> None:
    with RawClient(server.socket_path, extended=True) as client:
        client.send(extended(raw.READ, 0, 1, magic=magic))
        assert client.is_ended()


def test_an_extended_request_is_not_for_who_did_not_agree(server: NbdServer) -> None:
    with RawClient(server.socket_path, structured=True) as client:
        client.send(extended(raw.READ, 0, 1))
        assert client.is_ended()
    with RawClient(server.socket_path, structured=True) as client:
        client.send(raw.request(raw.WRITE, 0, 4, data=b"data", flags=raw.PAYLOAD_LEN))
        (refused,) = client.take_chunks()
        assert struct.unpack_from(">I", refused.payload) == (raw.EINVAL,)


@pytest.mark.parametrize(("command", "expected"), [
    (raw.WRITE_ZEROES, raw.ENOSPC), (raw.TRIM, raw.EINVAL), (raw.CACHE, raw.EINVAL),
    (raw.BLOCK_STATUS, raw.EINVAL),
])  # fmt: skip
@pytest.mark.parametrize("offset", [0, 1, SIZE_BYTES, 2**63, 2**64 - 1])
def test_lengths_past_the_end_never_wrap(
    client: RawClient, command: int, expected: int, offset: int
) -> None:
    for length in (2**64 - 1, 2**64 - offset if offset else 2**64 - 1, 2**63, SIZE_BYTES + 1):
        assert error_of(client, extended(command, offset, length))[0] == expected


def test_long_zeroes_and_trims(client: RawClient, bottom: FileVolume) -> None:
    places = [0, PIECE_BYTES - 1, PIECE_BYTES, 5 * GIB, 9 * GIB - 1, 9 * GIB, SIZE_BYTES - 1]
    for command in (raw.WRITE_ZEROES, raw.TRIM):
        for place in places:
            bottom.pwrite(place, b"x")
        assert error_of(client, extended(command, 1, 9 * GIB - 1, flags=raw.FUA)) == (0, "")
        left = [place for place in places if bottom.pread(place, 1) == b"x"]
        assert left == [0, 9 * GIB, SIZE_BYTES - 1]
        assert error_of(client, extended(command, 0, SIZE_BYTES)) == (0, "")
        assert not any(bottom.pread(place, 1) != b"\0" for place in places)


def test_a_long_zero_lets_others_through_and_layers_change(held: FaultVolume,
                                                           slow: NbdServer) -> None:  # fmt: skip
    with RawClient(slow.socket_path, extended=True) as client:
        held.hold()
        client.send(extended(raw.WRITE_ZEROES, 0, SIZE_BYTES, cookie=5))
        wait_until(lambda: held.held == 1)
        held.release()
        client.send(extended(raw.READ, GIB, 16, cookie=6))
        assert client.take_extended_chunk(GIB).cookie == 6
        slow.stack.set_top(held)
        assert client.take_extended_chunk(0).cookie == 5


def test_a_long_zero_ends_with_the_first_piece_that_fails(
    layer: FaultVolume, server: NbdServer, bottom: FileVolume
) -> None:
    bottom.pwrite(PIECE_BYTES * 10, b"x")
    with RawClient(server.socket_path, extended=True) as client:
        layer.fail("zero", 28, skip=10)
        assert error_of(client, extended(raw.WRITE_ZEROES, 0, SIZE_BYTES))[0] == raw.ENOSPC
        layer.fail("flush", 5)
        sent = extended(raw.WRITE_ZEROES, 0, PIECE_BYTES * 3, flags=raw.FUA)
        assert error_of(client, sent)[0] == raw.EIO
        assert bottom.pread(PIECE_BYTES * 10, 1) == b"x"


def test_many_long_requests_at_once(client: RawClient) -> None:
    for cookie in range(300):
        client.send(extended(raw.TRIM, cookie, 2 * GIB, cookie=cookie, flags=raw.FUA))
    told = set()
    while len(told) < 300:
        magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQQ", client.take(32))
        assert (magic, flags, kind, length) == (raw.EXTENDED_REPLY_MAGIC, 1, raw.NONE, 0)
        assert cookie == offset
        told.add(cookie)


def test_who_leaves_ends_what_is_long(held: FaultVolume, slow: NbdServer,
                                      bottom: FileVolume) -> None:  # fmt: skip
    bottom.pwrite(SIZE_BYTES - 1, b"x")
    client = RawClient(slow.socket_path, extended=True)
    held.hold()
    client.send(extended(raw.WRITE_ZEROES, 0, SIZE_BYTES))
    wait_until(lambda: held.held == 1)
    client.socket.close()
    held.release()
    wait_until(lambda: slow.clients == 0)
    assert bottom.pread(SIZE_BYTES - 1, 1) == b"x"


def test_who_says_goodbye_has_what_is_long_finished(
    held: FaultVolume, slow: NbdServer, bottom: FileVolume
) -> None:
    bottom.pwrite(SIZE_BYTES - 1, b"x")
    with RawClient(slow.socket_path, extended=True) as client:
        held.hold()
        client.send(extended(raw.WRITE_ZEROES, 0, SIZE_BYTES) + extended(raw.DISC))
        wait_until(lambda: held.held == 1)
        held.release()
        assert client.take_extended_chunk(0).kind == raw.NONE
        assert client.is_ended()
    assert bottom.pread(SIZE_BYTES - 1, 1) == b"\0"


def test_a_server_that_stops_does_not_wait_for_what_is_long(
    held: FaultVolume, slow: NbdServer
) -> None:
    with RawClient(slow.socket_path, extended=True) as client:
        held.hold()
        client.send(extended(raw.WRITE_ZEROES, 0, SIZE_BYTES))
        wait_until(lambda: held.held == 1)
        stopping = threading.Thread(target=slow.stop, args=(20,))
        stopping.start()
        held.release()
        (ended,) = client.take_chunks(0)
        stopping.join(20)
        assert ended.kind == raw.NONE or struct.unpack_from(">I", ended.payload) == (raw.ESHUTDOWN,)
        assert client.is_ended()


def test_block_status_has_64_bits(client: RawClient) -> None:
    error_of(client, extended(raw.WRITE, 40 * GIB, data=bytes(MIB)))
    told = status(client, 0, SIZE_BYTES)
    assert told == {1: [(40 * GIB, 3), (MIB, 0), (24 * GIB - MIB, 3)]}
    assert status(client, 0, SIZE_BYTES, flags=raw.REQ_ONE) == {1: [(40 * GIB, 3)]}
    assert status(client, 40 * GIB + 5, 9) == {1: [(9, 0)]}


@pytest.fixture
def filtered(server: NbdServer, tmp_path: Path) -> Iterator[RawClient]:
    path = tmp_path / "bitmap"
    path.write_bytes(bytes(MIB))
    bitmap = Bitmap(FileVolume(path), SIZE_BYTES, BLOCK_BYTES)
    bitmap.mark(SIZE_BYTES // 2 // BLOCK_BYTES, SIZE_BYTES // BLOCK_BYTES - 1)
    server.add_context(BitmapContext("set_a", bitmap))
    contexts = (ALLOCATION, DIRTY)
    with RawClient(server.socket_path, extended=True, contexts=contexts) as connected:
        yield connected
    server.stop(5)
    bitmap.close()


def test_a_filter_chooses_among_the_contexts(filtered: RawClient) -> None:
    dirty = [(SIZE_BYTES // 2, 0), (SIZE_BYTES // 2, 1)]
    allocation = [(SIZE_BYTES, 3)]
    assert status(filtered, 0, SIZE_BYTES) == {1: allocation, 2: dirty}
    assert status(filtered, 0, SIZE_BYTES, only=(2,)) == {2: dirty}
    assert status(filtered, 0, SIZE_BYTES, only=(1,)) == {1: allocation}
    assert status(filtered, 0, SIZE_BYTES, only=(2, 1)) == {1: allocation, 2: dirty}
    assert status(filtered, 7, 100, only=(2,), flags=raw.REQ_ONE) == {2: [(100, 0)]}


@pytest.mark.parametrize("data", [
    struct.pack(">Q", 4096), struct.pack(">QI", 4096, 3), struct.pack(">QI", 4096, 0),
    struct.pack(">QII", 4096, 1, 1), struct.pack(">QIH", 4096, 1, 0), b"\0" * 7, b"\0",
    struct.pack(">QI", 0, 1), struct.pack(">QI", SIZE_BYTES + 1, 1), b"\xff" * 100_000,
    struct.pack(">Q", 4096) + b"\0\0\0\1" * 5000,
])  # fmt: skip
def test_a_filter_that_is_none_is_refused(filtered: RawClient, data: bytes) -> None:
    error, words = error_of(filtered, extended(raw.BLOCK_STATUS, 0, data=data))
    assert error == raw.EINVAL
    assert words
    assert status(filtered, 0, 4096, only=(2,)) == {2: [(4096, 0)]}


def test_one_block_status_looks_at_so_many_blocks(tmp_path: Path) -> None:
    size_bytes = 3 << 40  # of 4096-byte blocks: a quarter of it is looked at in one go
    path = tmp_path / "bitmap"
    with path.open("wb") as file:
        file.truncate(size_bytes // 4096 // 8 + MIB)
    bitmap = Bitmap(FileVolume(path), size_bytes, 4096)
    try:
        with file_volume(tmp_path, size_bytes) as volume, serve(volume) as server:
            server.add_context(BitmapContext("set_a", bitmap))
            with RawClient(server.socket_path, extended=True, contexts=(DIRTY,)) as client:
                assert status(client, 0, size_bytes) == {1: [(1 << 37, 0)]}
                server.stop(5)
    finally:
        bitmap.close()
