"""The backing whose power can be cut: what must survive, what may be lost, and nothing else."""

from __future__ import annotations

import errno
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from facade.engine.file_volume import FileVolume
from facade.engine.power_cut_volume import EXIT_STATUS_POWER_CUT, PowerCutVolume, PowerSupply

SIZE_BYTES = 256 << 10
SECTOR_BYTES = 512
PAGE_BYTES = 4096


@pytest.fixture
def bottom(tmp_path: Path) -> Iterator[FileVolume]:
    path = tmp_path / "volume.img"
    with path.open("wb") as image:
        image.truncate(SIZE_BYTES)
    volume = FileVolume(path)
    yield volume
    volume.close()


def test_what_is_not_flushed_is_read_and_not_below(bottom: FileVolume) -> None:
    volume = PowerCutVolume(bottom)
    volume.pwrite(100, b"held")
    volume.zero(101, 1)
    assert volume.pread(99, 6) == b"\0h\0ld\0"
    assert bottom.pread(100, 4) == bytes(4)
    assert (volume.held_changes, volume.held_bytes) == (2, 4)
    volume.flush()
    assert bottom.pread(100, 4) == b"h\0ld"
    assert (volume.held_changes, volume.held_bytes) == (0, 0)


def test_fua_makes_its_own_range_durable_and_no_other(bottom: FileVolume) -> None:
    volume = PowerCutVolume(bottom)
    volume.pwrite(0, b"a" * PAGE_BYTES)
    volume.pwrite(PAGE_BYTES, b"b" * PAGE_BYTES, fua=True)
    assert bottom.pread(0, 2 * PAGE_BYTES) == bytes(PAGE_BYTES) + b"b" * PAGE_BYTES


@pytest.mark.parametrize("seed", range(40))
def test_a_cut_never_takes_what_is_flushed_or_was_fua(bottom: FileVolume, seed: int) -> None:
    volume = PowerCutVolume(bottom)
    volume.pwrite(0, b"1" * 8 * PAGE_BYTES)
    volume.flush()
    volume.pwrite(0, b"2" * PAGE_BYTES)
    volume.pwrite(0, b"3" * PAGE_BYTES, fua=True)
    volume.zero(PAGE_BYTES, PAGE_BYTES, fua=True)
    volume.supply.cut(seed)
    assert bottom.pread(0, PAGE_BYTES) == b"3" * PAGE_BYTES
    assert bottom.pread(PAGE_BYTES, PAGE_BYTES) == bytes(PAGE_BYTES)
    assert bottom.pread(2 * PAGE_BYTES, 6 * PAGE_BYTES) == b"1" * 6 * PAGE_BYTES


def test_an_older_write_never_comes_over_a_later_fua_one(bottom: FileVolume) -> None:
    # The flush begins before the FUA write and ends after it: the FUA write is below already.
    supply = PowerSupply(flush_delay_us=50_000)
    volume = PowerCutVolume(bottom, supply)
    volume.pwrite(0, b"1" * PAGE_BYTES)
    flush = threading.Thread(target=volume.flush)
    flush.start()
    volume.pwrite(0, b"2" * PAGE_BYTES, fua=True)
    assert bottom.pread(0, PAGE_BYTES) == b"2" * PAGE_BYTES
    flush.join()
    assert bottom.pread(0, PAGE_BYTES) == b"2" * PAGE_BYTES


def test_after_the_cut_every_request_fails(bottom: FileVolume) -> None:
    volume = PowerCutVolume(bottom)
    volume.supply.cut(1)
    assert volume.supply.is_off
    for request in (
        lambda: volume.pread(0, 1),
        lambda: volume.pwrite(0, b"x"),
        lambda: volume.pwrite(0, b"x", fua=True),
        lambda: volume.zero(0, 1),
        lambda: volume.trim(0, 1),
        volume.flush,
        lambda: volume.extents(0, 10),
    ):
        with pytest.raises(OSError) as caught:
            request()
        assert caught.value.errno == errno.EIO
    assert bottom.pread(0, 8) == bytes(8)


def sectors(data: bytes) -> list[bytes]:
    return [data[at : at + SECTOR_BYTES] for at in range(0, len(data), SECTOR_BYTES)]


def cut_after_writes(path: Path, seed: int) -> tuple[list[set[bytes]], bytes]:
    """Random changes and a cut; returns what each sector may be, and what all of it is."""
    with path.open("wb") as image:
        image.truncate(SIZE_BYTES)
    bottom = FileVolume(path)
    volume = PowerCutVolume(bottom)
    dice = random.Random(seed)
    now = bytearray(SIZE_BYTES)
    may_be = [{sector} for sector in sectors(bytes(now))]
    for _ in range(dice.randrange(60)):
        length = dice.choice([1, 700, SECTOR_BYTES, PAGE_BYTES, 20_000])
        offset = dice.randrange(SIZE_BYTES - length + 1)
        fua = dice.random() < 0.1
        data = bytes(length) if dice.random() < 0.3 else dice.randbytes(length)
        if any(data):
            volume.pwrite(offset, data, fua=fua)
        else:
            volume.trim(offset, length, fua=fua)
        now[offset : offset + length] = data
        for number in range(offset // SECTOR_BYTES, (offset + length - 1) // SECTOR_BYTES + 1):
            at = number * SECTOR_BYTES
            sector = bytes(now[at : at + SECTOR_BYTES])
            may_be[number] = {sector} if fua else may_be[number] | {sector}
        if dice.random() < 0.05:
            volume.flush()
            may_be = [{sector} for sector in sectors(bytes(now))]
    assert volume.pread(0, SIZE_BYTES) == now
    volume.supply.cut(seed)
    found = bottom.pread(0, SIZE_BYTES)
    bottom.close()
    return may_be, found


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_each_sector_is_one_of_its_contents_since_the_flush(tmp_path: Path, first: int) -> None:
    for seed in range(first, first + 50):
        may_be, found = cut_after_writes(tmp_path / "image", seed)
        for number, sector in enumerate(sectors(found)):
            assert sector in may_be[number], f"seed {seed}, sector {number}"


def test_seeds_lose_keep_reorder_and_tear(tmp_path: Path) -> None:
    seen = set()
    for seed in range(200):
        path = tmp_path / "image"
        with path.open("wb") as image:
            image.truncate(SIZE_BYTES)
        bottom = FileVolume(path)
        volume = PowerCutVolume(bottom)
        volume.pwrite(0, b"1" * 2 * PAGE_BYTES)
        volume.pwrite(8 * PAGE_BYTES, b"2" * PAGE_BYTES)
        volume.supply.cut(seed)
        first, second = bottom.pread(0, 2 * PAGE_BYTES), bottom.pread(8 * PAGE_BYTES, 1)
        count = first.count(b"1") // SECTOR_BYTES
        seen.add("torn" if 0 < count < 16 else "kept" if count else "lost")
        seen.add("torn at a page" if count == 8 and len(set(first[:PAGE_BYTES])) == 1 else "")
        seen.add("reordered" if second == b"2" and not count else "")
        bottom.close()
    assert seen >= {"torn", "kept", "lost", "reordered", "torn at a page"}


def test_the_same_seed_loses_the_same(tmp_path: Path) -> None:
    found = [cut_after_writes(tmp_path / "image", 7)[1] for _ in range(2)]
    assert found[0] == found[1]


def test_volumes_of_one_supply_lose_power_together(tmp_path: Path) -> None:
    supply = PowerSupply(cut_at=3)
    volumes = []
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(PAGE_BYTES))
        volumes.append(PowerCutVolume(FileVolume(tmp_path / name), supply))
    volumes[0].pwrite(0, b"x")
    volumes[1].pwrite(0, b"x")
    with pytest.raises(OSError, match="Input/output"):
        volumes[0].flush()
    assert supply.is_off
    assert supply.changes == 3
    with pytest.raises(OSError, match="Input/output"):
        volumes[1].pread(0, 1)


def test_what_is_held_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    bottom = FileVolume(tmp_path / "image")
    volume = PowerCutVolume(bottom)
    for number in range(70):
        volume.pwrite(0, bytes([number]) * (1 << 20))
    assert volume.held_bytes <= 64 << 20
    assert bottom.pread(0, 1) != b"\0"
    bottom.close()


def test_a_process_ends_with_its_power(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(PAGE_BYTES))
    code = f"""
from facade.engine.file_volume import FileVolume
from facade.engine.power_cut_volume import PowerCutVolume, PowerSupply
volume = PowerCutVolume(FileVolume({str(path)!r}), PowerSupply(cut_at=3, seed=1, exits=True))
volume.pwrite(0, b"durable")
volume.flush()
volume.pwrite(512, b"x")
print("not reached")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (EXIT_STATUS_POWER_CUT, b""), ended.stderr
    assert path.read_bytes()[:7] == b"durable"
