"""What every volume must do, whatever it is made of (see volume_makers)."""

from __future__ import annotations

import errno
import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from facade.engine.volume import Volume
from tests.engine.volume_makers import MAKERS

# Not a multiple of a page nor of a sector, so that the last piece is odd.
SIZE_BYTES = (1 << 20) + 12_345


@pytest.fixture(params=list(MAKERS.values()), ids=list(MAKERS))
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Volume]:
    with request.param(tmp_path, SIZE_BYTES) as made:
        yield made


def test_size_and_name_are_known(volume: Volume) -> None:
    assert volume.size_bytes == SIZE_BYTES
    assert volume.name == "volume.img"


def test_new_volume_reads_as_zeroes(volume: Volume) -> None:
    assert volume.pread(0, SIZE_BYTES) == bytes(SIZE_BYTES)


@pytest.mark.parametrize("offset", [0, 1, 511, 4095, 4096, SIZE_BYTES - 5000])
@pytest.mark.parametrize("length", [1, 512, 4097])
def test_what_is_written_is_read(volume: Volume, offset: int, length: int) -> None:
    data = random.Random(offset * 7 + length).randbytes(length)
    volume.pwrite(offset, data)
    assert volume.pread(offset, length) == data
    around = volume.pread(max(offset - 1, 0), length + 2)
    assert around.strip(b"\0") == data.strip(b"\0")


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview"])
def test_any_buffer_can_be_written(volume: Volume, kind: str) -> None:
    data = {"bytes": bytes, "bytearray": bytearray, "memoryview": memoryview}[kind](b"a buffer")
    volume.pwrite(3, data)
    assert volume.pread(3, 8) == b"a buffer"


def test_the_last_byte_can_be_written(volume: Volume) -> None:
    volume.pwrite(SIZE_BYTES - 1, b"z")
    assert volume.pread(SIZE_BYTES - 2, 2) == b"\0z"


@pytest.mark.parametrize("fua", [False, True])
@pytest.mark.parametrize("how", ["zero", "zero-no-hole", "trim"])
@pytest.mark.parametrize(("offset", "length"), [(0, 65536), (100, 70_000), (4096, 1), (5, 3)])
def test_zeroed_and_trimmed_ranges_read_as_zeroes(
    volume: Volume, how: str, offset: int, length: int, fua: bool
) -> None:
    volume.pwrite(0, b"\xff" * 131_072)
    if how == "trim":
        volume.trim(offset, length, fua=fua)
    else:
        volume.zero(offset, length, fua=fua, no_hole=how == "zero-no-hole")
    expected = bytearray(b"\xff" * 131_072)
    expected[offset : offset + length] = bytes(length)
    assert volume.pread(0, 131_072) == expected


def test_the_whole_volume_can_be_zeroed(volume: Volume) -> None:
    volume.pwrite(0, b"\x55" * SIZE_BYTES)
    volume.zero(0, SIZE_BYTES)
    assert volume.pread(0, SIZE_BYTES) == bytes(SIZE_BYTES)


def test_fua_and_flush_succeed(volume: Volume) -> None:
    volume.pwrite(10, b"durable", fua=True)
    volume.flush()
    assert volume.pread(10, 7) == b"durable"


def test_empty_requests_succeed(volume: Volume) -> None:
    assert volume.pread(SIZE_BYTES, 0) == b""
    volume.pwrite(SIZE_BYTES, b"")
    volume.zero(0, 0)
    volume.trim(0, 0)
    assert volume.extents(0, 0) == []


@pytest.mark.parametrize(("offset", "length"), [(0, SIZE_BYTES + 1), (SIZE_BYTES, 1), (-1, 1),
                                                (1, -1), (2**63, 1), (2**64 - 1, 2)])  # fmt: skip
def test_ranges_outside_are_refused(volume: Volume, offset: int, length: int) -> None:
    for request in (volume.pread, volume.zero, volume.trim, volume.extents):
        with pytest.raises(OSError, match="outside") as caught:
            request(offset, length)
        assert caught.value.errno == errno.EINVAL
    if length == 1:
        with pytest.raises(OSError, match="outside"):
            volume.pwrite(offset, b"x")
    assert volume.pread(0, SIZE_BYTES) == bytes(SIZE_BYTES)


def test_extents_cover_the_range_and_holes_are_zero(volume: Volume) -> None:
    volume.pwrite(131_072, b"\x01" * 65_536)
    volume.pwrite(524_288, b"\x02" * 100)
    offset, length = 1000, SIZE_BYTES - 2000
    at = offset
    for start, run_bytes, is_hole in volume.extents(offset, length):
        assert start == at
        assert run_bytes > 0
        if is_hole:
            assert volume.pread(start, run_bytes) == bytes(run_bytes)
        at += run_bytes
    assert at == offset + length


def test_neighbouring_extents_differ(volume: Volume) -> None:
    for start in range(0, SIZE_BYTES - 4096, 200_000):
        volume.pwrite(start, b"\x01" * 4096)
    kinds = [is_hole for _, _, is_hole in volume.extents(0, SIZE_BYTES)]
    assert all(before != after for before, after in itertools.pairwise(kinds))


@pytest.mark.parametrize("seed", range(3))
def test_random_requests_agree_with_a_model(volume: Volume, seed: int) -> None:
    dice = random.Random(seed)
    model = bytearray(SIZE_BYTES)
    for _ in range(300):
        length = dice.choice([1, 100, 512, 4096, 40_000])
        offset = dice.randrange(SIZE_BYTES - length + 1)
        match dice.choice(["write", "fua", "zero", "trim", "read", "flush"]):
            case "write" | "fua" as how:
                data = dice.randbytes(length)
                volume.pwrite(offset, data, fua=how == "fua")
                model[offset : offset + length] = data
            case "zero":
                volume.zero(offset, length, no_hole=dice.random() < 0.5)
                model[offset : offset + length] = bytes(length)
            case "trim":
                volume.trim(offset, length)
                model[offset : offset + length] = bytes(length)
            case "read":
                assert volume.pread(offset, length) == model[offset : offset + length]
            case "flush":
                volume.flush()
    assert volume.pread(0, SIZE_BYTES) == model


def test_threads_writing_apart_do_not_disturb_each_other(volume: Volume) -> None:
    threads_count, share = 4, SIZE_BYTES // 4
    errors: list[BaseException] = []

    def work(number: int) -> None:
        dice = random.Random(number)
        try:
            for _ in range(100):
                offset = number * share + dice.randrange(share - 5000)
                data = dice.randbytes(5000)
                volume.pwrite(offset, data)
                assert volume.pread(offset, 5000) == data
                volume.flush()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(threads_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
