"""Jobs on blocks against a plain Python reference: compare, zero scan, digests, copy."""

from __future__ import annotations

import errno
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facade.engine.bitmap import Bitmap
from facade.engine.bitmap_header import BitmapHeader
from facade.engine.block_copy import CopyJob
from facade.engine.block_job import BlockJob
from facade.engine.block_scan import CompareJob, DigestJob, ZeroScanJob, zero_runs
from facade.engine.fault_volume import FaultVolume
from facade.engine.file_volume import FileVolume
from facade.engine.keyed_digest import keyed_digest
from facade.engine.volume import Volume
from facade.engine.volume_stack import VolumeStack
from facade.errors import BlockIoFailed, BlockJobCancelled
from tests.engine.test_volume_stack import wait_until
from tests.engine.volume_makers import MAKERS

KIB = 1 << 10
MIB = 1 << 20
SEED = bytes(range(32))
LAYERS = ("file", "stack", "async-layer", "stack-of-async-layers", "tracking-layer")


@contextmanager
def image(folder: Path, name: str, data: bytes, holes: bool = False) -> Iterator[FileVolume]:
    """A volume of `data`; with `holes` its 4 KiB of zeroes are left out of the file."""
    path = folder / name
    with path.open("wb") as out:
        out.truncate(len(data))
        for at in range(0, len(data), 4096):
            piece = data[at : at + 4096]
            if not holes or any(piece):
                out.seek(at)
                out.write(piece)
    volume = FileVolume(path)
    try:
        yield volume
    finally:
        volume.close()


def runs_of(flags: list[bool]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for number, flag in enumerate(flags):
        if flag and found and sum(found[-1]) == number:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        elif flag:
            found.append((number, 1))
    return found


def blocks_of(data: bytes, block_bytes: int) -> list[bytes]:
    return [data[at : at + block_bytes] for at in range(0, len(data), block_bytes)]


def used_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


# Data as a few runs, each zero, one byte again and again, or random; odd lengths among them.
RUN = st.tuples(
    st.sampled_from(["zero", "same", "random"]),
    st.one_of(st.integers(1, 20_000), st.sampled_from([512, 4096, 32 * KIB, 65_536, 150_000])),
)
DATA = st.lists(RUN, min_size=1, max_size=8)


def build(runs: list[tuple[str, int]], seed: int) -> bytes:
    dice = random.Random(seed)
    makers = {"zero": bytes, "same": lambda size: b"\xa5" * size, "random": dice.randbytes}
    return b"".join(makers[kind](size) for kind, size in runs)


@settings(max_examples=60, deadline=None)
@given(
    runs=DATA,
    seed=st.integers(0, 99),
    changes=st.lists(st.integers(0, 10**9), max_size=6),
    skip=st.tuples(st.integers(0, 9000), st.integers(0, 9000)),
    block_bytes=st.sampled_from([4096, 32768, 1 << 20]),
    holes=st.tuples(st.booleans(), st.booleans()),
    threads=st.integers(1, 4),
)
def test_compare_finds_what_python_finds(
    runs: list[tuple[str, int]],
    seed: int,
    changes: list[int],
    skip: tuple[int, int],
    block_bytes: int,
    holes: tuple[bool, bool],
    threads: int,
) -> None:
    data = build(runs, seed)
    other = bytearray(data)
    for bit in changes:
        other[bit // 8 % len(other)] ^= 1 << bit % 8
    expected = [
        one != two
        for one, two in zip(
            blocks_of(data, block_bytes), blocks_of(bytes(other), block_bytes), strict=True
        )
    ]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        left = stack.enter_context(image(folder, "left", bytes(skip[0]) + data, holes[0]))
        right = stack.enter_context(image(folder, "right", bytes(skip[1]) + other, holes[1]))
        job = CompareJob(left, right, *skip, block_bytes=block_bytes, threads=threads)
        job.run()
    assert job.runs() == runs_of(expected)
    assert job.differing_blocks == sum(expected)
    assert job.blocks == len(expected)
    assert job.progress == {"done_bytes": len(data), "total_bytes": len(data)}
    map_bits = int.from_bytes(job.export(), "little")
    assert [bool(map_bits >> number & 1) for number in range(job.blocks)] == expected
    assert map_bits >> job.blocks == 0


@settings(max_examples=60, deadline=None)
@given(
    runs=DATA,
    seed=st.integers(0, 99),
    offset=st.integers(0, 9000),
    size_shift=st.integers(12, 17),
    holes=st.booleans(),
    threads=st.integers(1, 3),
)
def test_zero_scan_and_digests_are_those_of_python(
    runs: list[tuple[str, int]], seed: int, offset: int, size_shift: int, holes: bool, threads: int
) -> None:
    data = build(runs, seed)
    offset = min(offset, len(data) - 1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        volume = stack.enter_context(image(folder, "volume", data, holes))
        zeroes = ZeroScanJob(volume, offset, block_bytes=1 << size_shift, threads=threads)
        zeroes.run()
        pieces = DigestJob(volume, SEED, offset, piece_bytes=1 << size_shift, threads=threads)
        pieces.run()
    blocks = blocks_of(data[offset:], 1 << size_shift)
    expected = [not any(block) for block in blocks]
    assert zeroes.runs() == runs_of(expected)
    assert zeroes.zero_blocks == sum(expected)
    assert pieces.digests == b"".join(keyed_digest(SEED, block) for block in blocks)


@settings(max_examples=60, deadline=None)
@given(
    runs=DATA,
    seed=st.integers(0, 99),
    offsets=st.tuples(st.integers(0, 9000), st.integers(0, 9000)),
    tail=st.integers(0, 5000),
    holes=st.booleans(),
    target_is=st.sampled_from(["data", "hole", "known"]),
    threads=st.integers(1, 3),
)
def test_a_copy_is_equal_and_touches_nothing_else(
    runs: list[tuple[str, int]],
    seed: int,
    offsets: tuple[int, int],
    tail: int,
    holes: bool,
    target_is: str,
    threads: int,
) -> None:
    data = build(runs, seed)
    old = (b"\x77" if target_is == "data" else b"\0") * (offsets[1] + len(data) + tail)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        source = stack.enter_context(image(folder, "source", bytes(offsets[0]) + data, holes))
        target = stack.enter_context(image(folder, "target", old, target_is != "data"))
        job = CopyJob(
            source, target, *offsets, target_is_zero=target_is == "known", threads=threads
        )
        job.run()
        found = target.pread(0, len(old))
        again = CompareJob(source, target, *offsets, length=len(data))
        again.run()
    assert found == old[: offsets[1]] + data + old[offsets[1] + len(data) :]
    assert again.runs() == []
    assert job.written_bytes + job.zeroed_bytes + job.skipped_bytes == len(data)


@given(data=st.binary(max_size=300), shift=st.integers(0, 6), runs=DATA)
@settings(max_examples=100, deadline=None)
def test_zero_runs_of_memory(data: bytes, shift: int, runs: list[tuple[str, int]]) -> None:
    for memory in (data, build(runs, 1)[:5000], bytes(100) + data + bytes(50)):
        blocks = blocks_of(memory, 1 << shift)
        expected = [
            (first << shift, min(count << shift, len(memory) - (first << shift)))
            for first, count in runs_of([not any(block) for block in blocks])
        ]
        assert zero_runs(memory, 1 << shift) == expected


def test_one_bit_at_either_end_is_found(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3 * MIB + 777)
    for where, block in ((0, 0), (len(data) - 1, (len(data) - 1) // 4096)):
        other = bytearray(data)
        other[where] ^= 0x80
        with image(tmp_path, "a", data) as left, image(tmp_path, "b", bytes(other)) as right:
            job = CompareJob(left, right, block_bytes=4096)
            job.run()
            assert job.runs() == [(block, 1)]


def test_the_map_of_a_comparison_goes_into_a_bitmap(tmp_path: Path) -> None:
    data = bytes(MIB)
    other = bytearray(data)
    other[5 * 32768] = other[-1] = 1
    path = tmp_path / "bitmap"
    path.write_bytes(bytes(64 * KIB))
    bitmap = Bitmap(FileVolume(path), MIB, 32768)
    bitmap.format(BitmapHeader(bytes(16), "primary", "logging", frozenset(), 32768, MIB), False)
    with image(tmp_path, "a", data) as left, image(tmp_path, "b", bytes(other)) as right:
        job = CompareJob(left, right)
        job.run()
    bitmap.merge(0, job.export())
    assert bitmap.runs() == [(5, 1), (31, 1)]
    bitmap.close()


@pytest.mark.parametrize("kind", LAYERS)
def test_jobs_work_on_every_layer(tmp_path: Path, kind: str) -> None:
    data = random.Random(2).randbytes(300_000) + bytes(400_000) + b"end"
    (tmp_path / "layer").mkdir()
    with (
        image(tmp_path, "plain", data) as plain,
        MAKERS[kind](tmp_path / "layer", len(data)) as layer,
    ):
        CopyJob(plain, layer, threads=2).run()
        assert layer.pread(0, len(data)) == data
        layer.pwrite(299_999, b"\xff\xff")
        compared = CompareJob(plain, layer, block_bytes=4096, threads=2)
        compared.run()
        assert compared.runs() == [(299_999 // 4096, 1)]
        digests = DigestJob(layer, SEED, threads=2)
        digests.run()
        assert digests.digests[-16:] == keyed_digest(SEED, data[-(len(data) % 4096) :])


def test_holes_are_not_read_and_stay_holes(tmp_path: Path) -> None:
    # 64 MiB of which 8 KiB are data, and 1 MiB of zeroes that were written.
    source_path, target_path = tmp_path / "source", tmp_path / "target"
    for path in (source_path, target_path):
        with path.open("wb") as out:
            out.truncate(64 * MIB)
    with source_path.open("r+b") as out:
        out.seek(20 * MIB)
        out.write(b"\x01" * 8192)
        out.seek(40 * MIB)
        out.write(bytes(MIB))
    source, target = FileVolume(source_path), FileVolume(target_path)
    for known in (False, True):
        job = CopyJob(source, target, target_is_zero=known)
        job.run()
        assert job.read_bytes == MIB + 8192
        assert job.written_bytes in (8192, 65536)
        assert used_bytes(target_path) <= 65536
    scan = ZeroScanJob(source, block_bytes=8192)
    scan.run()
    assert scan.read_bytes == MIB + 8192
    assert scan.runs() == [(0, 2560), (2561, 8192 - 2561)]
    compared = CompareJob(source, target)
    compared.run()
    assert compared.runs() == []
    assert compared.read_bytes < 2 * MIB
    source.close()
    target.close()


def test_copying_zeroes_gives_space_back(tmp_path: Path) -> None:
    with (
        image(tmp_path, "source", bytes(4 * MIB), holes=True) as source,
        image(tmp_path, "target", b"\x01" * (4 * MIB)) as target,
    ):
        if not target.can_punch:
            pytest.skip("the file system of the temporary folder cannot punch holes")
        job = CopyJob(source, target)
        job.run()
        assert job.zeroed_bytes == 4 * MIB
        assert target.pread(0, 4 * MIB) == bytes(4 * MIB)
        assert used_bytes(tmp_path / "target") == 0


def failure_of(job: BlockJob) -> dict[str, Any] | None:
    """Run it; what its error says, None when all went well."""
    try:
        job.run()
    except BlockIoFailed as failure:
        return failure.data
    return None


JOBS: dict[str, Callable[[Volume, Volume, int], BlockJob]] = {
    "compare": lambda one, two, threads: CompareJob(one, two, block_bytes=4096, threads=threads),
    "zero-scan": lambda one, _, threads: ZeroScanJob(one, threads=threads),
    "digest": lambda one, _, threads: DigestJob(one, SEED, threads=threads),
    "copy": lambda one, two, threads: CopyJob(one, two, threads=threads),
}


@pytest.mark.parametrize("kind", JOBS)
def test_cancelled_in_the_middle(tmp_path: Path, kind: str) -> None:
    data = b"\x01" * (8 * MIB)
    with image(tmp_path, "a", data) as bottom, image(tmp_path, "b", data) as other:
        slow = FaultVolume(bottom, is_async=True)
        slow.hold()
        job = JOBS[kind](slow, other, 2)
        raised: list[BaseException] = []

        def body() -> None:
            try:
                job.run()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        wait_until(lambda: slow.held > 0)
        job.cancel()
        slow.release()
        thread.join(10)
        assert not thread.is_alive()
        slow.close()
        (error,) = raised
        assert isinstance(error, BlockJobCancelled)
        assert job.done_bytes < job.total_bytes
        assert not job.is_complete
        assert bottom.pread(0, 10) == data[:10]


def test_the_map_of_a_comparison_is_read_while_it_grows(tmp_path: Path) -> None:
    data = b"\x01" * (16 * MIB)
    with image(tmp_path, "a", data) as bottom, image(tmp_path, "b", bytes(16 * MIB)) as other:
        slow = FaultVolume(bottom, is_async=True, delay_us=500)
        job = CompareJob(slow, other, block_bytes=4096, threads=3)
        thread = threading.Thread(target=job.run)
        counts, before = [job.differing_blocks], 0
        thread.start()
        while thread.is_alive():
            found = sum(length for _, length in job.runs())
            bits = int.from_bytes(job.export(), "little")
            counts += [found, bits.bit_count(), job.differing_blocks]
            assert bits & before == before
            before = bits
        thread.join()
        slow.close()
    assert counts == sorted(counts)
    assert len(set(counts)) > 3
    assert job.runs() == [(0, 4096)]
    assert job.differing_blocks == 4096


def test_cancelled_before_it_runs_does_nothing(tmp_path: Path) -> None:
    with (
        image(tmp_path, "a", b"\x01" * MIB) as source,
        image(tmp_path, "b", bytes(MIB)) as target,
    ):
        job = CopyJob(source, target)
        job.cancel()
        with pytest.raises(BlockJobCancelled):
            job.run()
        assert target.pread(0, MIB) == bytes(MIB)
        with pytest.raises(RuntimeError, match="runs once"):
            job.run()


def test_progress_never_falls_and_ends_at_the_total(tmp_path: Path) -> None:
    data = b"\x01" * (16 * MIB)
    with image(tmp_path, "a", data) as bottom:
        slow = FaultVolume(bottom, is_async=True, delay_us=500)
        job = DigestJob(slow, SEED, threads=3)
        thread = threading.Thread(target=job.run)
        seen = [job.done_bytes]
        thread.start()
        while thread.is_alive():
            seen.append(job.progress["done_bytes"])
        thread.join()
        slow.close()
    assert seen == sorted(seen)
    assert len(set(seen)) > 3
    assert job.done_bytes == job.total_bytes == len(data)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("kind", JOBS)
def test_every_failing_read_is_reported(tmp_path: Path, kind: str, threads: int) -> None:
    """Fail the 1st, 2nd, 3rd ... read until none is hit."""
    data = random.Random(3).randbytes(2 * MIB)
    with image(tmp_path, "a", data) as bottom, image(tmp_path, "b", bytes(2 * MIB)) as other:
        for nth in range(100):
            faulty = FaultVolume(bottom)
            faulty.fail("read", errno.EIO, skip=nth)
            job = JOBS[kind](faulty, other, threads)
            told = failure_of(job)
            if told is None:
                break
            assert (told["volume"], told["operation"], told["errno"]) == ("a", "read", errno.EIO)
            assert told["offset_bytes"] % (128 * KIB) == 0
            assert threads > 1 or told["offset_bytes"] == nth * 128 * KIB
            assert not job.is_complete
            assert bottom.pread(0, 100) == data[:100]
        assert nth == 2 * MIB // (128 * KIB)
        assert kind != "copy" or other.pread(0, 2 * MIB) == data


@pytest.mark.parametrize("operation", ["write", "zero", "flush"])
def test_every_failing_change_of_a_copy_is_reported(tmp_path: Path, operation: str) -> None:
    data = (random.Random(4).randbytes(64 * KIB) + bytes(64 * KIB)) * 8
    with (
        image(tmp_path, "a", data) as source,
        image(tmp_path, "b", b"\x05" * len(data)) as bottom,
    ):
        failed = 0
        for nth in range(100):
            bottom.pwrite(0, b"\x05" * len(data))
            faulty = FaultVolume(bottom)
            faulty.fail(operation, errno.ENOSPC, skip=nth)
            told = failure_of(CopyJob(source, faulty, threads=2))
            if told is None:
                break
            failed += 1
            assert (told["volume"], told["operation"]) == ("b", operation)
            assert told["errno"] == errno.ENOSPC
        assert failed == (1 if operation == "flush" else 8)
        assert bottom.pread(0, len(data)) == data


def test_the_failure_of_lowest_offset_is_told_whatever_the_threads(tmp_path: Path) -> None:
    data = b"\x01" * (16 * MIB)
    path = tmp_path / "a"
    with image(tmp_path, "a", data) as volume, image(tmp_path, "b", data) as other:
        with path.open("r+b") as shortened:
            shortened.truncate(5 * MIB + 4096)
        for threads in (1, 2, 7):
            with pytest.raises(BlockIoFailed) as caught:
                CompareJob(volume, other, threads=threads).run()
            # What a file has lost is no hole.
            assert caught.value.data["offset_bytes"] == 5 * MIB + 4096
            assert caught.value.data["errno"] == errno.EIO
        assert other.pread(0, 10) == data[:10]


def test_results_are_the_same_for_any_number_of_threads(tmp_path: Path) -> None:
    dice = random.Random(5)
    data = dice.randbytes(5 * MIB + 123)
    other = bytearray(data)
    for _ in range(200):
        other[dice.randrange(len(other))] ^= 1
    with image(tmp_path, "a", data) as left, image(tmp_path, "b", bytes(other)) as right:
        maps, digests = set(), set()
        for threads in (1, 2, 5, 64):
            compared = CompareJob(left, right, block_bytes=4096, threads=threads)
            compared.run()
            maps.add(compared.export())
            digest = DigestJob(left, SEED, threads=threads)
            digest.run()
            digests.add(digest.digests)
    assert len(maps) == len(digests) == 1


def test_writers_do_not_disturb_jobs(tmp_path: Path) -> None:
    """Under writes each job ends well, and what nobody writes to is copied and compared truly."""
    data = random.Random(6).randbytes(8 * MIB)
    with image(tmp_path, "a", data) as bottom, image(tmp_path, "b", bytes(8 * MIB)) as target:
        source = VolumeStack(bottom)
        ended = threading.Event()

        def write() -> None:
            dice = random.Random(7)
            while not ended.is_set():
                at = dice.randrange(4 * MIB - 9000)
                if dice.random() < 0.3:
                    source.trim(at, 9000)
                else:
                    source.pwrite(at, dice.randbytes(9000))

        writers = [threading.Thread(target=write) for _ in range(2)]
        for writer in writers:
            writer.start()
        try:
            for _ in range(5):
                CopyJob(source, target, threads=2).run()
                compared = CompareJob(source, target, block_bytes=4096, threads=2)
                compared.run()
                assert all(first < 1024 for first, _ in compared.runs())
                ZeroScanJob(source, threads=2).run()
                DigestJob(source, SEED, threads=2).run()
        finally:
            ended.set()
            for writer in writers:
                writer.join()
        assert target.pread(4 * MIB, 4 * MIB) == data[4 * MIB :]
        CopyJob(source, target).run()
        assert target.pread(0, 8 * MIB) == bottom.pread(0, 8 * MIB)
        source.close()


def test_a_range_of_nothing_is_done_at_once(tmp_path: Path) -> None:
    with image(tmp_path, "a", b"abc") as one, image(tmp_path, "b", b"abd") as two:
        for kind in JOBS:
            job = JOBS[kind](one, two, 1)
            job.run()
        empty = CompareJob(one, two, 3, 3)
        empty.run()
        assert (empty.blocks, empty.runs(), empty.export()) == (0, [], b"")
        CopyJob(one, two, 3, 3).run()


def test_refusals_name_the_limit(tmp_path: Path) -> None:
    with image(tmp_path, "a", bytes(MIB)) as one, image(tmp_path, "b", bytes(MIB // 2)) as two:
        with pytest.raises(ValueError, match="range of 1048576 bytes at 0 is outside the 524288"):
            CompareJob(one, two)
        with pytest.raises(ValueError, match="outside"):
            CopyJob(one, two, target_offset=1, length=MIB // 2)
        with pytest.raises(ValueError, match="outside"):
            ZeroScanJob(one, -1)
        with pytest.raises(ValueError, match="block_bytes is 5000: a power of 2 from 4096"):
            CompareJob(two, one, block_bytes=5000)
        with pytest.raises(ValueError, match="piece_bytes is 262144"):
            DigestJob(one, SEED, piece_bytes=262144)
        with pytest.raises(ValueError, match="threads is 65: 1 to 64"):
            DigestJob(one, SEED, threads=65)
        with pytest.raises(ValueError, match="seed has 4 bytes"):
            DigestJob(one, b"seed")
        with pytest.raises(ValueError, match="overlap"):
            CopyJob(one, one, 0, 4096, length=8192)
        with pytest.raises(ValueError, match="no result"):
            _ = DigestJob(one, SEED).digests
        CopyJob(one, one, 0, 8192, length=8192).run()


def test_more_digests_than_one_job_holds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as out:
        out.truncate(3 << 30)
    volume = FileVolume(path)
    with pytest.raises(ValueError, match="6291456 pieces are more than the 4194304"):
        DigestJob(volume, SEED, piece_bytes=512)
    volume.close()


def multiply(x: int, y: int) -> int:
    """The product in GF(2^128) as GCM's specification writes it, bit by bit."""
    product = 0
    for bit in range(127, -1, -1):
        if y >> bit & 1:
            product ^= x
        x = x >> 1 ^ (0xE1 << 120 if x & 1 else 0)
    return product


@given(data=st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_the_digest_is_gmac(data: bytes) -> None:
    """GHASH written out, with the hash key and first block of the specification's zero key."""
    hash_key = 0xDC95C078A2408989AD48A21492842087
    first_block = 0x530F8AFBC74536B9A963B4F1C4CB738B
    padded = data + bytes(-len(data) % 16)
    state = 0
    for block in [*blocks_of(padded, 16), (len(data) * 8 << 64).to_bytes(16, "big")]:
        state = multiply(state ^ int.from_bytes(block, "big"), hash_key)
    assert keyed_digest(bytes(32), data) == (state ^ first_block).to_bytes(16, "big")


def test_digests_differ_by_seed_length_and_any_bit() -> None:
    data = bytes(4096)
    digests = {keyed_digest(SEED, data), keyed_digest(bytes(32), data)}
    digests |= {keyed_digest(SEED, data[:size]) for size in (0, 1, 15, 16, 4095)}
    for bit in (0, 7, 4095 * 8, 4096 * 8 - 1):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        digests.add(keyed_digest(SEED, changed))
    assert len(digests) == 11
