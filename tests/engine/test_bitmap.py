"""The change bitmap: bits survive, foreign and damaged maps are not trusted, rules of clearing."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facade.bitmap_size import bitmap_bytes
from facade.engine.bitmap import Bitmap
from facade.engine.bitmap_header import BitmapHeader
from facade.engine.fault_volume import FaultVolume
from facade.engine.file_volume import FileVolume
from facade.errors import BitmapTooSmall
from tests.engine.harness import wait_for

SET_ID = bytes(range(16))
BLOCK_BYTES = 4096
BLOCKS = 100_003
SIZE_BYTES = BLOCKS * BLOCK_BYTES - 17


def header(**changes: object) -> BitmapHeader:
    values: dict[str, object] = {
        "set_id": SET_ID,
        "role": "primary",
        "state": "logging",
        "flags": frozenset(),
        "block_bytes": BLOCK_BYTES,
        "size_bytes": SIZE_BYTES,
    }
    return BitmapHeader(**{**values, **changes})  # type: ignore[arg-type]


def new(path: Path, dirty: bool = False) -> Bitmap:
    path.write_bytes(bytes(bitmap_bytes(SIZE_BYTES, BLOCK_BYTES)))
    bitmap = Bitmap(FileVolume(path), SIZE_BYTES, BLOCK_BYTES)
    bitmap.format(header(), dirty)
    return bitmap


def reload(path: Path) -> Bitmap:
    """Read what an engine after a crash would find: nothing was closed."""
    bitmap = after_crash(path)
    assert bitmap.load(SET_ID) is None
    return bitmap


def after_crash(path: Path) -> Bitmap:
    """The bitmap on a copy of its volume, as the volume is now."""
    copy = path.with_name(f"{path.name}.after")
    shutil.copyfile(path, copy)
    return Bitmap(FileVolume(copy), SIZE_BYTES, BLOCK_BYTES)


def marked(bitmap: Bitmap) -> set[int]:
    return {first + i for first, count in bitmap.runs() for i in range(count)}


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    return tmp_path / "bitmap"


@given(
    ranges=st.lists(
        st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 70_000), st.booleans()), max_size=20
    )
)
@settings(max_examples=30, deadline=None)
def test_marks_and_clears_are_those_of_a_set(
    tmp_path_factory: pytest.TempPathFactory, ranges: list[tuple[int, int, bool]]
) -> None:
    path = tmp_path_factory.mktemp("map") / "bitmap"
    bitmap = new(path)
    model: set[int] = set()
    for first, count, mark in ranges:
        last = min(first + count, BLOCKS) - 1
        if mark:
            bitmap.mark(first, last)
            model |= set(range(first, last + 1))
        else:
            bitmap.clear(first, last)
            model -= set(range(first, last + 1))
        assert bitmap.dirty_blocks == len(model)
    assert marked(bitmap) == model
    # Without a sync the disk may have bits too many, never one too few.
    assert marked(reload(path)) >= model
    bitmap.sync()
    assert marked(reload(path)) >= model
    bitmap.sync_exact()
    assert marked(reload(path)) == model


def test_all_dirty_and_all_clean(path: Path) -> None:
    assert new(path, dirty=True).dirty_blocks == BLOCKS
    assert reload(path).runs() == [(0, BLOCKS)]
    assert new(path, dirty=False).dirty_blocks == 0
    assert reload(path).runs() == []


def test_marking_again_costs_no_disk_access(path: Path) -> None:
    bitmap = new(path)
    bitmap.mark(5, 50)
    commits = bitmap.commits
    for _ in range(100):
        bitmap.mark(7, 40)
    assert bitmap.commits == commits


def test_many_writers_share_commits(path: Path) -> None:
    bitmap = new(path)
    before = bitmap.commits
    threads = [
        threading.Thread(
            target=lambda t=t: [bitmap.mark(t * 1000 + i, t * 1000 + i) for i in range(200)]
        )
        for t in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bitmap.dirty_blocks == 1600
    assert bitmap.commits - before <= 1600
    assert marked(reload(path)) >= marked(bitmap)
    bitmap.sync_exact()
    assert marked(reload(path)) == marked(bitmap)


def test_short_bitmap_volume_is_refused_with_the_size_it_needs(path: Path) -> None:
    path.write_bytes(bytes(8192 + 4096))
    with pytest.raises(BitmapTooSmall) as caught:
        Bitmap(FileVolume(path), SIZE_BYTES, BLOCK_BYTES)
    assert caught.value.data["needed_bytes"] == bitmap_bytes(SIZE_BYTES, BLOCK_BYTES)


@pytest.mark.parametrize("damage", ["set_id", "size", "no_header", "torn_headers"])
def test_what_is_not_ours_or_damaged_counts_as_all_dirty(path: Path, damage: str) -> None:
    bitmap = new(path)
    set_id = SET_ID
    if damage == "set_id":
        set_id = bytes(16)
    elif damage == "size":
        bitmap.write_header(header(size_bytes=SIZE_BYTES - BLOCK_BYTES, sequence=9))
    else:
        size = 8192 if damage == "no_header" else 100
        with path.open("r+b") as file:
            for slot in (0, 4096):
                file.seek(slot)
                file.write(os.urandom(min(size, 4096)))
    fresh = after_crash(path)
    why = fresh.load(set_id)
    assert why
    assert fresh.dirty_blocks == BLOCKS


def test_a_torn_header_leaves_the_one_before(path: Path) -> None:
    bitmap = new(path)
    bitmap.mark(3, 3)
    bitmap.sync_exact()
    bitmap.write_header(header().next(flags=frozenset({"sync_needed"})))
    with path.open("r+b") as file:
        file.seek(4096 + 100)
        file.write(b"torn")
    fresh = reload(path)
    assert fresh.header is not None
    assert fresh.header.flags == frozenset()
    assert marked(fresh) == {3}


def test_merge_sets_what_the_other_side_has(path: Path, tmp_path: Path) -> None:
    ours, theirs = new(path), new(tmp_path / "theirs")
    rng = random.Random(3)
    for bitmap in (ours, theirs):
        for _ in range(50):
            block = rng.randrange(BLOCKS)
            bitmap.mark(block, block)
    expected = marked(ours) | marked(theirs)
    offset = 0
    while offset < theirs.map_bytes:
        piece = theirs.export(offset, 4096)
        ours.merge(offset, piece)
        offset += len(piece)
    assert marked(ours) == expected
    ours.sync_exact()
    assert marked(reload(path)) == expected


def test_runs_are_those_of_the_bits_however_long_and_wherever_pages_end(path: Path) -> None:
    bitmap = new(path)
    wanted = [(0, 1), (32_700, 100), (65_535, 2), (70_000, 30_003)]
    for first, count in wanted:
        bitmap.mark(first, first + count - 1)
    assert bitmap.runs() == wanted
    assert bitmap.run_array().tolist() == [number for run in wanted for number in run]
    assert bitmap.runs(32_750) == [(32_750, 50), *wanted[2:]]
    assert bitmap.runs(limit=2) == wanted[:2]
    assert bitmap.dirty_blocks == sum(count for _, count in wanted)


def test_more_runs_than_are_gathered_at_once(path: Path) -> None:
    bitmap = new(path)
    bitmap.merge(0, b"\x55" * bitmap.map_bytes)
    assert bitmap.runs() == [(block, 1) for block in range(0, BLOCKS, 2)]
    assert bitmap.dirty_blocks == (BLOCKS + 1) // 2


def test_a_piece_of_a_map_that_is_not_words_inside_it_is_refused(path: Path) -> None:
    bitmap = new(path)
    for offset, size in ((4, 8), (0, 4), (bitmap.map_bytes, 8), (0, bitmap.map_bytes + 8)):
        with pytest.raises(IndexError):
            bitmap.merge(offset, bytes(size))
    with pytest.raises(IndexError):
        bitmap.export(bitmap.map_bytes + 1, 8)
    assert bitmap.export(bitmap.map_bytes - 8, 100) == bytes(8)


def test_bits_past_the_last_block_are_never_taken_over(path: Path) -> None:
    bitmap = new(path)
    bitmap.merge(bitmap.map_bytes - 4096, b"\xff" * 4096)
    assert max(marked(bitmap)) == BLOCKS - 1


def test_range_past_the_end_is_refused(path: Path) -> None:
    bitmap = new(path)
    with pytest.raises(IndexError):
        bitmap.mark(0, BLOCKS)
    with pytest.raises(IndexError):
        bitmap.mark(5, 4)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_bitmap_device_fails_the_mark_and_every_later_one(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    size = bitmap_bytes(SIZE_BYTES, BLOCK_BYTES)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size // 2 // 4096 * 4}k", "x", small], check=True
    )
    try:
        path = small / "bitmap"
        with path.open("wb") as file:
            file.truncate(size)
        volume = FileVolume(path)
        bitmap = Bitmap(volume, SIZE_BYTES, BLOCK_BYTES)
        (small / "filler").write_bytes(bytes(shutil.disk_usage(small).free))
        with pytest.raises(OSError, match="No space"):
            bitmap.mark(5, 5)
        (small / "filler").unlink()
        with pytest.raises(OSError, match="No space"):
            bitmap.mark(BLOCKS - 1, BLOCKS - 1)
        assert bitmap.failed_errno
        bitmap.go_memory_only()
        bitmap.mark(7, 7)
        assert {5, 7} <= marked(bitmap)
        bitmap.close()
        volume.close()
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_failed_flush_of_the_bitmap_volume_is_never_retried_into_success(path: Path) -> None:
    path.write_bytes(bytes(bitmap_bytes(SIZE_BYTES, BLOCK_BYTES)))
    volume = FaultVolume(FileVolume(path))
    bitmap = Bitmap(volume, SIZE_BYTES, BLOCK_BYTES)
    bitmap.format(header(), False)
    bitmap.mark(1, 1)
    volume.fail("flush", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        bitmap.mark(99_000, 99_000)
    with pytest.raises(OSError, match="Input/output"):
        bitmap.mark(50_000, 50_000)
    with pytest.raises(OSError, match="Input/output"):
        bitmap.sync()
    assert bitmap.failed_errno == errno.EIO


def test_a_closed_bitmap_leaves_its_volume_alone(path: Path) -> None:
    bitmap = new(path)
    bitmap.clear(1, 1)
    bitmap.close()
    before = path.read_bytes()
    with pytest.raises(OSError, match="shutdown"):
        bitmap.mark(8, 8)
    with pytest.raises(OSError, match="shutdown"):
        bitmap.sync()
    assert path.read_bytes() == before
    assert 8 in marked(bitmap)


@pytest.mark.parametrize("how", ["fill", "merge"])
def test_bits_set_by_fill_or_merge_are_not_taken_for_durable(path: Path, how: str) -> None:
    bitmap = new(path)
    volume = FaultVolume(bitmap.volume, is_async=True)
    held = Bitmap(volume, SIZE_BYTES, BLOCK_BYTES)
    assert held.load(SET_ID) is None
    if how == "fill":
        held.fill()
    else:
        held.merge(0, b"\xff" * 4096)
    volume.hold()
    marked_one = threading.Event()

    def mark() -> None:
        held.mark(5, 5)
        marked_one.set()

    threads = [threading.Thread(target=body, daemon=True) for body in (held.sync, mark)]
    try:
        for thread in threads:
            thread.start()
        wait_for(lambda: volume.held, what="the bitmap's first write")
        # A write to block 5 must wait: a crash now would find its bit clear.
        assert not marked_one.wait(0.05)
    finally:
        volume.release()
        for thread in threads:
            thread.join(10)
        volume.close()
    assert marked_one.is_set()
    assert 5 in marked(reload(path))
