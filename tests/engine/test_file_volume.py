"""The backing file: lock, holes, failed flushes, files that change behind our back."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from facade.engine.file_volume import FileVolume

SIZE_BYTES = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "volume.img"
    with path.open("wb") as file:
        file.truncate(SIZE_BYTES)
    return path


def test_bytes_of_the_volume_are_bytes_of_the_file(image: Path) -> None:
    volume = FileVolume(image)
    volume.pwrite(4000, b"the same bytes")
    assert image.read_bytes()[4000:4014] == b"the same bytes"
    volume.close()


def test_second_engine_is_refused_in_a_clear_sentence(image: Path) -> None:
    volume = FileVolume(image)
    code = f"from facade.engine.file_volume import FileVolume; FileVolume({str(image)!r})"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                           env={**os.environ, "PYTHONPATH": "."}, check=False)  # fmt: skip
    assert "served by another engine" in other.stderr
    volume.close()
    FileVolume(image).close()


def test_readers_share_and_keep_a_writer_out(image: Path) -> None:
    readers = [FileVolume(image, read_only=True) for _ in range(2)]
    with pytest.raises(OSError, match="another engine") as caught:
        FileVolume(image)
    assert caught.value.errno == errno.EBUSY
    for reader in readers:
        reader.close()


def test_read_only_volume_refuses_every_change(image: Path) -> None:
    volume = FileVolume(image, read_only=True)
    for change in (lambda: volume.pwrite(0, b"x"), lambda: volume.zero(0, 1),
                   lambda: volume.trim(0, 1)):  # fmt: skip
        with pytest.raises(PermissionError):
            change()
    volume.flush()
    assert volume.pread(0, 4) == bytes(4)
    volume.close()


def test_trim_gives_space_back(image: Path) -> None:
    volume = FileVolume(image)
    if not volume.can_punch:
        pytest.skip("this file system cannot punch holes")
    volume.pwrite(0, b"\x01" * SIZE_BYTES, fua=True)
    full = image.stat().st_blocks
    volume.trim(0, SIZE_BYTES // 2)
    assert image.stat().st_blocks <= full // 2 + 16
    assert volume.extents(0, SIZE_BYTES) == [
        (0, SIZE_BYTES // 2, True), (SIZE_BYTES // 2, SIZE_BYTES // 2, False),
    ]  # fmt: skip
    volume.close()


def test_zero_without_hole_keeps_the_space(image: Path) -> None:
    volume = FileVolume(image)
    volume.pwrite(0, b"\x01" * SIZE_BYTES, fua=True)
    full = image.stat().st_blocks
    volume.zero(0, SIZE_BYTES, no_hole=True)
    assert image.stat().st_blocks >= full
    assert volume.pread(0, SIZE_BYTES) == bytes(SIZE_BYTES)
    volume.close()


def test_file_that_became_shorter_is_an_error_not_zeroes(image: Path) -> None:
    volume = FileVolume(image)
    os.truncate(image, 1000)
    with pytest.raises(OSError, match="Input/output") as caught:
        volume.pread(0, 4096)
    assert caught.value.errno == errno.EIO
    assert volume.pread(0, 1000) == bytes(1000)
    volume.close()


@pytest.mark.parametrize("what", ["folder", "fifo", "nothing"])
def test_what_is_no_volume_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
        keeper = os.open(path, os.O_RDWR)  # so that opening it does not wait
    with pytest.raises(OSError, match=r"neither a file|Is a directory|No such file"):
        FileVolume(path)
    if what == "fifo":
        os.close(keeper)


def test_closed_volume_refuses(image: Path) -> None:
    volume = FileVolume(image)
    volume.close()
    volume.close()
    assert volume.closed
    with pytest.raises(OSError) as caught:
        volume.pread(0, 1)
    assert caught.value.errno == errno.ESHUTDOWN


FAILING_FLUSH = """
import errno, sys
from facade.engine.file_volume import FileVolume
volume = FileVolume(sys.argv[1])
volume.flush()
volume.pwrite(0, b"lost")
for request in (volume.flush, volume.flush, lambda: volume.pwrite(0, b"x"),
                lambda: volume.pwrite(0, b"x", fua=True), lambda: volume.pread(0, 1)):
    try:
        request()
    except OSError as error:
        assert error.errno == errno.EIO, error
    else:
        raise SystemExit("a request succeeded after a failed flush")
assert volume.failed
volume.close()
volume = FileVolume(sys.argv[1])
assert not volume.failed
"""

# fdatasync() that fails on its second call only: a retry would succeed.
SHIM = """
#include <errno.h>
int fdatasync(int fd) { static int calls; (void)fd; if (++calls == 2) { errno = EIO; return -1; }
return 0; }
"""


def test_failed_flush_is_never_retried_into_success(image: Path, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    assert compiler is not None
    source, shim = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(shim), str(source)], check=True)
    environ = {**os.environ, "PYTHONPATH": ".", "LD_PRELOAD": str(shim)}
    ended = subprocess.run([sys.executable, "-c", FAILING_FLUSH, str(image)], env=environ,
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
