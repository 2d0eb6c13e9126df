"""Resizing while each of its system calls fails: size and data are the old ones or the new ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# The n-th fdatasync() or ftruncate() that is ordered fails, the others are the system's.
SHIM = """
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>
static int left[2], hits;
void order(int call, int n) { left[0] = left[1] = 0; left[call] = n; hits = 0; }
int hit(void) { return hits; }
static int fails(int call) { return left[call] && --left[call] == 0 ? ++hits : 0; }
int fdatasync(int fd) {
    if (fails(0)) { errno = EIO; return -1; }
    return syscall(SYS_fdatasync, fd);
}
int ftruncate(int fd, off_t length) {
    if (fails(1)) { errno = ENOSPC; return -1; }
    return syscall(SYS_ftruncate, fd, length);
}
int ftruncate64(int fd, off_t length) { return ftruncate(fd, length); }
"""

# One backing, one resize, one failing call after the other, until none is hit.
BODY = """
import ctypes, os, sys
from facade.engine.file_volume import FileVolume
from facade.engine.volume_stack import VolumeStack

path, shim, call, before, after = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
system = ctypes.CDLL(shim)
content = bytes(range(1, 251)) * (before // 250 + 1)
content = content[:before]
n = 0
while True:
    n += 1
    with open(path, "wb") as file:
        file.write(content)
    bottom = FileVolume(path)
    stack = VolumeStack(bottom)
    stack.pwrite(0, b"new")
    error = None
    system.order(call, n)
    try:
        stack.resize(after)
    except OSError as caught:
        error = caught
    hit = system.hit()
    system.order(0, 0)
    size = os.stat(path).st_size
    told = f"call {n}: {error}: {stack.size_bytes} {bottom.size_bytes} {size}"
    print(told)
    assert (error is not None) == bool(hit), told
    assert stack.size_bytes == bottom.size_bytes == size, told
    assert size in ((before, after) if error and after < before else (before,) if error
                    else (after,)), told
    expected = b"new" + content[3:] + bytes(max(0, size - before))
    with open(path, "rb") as file:
        assert file.read() == expected[:size], told
    if error is not None and bottom.failed:
        try:
            stack.resize()
        except OSError:
            pass
        else:
            raise SystemExit("a volume whose flush has failed was resized")
    stack.close()
    bottom.close()
    again = FileVolume(path)
    assert again.size_bytes == size
    again.close()
    if not hit:
        break
print(n - 1, "faults")
assert n > 1
"""


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    compiler = shutil.which("cc")
    assert compiler is not None
    source, made = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(made), str(source)], check=True)
    return made


@pytest.mark.parametrize("sizes", [(65536, 262144), (262144, 65536)], ids=["longer", "shorter"])
@pytest.mark.parametrize("call", [0, 1], ids=["fdatasync", "ftruncate"])
def test_each_call_of_a_resize_fails(
    tmp_path: Path, shim: Path, call: int, sizes: tuple[int, int]
) -> None:
    arguments = [str(tmp_path / "image"), str(shim), str(call), *map(str, sizes)]
    environ = {**os.environ, "PYTHONPATH": ".", "LD_PRELOAD": str(shim)}
    ended = subprocess.run([sys.executable, "-c", BODY, *arguments], env=environ,
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
