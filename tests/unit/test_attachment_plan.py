"""Attachments planned: which helper, by what command, and what is made anew."""

import os
import stat

import pytest

from facade.attachment_errors import (
    AttachmentFailed,
    AttachmentInUse,
    AttachmentUnavailable,
    VolumeAttached,
)
from facade.attachment_host import AttachmentHost
from facade.attachment_plan import (
    Found,
    Means,
    Verdict,
    choose,
    command,
    is_helper,
    judge,
)
from facade.attachments import Attachments
from facade.config_store import Attachment, ConfigStore, VolumeRecord
from facade.contract.settings import HostSettings

URI = "nbd+unix:///v%2B1?socket=/run/trellis/nbd/v%2B1"
ALL = Means("/usr/sbin/nbd-client", True, "/dev/nbd0", "/usr/bin/nbdfuse", True)


def means(**change):
    return Means(**{**ALL.__dict__, **change})


@pytest.mark.parametrize(
    ("found", "wanted", "helper"),
    [
        (ALL, None, "nbd"),
        (ALL, "nbdfuse", "nbdfuse"),
        (means(has_nbd=False, free_device=None), None, "nbdfuse"),
        (means(nbd_client=None), None, "nbdfuse"),
        (means(free_device=None), None, "nbdfuse"),
        (means(nbdfuse=None, has_fuse=False), None, "nbd"),
    ],
)
def test_kernel_nbd_is_taken_where_it_is_and_nbdfuse_elsewhere(found, wanted, helper):
    assert choose(found, "v", "host_a", wanted) == helper


@pytest.mark.parametrize(
    ("found", "wanted", "reason"),
    [
        (means(has_nbd=False, has_fuse=False), None, "no nbd devices .*, and it has no /dev/fuse"),
        (means(nbd_client=None, nbdfuse=None), None, "nbd-client is not .*, and nbdfuse is not"),
        (means(free_device=None), "nbd", "every nbd device is taken"),
        (means(has_fuse=False), "nbdfuse", "cannot give v a path: it has no /dev/fuse"),
    ],
)
def test_a_host_without_means_says_what_is_missing(found, wanted, reason):
    with pytest.raises(AttachmentUnavailable, match=reason):
        choose(found, "v", "host_a", wanted)


def test_commands_of_both_helpers():
    assert command("/usr/bin/nbdfuse", "nbdfuse", URI, "/run/m/v+1", "/run/pid", True) == [
        "/usr/bin/nbdfuse", "-r", "-P", "/run/pid", "/run/m/v+1", URI,
    ]  # fmt: skip
    assert command("/sbin/nbd-client", "nbd", URI, "/dev/nbd3", "/run/pid", False) == [
        "/sbin/nbd-client", "-unix", "/run/trellis/nbd/v+1", "/dev/nbd3", "-name", "v+1",
        "-block-size", "512", "-nonetlink", "-nofork",
    ]  # fmt: skip
    assert "-readonly" in command("nbd-client", "nbd", URI, "/dev/nbd3", "/run/pid", True)


def test_a_helper_is_told_by_what_it_serves_not_by_its_number():
    fuse = command("/usr/bin/nbdfuse", "nbdfuse", URI, "/run/m/v", "/run/pid", False)
    assert is_helper(fuse, "nbdfuse", "/run/m/v", "v")
    assert not is_helper(fuse, "nbdfuse", "/run/m/w", "w")
    assert not is_helper(["/bin/cat", "/run/m/v"], "nbdfuse", "/run/m/v", "v")
    assert not is_helper([], "nbdfuse", "/run/m/v", "v")
    kernel = command("nbd-client", "nbd", URI, "/dev/nbd0", "/run/pid", False)
    assert is_helper(kernel, "nbd", "/dev/nbd0", "v+1")
    foreign = ["nbd-client", "example.com", "/dev/nbd0"]
    assert not is_helper(foreign, "nbd", "/dev/nbd0", "v+1")


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Found(100, True, 50, 4), Verdict("up")),
        (Found(None, True, None, 0), Verdict("waiting", "the engine does not run")),
        (Found(100, True, 50, None), Verdict("waiting", "the engine does not serve the volume")),
        (Found(None, True, 50, 0), Verdict("broken", "its helper had ended")),
        (Found(100, False, 50, 4), Verdict("broken", "its mount or device was gone")),
        (Found(100, True, 150, 4), Verdict("broken", "the engine had ended its connection")),
        (Found(100, True, 50, 0), Verdict("broken", "the engine had ended its connection")),
    ],
)
def test_what_is_found_is_judged(found, verdict):
    assert judge(found) == verdict


class Engine:
    """The engine's answers: it is this process."""

    def __init__(self):
        self.clients = 1

    def call(self, method, timeout_s=0.0, **params):
        if method == "engine.info":
            return {"pid": os.getpid()}
        return [{"name": "v", "uri": "nbd+unix:///v?socket=/s", "clients": self.clients}]


CLIENT = """#!/bin/bash
# Does to files what nbd-client does to the kernel: connects with `-unix S DEV ...`, ends with `-d`.
echo "$*" >> "$CALLS"
if [ "$1" = -d ]; then rm "$BLOCK/${2##*/}/pid"; exit; fi
[ -z "$REFUSED" ] || { echo "nbd-client: $REFUSED" >&2; exit 1; }
# A script's command line begins with its interpreter; a program's, with its own name.
exec -a "$0" /bin/bash -c '
echo $$ > "$BLOCK/${3##*/}/pid"
while [ -e "$BLOCK/${3##*/}/pid" ]; do sleep 0.02; done' it "$@"
"""


@pytest.fixture
def nbd(tmp_path, monkeypatch):
    """A machine with two nbd devices, as folders; no test machine need have the module."""
    for name in ("dev", "block/nbd0", "block/nbd1", "bin", "srv", "run"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("nbd0", "nbd1"):
        (tmp_path / "dev" / name).touch()
    program = tmp_path / "bin/nbd-client"
    program.write_text(CLIENT)
    program.chmod(stat.S_IRWXU)
    environ = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "BLOCK": str(tmp_path / "block"),
        "CALLS": str(tmp_path / "calls"),
    }
    return tmp_path, environ


def attachments(nbd, store, **more):
    base, environ = nbd
    machine = AttachmentHost(base / "dev", base / "block", {**environ, **more})
    host = HostSettings(name="host_a", data_dir=base, run_dir=base / "run")
    return Attachments(host, store, Engine(), machine)


def test_kernel_nbd_from_attach_to_detach(nbd):
    base = nbd[0]
    path = base / "srv/disk"
    with ConfigStore(base / "config.db") as store:
        store.put_volume(VolumeRecord("v", "/x/v", "svi"))
        one = attachments(nbd, store)
        made = one.attach("v", str(path))
        assert made == Attachment("v", str(path), "nbd", str(base / "dev/nbd0"), False)
        assert path.readlink() == base / "dev/nbd0"
        (base / "block/nbd0/holders/dm-0").mkdir(parents=True)
        with pytest.raises(AttachmentInUse, match="held by dm-0"):
            one.detach("v")
        (base / "block/nbd0/holders/dm-0").rmdir()
        assert one.attach("v", str(path)) is None
        with pytest.raises(VolumeAttached, match="srv/disk"):
            one.attach("v", str(base / "srv/other"))
        # A bean that has started meanwhile knows it too.
        assert attachments(nbd, store).views()["v"]["helper"] == "nbd"
        one.detach("v")
        assert not path.is_symlink()
        assert not (base / "block/nbd0/pid").exists()
        assert store.attachments() == []
        assert one.detach("v") is None
    assert (base / "calls").read_text().splitlines() == [
        f"-unix /s {base}/dev/nbd0 -name v -block-size 512 -nonetlink -nofork",
        f"-d {base}/dev/nbd0",
    ]


def test_a_kernel_client_that_ended_gets_a_free_device_and_the_path_follows(nbd):
    base = nbd[0]
    path = base / "srv/disk"
    with ConfigStore(base / "config.db") as store:
        store.put_volume(VolumeRecord("v", "/x/v", "svi"))
        one = attachments(nbd, store)
        one.attach("v", str(path))
        one._engine.clients = 0
        [found] = one.look()
        assert (found.reason, found.error) == ("the engine had ended its connection", None)
        assert path.readlink() == base / "dev/nbd0"
        one._engine.clients = 1
        one._machine.end(one._helper_of(store.attachment("v")), grace_s=0.05)
        (base / "block/nbd0/pid").write_text("somebody else has it now")
        [found] = one.look()
        assert (found.reason, found.error) == ("its helper had ended", None)
        assert path.readlink() == base / "dev/nbd1"
        assert one.look() == []
        one.detach("v")
        assert (base / "block/nbd0/pid").exists()


def test_a_refusing_helper_leaves_nothing_and_is_quoted(nbd):
    base = nbd[0]
    with ConfigStore(base / "config.db") as store:
        store.put_volume(VolumeRecord("v", "/x/v", "svi"))
        with pytest.raises(AttachmentFailed, match=r"nbd-client could not .*: nbd-client: Busy"):
            attachments(nbd, store, REFUSED="Busy").attach("v", str(base / "srv/disk"))
        assert store.attachments() == []
    assert list((base / "srv").iterdir()) == []
    assert not (base / "block/nbd0/pid").exists()
