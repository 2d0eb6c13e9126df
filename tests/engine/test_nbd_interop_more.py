"""More NBD clients that we did not write: abilities one by one, many connections, FUSE, proxies."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from facade.engine.fault_volume import FaultVolume
from facade.engine.file_volume import FileVolume
from facade.engine.nbd_server import NbdServer
from facade.engine.volume_stack import VolumeStack
from tests.engine.harness import wait_for
from tests.engine.nbd_raw import serve
from tests.engine.test_nbd_interop import SIZE_BYTES, image_of, run, server, source

__all__ = ["server", "source"]  # fixtures

MIB = 1 << 20


def status_of(*command: str | Path) -> int:
    """How a tool ended that may well say no; skips where there is no such tool."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, timeout=60, check=False).returncode


@pytest.fixture
def read_only(source: Path) -> Iterator[NbdServer]:
    """An image served to be read only."""
    volume = FileVolume(source, read_only=True)
    with serve(VolumeStack(volume, read_only=True)) as running:
        yield running
    volume.close()


def test_nbdinfo_is_told_each_ability(server: NbdServer) -> None:
    assert int(run("nbdinfo", "--size", server.uri)) == SIZE_BYTES
    for can in ("connect", "structured reply", "cache", "df", "fast-zero", "flush", "fua",
                "multi-conn", "trim", "write", "zero"):  # fmt: skip
        assert status_of("nbdinfo", "--can", can, server.uri) == 0, can
    for isnt in ("read-only", "rotational", "tls"):
        assert status_of("nbdinfo", "--is", isnt, server.uri) == 2, isnt


def test_nbdinfo_is_told_block_sizes(server: NbdServer) -> None:
    (export,) = json.loads(run("nbdinfo", "--json", server.uri))["exports"]
    sizes = [export[f"block_size_{which}"] for which in ("minimum", "preferred", "maximum")]
    assert sizes == [1, 4096, 32 * MIB]


def test_nbdinfo_sums_up_what_is_allocated(server: NbdServer) -> None:
    server.stack.pwrite(4 * MIB, random.Random(1).randbytes(MIB))
    totals = json.loads(run("nbdinfo", "--map", "--totals", "--json", server.uri))
    assert {one["description"]: one["size"] for one in totals} == {
        "data": MIB, "hole,zero": SIZE_BYTES - MIB,
    }  # fmt: skip


def test_nbdinfo_sees_a_new_size(tmp_path: Path) -> None:
    (tmp_path / "small.img").write_bytes(bytes(MIB))
    volume = FileVolume(tmp_path / "small.img")
    with serve(VolumeStack(volume)) as small:
        assert int(run("nbdinfo", "--size", small.uri)) == MIB
        small.stack.resize(5 * MIB)
        assert int(run("nbdinfo", "--size", small.uri)) == 5 * MIB
        run("qemu-io", "-f", "raw", "-c", "write -P 1 4M 1M", small.uri)
    volume.close()


def test_nbdcopy_from_one_export_to_another(
    server: NbdServer, source: Path, tmp_path: Path
) -> None:
    run("nbdcopy", source, server.uri)
    other = tmp_path / "other.img"
    with other.open("wb") as image:
        image.truncate(SIZE_BYTES)
    volume = FileVolume(other)
    with serve(VolumeStack(volume)) as second:
        run("nbdcopy", "-C", "4", "--flush", server.uri, second.uri)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", server.uri, second.uri)
    volume.close()
    assert other.read_bytes() == source.read_bytes()


def test_a_read_only_export_is_read_and_nothing_else(read_only: NbdServer, source: Path,
                                                     tmp_path: Path) -> None:  # fmt: skip
    assert status_of("nbdinfo", "--is", "read-only", read_only.uri) == 0
    for cannot in ("write", "trim", "zero", "fast-zero"):
        assert status_of("nbdinfo", "--can", cannot, read_only.uri) == 2, cannot
    before = source.read_bytes()
    run("nbdcopy", read_only.uri, tmp_path / "copy.img")
    assert (tmp_path / "copy.img").read_bytes() == before
    run("qemu-io", "-r", "-f", "raw", "-c", "read 0 1M", read_only.uri)
    assert status_of("qemu-io", "-f", "raw", "-c", "write 0 4k", read_only.uri) != 0
    assert status_of("nbdcopy", tmp_path / "copy.img", read_only.uri) != 0
    assert source.read_bytes() == before


def test_libnbd_that_insists_is_refused_by_a_read_only_export(read_only: NbdServer) -> None:
    nbd = pytest.importorskip("nbd", reason="python3-libnbd is not importable")
    handle = nbd.NBD()
    handle.connect_uri(read_only.uri)
    assert handle.is_read_only()
    handle.set_strict_mode(0)  # let the server do the refusing
    for ask in (lambda: handle.pwrite(b"x", 0), lambda: handle.zero(4096, 0),
                lambda: handle.trim(4096, 0)):  # fmt: skip
        with pytest.raises(nbd.Error) as caught:
            ask()
        assert caught.value.errnum == 1
    handle.flush()
    handle.shutdown()


def test_qemu_io_writes_zeroes_discards_and_opens_again(server: NbdServer) -> None:
    told = run(
        "qemu-io", "-f", "raw", "-d", "unmap", "-c", "write -P 0xab 0 4M", "-c", "flush",
        "-c", "write -z 64k 64k", "-c", "write -z -u 1M 512k", "-c", "write -z -f 2M 4k",
        "-c", "discard 3M 64k", "-c", "reopen", "-c", "read -P 0xab 0 64k",
        "-c", "read -P 0 64k 64k", "-c", "read -P 0xab 128k 896k", "-c", "read -P 0 1M 512k",
        "-c", "read -P 0 2M 4k", "-c", "read -P 0 3M 64k", "-c", "read -P 0xab 3136k 960k",
        "-c", "write -P 1 511 513", "-c", "read -P 1 511 513", "-c", "read -P 0xab 0 511",
        server.uri,
    )  # fmt: skip
    assert "failed" not in told
    assert server.stack.pread(511, 514) == b"\1" * 513 + b"\xab"


def test_qemu_io_is_told_of_errors_and_goes_on(tmp_path: Path) -> None:
    with (tmp_path / "bad.img").open("wb") as image:
        image.truncate(SIZE_BYTES)
    bottom = FileVolume(tmp_path / "bad.img")
    layer = FaultVolume(bottom)
    with serve(VolumeStack(layer)) as bad:
        layer.fail("read", 5)
        command = ["qemu-io", "-f", "raw", "-c", "read 1M 4k", "-c", "write -P 7 0 4k",
                   "-c", "read -P 7 0 4k", bad.uri]  # fmt: skip
        if shutil.which("qemu-io") is None:
            pytest.skip("qemu-io is not installed")
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert "read failed: Input/output error" in ended.stdout + ended.stderr
        assert "read 4096/4096" in ended.stdout
    bottom.close()


def test_qemu_img_keeps_a_qcow2_image_in_the_volume(
    server: NbdServer, source: Path, tmp_path: Path
) -> None:
    # A format with its own metadata: odd offsets, many flushes, rewritten in place.
    run("qemu-img", "create", "-f", "qcow2", server.uri, "16M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 9 3M 2M", "-c", "discard 4M 64k", server.uri)
    run("qemu-img", "snapshot", "-c", "one", server.uri)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 8 3M 64k", server.uri)
    run("qemu-img", "check", "-f", "qcow2", server.uri)
    run("qemu-img", "snapshot", "-a", "one", server.uri)
    run("qemu-io", "-f", "qcow2", "-c", "read -P 9 3M 1M", server.uri)


@pytest.mark.slow
def test_fio_verifies_over_four_connections(server: NbdServer, tmp_path: Path) -> None:
    run("fio", f"--aux-path={tmp_path}", "--name=verify", "--ioengine=nbd", f"--uri={server.uri}",
        "--rw=randwrite", "--bs=4k", "--iodepth=32", "--numjobs=4", "--size=8M",
        "--offset_increment=8M", "--thread", "--verify=crc32c", "--verify_fatal=1",
        "--do_verify=1", "--verify_backlog=512")  # fmt: skip


def test_nbdkit_passes_it_on(server: NbdServer, source: Path) -> None:
    if shutil.which("nbdkit") is None or status_of("nbdkit", "nbd", "--version") != 0:
        pytest.skip("nbdkit's nbd plugin is not installed")
    run("nbdcopy", source, server.uri)
    passed_on = f'nbdcopy "$uri" - | cmp - {source}'
    run("nbdkit", "-U", "-", "nbd", f"uri={server.uri}", "--run", passed_on)


@contextmanager
def mounted(server: NbdServer, point: Path) -> Iterator[Path]:
    """The export as a file, by nbdfuse."""
    if shutil.which("nbdfuse") is None or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("nbdfuse or /dev/fuse is missing")
    point.mkdir()
    helper = subprocess.Popen(["nbdfuse", str(point), server.uri], stderr=subprocess.PIPE)
    file = point / "nbd"
    try:
        try:
            wait_for(lambda: helper.poll() is not None or file.exists(), 20, "nbdfuse is there")
        finally:
            if helper.poll() is not None:
                assert helper.stderr is not None
                pytest.skip(f"nbdfuse cannot mount here: {helper.stderr.read().decode()}")
        yield file
    finally:
        helper.terminate()
        helper.wait(20)
        assert helper.stderr is not None
        helper.stderr.close()


def test_nbdfuse_makes_a_file_of_it(server: NbdServer, tmp_path: Path) -> None:
    with mounted(server, tmp_path / "mount") as file:
        assert file.stat().st_size == SIZE_BYTES
        data = random.Random(4).randbytes(300_001)
        with file.open("r+b", buffering=0) as opened:
            opened.seek(12_345)
            assert opened.write(data) == len(data)
            os.fsync(opened.fileno())
        with file.open("rb") as opened:
            opened.seek(12_345)
            assert opened.read(len(data)) == data
    assert server.stack.pread(12_345, len(data)) == data
    assert image_of(server, tmp_path).stat().st_size == SIZE_BYTES
