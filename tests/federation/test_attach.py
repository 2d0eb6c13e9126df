"""Volumes with a local path, by real beans and engines: replicated, refused, found again."""

import contextlib
import os
import shutil
import signal

import pytest

from broker.outbox import Outbox
from facade import attachment_host
from facade.attachment_errors import AttachPathTaken, VolumeAttached
from facade.attachment_host import AttachmentHost, started_ticks
from facade.errors import VolumeNotControlled
from tests.federation.replication_hosts import wait_until

SIZE = 8 << 20

pytestmark = [
    pytest.mark.skipif(shutil.which("nbdfuse") is None, reason="nbdfuse is not installed"),
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK), reason="FUSE cannot be used here"),
]


@pytest.fixture
def volume(whole, request):
    """One name for a fresh volume under control on both hosts, detached in the end."""
    name = request.node.name.removeprefix("test_")[:60]
    for host in ("host_a", "host_b"):
        whole.bean(host, "volume").create(name=name, size_bytes=SIZE)
        whole.bean(host, "volume").enable(name=name)
    yield name
    for host in ("host_a", "host_b"):
        wait_until(lambda host=host: whole.answers(host, "volume"))
        whole.bean(host, "volume").detach(name=name)


def attach(whole, volume, path, host="host_a"):
    return whole.bean(host, "volume").attach(name=volume, path=str(path), helper="nbdfuse")


def helper_of(attached):
    helpers = AttachmentHost().helpers()
    return next((one.pid for one in helpers if attached["target"] in one.argv), None)


def events_of(whole, volume, host="host_a"):
    with contextlib.closing(Outbox(whole.hosts[host].host.events_path)) as outbox:
        return [event for _, event in outbox.history(200) if event.subject == volume]


def test_an_attached_volume_replicates_and_its_fsync_reaches_both_sides(whole, volume, tmp_path):
    path = tmp_path / "disk"
    before = os.urandom(SIZE)
    attach(whole, volume, path)
    path.write_bytes(before)
    set_name = "attached"
    sides = {
        "primary": {"host": "host_a", "volume": volume, "bitmap": None},
        "secondary": {"host": "host_b", "volume": volume, "bitmap": None},
    }
    bean = whole.bean("host_a")
    bean.create(name=set_name, **sides)
    try:
        assert {use["role"] for use in whole.bean("host_a", "volume").uses(name=volume)} == {
            "attached",
            "primary",
        }
        # A target that programs have a path to is refused, whichever host is asked.
        attach(whole, volume, tmp_path / "copy", "host_b")
        for host in ("host_a", "host_b"):
            with pytest.raises(VolumeAttached, match=f"{tmp_path}/copy on host_b"):
                whole.bean(host).sync(name=set_name)
        assert bean.show(name=set_name)["state"] == "logging"
        whole.bean("host_b", "volume").detach(name=volume)

        bean.sync(name=set_name, kind="full")
        with path.open("r+b", buffering=0) as file:
            for number in range(40):
                os.pwrite(file.fileno(), os.urandom(9000), number * 199_999)
            os.fsync(file.fileno())
            wait_until(lambda: bean.show(name=set_name)["state"] == "replicating")
            os.pwrite(file.fileno(), b"last of all", 4711)
            os.fsync(file.fileno())
        ours, theirs = (
            (whole.hosts[host].volumes / volume).read_bytes() for host in ("host_a", "host_b")
        )
        assert theirs[4711:4722] == b"last of all"
        assert ours == theirs != before
        # While it is a target, the secondary gives no way to write beside the primary.
        attach(whole, volume, tmp_path / "copy", "host_b")
        with (tmp_path / "copy").open("r+b", buffering=0) as file:
            assert os.pread(file.fileno(), 11, 4711) == b"last of all"
            with pytest.raises(PermissionError):
                os.pwrite(file.fileno(), b"x" * 512, 0)
        assert (whole.hosts["host_b"].volumes / volume).read_bytes() == theirs
    finally:
        bean.delete(name=set_name)


def test_the_bean_tells_refuses_and_finds_again(whole, volume, tmp_path):
    path = tmp_path / "disk"
    bean = whole.bean("host_a", "volume")
    shown = attach(whole, volume, path)
    attached = shown["attached"]
    assert (attached["path"], attached["helper"], attached["state"]) == (str(path), "nbdfuse", "up")
    assert attach(whole, volume, path) == shown
    assert shown["uses"] == [{"service": "volume", "set": str(path), "role": "attached"}]
    bean.create(name=f"{volume}_free", size_bytes=SIZE)
    with pytest.raises(VolumeNotControlled):
        attach(whole, f"{volume}_free", tmp_path / "free")
    bean.enable(name=f"{volume}_free")
    with pytest.raises(AttachPathTaken):
        attach(whole, f"{volume}_free", path)
    with pytest.raises(VolumeAttached, match=str(path)):
        bean.disable(name=volume)

    # The helper is nobody's child: with the beans dead the path works, and they know it again.
    helper = helper_of(attached)
    path.write_bytes(b"before the beans died")
    whole.hosts["host_a"].kill("beans")
    with path.open("r+b", buffering=0) as file:
        file.write(b"without beans")
        os.fsync(file.fileno())
    whole.hosts["host_a"].start("beans")
    wait_until(lambda: whole.answers("host_a", "volume"))
    assert bean.show(name=volume)["attached"] == attached
    assert helper_of(attached) == helper

    # Killed, it is made anew by the bean alone, and an event says so.
    os.kill(helper, signal.SIGKILL)
    wait_until(lambda: started_ticks(helper) is None)
    wait_until(lambda: helper_of(attached) not in (helper, None))
    wait_until(lambda: bean.show(name=volume)["attached"]["state"] == "up")
    assert path.read_bytes()[:13] == b"without beans"
    wait_until(lambda: "attachment_restored" in [one.name for one in events_of(whole, volume)])

    assert bean.detach(name=volume)["attached"] is None
    assert bean.detach(name=volume)["uses"] == []
    assert not path.is_symlink()
    assert not attachment_host.is_mounted(tmp_path)
    assert bean.disable(name=volume)["control"] == "none"
    told = [one.name for one in events_of(whole, volume)]
    assert (told.count("volume_attached"), told.count("volume_detached")) == (1, 1)
