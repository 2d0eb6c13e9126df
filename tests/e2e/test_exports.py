"""STE volumes in a real federation: exported with one command, and reached by real clients."""

import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Federation
from tests.e2e.seat import Seat, one_sentence, wait_for

CLIENT = "trellis-client"


@pytest.fixture
def volume(seat: Seat) -> Iterator[str]:
    name = f"export{uuid.uuid4().hex[:6]}"
    assert seat.trellis("volume", "create", name, "--size", "8M").status == 0
    yield name
    assert seat.trellis("volume", "disable", name).status == 0


def nbdinfo(uri: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("nbdinfo") is None:
        pytest.skip("nbdinfo is not installed")
    return subprocess.run(["nbdinfo", "--json", uri], capture_output=True, text=True, timeout=30,
                          check=False)  # fmt: skip


def size_at(uri: str) -> int:
    done = nbdinfo(uri)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["exports"][0]["export-size"])


def test_an_export_works_at_once(seat: Seat, volume: str) -> None:
    shown = seat.trellis("volume", "enable", volume, "--export").json()
    assert shown["control"] == "ste"
    assert shown["uri"].startswith("nbds://127.0.0.1:")
    assert f"/{volume}" in shown["uri"]
    assert shown["export"]["clients"] == [CLIENT]
    assert seat.trellis("volume", "enable", volume, "--export").json()["uri"] == shown["uri"]
    assert seat.trellis("volume", "uri", volume).json()["uri"] == shown["uri"]
    assert size_at(shown["uri"]) == 8 << 20
    assert size_at(shown["local_uri"]) == 8 << 20
    assert CLIENT in seat.say("volume", "show", volume).out
    ended = seat.trellis("volume", "disable", volume).json()
    assert (ended["control"], ended["uri"], ended["export"]) == ("none", None, None)
    assert nbdinfo(shown["uri"]).returncode != 0


def test_local_clients_do_not_notice(seat: Seat, volume: str) -> None:
    nbd = pytest.importorskip("nbd", reason="python3-libnbd is not importable")
    local = seat.trellis("volume", "enable", volume).json()
    handle = nbd.NBD()
    handle.connect_uri(local["uri"])
    handle.pwrite(b"before", 0)
    exported = seat.trellis("volume", "enable", volume, "--export").json()
    assert handle.pread(6, 0) == b"before"
    # Without a word about exports the export stays; with --no-export it goes.
    assert seat.trellis("volume", "enable", volume).json()["uri"] == exported["uri"]
    back = seat.trellis("volume", "enable", volume, "--no-export").json()
    assert (back["control"], back["uri"]) == ("svi", local["uri"])
    assert nbdinfo(exported["uri"]).returncode != 0
    assert handle.pread(6, 0) == b"before"
    handle.shutdown()


def test_a_list_of_its_own(seat: Seat, volume: str) -> None:
    only = seat.trellis("volume", "enable", volume, "--export", "--client", "backup").json()
    assert only["export"]["clients"] == ["backup"]
    assert nbdinfo(only["uri"]).returncode != 0
    refused = wait_for("the refusal's event", lambda: [
        one for one in seat.trellis("event", "list").json()
        if one["name"] == "export_refused" and one["subject"] == volume
    ] or None)  # fmt: skip
    assert CLIENT in refused[0]["text"]
    both = ("--client", "backup", "--client", CLIENT)
    seat.trellis("volume", "enable", volume, "--export", *both).json()
    assert size_at(only["uri"]) == 8 << 20


def test_plain_is_asked_for_and_local(seat: Seat, volume: str) -> None:
    shown = seat.trellis("volume", "enable", volume, "--export", "--plain").json()
    assert shown["uri"].startswith("nbd://127.0.0.1:")
    assert shown["uri"].endswith(f"/{volume}")
    assert size_at(shown["uri"]) == 8 << 20
    assert seat.trellis("volume", "enable", volume, "--plain").status == 2
    mixed = ("--export", "--plain", "--client", "x")
    assert seat.trellis("volume", "enable", volume, *mixed).status == 2


def test_an_export_in_use_is_not_taken_away(seat: Seat, volume: str) -> None:
    nbd = pytest.importorskip("nbd", reason="python3-libnbd is not importable")
    shown = seat.trellis("volume", "enable", volume, "--export").json()
    handle = nbd.NBD()
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(shown["uri"])
    one_sentence(seat.say("volume", "enable", volume, "--no-export"), "volume_busy")
    one_sentence(seat.say("volume", "disable", volume), "volume_busy")
    assert seat.trellis("volume", "show", volume).json()["export"]["connected"] == 1
    handle.pwrite(b"still here", 0, nbd.CMD_FLAG_FUA)
    handle.shutdown()
    wait_for(
        "the end", lambda: seat.trellis("volume", "show", volume).json()["export"]["connected"] == 0
    )


def test_up_tells_where_the_client_certificate_is(federation: Federation) -> None:
    folder = Path(str(federation.up_said["client_certificates"]))
    assert {path.name for path in folder.iterdir()} == {
        "ca-cert.pem", "client-cert.pem", "client-key.pem",
    }  # fmt: skip
    for key in folder.parent.rglob("*-key.pem"):
        assert key.stat().st_mode & 0o777 == 0o600
