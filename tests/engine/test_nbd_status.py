"""Block status, spoken to in bytes: allocation and dirty bitmaps, limits, contexts that go."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from facade.engine.bitmap import Bitmap
from facade.engine.file_volume import FileVolume
from facade.engine.nbd_context import BitmapContext, MetaContext
from facade.engine.nbd_export import CONTEXTS_MAX
from facade.engine.nbd_server import NbdServer
from tests.engine import nbd_raw as raw
from tests.engine.nbd_raw import RawClient, serve
from tests.engine.test_nbd_structured import error_of, read
from tests.engine.volume_makers import file_volume

SIZE_BYTES = 64 << 20
MIB = 1 << 20
ALLOCATION = "base:allocation"
BLOCK_BYTES = 32 << 10


@pytest.fixture
def bottom(tmp_path: Path) -> Iterator[FileVolume]:
    with file_volume(tmp_path, SIZE_BYTES) as volume:
        yield volume


@pytest.fixture
def server(bottom: FileVolume) -> Iterator[NbdServer]:
    with serve(bottom) as running:
        yield running


@pytest.fixture
def client(server: NbdServer) -> Iterator[RawClient]:
    with RawClient(server.socket_path, structured=True, contexts=(ALLOCATION,)) as connected:
        yield connected


def status(client: RawClient, offset: int, length: int, flags: int = 0) -> list[list[int]]:
    """Return the extents of each context, as [length, flags, length, flags, ...]."""
    client.send(raw.request(raw.BLOCK_STATUS, offset, length, flags=flags))
    told = {}
    for chunk in client.take_chunks():
        assert chunk.kind == raw.STATUS
        words = struct.unpack(f">{len(chunk.payload) // 4}I", chunk.payload)
        told[words[0]] = list(words[1:])
    assert sorted(told) == sorted(client.selected.values())
    return [told[number] for number in sorted(told)]


def test_status_of_a_sparse_volume(client: RawClient) -> None:
    client.ask(raw.write(MIB, bytes(MIB)))
    assert status(client, 0, SIZE_BYTES) == [[MIB, 3, MIB, 0, SIZE_BYTES - 2 * MIB, 3]]
    assert status(client, MIB + 100, 1000) == [[1000, 0]]
    assert status(client, 0, SIZE_BYTES, raw.REQ_ONE) == [[MIB, 3]]
    assert status(client, 0, 7, raw.REQ_ONE) == [[7, 3]]


def test_status_without_a_context_is_refused(server: NbdServer) -> None:
    with RawClient(server.socket_path, structured=True) as client:
        error, why = error_of(client, raw.request(raw.BLOCK_STATUS, 0, 1))
    assert error == raw.EINVAL
    assert "no metadata context" in why


def test_status_has_a_limit_and_goes_on_where_it_ended(bottom: FileVolume) -> None:
    for number in range(2000):
        bottom.pwrite(number * 16_384, b"x")
    with (
        serve(bottom) as server,
        RawClient(server.socket_path, structured=True, contexts=(ALLOCATION,)) as client,
    ):
        found: list[tuple[int, int]] = []
        offset, replies = 0, 0
        while offset < SIZE_BYTES:
            (words,) = status(client, offset, SIZE_BYTES - offset)
            assert len(words) <= 2 * 2048
            found += zip(words[::2], words[1::2], strict=True)
            offset = sum(length for length, _ in found)
            replies += 1
    assert replies == 2
    rest = SIZE_BYTES - 1999 * 16_384 - 4096
    assert found == [*[(4096, 0), (12_288, 3)] * 1999, (4096, 0), (rest, 3)]


@pytest.fixture
def bitmap(tmp_path: Path) -> Iterator[Bitmap]:
    path = tmp_path / "bitmap"
    path.write_bytes(bytes(64 << 10))
    made = Bitmap(FileVolume(path), SIZE_BYTES, BLOCK_BYTES)
    yield made
    made.close()


def test_status_of_a_dirty_bitmap(server: NbdServer, bitmap: Bitmap) -> None:
    context = BitmapContext("set_a", bitmap)
    server.add_context(context)
    wanted = (ALLOCATION, "qemu:dirty-bitmap:set_a")
    with RawClient(server.socket_path, structured=True, contexts=wanted) as client:
        assert client.selected == {ALLOCATION: 1, "qemu:dirty-bitmap:set_a": 2}
        assert status(client, 0, SIZE_BYTES) == [[SIZE_BYTES, 3], [SIZE_BYTES, 0]]
        bitmap.mark(3, 5)
        bitmap.mark(2047, 2047)
        expected = [3 * BLOCK_BYTES, 0, 3 * BLOCK_BYTES, 1, 2041 * BLOCK_BYTES, 0, BLOCK_BYTES, 1]
        assert status(client, 0, SIZE_BYTES)[1] == expected
        assert status(client, 4 * BLOCK_BYTES + 9, 2 * BLOCK_BYTES)[1] == [
            2 * BLOCK_BYTES - 9, 1, 9, 0,
        ]  # fmt: skip
        assert status(client, 3 * BLOCK_BYTES, SIZE_BYTES // 2, raw.REQ_ONE)[1] == [
            3 * BLOCK_BYTES, 1,
        ]  # fmt: skip
        bitmap.clear(0, 2047)
        assert status(client, 0, SIZE_BYTES)[1] == [SIZE_BYTES, 0]


def test_bitmap_of_an_odd_size(bottom: FileVolume, tmp_path: Path) -> None:
    path = tmp_path / "odd.img"
    path.write_bytes(bytes(100_001))
    (tmp_path / "odd.map").write_bytes(bytes(64 << 10))
    volume = FileVolume(path)
    bitmap = Bitmap(FileVolume(tmp_path / "odd.map"), 100_001, BLOCK_BYTES)
    bitmap.mark(3, 3)
    with serve(volume) as server:
        server.add_context(BitmapContext("odd", bitmap))
        name = "qemu:dirty-bitmap:odd"
        with RawClient(server.socket_path, structured=True, contexts=(name,)) as client:
            assert status(client, 0, 100_001) == [[98_304, 0, 1697, 1]]
            assert status(client, 100_000, 1) == [[1, 1]]
    volume.close()
    bitmap.close()


def test_a_context_that_is_removed_is_refused_in_words(server: NbdServer, bitmap: Bitmap) -> None:
    name = "qemu:dirty-bitmap:set_a"
    server.add_context(BitmapContext("set_a", bitmap))
    with RawClient(server.socket_path, structured=True, contexts=(name,)) as client:
        assert status(client, 0, 10) == [[10, 0]]
        server.remove_context(name)
        server.remove_context(name)
        error, why = error_of(client, raw.request(raw.BLOCK_STATUS, 0, 10))
        assert (error, "gone" in why) == (raw.ESHUTDOWN, True)
        assert len(read(client, 0, 16)) == 1
    with RawClient(server.socket_path, structured=True, contexts=(name,)) as client:
        assert client.selected == {}


def test_contexts_have_names_of_their_own_and_a_limit(server: NbdServer, bitmap: Bitmap) -> None:
    server.add_context(BitmapContext("s", bitmap))
    with pytest.raises(ValueError, match="already"):
        server.add_context(BitmapContext("s", bitmap))
    for number in range(CONTEXTS_MAX - 2):
        server.add_context(BitmapContext(f"s{number}", bitmap))
    with pytest.raises(ValueError, match="limit"):
        server.add_context(BitmapContext("one more", bitmap))
    every = tuple(server.contexts())
    with RawClient(server.socket_path, structured=True, contexts=every) as client:
        assert len(status(client, 0, SIZE_BYTES)) == CONTEXTS_MAX


@pytest.mark.parametrize("name", ["", "base", ":x", "base:", "x:" + "y" * 4096])
def test_names_of_contexts_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match="namespace:leaf"):
        MetaContext(name)
