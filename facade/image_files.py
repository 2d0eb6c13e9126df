"""Image files: found in the configured folders, made whole or not at all."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from facade.block_devices import Candidate
from facade.contract.errors import BadName
from facade.contract.names import check_volume
from facade.errors import PathRefused, SizeRefused, SpaceShort, VolumeExists
from facade.volume_use import problem_of_file

SIZE_STEP_BYTES: Final = 512
SIZE_MIN_BYTES: Final = 4096
SIZE_MAX_BYTES: Final = 1 << 60
SIZE_RULE: Final = "a multiple of 512 bytes, at least 4 KiB and at most 1 EiB"


def image_files(folders: Iterable[Path]) -> list[Candidate]:
    """Return the image files of the folders; of two with one name the earlier folder's wins.

    A file whose name is not allowed cannot be named, and is left out.
    """
    found: dict[str, Candidate] = {}
    for folder in folders:
        try:
            names = sorted(entry.name for entry in os.scandir(folder))
        except OSError:  # not made yet, or not ours: it holds no volumes
            continue
        for name in names:
            candidate = image_file(folder / name)
            if candidate is not None:
                found.setdefault(name, candidate)
    return list(found.values())


def image_file(path: Path) -> Candidate | None:
    """Return the candidate of one file, None where there is no regular file of a proper name."""
    try:
        check_volume(path.name)
        if not path.is_file():
            return None
        return Candidate(path.name, path, "file", path.stat().st_size, problem_of_file(path))
    except (BadName, OSError):
        return None


def check_size(size_bytes: int) -> None:
    """Raise SizeRefused for a size that no volume has."""
    proper = SIZE_MIN_BYTES <= size_bytes <= SIZE_MAX_BYTES
    if not proper or size_bytes % SIZE_STEP_BYTES:
        raise SizeRefused(size_bytes=size_bytes, rule=SIZE_RULE)


def make_image_file(folder: Path, name: str, size_bytes: int, host: str) -> Path:
    """Make a sparse file and return its path; it is there as a whole or not at all.

    Raises VolumeExists, SpaceShort (also for a sparse file: it will be filled), PathRefused.
    """
    path = folder / name

    def truncate(descriptor: int) -> None:
        os.ftruncate(descriptor, size_bytes)

    _make(path, size_bytes, truncate, lambda making: _link_new(making, path, host))
    return path


def check_growth(path: Path, size_bytes: int, wanted_bytes: int) -> None:
    """Raise SpaceShort where an image file could not be filled up to its new size."""
    _check_space(path, wanted_bytes - size_bytes)


def make_allocated_file(path: Path, size_bytes: int) -> None:
    """Make a file of zeroes that has all its blocks, in place of one of that name.

    Raises SpaceShort, PathRefused; then nothing is left.
    """

    def allocate(descriptor: int) -> None:
        os.posix_fallocate(descriptor, 0, size_bytes)

    _make(path, size_bytes, allocate, lambda making: making.replace(path))


def remove_file(path: Path) -> None:
    """Remove a file; one that is not there is fine. Raises PathRefused."""
    try:
        path.unlink(missing_ok=True)
    except NotADirectoryError:
        return  # its folder is none, so it is not there
    except OSError as error:
        raise PathRefused(path=str(path), reason=error.strerror or str(error)) from error


def identity(path: Path) -> tuple[int, int, int]:
    """Return what two names of one file or device have in common. Raises OSError."""
    status = path.stat()
    return (status.st_rdev, 0, 0) if status.st_rdev else (0, status.st_dev, status.st_ino)


def same_thing(path: Path, others: Sequence[Path]) -> Path | None:
    """Return the one of `others` that is the same file or device under another path."""
    mine = identity(path)
    for other in others:
        try:
            if other != path and identity(other) == mine:
                return other
        except OSError:  # gone: it cannot be the same
            continue
    return None


def _make(
    path: Path, size_bytes: int, fill: Callable[[int], None], publish: Callable[[Path], object]
) -> None:
    # A leading dot hides it from discovery; a left-over of a crash is written over.
    making = path.with_name(f".{path.name}.making")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_space(path, size_bytes)
        descriptor = os.open(making, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fill(descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        publish(making)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _space_short(path, size_bytes) from error
        raise PathRefused(path=str(path), reason=error.strerror or str(error)) from error
    finally:
        with contextlib.suppress(OSError):
            making.unlink(missing_ok=True)


def _link_new(making: Path, path: Path, host: str) -> None:
    try:
        os.link(making, path)
    except FileExistsError as error:
        raise VolumeExists(volume=path.name, host=host) from error


def _check_space(path: Path, size_bytes: int) -> None:
    if _free_bytes(path.parent) < size_bytes:
        raise _space_short(path, size_bytes)


def _space_short(path: Path, size_bytes: int) -> SpaceShort:
    return SpaceShort(
        folder=str(path.parent),
        volume=path.name,
        free_bytes=_free_bytes(path.parent),
        needed_bytes=size_bytes,
    )


def _free_bytes(folder: Path) -> int:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
