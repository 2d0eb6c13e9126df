"""Each command of the design's section 9, its document and its status, on a real federation."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Federation, Pair
from tests.e2e.seat import BIN, Seat, one_sentence, sha256, wait_for

SET_KEYS = {
    "name", "group", "mode", "state", "flags", "dirty_blocks", "block_bytes", "autosync", "primary",
    "secondary", "progress",
}  # fmt: skip
VOLUME_KEYS = {"host", "name", "path", "size_bytes", "control", "uri", "uses"}
EVENT_KEYS = {"id", "time", "host", "service", "subject", "severity", "name", "data", "text"}


def test_up_says_where_everything_is(federation: Federation) -> None:
    said = federation.up_said
    assert [one["host"] for one in said["hosts"]] == ["host_a", "host_b"]  # type: ignore[attr-defined]
    assert str(said["flower"]).startswith("http://ops:")
    assert "127.0.0.1" in str(said["broker"])


def test_second_up_in_the_same_folder_is_refused(seat: Seat) -> None:
    sentence = one_sentence(seat.type("trellis", "up", "--detach"), "already_up")
    assert str(seat.directory) in sentence
    assert all(one["state"] == "up" for one in seat.trellis("host", "list").json())


def test_host_list_and_show(seat: Seat) -> None:
    hosts = seat.trellis("host", "list").json()
    assert [(one["host"], one["state"]) for one in hosts] == [("host_a", "up"), ("host_b", "up")]
    shown = seat.trellis("host", "show", "HOST_B").json()
    assert {"config", "replication", "station", "volume"} <= set(shown["beans"])
    assert isinstance(shown["volumes"], list)


def test_volume_life(seat: Seat) -> None:
    made = seat.trellis("volume", "create", "life1", "--size", "2M").json()
    assert set(made) >= VOLUME_KEYS
    assert (made["host"], made["size_bytes"], made["control"]) == ("host_a", 2 << 20, "none")
    assert made["uri"] is None
    assert os.stat(made["path"]).st_size == 2 << 20  # noqa: PTH116 - what any tool would see
    assert made["path"].endswith("hosts/host_a/volumes/life1")
    enabled = seat.trellis("volume", "enable", "life1").json()
    assert enabled["control"] == "svi"
    uri = seat.trellis("volume", "uri", "life1").json()["uri"]
    told = subprocess.run(
        ["nbdinfo", "--size", uri], capture_output=True, text=True, check=True, timeout=30
    )
    assert int(told.stdout) == 2 << 20
    assert seat.trellis("volume", "uses", "life1").json() == []
    path = seat.directory.parent / "life1.disk"
    attached = seat.type("trellis", "volume", "attach", "life1", path.name, "--json").json()
    assert (attached["attached"]["path"], path.stat().st_size) == (str(path), 2 << 20)
    refused = seat.trellis("volume", "disable", "life1").error()
    assert (refused["code"], refused["data"]["path"]) == ("volume_attached", str(path))
    assert f"{path} (nbd" in seat.say("volume", "show", "life1").out
    assert seat.trellis("volume", "detach", "life1").json()["attached"] is None
    assert not path.is_symlink()
    resized = seat.trellis("volume", "resize", "life1", "--size", "4M").json()
    assert (resized["size_bytes"], resized["uri"]) == (4 << 20, uri)
    one_sentence(seat.say("volume", "resize", "life1", "--size", "1M"), "confirmation_needed", 2)
    resized = seat.trellis("volume", "resize", "life1", "--size", "1M", "--yes").json()
    assert resized["size_bytes"] == Path(made["path"]).stat().st_size == 1 << 20
    assert seat.trellis("volume", "disable", "life1").json()["control"] == "none"
    assert "life1" in {one["name"] for one in seat.trellis("volume", "list").json()}


def test_read_only_volume(seat: Seat, pair: Pair) -> None:
    seat.trellis("volume", "create", "ro1", "--size", "2M").json()
    shown = seat.trellis("volume", "enable", "ro1", "--read-only").json()
    assert (shown["control"], shown["read_only"]) == ("svi", True)
    assert (
        subprocess.run(["nbdinfo", "--is", "read-only", shown["uri"]], check=False).returncode == 0
    )
    assert seat.trellis("volume", "enable", "ro1").json()["read_only"] is True
    assert "svi, read-only" in seat.say("volume", "show", "ro1").out
    sides = ["--primary", "host_a:ro1", "--secondary", f"host_b:{pair.volume_b}"]
    refused = one_sentence(seat.say("replica", "create", "ro1", *sides), "volume_unsuitable")
    assert "read-only" in refused
    seat.trellis("volume", "disable", "ro1").json()
    assert seat.trellis("volume", "enable", "ro1").json()["read_only"] is False
    one_sentence(seat.say("volume", "enable", "ro1", "--read-only"), "volume_writable")
    seat.trellis("volume", "disable", "ro1").json()


def test_set_life(seat: Seat, pair: Pair) -> None:
    with pair.path_a.open("r+b") as file:
        file.write(os.urandom(1 << 20))
    made = seat.trellis("replica", "create", pair.name, *pair.sides).json()
    assert set(made) >= SET_KEYS
    assert (made["state"], made["mode"]) == ("logging", "sync")
    assert seat.trellis("replica", "enable", pair.name).status == 0
    one = seat.on("host_b").trellis("replica", "show", pair.name).json()
    assert (one["state"], one["dirty_blocks"]) == (made["state"], made["dirty_blocks"])
    synced = seat.trellis("replica", "sync", pair.name).json()
    assert synced["state"] == "replicating"
    assert synced["dirty_blocks"] == 0
    assert synced["sent_bytes"] > 1 << 20
    assert sha256(pair.path_a) == sha256(pair.path_b)
    busy = seat.say("volume", "resize", pair.volume_a, "--size", "1G")
    assert pair.name in one_sentence(busy, "volume_busy")
    uses = seat.trellis("volume", "uses", pair.volume_b, "--host", "host_b").json()
    assert [(use["service"], use["set"], use["role"]) for use in uses] == [
        ("replication", pair.name, "secondary")]  # fmt: skip
    assert seat.trellis("replica", "wait", pair.name).status == 0
    assert seat.trellis("replica", "log", pair.name).json()["state"] == "logging"
    assert seat.trellis("replica", "wait", pair.name).error()["code"] == "not_replicating"
    assert seat.trellis("replica", "sync", pair.name, "--full").json()["state"] == "replicating"
    seat.trellis("replica", "log", pair.name).json()
    assert seat.trellis("replica", "disable", pair.name).json()["state"] == "disabled"
    assert seat.type("trellis", "replica", "delete", pair.name).status == 2
    deleted = seat.trellis("replica", "delete", pair.name, "--yes").json()
    assert sorted(deleted["hosts"]) == ["host_a", "host_b"]
    assert seat.trellis("replica", "show", pair.name).error()["code"] == "unknown_set"
    assert seat.trellis("volume", "uses", pair.volume_a).json() == []


def test_create_identical_has_nothing_to_copy(seat: Seat, pair: Pair) -> None:
    made = seat.trellis("replica", "create", pair.name, *pair.sides, "--identical").json()
    assert made["dirty_blocks"] == 0


def test_no_enable_makes_a_disabled_set(seat: Seat, pair: Pair) -> None:
    made = seat.trellis("replica", "create", pair.name, *pair.sides, "--no-enable").json()
    assert made["state"] == "disabled"


def test_status_says_what_needs_attention(seat: Seat, pair: Pair) -> None:
    seat.trellis("replica", "create", pair.name, *pair.sides).json()
    told = seat.trellis("status").json()
    assert [one["host"] for one in told["hosts"]] == ["host_a", "host_b"]
    assert [one["name"] for one in told["sets"]].count(pair.name) == 1
    assert any(one["about"] == pair.name for one in told["attention"])
    text = seat.type("trellis", "status").out
    assert "NEEDS ATTENTION" in text
    assert f"trellis replica sync {pair.name}" in text


@pytest.mark.parametrize(
    "arguments",
    [["--json", "volume", "list"], ["volume", "--json", "list"], ["volume", "list", "--json"],
     ["--host", "host_b", "volume", "list", "--json"],
     ["volume", "list", "--host", "HOST_B", "--json"]],
)  # fmt: skip
def test_json_is_one_document_wherever_it_is_asked_for(seat: Seat, arguments: list[str]) -> None:
    said = seat.type("trellis", *arguments)
    assert (said.status, said.err) == (0, "")
    volumes = json.loads(said.out)
    assert {one["host"] for one in volumes} == {"host_b" if "--host" in arguments else "host_a"}


def test_trellis_host_says_who_one_is(seat: Seat) -> None:
    assert {one["host"] for one in seat.on("Host_B").trellis("volume", "list").json()} == {"host_b"}
    assert one_sentence(seat.on("host_z").type("trellis", "status"), "host_unknown", 3)


def test_tail_prints_events_as_they_happen(seat: Seat) -> None:
    words = ["event", "tail", "--match", "host_b.volume.#", "--count", "1", "--json"]
    names = (f"tailed{number}" for number in range(100))
    with subprocess.Popen(
        [BIN / "trellis", *words],
        env=seat.environment,
        stdout=subprocess.PIPE,
        text=True,
        cwd=seat.directory.parent,
    ) as tail:
        try:

            def ended() -> bool:
                seat.volume("host_b", next(names), "1M")
                return tail.poll() is not None

            wait_for("event on the tail", ended)
            assert tail.stdout is not None
            lines = tail.stdout.read().splitlines()
        finally:
            tail.kill()
    assert len(lines) == 1
    one = json.loads(lines[0])
    assert set(one) >= EVENT_KEYS
    assert (one["host"], one["name"]) == ("host_b", "volume_created")
