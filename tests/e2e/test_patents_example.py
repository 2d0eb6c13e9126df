"""The patent's example as it is printed, and what follows from it, with tools that others wrote."""

import os
import re
import subprocess
from pathlib import Path

from demo.link_proxy import LinkProxy
from tests.e2e.conftest import Federation
from tests.e2e.seat import Seat, sha256, wait_for

MIB = 1 << 20
BLOCK_BYTES = 32 * 1024
BITMAP_HEADER_BYTES = 8192


def qemu_io(uri: str, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(
        ["qemu-io", "-f", "raw", *words, uri], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_patents_two_commands_then_a_cut_link_and_an_update(
    federation: Federation, seat: Seat, link: LinkProxy
) -> None:
    path_a = seat.volume("Host_A", "Volume_a", "32M")
    path_b = seat.volume("host_b", "Volume_b", "32M")
    bits = seat.volume("host_a", "MetaInfoVolume_a", "1M")
    seat.volume("host_b", "MetaInfoVolume_b", "1M")
    with path_a.open("r+b") as file:
        file.write(os.urandom(8 * MIB))

    command = (
        "snradm -C p s y n MySNDRSet Host_a Volume_a MetaInfoVolume_a "
        "Host_b Volume_b MetaInfoVolume_b"
    )
    assert seat.type(*command.split()).status == 0
    for host in ("host_a", "host_b"):
        one = seat.trellis("replica", "show", "MySNDRSet", "--host", host).json()
        assert one["state"] == "logging"
        assert one["primary"] == {
            "host": "host_a", "volume": "Volume_a", "bitmap": "MetaInfoVolume_a"}  # fmt: skip
        assert one["dirty_blocks"] == 32 * MIB // BLOCK_BYTES

    said = seat.type("sndradm", "-c", "s", "MySNDRSet")
    assert said.status == 0, said.err
    assert (
        seat.on("host_b").trellis("replica", "show", "MySNDRSet").json()["state"] == "replicating"
    )
    assert sha256(path_a) == sha256(path_b)

    uri = seat.type("trellis", "volume", "uri", "Volume_a").out.strip()
    qemu_io(uri, "write -P 0x42 3M 5M", "write -P 0x17 20M 64k", "flush")
    assert sha256(path_a) == sha256(path_b)

    wait_for("bitmap whose bits are cleared", lambda: settled(bits))
    link.cut()
    qemu_io(uri, "write -P 0x5a 10M 2M", "write -P 0x11 30M 32k", "flush")
    wait_for("logging", lambda: shown(seat)["state"] == "logging")
    assert shown(seat)["dirty_blocks"] == 2 * MIB // BLOCK_BYTES + 1
    assert sha256(path_a) != sha256(path_b)

    link.restore()
    before = link.forwarded_bytes
    said = seat.type("sndradm", "-c", "u", "MySNDRSet")
    assert said.status == 0, said.err
    match = re.search(r"\((\d+) bytes\) on the link", said.out)
    assert match is not None, said.out
    passed_bytes = link.forwarded_bytes - before
    assert 0 < int(match[1]) <= 3 * MIB
    assert abs(passed_bytes - int(match[1])) <= 64 * 1024
    assert sha256(path_a) == sha256(path_b)


def settled(bitmap: Path) -> bool:
    """No bit is set behind the header: what was written before counts as equal on both sides."""
    with bitmap.open("rb") as file:
        file.seek(BITMAP_HEADER_BYTES)
        return not any(file.read())


def shown(seat: Seat) -> dict[str, int | str]:
    one: dict[str, int | str] = seat.trellis("replica", "show", "MySNDRSet").json()
    return one


def test_predecessors_lists_know_the_set(seat: Seat, federation: Federation) -> None:
    assert "host_a:Volume_a -> host_b:Volume_b" in seat.type("sndradm", "-p").out
    assert "state: replicating" in seat.type("sndradm", "-P", "MySNDRSet").out
    line = "host_a Volume_a MetaInfoVolume_a host_b Volume_b MetaInfoVolume_b ip sync set MySNDRSet"
    assert line in seat.type("sndradm", "-i").out.splitlines()
    assert "link active" in seat.type("sndradm", "-H", "HOST_B:Volume_b").out
    assert "Volume_a" in seat.type("svadm").out.splitlines()
    assert "replication: MySNDRSet enabled" in seat.type("dscfg", "-l").out
    assert re.search(r"^MySNDRSet +P +R", seat.type("dsstat", "-m", "sndr").out, re.MULTILINE)
    assert seat.type("sndradm", "-c", "l", "MySNDRSet").status == 0
    assert seat.trellis("replica", "show", "MySNDRSet").json()["state"] == "logging"


def test_every_change_of_state_was_mailed(seat: Seat, federation: Federation) -> None:
    wanted = ("set created", ": syncing", ": replicating", ": link lost", "sync finished")

    def told() -> list[dict[str, str]] | None:
        mails = [
            one
            for one in seat.trellis("event", "mail", "--full").json()
            if "MySNDRSet" in one["subject"]
        ]
        text = " ".join(one["subject"] for one in mails)
        return mails if all(what in text for what in wanted) else None

    mails = wait_for("mail about each change", told)
    ids = [one["message_id"] for one in mails]
    assert len(set(ids)) == len(ids)
    lost = next(one for one in mails if "link lost" in one["subject"])
    assert "What to do" in lost["body"]
    assert "trellis replica show MySNDRSet --host host_" in lost["body"]
    listed = {one["name"] for one in seat.trellis("event", "list").json()}
    assert {"set_created", "link_lost", "sync_finished"} <= listed
