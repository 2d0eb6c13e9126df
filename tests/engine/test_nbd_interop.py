"""NBD clients that we did not write, against our server."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from facade.engine.fault_volume import FaultVolume
from facade.engine.nbd_server import NbdServer
from facade.engine.volume_stack import VolumeStack
from tests.engine.nbd_raw import serve
from tests.engine.test_volume_stack import wait_until
from tests.engine.volume_makers import file_volume

SIZE_BYTES = 32 << 20
TOOL_TIMEOUT_S = 60


@pytest.fixture(params=["direct", "pending"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NbdServer]:
    """The same clients, with requests that end at once and with such that end elsewhere."""
    folder = tmp_path / "served"
    folder.mkdir()
    with file_volume(folder, SIZE_BYTES) as bottom:
        layer = FaultVolume(bottom, is_async=request.param == "pending")
        with serve(VolumeStack(layer)) as running:
            yield running
        layer.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An image with data and holes."""
    path = tmp_path / "source.img"
    dice = random.Random(3)
    with path.open("wb") as image:
        image.truncate(SIZE_BYTES)
        for _ in range(40):
            image.seek(dice.randrange(SIZE_BYTES - 200_000) // 4096 * 4096)
            image.write(dice.randbytes(dice.choice([4096, 100_000, 200_000])))
    return path


def run(*command: str | Path) -> str:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                           timeout=TOOL_TIMEOUT_S, check=False)  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def image_of(server: NbdServer, tmp_path: Path) -> Path:
    return tmp_path / "served" / "volume.img"


def test_nbdinfo_shows_what_is_promised(server: NbdServer) -> None:
    (export,) = json.loads(run("nbdinfo", "--json", server.uri))["exports"]
    assert export["export-name"] == "volume.img"
    assert export["export-size"] == SIZE_BYTES
    assert export["block_size_maximum"] == 32 << 20
    for can in ("can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"):
        assert export[can] is True
    assert export["is_read_only"] is False


def test_nbdinfo_lists_the_export(server: NbdServer) -> None:
    listed = json.loads(run("nbdinfo", "--list", "--json", server.uri))
    assert [export["export-name"] for export in listed["exports"]] == ["volume.img"]


def test_nbdcopy_both_ways(server: NbdServer, source: Path, tmp_path: Path) -> None:
    back = tmp_path / "back.img"
    run("nbdcopy", "--flush", source, server.uri)
    assert image_of(server, tmp_path).read_bytes() == source.read_bytes()
    run("nbdcopy", server.uri, back)
    assert back.read_bytes() == source.read_bytes()


def test_nbdcopy_over_many_connections(server: NbdServer, source: Path, tmp_path: Path) -> None:
    run("nbdcopy", "-C", "8", "-R", "32", "--flush", source, server.uri)
    assert image_of(server, tmp_path).read_bytes() == source.read_bytes()


def test_qemu_img(server: NbdServer, source: Path, tmp_path: Path) -> None:
    info = json.loads(run("qemu-img", "info", "--output=json", server.uri))
    assert info["virtual-size"] == SIZE_BYTES
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, server.uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, server.uri)
    assert image_of(server, tmp_path).read_bytes() == source.read_bytes()


def test_qemu_io_patterns(server: NbdServer) -> None:
    told = run(
        "qemu-io", "-f", "raw", "-c", "write -P 0xa5 1000 70000", "-c", "read -P 0xa5 1000 70000",
        "-c", "write -z 4096 8192", "-c", "read -P 0 4096 8192", "-c", "discard 65536 4096",
        "-c", "write -f -P 7 1M 5M", "-c", "read -P 7 1M 5M", "-c", "flush",
        "-c", "aio_write -P 3 8M 1M", "-c", "aio_write -P 4 9M 64k", "-c", "aio_flush",
        "-c", "read -P 3 8M 1M", server.uri,
    )  # fmt: skip
    assert "Pattern verification failed" not in told


@pytest.mark.slow
@pytest.mark.parametrize("mix", [["--bs=4k", "--iodepth=32"], ["--bsrange=512-128k", "--iodepth=8"],
                                 ["--bs=4k", "--iodepth=1", "--fsync=16"]])  # fmt: skip
def test_fio_verifies(server: NbdServer, tmp_path: Path, mix: list[str]) -> None:
    # The folder is for the file in which fio keeps what it has verified.
    run("fio", "--name=verify", f"--aux-path={tmp_path}", "--ioengine=nbd",
        f"--uri={server.uri}", "--rw=randwrite", "--size=8M",
        "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", *mix)  # fmt: skip


def test_libnbd_reads_writes_and_sees_errors(server: NbdServer) -> None:
    nbd = pytest.importorskip("nbd", reason="python3-libnbd is not importable")
    handle = nbd.NBD()
    handle.connect_uri(server.uri)
    data = os.urandom(100_001)
    handle.pwrite(data, 12_345, nbd.CMD_FLAG_FUA)
    assert handle.pread(100_001, 12_345) == data
    handle.zero(8192, 16_384, nbd.CMD_FLAG_NO_HOLE)
    assert handle.pread(8192, 16_384) == bytes(8192)
    handle.trim(100_001, 12_345)
    assert handle.pread(100_001, 12_345) == bytes(100_001)
    handle.flush()
    handle.set_strict_mode(0)  # let the server do the refusing
    with pytest.raises(nbd.Error) as caught:
        handle.pwrite(b"x", SIZE_BYTES)
    assert caught.value.errnum == 28
    with pytest.raises(nbd.Error) as caught:
        handle.pread(1, SIZE_BYTES)
    assert caught.value.errnum == 22
    handle.shutdown()


def test_old_clients_name_the_export_without_an_answer(server: NbdServer) -> None:
    nbd = pytest.importorskip("nbd", reason="python3-libnbd is not importable")
    handle = nbd.NBD()
    handle.set_handshake_flags(0)  # neither fixed newstyle nor no-zeroes: only EXPORT_NAME is left
    handle.connect_uri(server.uri)
    assert handle.get_size() == SIZE_BYTES
    handle.pwrite(b"old", 0)
    assert handle.pread(3, 0) == b"old"
    handle.shutdown()


def test_a_copy_that_is_killed_leaves_the_server_working(server: NbdServer, tmp_path: Path) -> None:
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed")
    # One process, so that killing it leaves none behind.
    command = ["fio", "--name=k", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randrw",
               "--thread", "--bs=4k", "--iodepth=32", "--size=32M", "--time_based",
               "--runtime=30"]  # fmt: skip
    for _ in range(3):
        client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                  cwd=tmp_path)  # fmt: skip
        wait_for_clients(server, 1)
        client.kill()
        client.wait(10)
        wait_for_clients(server, 0)
    test_qemu_io_patterns(server)


def wait_for_clients(server: NbdServer, count: int) -> None:
    wait_until(lambda: min(server.clients, 1) == count, 20)
