"""Volumes: found, made whole or not at all, refused where somebody else uses them."""

import errno
import os
import resource
import subprocess
import sys

import pytest

from facade.block_devices import block_devices, parse_report
from facade.config_store import ConfigStore, SetRecord, Use, VolumeRecord
from facade.contract.settings import HostSettings
from facade.errors import (
    EngineUnreachable,
    PathRefused,
    SizeRefused,
    SpaceShort,
    UnknownVolume,
    VolumeBusy,
    VolumeExists,
    VolumeTooSmall,
    VolumeUnsuitable,
)
from facade.image_files import make_allocated_file, make_image_file
from facade.native import EngineClient
from facade.volume_use import writer_of
from facade.volumes import VolumeSystem


@pytest.fixture
def host(tmp_path):
    for name in ("first", "second", "run"):
        (tmp_path / name).mkdir()
    return HostSettings(
        name="host_a",
        data_dir=tmp_path,
        volume_dirs=(tmp_path / "first", tmp_path / "second"),
        run_dir=tmp_path / "run",
    )


@pytest.fixture
def store(host):
    with ConfigStore(host.config_path) as opened:
        yield opened


@pytest.fixture
def volumes(host, store):
    """Without an engine: nothing answers on its socket."""
    return VolumeSystem(host, store, EngineClient(host.run_dir))


def put(folder, name, size=8192):
    path = folder / name
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_a_made_volume_is_listed_with_what_is_known_of_it(volumes, host):
    made = volumes.create("v", 1 << 20)
    assert made == {
        "host": "host_a",
        "name": "v",
        "path": str(host.volume_dirs[0] / "v"),
        "kind": "file",
        "size_bytes": 1 << 20,
        "control": "none",
        "read_only": False,
        "uri": None,
        "local_uri": None,
        "export": None,
        "uses": [],
        "attached": None,
        "problem": None,
    }
    assert made in volumes.every()
    assert (host.volume_dirs[0] / "v").stat().st_mode & 0o777 == 0o600


def test_of_two_files_with_one_name_the_earlier_folders_is_the_volume(volumes, host, store):
    first, second = put(host.volume_dirs[0], "v"), put(host.volume_dirs[1], "v")
    assert volumes.show("v")["path"] == str(first)
    assert [one["path"] for one in volumes.every() if one["name"] == "v"] == [str(first)]
    store.put_volume(VolumeRecord("v", str(second), "svi"))
    assert volumes.show("v")["path"] == str(second)


def test_files_that_cannot_be_named_are_left_out(volumes, host):
    put(host.volume_dirs[0], ".hidden")
    put(host.volume_dirs[0], "with space")
    (host.volume_dirs[0] / "folder").mkdir()
    assert [one["name"] for one in volumes.every() if one["kind"] == "file"] == []
    with pytest.raises(UnknownVolume):
        volumes.show("folder")


@pytest.mark.parametrize("size", [0, -512, 511, 4095, 4097, (1 << 60) + 512])
def test_sizes_that_no_volume_has_are_refused(volumes, host, size):
    with pytest.raises(SizeRefused):
        volumes.create("v", size)
    assert list(host.volume_dirs[0].iterdir()) == []


def test_a_volume_is_not_made_twice_nor_over_a_file_of_another_folder(volumes, host):
    volumes.create("v", 8192)
    put(host.volume_dirs[1], "w")
    for name in ("v", "w"):
        with pytest.raises(VolumeExists):
            volumes.create(name, 8192)
    with pytest.raises(VolumeExists):
        make_image_file(host.volume_dirs[0], "v", 4096, "host_a")
    assert (host.volume_dirs[0] / "v").stat().st_size == 8192


def test_a_volume_larger_than_the_disk_is_refused_with_both_numbers(volumes, host):
    with pytest.raises(SpaceShort) as caught:
        volumes.create("v", 1 << 50)
    assert caught.value.needed_bytes == 1 << 50 > caught.value.free_bytes
    assert list(host.volume_dirs[0].iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch):
    def fill(descriptor, offset, length):
        os.write(descriptor, b"x" * 4096)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fill)
    with pytest.raises(SpaceShort):
        make_allocated_file(tmp_path / "b", 1 << 20)
    assert list(tmp_path.iterdir()) == []


def test_a_limit_on_file_sizes_leaves_nothing(tmp_path):
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from facade.image_files import make_image_file; from facade.errors import SpaceShort\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try: make_image_file(Path(sys.argv[1]), 'v', 1 << 20, 'h')\n"
        "except SpaceShort: sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == 7
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 65536


def test_an_allocated_file_has_all_its_blocks_and_replaces_an_old_one(tmp_path):
    path = tmp_path / "b"
    path.write_bytes(b"old" * 10_000)
    make_allocated_file(path, 1 << 20)
    assert path.stat().st_blocks * 512 >= 1 << 20
    assert path.read_bytes() == bytes(1 << 20)


def test_a_folder_that_is_none_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PathRefused, match="file"):
        make_allocated_file(tmp_path / "file" / "b", 4096)


def test_a_volume_that_another_program_writes_does_not_suit(volumes, host):
    path = put(host.volume_dirs[0], "v")
    assert volumes.suit("v", "primary").size_bytes == 8192
    script = "import sys; f = open(sys.argv[1], sys.argv[2]); print('open', flush=True); input()"
    for mode, refused in (("rb", False), ("r+b", True)):
        other = subprocess.Popen(
            [sys.executable, "-c", script, str(path), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert other.stdout.readline() == b"open\n"
            if refused:
                with pytest.raises(VolumeUnsuitable, match=str(other.pid)):
                    volumes.suit("v", "primary")
            else:
                volumes.suit("v", "primary")
            assert writer_of(path, besides=[other.pid]) is None
        finally:
            other.communicate(b"\n")
    volumes.suit("v", "primary")


def test_what_suits_no_service_is_said_why(volumes, host, store):
    put(host.volume_dirs[0], "empty", 0)
    with pytest.raises(VolumeUnsuitable, match="empty"):
        volumes.suit("empty", "primary")
    path = put(host.volume_dirs[0], "v")
    with pytest.raises(VolumeTooSmall, match="8193"):
        volumes.suit("v", "secondary", 8193)
    (host.volume_dirs[0] / "alias").hardlink_to(path)
    store.put_volume(VolumeRecord("v", str(path), "svi"))
    with pytest.raises(VolumeUnsuitable, match="the volume v under another name"):
        volumes.suit("alias", "primary")
    path.unlink()
    with pytest.raises(VolumeUnsuitable, match="gone"):
        volumes.suit("v", "primary")


def test_without_an_engine_volumes_are_shown_and_not_changed(volumes, host, store):
    path = put(host.volume_dirs[0], "v")
    store.put_volume(VolumeRecord("v", str(path), "svi"))
    shown = volumes.show("v")
    assert (shown["control"], shown["uri"]) == ("svi", None)
    for act in (lambda: volumes.open("v", str(path)), lambda: volumes.close("v")):
        with pytest.raises(EngineUnreachable, match="engine"):
            act()


def test_a_used_volume_is_not_closed(volumes, host, store):
    put(host.volume_dirs[0], "v")
    store.put_set(
        SetRecord("replication", "S", "id", False, {}), [Use("v", "replication", "S", "primary")]
    )
    assert volumes.uses("v") == [{"service": "replication", "set": "S", "role": "primary"}]
    with pytest.raises(VolumeBusy, match="primary of S"):
        volumes.close("v")


def device(name, children=(), mounts=(None,), size=1 << 30, kind="disk", read_only=False):
    return {
        "name": name,
        "path": f"/dev/{name}",
        "size": size,
        "type": kind,
        "mountpoints": list(mounts),
        "ro": read_only,
        "children": list(children),
    }


def test_block_devices_with_what_speaks_against_each():
    shared = device("md0", kind="raid1")
    report = {
        "blockdevices": [
            device(
                "sda", [device("sda1", mounts=["/boot"], kind="part"), device("sda2", kind="part")]
            ),
            device("sdb", [shared]),
            device("sdc", [shared]),
            device("sdd", mounts=["[SWAP]"]),
            device("sde", read_only=True),
            device("sdf"),
            device("sr0", kind="rom"),
            device("loop0", kind="loop"),
            device("zram0", size=0),
        ]
    }
    problems = {found.name: found.problem for found in parse_report(report)}
    assert problems == {
        "sda": "it is divided into, or held by, sda1, sda2",
        "sda1": "it is mounted on /boot",
        "sda2": None,
        "sdb": "it is divided into, or held by, md0",
        "sdc": "it is divided into, or held by, md0",
        "md0": None,
        "sdd": "it is swap space",
        "sde": "it is read-only",
        "sdf": None,
    }


def test_the_block_devices_of_this_machine_are_read():
    for found in block_devices():
        assert found.kind == "block"
        assert found.size_bytes > 0


def test_no_lsblk_means_no_block_devices(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert block_devices() == []
