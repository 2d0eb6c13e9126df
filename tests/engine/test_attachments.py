"""Volumes with a local path by nbdfuse: real programs, loop device and ext4 on a real engine."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from facade import attachment_host
from facade.attachment_errors import (
    AttachmentFailed,
    AttachmentInUse,
    AttachPathTaken,
    DetachUnflushed,
    VolumeAttached,
)
from facade.attachment_host import AttachmentHost, started_ticks
from facade.attachments import Attachments
from facade.config_store import Attachment, ConfigStore
from facade.engine.fault_volume import FaultVolume
from facade.engine.volume_stack import VolumeStack
from facade.errors import PathRefused, VolumeBusy, VolumeNotControlled
from tests.engine.harness import MIB, EngineProcess, wait_for
from tests.engine.nbd_raw import serve
from tests.engine.volume_makers import file_volume

pytestmark = [
    pytest.mark.skipif(shutil.which("nbdfuse") is None, reason="nbdfuse is not installed"),
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK), reason="FUSE cannot be used here"),
]
SIZE_BYTES = 64 * MIB


def can_loop() -> bool:
    return os.geteuid() == 0 and Path("/dev/loop-control").exists()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    running = EngineProcess(
        tmp_path_factory.mktemp("attach"), "host_a", "a secret of this test"
    ).start()
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(running.run_dir)


@pytest.fixture
def store(engine: EngineProcess) -> Iterator[ConfigStore]:
    with ConfigStore(engine.settings.host.config_path, host="host_a") as opened:
        yield opened


@pytest.fixture
def attachments(engine: EngineProcess, store: ConfigStore) -> Iterator[Attachments]:
    made = Attachments(engine.settings.host, store, engine.client)
    yield made
    for record in store.attachments():
        made._take_down(record)
        made._unlink(record)
        store.drop_attachment(record.volume)


@pytest.fixture
def volume(engine: EngineProcess, request: pytest.FixtureRequest) -> str:
    name = request.node.name.removeprefix("test_")[:60]
    engine.make_volume(name, SIZE_BYTES)
    return name


def helper_of(attachments: Attachments, record: Attachment) -> int | None:
    return attachments._helper_of(record)


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@contextlib.contextmanager
def loop_mounted(path: Path, point: Path) -> Iterator[Path]:
    """The file system on the path, through a loop device."""
    point.mkdir(exist_ok=True)
    device = run("losetup", "--find", "--show", path)
    try:
        run("mount", device, point)
        try:
            yield point
        finally:
            run("umount", point)
    finally:
        run("losetup", "--detach", device)
        wait_for(lambda: not Path(f"/sys/block/{Path(device).name}/loop").exists())


@pytest.mark.skipif(not can_loop(), reason="loop devices need root")
def test_a_database_on_ext4_is_whole_after_detach_and_attach(
    attachments: Attachments, engine: EngineProcess, volume: str, tmp_path: Path
) -> None:
    path = tmp_path / "disk"
    attachments.attach(volume, str(path), helper="nbdfuse")
    assert path.stat().st_size == SIZE_BYTES
    run("mkfs.ext4", "-q", path)
    with loop_mounted(path, tmp_path / "mnt") as point:
        with contextlib.closing(sqlite3.connect(point / "books.db")) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("CREATE TABLE books (number INTEGER PRIMARY KEY, text BLOB)")
            for number in range(20):  # each a transaction with its own fsync
                with db:
                    db.execute("INSERT INTO books VALUES (?, randomblob(9000))", (number,))
            wanted = db.execute("SELECT number, hex(text) FROM books").fetchall()
        with pytest.raises(AttachmentInUse, match=rf"in use as /dev/loop\d+, mounted on {point}"):
            attachments.detach(volume)
        assert (point / "books.db").exists()
    attachments.detach(volume)
    assert not path.is_symlink()
    # The backing file itself holds it: fsck and a second attachment see the same.
    run("fsck.ext4", "-fn", engine.volume_dir / volume)
    attachments.attach(volume, str(path))
    with (
        loop_mounted(path, tmp_path / "mnt") as point,
        contextlib.closing(sqlite3.connect(point / "books.db")) as db,
    ):
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT number, hex(text) FROM books").fetchall() == wanted
    attachments.detach(volume)


def test_what_is_written_and_flushed_is_in_the_volume(
    attachments: Attachments, engine: EngineProcess, volume: str, tmp_path: Path
) -> None:
    path = tmp_path / "disk"
    data = os.urandom(3 * MIB + 517)
    attachments.attach(volume, str(path))
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, 12345)
        os.fsync(file.fileno())
        digest = hashlib.sha256((engine.volume_dir / volume).read_bytes()[12345:][: len(data)])
        assert digest.digest() == hashlib.sha256(data).digest()
        name = Path("/proc/self/comm").read_text().strip()
        with pytest.raises(AttachmentInUse, match=rf"open in {name} \(process {os.getpid()}\)"):
            attachments.detach(volume)
        # The refusal has changed nothing.
        assert os.pread(file.fileno(), 100, 12345) == data[:100]
    attachments.detach(volume)


def test_a_read_only_attachment_takes_no_writes(
    attachments: Attachments, volume: str, tmp_path: Path
) -> None:
    path = tmp_path / "disk"
    attachments.attach(volume, str(path), read_only=True)
    with pytest.raises(OSError, match=r"Permission denied|Read-only") as refused:
        with path.open("r+b", buffering=0) as file:
            file.write(b"x" * 512)
    assert refused.value.errno in (errno.EACCES, errno.EROFS)
    assert path.read_bytes()[:512] == bytes(512)


def test_whatever_is_refused_leaves_nothing(
    attachments: Attachments, engine: EngineProcess, store: ConfigStore, volume: str, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    refused = [
        (VolumeNotControlled, "no_such_volume", tmp_path / "disk"),
        (AttachPathTaken, volume, precious),
        (AttachPathTaken, volume, tmp_path / "link"),
        (AttachPathTaken, volume, tmp_path),
        (PathRefused, volume, tmp_path / "no/folder/disk"),
        (PathRefused, volume, Path("relative/disk")),
        (PathRefused, volume, f"{tmp_path}/x/../disk"),
    ]
    for error, name, path in refused:
        with pytest.raises(error):
            attachments.attach(name, str(path))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link", "precious"]
    assert precious.read_text() == "mine"
    assert store.attachments() == []
    attachments.attach(volume, str(tmp_path / "disk"))
    with pytest.raises(VolumeAttached):
        attachments.attach(volume, str(tmp_path / "other"))
    with pytest.raises(VolumeAttached):
        store.drop_volume(volume)
    with pytest.raises(VolumeBusy, match="NBD client"):
        engine.call("volume.close", name=volume)
    # What somebody has put in the link's place is not removed with it.
    (tmp_path / "disk").unlink()
    (tmp_path / "disk").write_text("mine too")
    attachments.detach(volume)
    assert (tmp_path / "disk").read_text() == "mine too"


def test_a_helper_that_fails_is_quoted_and_leaves_nothing(
    attachments: Attachments, engine: EngineProcess, store: ConfigStore, volume: str, tmp_path: Path
) -> None:
    socket = next(one for one in (engine.run_dir / "nbd").iterdir() if one.name == volume)
    socket.rename(socket.with_name("aside"))
    try:
        with pytest.raises(AttachmentFailed, match=r"nbdfuse could not .*No such file"):
            attachments.attach(volume, str(tmp_path / "disk"))
    finally:
        socket.with_name("aside").rename(socket)
    assert list(tmp_path.iterdir()) == []
    assert store.attachments() == []
    assert not attachment_host.is_mounted(engine.run_dir / "attach" / volume / "mount")


def test_a_killed_helper_leaves_nothing_stuck(
    attachments: Attachments, volume: str, tmp_path: Path
) -> None:
    path = tmp_path / "disk"
    record = attachments.attach(volume, str(path))
    assert record is not None
    file = os.open(path, os.O_RDWR)
    os.write(file, b"before" * 100)
    os.fsync(file)
    pid = helper_of(attachments, record)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: started_ticks(pid) is None)
    # An application is told, and cannot write beside the volume.
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        os.write(file, b"lost?")
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        path.write_bytes(b"lost?")
    assert attachments.views()[volume]["state"] == "broken"
    [found] = attachments.look()
    assert (found.record, found.reason, found.error) == (record, "its helper had ended", None)
    assert attachments.views()[volume]["state"] == "up"
    assert path.read_bytes()[:6] == b"before"
    with contextlib.suppress(OSError):  # of the old mount, which is gone
        os.close(file)
    assert attachments.look() == []
    # And when nobody has looked in between, detach clears all of it away.
    second = helper_of(attachments, record)
    assert second is not None
    os.kill(second, signal.SIGKILL)
    wait_for(lambda: started_ticks(second) is None)
    attachments.detach(volume)
    assert not path.is_symlink()
    assert not Path(record.target).parent.exists()


@pytest.mark.skipif(not can_loop(), reason="loop devices need root")
def test_a_helper_killed_below_a_mounted_file_system_leaves_nothing_stuck(
    attachments: Attachments, engine: EngineProcess, volume: str, tmp_path: Path
) -> None:
    path, point = tmp_path / "disk", tmp_path / "mnt"
    record = attachments.attach(volume, str(path))
    assert record is not None
    run("mkfs.ext4", "-q", path)
    with loop_mounted(path, point):
        with (point / "kept").open("wb") as file:
            file.write(b"durable" * 1000)
            os.fsync(file.fileno())
        pid = helper_of(attachments, record)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(OSError, match=r"Input/output|Read-only"):
            flushed_write(point / "lost")
        [found] = attachments.look()
        assert found.error is None
        # The old loop device is on the mount that is gone; leaving it all is what this is about.
    with loop_mounted(path, point):
        assert (point / "kept").read_bytes() == b"durable" * 1000
    attachments.detach(volume)
    run("fsck.ext4", "-fn", engine.volume_dir / volume)


def flushed_write(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"lost")
        os.fsync(file.fileno())


def test_an_engine_that_comes_back_serves_the_path_again(
    attachments: Attachments, engine: EngineProcess, volume: str, tmp_path: Path
) -> None:
    path = tmp_path / "disk"
    attachments.attach(volume, str(path))
    with path.open("r+b", buffering=0) as file:
        file.write(b"kept" * 128)
        os.fsync(file.fileno())
    engine.kill()
    assert attachments.views()[volume]["state"] == "waiting"
    assert attachments.look() == []
    engine.start()
    [found] = attachments.look()
    assert found.error is None
    assert path.read_bytes()[:8] == b"keptkept"
    # An engine that ends in order takes the mount with it, so that folders can be removed.
    mount = path.readlink().parent
    assert engine.stop() == 0
    assert not attachment_host.is_mounted(mount)
    assert not mount.exists()
    with pytest.raises(FileNotFoundError):
        path.write_bytes(b"no program writes beside the volume")
    engine.start()
    [found] = attachments.look()
    assert found.error is None
    assert path.read_bytes()[:8] == b"keptkept"
    attachments.detach(volume)


def test_an_attachment_that_a_crash_left_half_made_is_completed(
    attachments: Attachments, store: ConfigStore, volume: str, tmp_path: Path
) -> None:
    """The record is there, and nothing else: as after a restart of the machine, too."""
    path = tmp_path / "disk"
    target = attachments._file(volume)
    store.put_attachment(Attachment(volume, str(path), "nbdfuse", target, False))
    [found] = attachments.look()
    assert found.error is None
    assert path.stat().st_size == SIZE_BYTES
    attachments.detach(volume)


def test_a_flush_that_fails_reaches_the_program(tmp_path: Path) -> None:
    """fsync on the path is a flush of the volume, and its error is the program's."""
    machine = AttachmentHost()
    folder = Path(tempfile.mkdtemp(prefix="tr-", dir="/tmp"))
    mount = folder / "mount"
    mount.mkdir()
    with file_volume(tmp_path, 4 * MIB) as bottom:
        layer = FaultVolume(bottom)
        with serve(VolumeStack(layer)) as server:
            target = mount / "disk"
            machine.start(
                ["nbdfuse", "-P", f"{folder}/pid", str(target), server.uri],
                folder / "log",
                (folder / "pid").exists,
            )
            pid = next(one.pid for one in machine.helpers() if str(target) in one.argv)
            try:
                assert attachment_host.flush(str(target)) is None
                layer.fail("flush", errno.EIO)
                assert attachment_host.flush(str(target)) == "Input/output error"
            finally:
                attachment_host.unmount(mount, lazily=True)
                machine.end(pid)
        layer.close()
    shutil.rmtree(folder)


def test_detach_tells_of_a_last_flush_that_failed(
    attachments: Attachments, store: ConfigStore, volume: str, tmp_path: Path, monkeypatch
) -> None:
    path = tmp_path / "disk"
    attachments.attach(volume, str(path))
    monkeypatch.setattr(attachment_host, "flush", lambda _: "Input/output error")
    with pytest.raises(DetachUnflushed, match="its last flush failed: Input/output error"):
        attachments.detach(volume)
    assert not path.is_symlink()
    assert store.attachments() == []


def test_a_run_folder_behind_a_symbolic_link_serves_too(
    engine: EngineProcess, store: ConfigStore, volume: str, tmp_path: Path
) -> None:
    """As /var/run is on many machines."""
    (tmp_path / "run").symlink_to(engine.run_dir)
    host = dataclasses.replace(engine.settings.host, run_dir=tmp_path / "run")
    attachments = Attachments(host, store, engine.client)
    attachments.attach(volume, str(tmp_path / "disk"))
    with pytest.raises(AttachmentInUse), (tmp_path / "disk").open("rb"):
        attachments.detach(volume)
    attachments.detach(volume)
