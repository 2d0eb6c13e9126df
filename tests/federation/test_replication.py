"""Replication sets over two hosts, by real beans, engines, RabbitMQ and Redis."""

import os

import pytest

from facade.bitmap_size import bitmap_bytes
from facade.errors import (
    BitmapTooSmall,
    SameHost,
    SetExists,
    SetNotEnabled,
    UnknownSet,
    UnknownVolume,
    Unsupported,
    VolumeBusy,
    VolumeTooSmall,
)
from tests.federation.replication_hosts import wait_until

SIZE = 4 << 20


@pytest.fixture
def volumes(whole, request):
    """Names of fresh volumes on both hosts: `<test>_p`, `<test>_s`, `<test>_pb`, `<test>_sb`."""
    base = request.node.name.replace("[", "_").rstrip("]")[:60]
    names = {}
    for host, short, size in (
        ("host_a", "p", SIZE),
        ("host_b", "s", SIZE),
        ("host_a", "pb", bitmap_bytes(SIZE)),
        ("host_b", "sb", bitmap_bytes(SIZE)),
    ):
        names[short] = f"{base}_{short}"
        whole.bean(host, "volume").create(name=names[short], size_bytes=size)
    return names


def sides(volumes, bitmaps=True):
    return {
        "primary": {
            "host": "Host_a",
            "volume": volumes["p"],
            "bitmap": volumes["pb"] if bitmaps else None,
        },
        "secondary": {
            "host": "Host_b",
            "volume": volumes["s"],
            "bitmap": volumes["sb"] if bitmaps else None,
        },
    }


def state_of(whole):
    """Everything that a failed command must leave as it was."""
    found = []
    for name, host in whole.hosts.items():
        shown = whole.bean(name, "config").show()
        found.append(shown)
        found.append(whole.bean(name, "volume").list())
        found.append([one["set_id"] for one in host.native.call("set.list")])
        found.append([one["name"] for one in host.native.call("volume.list")])
        found.append(sorted(host.host.metadata_dir.iterdir()))
    return found


def test_one_command_makes_and_enables_the_set_on_both_hosts(whole, volumes, request):
    made = whole.bean("host_a").create(name="MySNDRSet", **sides(volumes))
    assert made["state"] == "logging"
    assert made["primary"] == {
        "host": "host_a",
        "volume": volumes["p"],
        "bitmap": volumes["pb"],
    }
    assert made["dirty_blocks"] == SIZE // made["block_bytes"]
    assert made["unreachable"] == []
    assert made["note"] is None
    assert whole.bean("host_b").show(name="MySNDRSet") == made
    assert [one for one in whole.bean("host_b").list() if one["name"] == made["name"]] == [made]
    for host, data, bitmap in (("host_a", "p", "pb"), ("host_b", "s", "sb")):
        shown = whole.bean(host, "volume").show(name=volumes[data])
        assert shown["control"] == "svi"
        assert shown["uri"].startswith("nbd+unix://")
        uses = whole.bean(host, "volume").uses(name=volumes[bitmap])
        assert uses == [{"service": "replication", "set": "MySNDRSet", "role": "bitmap"}]


def test_a_full_synchronisation_from_the_other_host_makes_the_sides_equal(whole, volumes):
    whole.hosts["host_a"].volumes.joinpath(volumes["p"]).write_bytes(os.urandom(SIZE))
    name = "full"
    whole.bean("host_b").create(name=name, **sides(volumes, bitmaps=False))
    for host in ("host_a", "host_b"):
        bitmap = whole.hosts[host].host.metadata_dir / f"{name}.bitmap"
        assert bitmap.stat().st_blocks * 512 >= bitmap.stat().st_size == bitmap_bytes(SIZE)
    job = whole.bean("host_b").sync(name=name, kind="full")
    assert job["host"] == "host_a"
    ended = wait_until(lambda: _ended(whole, job["job_id"]))
    assert ended["state"] == "done", ended
    assert ended["sent_bytes"] > SIZE
    assert whole.bean("host_b").job(name=name)["job_id"] == ended["job_id"]
    shown = whole.bean("host_b").show(name=name)
    assert (shown["state"], shown["dirty_blocks"]) == ("replicating", 0)
    assert "sync_needed" not in shown["flags"]
    sums = [
        (host.volumes / volumes[short]).read_bytes()
        for host, short in ((whole.hosts["host_a"], "p"), (whole.hosts["host_b"], "s"))
    ]
    assert sums[0] == sums[1]
    logged = whole.bean("host_b").log(name=name)
    assert wait_until(lambda: whole.bean("host_a").show(name=name)["state"] == "logging")
    assert logged["name"] == name


def _ended(whole, job_id):
    found = whole.bean("host_b").job(job_id=job_id)
    return found if found["state"] != "running" else None


def test_disable_enable_and_delete_act_on_both_hosts(whole, volumes):
    name = "life"
    whole.bean("host_a").create(name=name, enable=False, **sides(volumes, bitmaps=False))
    assert whole.bean("host_b").show(name=name)["state"] == "disabled"
    with pytest.raises(SetNotEnabled):
        whole.bean("host_b").sync(name=name)
    assert whole.bean("host_b").enable(name=name)["state"] == "logging"
    assert whole.bean("host_a").enable(name=name)["state"] == "logging"
    assert whole.bean("host_b").disable(name=name)["state"] == "disabled"
    assert whole.bean("host_b").disable(name=name)["state"] == "disabled"
    assert whole.bean("host_a").enable(name=name)["dirty_blocks"] > 0
    with pytest.raises(VolumeBusy):
        whole.bean("host_a", "volume").disable(name=volumes["p"])
    assert whole.bean("host_b").delete(name=name)["hosts"] == ["host_a", "host_b"]
    for host in ("host_a", "host_b"):
        with pytest.raises(UnknownSet):
            whole.bean(host).show(name=name)
        assert not (whole.hosts[host].host.metadata_dir / f"{name}.bitmap").exists()
    assert whole.bean("host_a", "volume").disable(name=volumes["p"])["control"] == "none"


def test_an_identical_set_begins_clean_and_only_the_first_time(whole, volumes):
    name = "same"
    made = whole.bean("host_a").create(name=name, identical=True, **sides(volumes))
    assert made["dirty_blocks"] == 0
    whole.bean("host_a").disable(name=name)
    assert whole.bean("host_a").enable(name=name)["dirty_blocks"] > 0


def test_whatever_is_refused_changes_nothing(whole, volumes):
    whole.bean("host_a").create(name="taken", **sides(volumes))
    a, b = whole.bean("host_a", "volume"), whole.bean("host_b", "volume")
    a.create(name="big", size_bytes=2 * SIZE)
    a.create(name="other", size_bytes=SIZE)
    a.create(name="tiny_bitmap", size_bytes=bitmap_bytes(SIZE) - 4096)
    b.create(name="other_s", size_bytes=SIZE)
    fine = {"host": "host_b", "volume": "other_s", "bitmap": None}

    def primary(volume="other", bitmap=None, host="host_a"):
        return {"host": host, "volume": volume, "bitmap": bitmap}

    refused = [
        (SetExists, {"name": "taken"}),
        (UnknownVolume, {"primary": primary("nowhere")}),
        (UnknownVolume, {"secondary": {**fine, "volume": "nowhere"}}),
        (UnknownVolume, {"secondary": {**fine, "bitmap": "nowhere"}}),
        (VolumeBusy, {"primary": primary(volumes["p"])}),
        (VolumeBusy, {"primary": primary("other", volumes["p"])}),
        (VolumeBusy, {"primary": primary("other", volumes["pb"])}),
        (VolumeBusy, {"primary": primary("other", "other")}),
        (VolumeBusy, {"secondary": {**fine, "volume": volumes["s"]}}),
        (VolumeTooSmall, {"primary": primary("big")}),
        (BitmapTooSmall, {"primary": primary("other", "tiny_bitmap")}),
        (SameHost, {"primary": primary("other_s", host="host_b")}),
        (Unsupported, {"mode": "async"}),
        (Unsupported, {"group": "g"}),
        (Unsupported, {"queue": "other"}),
    ]
    before = state_of(whole)
    for error, change in refused:
        asked = {"name": "refused", "primary": primary(), "secondary": fine, **change}
        with pytest.raises(error):
            whole.bean("host_b").create(**asked)
        assert state_of(whole) == before, change
    with pytest.raises(BitmapTooSmall, match=str(bitmap_bytes(SIZE))):
        whole.bean("host_a").create(
            name="refused", primary=primary("other", "tiny_bitmap"), secondary=fine
        )


def test_a_create_that_fails_on_the_second_host_is_undone_on_both(whole, volumes):
    """The second host's bitmap cannot be made: its folder has become a file."""
    folder = whole.hosts["host_b"].host.metadata_dir
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.write_text("in the way")
    try:
        with pytest.raises(Exception, match="cannot be used"):
            whole.bean("host_a").create(name="undone", **sides(volumes, bitmaps=False))
    finally:
        folder.unlink()
        aside.rename(folder)
    for host, short in (("host_a", "p"), ("host_b", "s")):
        assert whole.bean(host, "volume").show(name=volumes[short])["control"] == "none"
        assert not (whole.hosts[host].host.metadata_dir / "undone.bitmap").exists()
        with pytest.raises(UnknownSet):
            whole.bean(host).show(name="undone")
    made = whole.bean("host_a").create(name="undone", **sides(volumes, bitmaps=False))
    assert made["state"] == "logging"
