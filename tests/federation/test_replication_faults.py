"""Replication sets when hosts, beans or engines die in the middle."""

import os
import signal
import threading
import time

import pytest

from beans.errors import BeanUnavailable
from facade.config_store import ConfigStore
from facade.contract.errors import TrellisError, UnreachableError
from facade.errors import PeerUnreachable, SideUnreachable, UnknownSet
from tests.federation.replication_hosts import wait_until

SIZE = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def volumes(whole):
    for number in range(8):
        whole.bean("host_a", "volume").create(name=f"p{number}", size_bytes=SIZE)
        whole.bean("host_b", "volume").create(name=f"s{number}", size_bytes=SIZE)


def asked(name, number):
    return {
        "name": name,
        "primary": {"host": "host_a", "volume": f"p{number}"},
        "secondary": {"host": "host_b", "volume": f"s{number}"},
    }


def nothing_of(whole, name, number):
    """True when neither host has anything of a set: record, claim, engine set, bitmap, control."""
    for host, volume in (("host_a", f"p{number}"), ("host_b", f"s{number}")):
        part = whole.hosts[host]
        with ConfigStore(part.host.config_path) as store:
            if store.set("replication", name) or store.uses(volume) or store.volume(volume):
                return False
            if store.intents("replication"):
                return False
        if name in {one["name"] for one in part.native.call("set.list")}:
            return False
        if volume in {one["name"] for one in part.native.call("volume.list")}:
            return False
        if (part.host.metadata_dir / f"{name}.bitmap").exists():
            return False
    return True


@pytest.mark.parametrize("victim", ["host_a", "host_b"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_bean_killed_in_the_middle_of_a_create_leaves_nothing_half_made(whole, victim, steps):
    """It is killed when the victim's configuration has changed `steps` times since the start."""
    name = f"killed_{victim}_{steps}"
    number = 0
    failures = []

    def create():
        try:
            whole.bean("host_a").create(**asked(name, number))
        except TrellisError as error:
            failures.append(error)

    part = whole.hosts[victim]
    pid = part.worker("replication")
    with ConfigStore(part.host.config_path) as store:
        before = store.history(1)[0].number if store.history(1) else 0
        caller = threading.Thread(target=create)
        caller.start()
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            latest = store.history(1)
            if latest and latest[0].number >= before + steps:
                break
        os.kill(pid, signal.SIGKILL)
    caller.join(100)
    wait_until(lambda: whole.answers(victim, "replication"))
    if failures:
        wait_until(lambda: nothing_of(whole, name, number), timeout_s=60)
    else:
        # It was retried, or done already: then it is there as a whole.
        assert whole.bean("host_b").show(name=name)["note"] is None
        whole.bean("host_a").delete(name=name)
        for host, volume in (("host_a", f"p{number}"), ("host_b", f"s{number}")):
            whole.bean(host, "volume").disable(name=volume)
    assert nothing_of(whole, name, number)


def test_an_engine_that_was_killed_has_its_sets_again(whole):
    whole.bean("host_a").create(**asked("restart", 1))
    part = whole.hosts["host_a"]
    part.kill("facade.engine")
    shown = whole.bean("host_b").show(name="restart")
    assert shown["state"] == "logging"
    assert "engine of host_a" in shown["note"]
    for act in (
        lambda: whole.bean("host_b").sync(name="restart"),
        lambda: whole.bean("host_b").enable(name="restart"),
    ):
        with pytest.raises(SideUnreachable, match="host_a"):
            act()
    with pytest.raises(UnreachableError):
        whole.bean("host_a").create(**asked("without_engine", 2))
    part.start("facade.engine")
    wait_until(part.engine_answers)
    shown = whole.bean("host_b").show(name="restart")
    assert (shown["state"], shown["note"]) == ("logging", None)
    assert shown["dirty_blocks"] == SIZE // shown["block_bytes"]
    assert nothing_of(whole, "without_engine", 2)


def test_a_command_while_the_other_host_is_down_names_it_and_changes_nothing(whole):
    whole.bean("host_a").create(**asked("alone", 3))
    part = whole.hosts["host_b"]
    part.stop()
    before = whole.bean("host_a", "config").show()
    for act in (
        lambda: whole.bean("host_a").create(**asked("alone_2", 4)),
        lambda: whole.bean("host_a").disable(name="alone"),
        lambda: whole.bean("host_a").enable(name="alone"),
        lambda: whole.bean("host_a").sync(name="alone"),
    ):
        with pytest.raises(BeanUnavailable) as caught:
            act()
        assert caught.value.host == "host_b"
    with pytest.raises(PeerUnreachable, match="host_b"):
        whole.bean("host_a").delete(name="alone")
    assert whole.bean("host_a", "config").show() == before
    shown = whole.bean("host_a").show(name="alone")
    assert (shown["state"], shown["unreachable"]) == ("logging", ["host_b"])
    assert whole.bean("host_a").log(name="alone")["state"] == "logging"
    assert "alone" in [one["name"] for one in whole.bean("host_a").list()]
    gone = whole.bean("host_a").delete(name="alone", force=True)
    assert gone["hosts"] == ["host_a"]
    assert "host_b" in gone["note"]
    part.start()
    wait_until(part.engine_answers)
    wait_until(lambda: whole.answers("host_b", "replication"))
    wait_until(lambda: whole.answers("host_b", "volume"))
    left = whole.bean("host_b").show(name="alone")
    assert "left over" in left["note"]
    assert whole.bean("host_b").delete(name="alone")["hosts"] == ["host_b"]
    with pytest.raises(UnknownSet):
        whole.bean("host_b").show(name="alone")
