"""Holes, block status, DF and contexts as NBD clients that we did not write see them."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from facade.engine.bitmap import Bitmap
from facade.engine.file_volume import FileVolume
from facade.engine.nbd_context import BitmapContext
from facade.engine.nbd_server import NbdServer
from tests.engine.test_nbd_interop import SIZE_BYTES, image_of, run, server, source

__all__ = ["server", "source"]  # fixtures

BLOCK_BYTES = 32 << 10
DIRTY = "qemu:dirty-bitmap:set_a"
# (offset, length, is data) of what `sparse` writes.
PIECES = [(0, 1 << 20, False), (1 << 20, 1 << 20, True), (2 << 20, 30 << 20, False)]


@pytest.fixture
def sparse(server: NbdServer) -> NbdServer:
    """One MiB of data amid holes."""
    server.stack.pwrite(1 << 20, random.Random(1).randbytes(1 << 20))
    return server


@pytest.fixture
def dirty(sparse: NbdServer, tmp_path: Path) -> Iterator[NbdServer]:
    """The same with a set's bitmap: blocks 2, 3 and 100 are marked."""
    path = tmp_path / "bitmap"
    path.write_bytes(bytes(64 << 10))
    bitmap = Bitmap(FileVolume(path), SIZE_BYTES, BLOCK_BYTES)
    bitmap.mark(2, 3)
    bitmap.mark(100, 100)
    sparse.add_context(BitmapContext("set_a", bitmap))
    yield sparse
    sparse.stop(5)
    bitmap.close()


@pytest.fixture
def nbd() -> ModuleType:
    return pytest.importorskip("nbd", reason="python3-libnbd is not importable")


def connect(nbd: ModuleType, server: NbdServer, *contexts: str) -> Any:
    handle = nbd.NBD()
    for context in contexts:
        handle.add_meta_context(context)
    handle.connect_uri(server.uri)
    return handle


def test_nbdinfo_shows_contexts_and_abilities(dirty: NbdServer) -> None:
    (export,) = json.loads(run("nbdinfo", "--json", dirty.uri))["exports"]
    assert export["contexts"] == ["base:allocation", DIRTY]
    for can in ("can_cache", "can_df", "can_fast_zero"):
        assert export[can] is True


def test_nbdinfo_maps_holes(sparse: NbdServer) -> None:
    found = json.loads(run("nbdinfo", "--map", "--json", sparse.uri))
    assert [(one["offset"], one["length"], one["type"] == 0) for one in found] == PIECES
    assert {one["description"] for one in found} == {"data", "hole,zero"}


def test_nbdinfo_maps_a_dirty_bitmap(dirty: NbdServer) -> None:
    found = json.loads(run("nbdinfo", f"--map={DIRTY}", "--json", dirty.uri))
    marked = [(one["offset"] // BLOCK_BYTES, one["length"] // BLOCK_BYTES)
              for one in found if one["type"] == 1]  # fmt: skip
    assert marked == [(2, 2), (100, 1)]
    assert sum(one["length"] for one in found) == SIZE_BYTES


def test_qemu_img_maps_holes(sparse: NbdServer) -> None:
    found = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", sparse.uri))
    assert [(one["start"], one["length"], one["data"]) for one in found] == PIECES
    assert [one["zero"] for one in found] == [True, False, True]


def test_qemu_img_maps_a_dirty_bitmap(dirty: NbdServer) -> None:
    options = (
        f"driver=nbd,server.type=unix,server.path={dirty.socket_path},export=volume.img,"
        f"x-dirty-bitmap={DIRTY}"
    )
    found = json.loads(run("qemu-img", "map", "--output=json", "--image-opts", options))
    # qemu shows what is marked as what holds no data.
    marked = [(one["start"] // BLOCK_BYTES, one["length"] // BLOCK_BYTES)
              for one in found if not one["data"]]  # fmt: skip
    assert marked == [(2, 2), (100, 1)]


def test_nbdcopy_moves_holes(sparse: NbdServer, tmp_path: Path) -> None:
    copy = tmp_path / "copy.img"
    run("nbdcopy", sparse.uri, copy)
    assert copy.read_bytes() == image_of(sparse, tmp_path).read_bytes()
    assert copy.stat().st_blocks * 512 < 2 << 20


def test_nbdcopy_fills_with_holes(server: NbdServer, source: Path, tmp_path: Path) -> None:
    image = image_of(server, tmp_path)
    server.stack.pwrite(0, b"\xff" * SIZE_BYTES)
    run("nbdcopy", "--flush", source, server.uri)
    assert image.read_bytes() == source.read_bytes()
    assert image.stat().st_blocks < SIZE_BYTES // 512 // 2


def test_qemu_img_converts_sparse(sparse: NbdServer, tmp_path: Path) -> None:
    copy = tmp_path / "copy.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", sparse.uri, copy)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", sparse.uri, copy)
    assert copy.stat().st_size < 3 << 20


def test_qemu_io_reads_across_holes(sparse: NbdServer) -> None:
    told = run(
        "qemu-io", "-f", "raw", "-c", "read -P 0 0 1M", "-c", "read -P 0 2M 30M",
        "-c", "write -z -u -n 1M 64k", "-c", "read -P 0 0 1088k", "-c", "map", sparse.uri,
    )  # fmt: skip
    assert "Pattern verification failed" not in told


def test_qemu_io_is_refused_fast_zeroes_that_keep_the_space(sparse: NbdServer) -> None:
    if shutil.which("qemu-io") is None:
        pytest.skip("qemu-io is not installed")
    before = sparse.stack.pread(1 << 20, 65_536)
    command = ["qemu-io", "-f", "raw", "-c", "write -z -n 1M 64k", sparse.uri]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "Operation not supported" in ended.stdout + ended.stderr
    assert sparse.stack.pread(1 << 20, 65_536) == before


def test_libnbd_reads_in_pieces(sparse: NbdServer, nbd: ModuleType) -> None:
    handle = connect(nbd, sparse)
    assert handle.get_structured_replies_negotiated()
    told: list[tuple[int, int, int]] = []

    def chunk(data: bytes, offset: int, kind: int, _: object) -> int:
        told.append((offset, len(data), kind))
        return 0

    data = handle.pread_structured(3 << 20, 0, chunk)
    assert data == sparse.stack.pread(0, 3 << 20)
    assert [(offset, kind) for offset, _, kind in told] == [
        (0, nbd.READ_HOLE), (1 << 20, nbd.READ_DATA), (2 << 20, nbd.READ_HOLE),
    ]  # fmt: skip
    told.clear()
    assert handle.pread_structured(3 << 20, 0, chunk, nbd.CMD_FLAG_DF) == data
    assert told == [(0, 3 << 20, nbd.READ_DATA)]
    handle.shutdown()


def test_libnbd_block_status(dirty: NbdServer, nbd: ModuleType) -> None:
    handle = connect(nbd, dirty, "base:allocation", DIRTY, "x-unknown:context")
    assert handle.can_meta_context(DIRTY)
    assert not handle.can_meta_context("x-unknown:context")
    told: dict[str, list[int]] = {}

    def extent(name: str, _: int, entries: list[int], __: object) -> int:
        told[name] = entries
        return 0

    handle.block_status(4 << 20, 0, extent)
    assert told["base:allocation"] == [1 << 20, 3, 1 << 20, 0, 2 << 20, 3]
    assert told[DIRTY][:4] == [2 * BLOCK_BYTES, 0, 2 * BLOCK_BYTES, 1]
    handle.block_status(4 << 20, 1 << 20, extent, nbd.CMD_FLAG_REQ_ONE)
    assert told["base:allocation"] == [1 << 20, 0]
    handle.shutdown()


def test_libnbd_lists_contexts(dirty: NbdServer, nbd: ModuleType) -> None:
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_uri(dirty.uri)
    told: list[str] = []
    handle.add_meta_context("qemu:")
    assert handle.opt_list_meta_context(lambda name: told.append(name) or 0) == 1
    assert told == [DIRTY]
    handle.opt_abort()


def test_libnbd_is_told_in_words_and_goes_on(sparse: NbdServer, nbd: ModuleType) -> None:
    handle = connect(nbd, sparse)
    handle.set_strict_mode(0)  # let the server do the refusing
    refused = [
        (lambda: handle.pread(1, SIZE_BYTES), 22),
        (lambda: handle.pread(1, 0, nbd.CMD_FLAG_REQ_ONE), 22),
        (lambda: handle.pwrite(b"x", SIZE_BYTES), 28),
        (lambda: handle.block_status(1, 0, lambda *_: 0), 22),
        (lambda: handle.cache(1, SIZE_BYTES), 22),
        (lambda: handle.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE), 95),
    ]
    for ask, number in refused:
        with pytest.raises(nbd.Error) as caught:
            ask()
        assert caught.value.errnum == number
    handle.cache(1 << 20, 0)
    handle.zero(4096, 1 << 20, nbd.CMD_FLAG_FAST_ZERO)
    assert handle.pread(4096, 1 << 20) == bytes(4096)
    handle.shutdown()


def test_libnbd_without_structured_replies(sparse: NbdServer, nbd: ModuleType) -> None:
    handle = nbd.NBD()
    handle.set_request_structured_replies(False)
    handle.connect_uri(sparse.uri)
    assert not handle.get_structured_replies_negotiated()
    assert not handle.can_df()
    assert handle.pread(3 << 20, 0) == sparse.stack.pread(0, 3 << 20)
    handle.shutdown()
