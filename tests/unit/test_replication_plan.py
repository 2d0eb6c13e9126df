"""Planning and showing replication sets: pure functions."""

import dataclasses

import pytest

from facade.bitmap_size import bitmap_bytes
from facade.config_records import SetRecord, Use
from facade.contract.errors import BadName
from facade.errors import BitmapTooSmall, SameHost, Unsupported, VolumeBusy
from facade.replication_plan import (
    CreateRequest,
    SideFacts,
    SideRequest,
    check_bitmap,
    check_claims,
    check_request,
    claims,
    plan_create,
)
from facade.replication_view import SideTruth, set_view

REQUEST = CreateRequest(
    "S", SideRequest("Host_a", "va", "ba"), SideRequest("host_b", "vb"), autosync=True
)


@pytest.mark.parametrize(
    ("size_bytes", "needed_bytes"),
    [
        (0, 8192),
        (1, 12288),
        (32768 * 8 * 4096, 12288),
        (32768 * 8 * 4096 + 1, 16384),
        (1 << 40, 8192 + (4 << 20)),
    ],
)
def test_size_of_a_bitmap(size_bytes, needed_bytes):
    assert bitmap_bytes(size_bytes) == needed_bytes


def test_a_bitmap_of_1_mib_serves_4_gib():
    assert bitmap_bytes(4 << 30) <= 1 << 20


def test_the_error_says_how_big_a_bitmap_must_be():
    check_bitmap("b", 12288, 1, 32768)
    with pytest.raises(BitmapTooSmall, match="12288"):
        check_bitmap("b", 12287, 1, 32768)


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (BadName, {"name": "a/b"}),
        (BadName, {"primary": SideRequest("a.b", "v")}),
        (BadName, {"secondary": SideRequest("host_b", "v:w")}),
        (BadName, {"secondary": SideRequest("host_b", "v", "")}),
        (SameHost, {"secondary": SideRequest("HOST_A", "other")}),
        (VolumeBusy, {"primary": SideRequest("host_a", "v", "v")}),
        (Unsupported, {"mode": "async"}),
        (Unsupported, {"group": "g"}),
        (Unsupported, {"queue": "q"}),
    ],
)
def test_what_a_request_alone_rules_out(error, change):
    with pytest.raises(error):
        check_request(dataclasses.replace(REQUEST, **change))


def test_each_host_gets_its_side_and_the_way_to_the_other():
    request = check_request(REQUEST)
    mine, theirs = SideFacts("host_a", "va", 100, "a:1"), SideFacts("host_b", "vb", 200, "b:2")
    primary, secondary = plan_create(request, "id", mine, theirs)
    assert primary.spec["peer_link"] == "b:2"
    assert secondary.spec["peer_link"] == "a:1"
    assert (primary.size_bytes, secondary.size_bytes) == (100, 200)
    assert primary.spec["size_bytes"] == secondary.spec["size_bytes"] == 100
    assert primary.init == secondary.init == "dirty"
    assert claims("S", primary.spec) == [
        Use("va", "replication", "S", "primary"),
        Use("ba", "replication", "S", "bitmap"),
    ]
    assert claims("S", secondary.spec) == [Use("vb", "replication", "S", "secondary")]
    identical = dataclasses.replace(request, identical=True)
    assert {order.init for order in plan_create(identical, "id", mine, theirs)} == {"clean"}


def test_a_claim_of_another_service_stands_only_against_bitmaps():
    check_claims(
        ["v"], [Use("v", "imaging", "i", "master"), Use("w", "replication", "s", "primary")]
    )
    with pytest.raises(VolumeBusy):
        check_claims(["v"], [Use("v", "imaging", "i", "bitmap")])
    with pytest.raises(VolumeBusy):
        check_claims(["v"], [Use("v", "replication", "s", "secondary")])


def truth(host, **change):
    engine = {
        "state": "replicating",
        "flags": [],
        "dirty_blocks": 0,
        "progress": None,
        "job_id": "j",
        "last_error": None,
        "connected": True,
    }
    return dataclasses.replace(SideTruth(host, "id", True, True, "x:1", engine, None), **change)


def record(role):
    facts = [SideFacts(host, "v", 100, "x:1") for host in ("host_a", "host_b")]
    orders = plan_create(check_request(REQUEST), "id", *facts)
    spec = orders[0 if role == "primary" else 1].spec
    return SetRecord("replication", "S", "id", True, spec)


def engine(state, **more):
    return {**truth("x").engine, "state": state, **more}


def test_both_hosts_show_the_same():
    a = truth("host_a", engine=engine("syncing", flags=["bitmap_failed"], dirty_blocks=7))
    b = truth("host_b", engine=engine("syncing", flags=["sync_needed"], dirty_blocks=0))
    shown = set_view(record("primary"), a, b)
    assert shown == set_view(record("secondary"), b, a)
    assert shown["flags"] == ["bitmap_failed", "sync_needed"]
    assert shown["dirty_blocks"] == 7
    assert shown["primary"] == {"host": "host_a", "volume": "va", "bitmap": "ba"}
    assert shown["secondary"] == {"host": "host_b", "volume": "vb", "bitmap": None}


def test_without_the_other_host_this_ones_knowledge_is_shown_and_said_to_be_partial():
    b = truth("host_b", engine=engine("logging", flags=["sync_needed"]))
    shown = set_view(record("secondary"), b, None)
    assert (shown["state"], shown["flags"]) == ("logging", ["sync_needed"])
    assert shown["unreachable"] == ["host_a"]
    assert "host_a does not answer" in shown["note"]


def test_a_set_that_no_engine_has_is_disabled_and_one_whose_engine_is_down_logs():
    off = {"enabled": False, "engine": None}
    shown = set_view(record("primary"), truth("host_a", **off), truth("host_b", **off))
    assert (shown["state"], shown["note"]) == ("disabled", None)
    down = truth("host_a", engine=None, engine_error={"message": "down."})
    shown = set_view(record("primary"), down, truth("host_b", engine=engine("logging")))
    assert shown["state"] == "logging"
    assert "engine of host_a" in shown["note"]


def test_sides_that_disagree_are_told():
    off = truth("host_b", enabled=False, engine=None)
    assert "not on host_b" in set_view(record("primary"), truth("host_a"), off)["note"]
    unknown = truth("host_b", known=False, enabled=False, engine=None)
    assert "host_b does not know" in set_view(record("primary"), truth("host_a"), unknown)["note"]
