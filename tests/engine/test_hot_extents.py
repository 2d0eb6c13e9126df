"""Hot extents: writes inside them need no disk, which never lacks a bit that was promised."""

from __future__ import annotations

import errno
import shutil
import threading
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from facade.bitmap_size import bitmap_bytes
from facade.engine.bitmap import Bitmap
from facade.engine.bitmap_header import BitmapHeader
from facade.engine.fault_volume import FaultVolume
from facade.engine.file_volume import FileVolume
from facade.engine.volume import Volume

SET_ID = bytes(range(16))
KIB = 1024
BLOCK_BYTES = 32 * KIB
EXTENT = 128  # blocks
BLOCKS = 300_001
SIZE_BYTES = BLOCKS * BLOCK_BYTES - 99


def new(path: Path, block_bytes: int = BLOCK_BYTES, size_bytes: int = SIZE_BYTES) -> Bitmap:
    with path.open("wb") as file:
        file.truncate(bitmap_bytes(size_bytes, block_bytes))
    return format_on(FileVolume(path), block_bytes, size_bytes)


def format_on(
    volume: Volume, block_bytes: int = BLOCK_BYTES, size_bytes: int = SIZE_BYTES
) -> Bitmap:
    bitmap = Bitmap(volume, size_bytes, block_bytes)
    header = BitmapHeader(SET_ID, "primary", "logging", frozenset(), block_bytes, size_bytes)
    bitmap.format(header, False)
    return bitmap


def on_disk(path: Path) -> set[int]:
    """The bits that an engine would find after a crash now."""
    copy = path.with_name("after")
    shutil.copyfile(path, copy)
    volume = FileVolume(copy)
    bitmap = Bitmap(volume, SIZE_BYTES, BLOCK_BYTES)
    assert bitmap.load(SET_ID) is None
    volume.close()
    return blocks(bitmap)


def blocks(bitmap: Bitmap) -> set[int]:
    return {first + i for first, count in bitmap.runs() for i in range(count)}


def extent(number: int) -> set[int]:
    return set(range(number * EXTENT, min((number + 1) * EXTENT, BLOCKS)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bitmap"


def test_first_write_opens_its_extent_and_the_others_there_need_no_disk(path: Path) -> None:
    bitmap = new(path)
    bitmap.mark(700, 700)
    commits = bitmap.commits
    assert on_disk(path) == extent(5)
    for block in extent(5):
        bitmap.mark(block, block)
    assert bitmap.commits == commits
    assert bitmap.hot_extents == 1
    bitmap.mark(640, 640 + EXTENT)  # one block of the next extent
    assert bitmap.commits == commits + 1


def test_memory_keeps_the_exact_bits(path: Path) -> None:
    bitmap = new(path)
    bitmap.mark(700, 703)
    bitmap.mark(BLOCKS - 1, BLOCKS - 1)
    assert bitmap.runs() == [(700, 4), (BLOCKS - 1, 1)]
    assert on_disk(path) == extent(5) | extent((BLOCKS - 1) // EXTENT)
    bitmap.sync_exact()
    assert on_disk(path) == {700, 701, 702, 703, BLOCKS - 1}


def test_clears_inside_a_hot_extent_cost_no_disk_access(path: Path) -> None:
    bitmap = new(path)
    bitmap.mark(700, 700)
    bitmap.clear(700, 700)
    commits = bitmap.commits
    bitmap.cool()
    assert bitmap.commits == commits
    bitmap.mark(700, 700)
    assert bitmap.commits == commits


def test_an_extent_cools_when_it_was_idle_between_two_looks(path: Path) -> None:
    bitmap = new(path)
    bitmap.mark(700, 700)
    bitmap.mark(9000, 9000)
    bitmap.cool()
    bitmap.mark(9001, 9001)
    bitmap.cool()
    assert bitmap.hot_extents == 1
    assert on_disk(path) == {700} | extent(9000 // EXTENT)
    bitmap.cool()
    assert bitmap.hot_extents == 0
    assert on_disk(path) == {700, 9000, 9001}
    commits = bitmap.commits
    bitmap.cool()
    assert bitmap.commits == commits


def test_a_cold_extent_is_opened_anew(path: Path) -> None:
    bitmap = new(path)
    bitmap.mark(700, 700)
    bitmap.sync_exact()
    bitmap.mark(701, 701)
    assert {700, 701} <= on_disk(path)


def test_hot_extents_have_a_limit_and_the_disk_keeps_it(path: Path) -> None:
    bitmap = new(path)
    most = bitmap.hot_extents_max
    assert most == 1024
    for number in range(0, 2 * most, 2):  # apart: none opens its neighbours
        bitmap.mark(number * EXTENT, number * EXTENT)
    assert bitmap.hot_extents == most
    assert len(on_disk(path)) == most * EXTENT
    kept = on_disk(path)
    bitmap.mark(2 * most * EXTENT, 2 * most * EXTENT)
    assert bitmap.hot_extents < most
    assert most * EXTENT * 9 // 10 < len(on_disk(path)) < most * EXTENT
    assert blocks(bitmap) <= on_disk(path) <= kept | extent(2 * most)


def test_a_sequential_writer_opens_extents_ahead_in_few_commits(path: Path) -> None:
    bitmap = new(path)
    commits = bitmap.commits
    for block in range(0, 64 * EXTENT, 16):
        bitmap.mark(block, block + 15)
    assert bitmap.commits - commits <= 64 // 8 + 1


def test_a_long_write_opens_its_ends_alone_and_takes_one_commit(path: Path) -> None:
    bitmap = new(path)
    commits = bitmap.commits
    bitmap.mark(100, 200_000)
    assert bitmap.commits == commits + 1
    assert bitmap.hot_extents == 2
    assert on_disk(path) == set(range((200_000 // EXTENT + 1) * EXTENT))
    bitmap.sync_exact()
    assert on_disk(path) == set(range(100, 200_001))


@pytest.mark.parametrize(("block_bytes", "blocks_of_one"), [(4 * KIB, 1024), (1024 * KIB, 64)])
def test_extents_have_four_mib_but_at_least_a_word(
    path: Path, block_bytes: int, blocks_of_one: int
) -> None:
    bitmap = new(path, block_bytes)
    assert bitmap.extent_blocks == blocks_of_one
    assert bitmap.hot_extents_max * blocks_of_one * block_bytes == 4 * KIB**3
    bitmap.mark(5, 5)
    commits = bitmap.commits
    bitmap.mark(blocks_of_one - 1, blocks_of_one - 1)
    assert bitmap.commits == commits
    bitmap.mark(blocks_of_one, blocks_of_one)
    assert bitmap.commits == commits + 1


def test_others_wait_for_the_opening_of_an_extent(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(bitmap_bytes(SIZE_BYTES, BLOCK_BYTES))
    slow = FaultVolume(FileVolume(path), is_async=True)
    bitmap = format_on(slow)
    bitmap.mark(0, 0)  # so that the next one opens ahead
    slow.hold()
    ended: list[int] = []

    def write(block: int) -> None:
        bitmap.mark(block, block)
        ended.append(block)

    first, ahead = EXTENT, 5 * EXTENT
    threads = [threading.Thread(target=write, args=(first,))]
    threads[0].start()
    while not slow.held:
        threads[0].join(0.01)
    threads += [threading.Thread(target=write, args=(block,)) for block in (first + 1, ahead)]
    for thread in threads[1:]:
        thread.start()
    for thread in threads[1:]:
        thread.join(0.2)
    assert not ended
    bitmap.mark(1, 1)  # of the extent that is hot already
    slow.release()
    for thread in threads:
        thread.join(10)
    assert sorted(ended) == [first, first + 1, ahead]
    slow.close()


def test_after_a_failure_no_mark_is_stable_whatever_is_hot(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(bitmap_bytes(SIZE_BYTES, BLOCK_BYTES))
    volume = FaultVolume(FileVolume(path))
    bitmap = format_on(volume)
    bitmap.mark(5, 5)
    volume.fail("write", errno.ENOSPC)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            bitmap.mark(700, 700)
    with pytest.raises(OSError, match="No space"):
        bitmap.mark(701, 701)
    with pytest.raises(OSError, match="No space"):
        bitmap.mark(6, 6)  # of an extent that was hot before
    bitmap.go_memory_only()
    bitmap.mark(702, 702)
    assert blocks(bitmap) == {5, 6, 700, 701, 702}


def test_bits_set_in_bulk_are_not_taken_for_durable(path: Path) -> None:
    bitmap = new(path)
    bitmap.fill()
    commits = bitmap.commits
    bitmap.mark(5, 5)
    assert bitmap.commits == commits + 1
    assert len(on_disk(path)) == BLOCKS


class Crashes(RuleBasedStateMachine):
    """Marks, clears, cooling and crashes against sets: the disk covers what memory has."""

    base: ClassVar[Path]
    rounds: ClassVar[int]

    @initialize()
    def begin(self) -> None:
        self.folder = type(self).base / str(type(self).rounds)
        type(self).rounds += 1
        self.folder.mkdir()
        self.path = self.folder / "bitmap"
        self.bitmap = new(self.path)
        self.model: set[int] = set()

    def around(self, place: int, count: int) -> tuple[int, int]:
        first = min(place * 97, BLOCKS - 1)
        return first, min(first + count, BLOCKS) - 1

    @rule(place=st.integers(0, BLOCKS // 97), count=st.sampled_from([1, 2, 100, 128, 700, 40_000]))
    def mark(self, place: int, count: int) -> None:
        first, last = self.around(place, count)
        self.bitmap.mark(first, last)
        self.model |= set(range(first, last + 1))

    @rule(place=st.integers(0, BLOCKS // 97), count=st.sampled_from([1, 128, 5000, BLOCKS]))
    def clear(self, place: int, count: int) -> None:
        first, last = self.around(place, count)
        self.bitmap.clear(first, last)
        self.model -= set(range(first, last + 1))

    @rule(exact=st.booleans())
    def commit(self, exact: bool) -> None:
        if exact:
            self.bitmap.sync_exact()
            assert on_disk(self.path) == self.model
        else:
            self.bitmap.sync()

    @rule()
    def cool(self) -> None:
        self.bitmap.cool()

    @rule(ranges=st.lists(st.integers(0, BLOCKS - 200), min_size=100, max_size=2500))
    def storm(self, ranges: list[int]) -> None:
        for first in ranges:
            self.bitmap.mark(first, first + 1)
            self.model |= {first, first + 1}

    @rule()
    def crash(self) -> None:
        content = self.path.read_bytes()
        self.path = self.folder / f"{self.path.name}x"
        self.path.write_bytes(content)
        self.bitmap = Bitmap(FileVolume(self.path), SIZE_BYTES, BLOCK_BYTES)
        assert self.bitmap.load(SET_ID) is None
        found = blocks(self.bitmap)
        assert found >= self.model
        self.model = found

    @invariant()
    def disk_covers_memory(self) -> None:
        if hasattr(self, "bitmap"):
            assert blocks(self.bitmap) == self.model
            assert self.bitmap.dirty_blocks == len(self.model)
            assert on_disk(self.path) >= self.model
            assert self.bitmap.hot_extents <= self.bitmap.hot_extents_max


def test_the_disk_covers_memory_through_marks_clears_and_crashes(tmp_path: Path) -> None:
    machine = type("Machine", (Crashes,), {"base": tmp_path, "rounds": 0})
    few = settings(max_examples=15, stateful_step_count=15, deadline=None)
    run_state_machine_as_test(machine, settings=few)
