"""Waiting survives those who are waited for: beans, link, mail server."""

import os
import signal
import subprocess

from demo.link_proxy import LinkProxy
from tests.e2e.conftest import Pair
from tests.e2e.seat import BIN, Seat, sha256, wait_for

SLOW_BYTES_PER_S = 2_000_000


def test_sync_is_followed_through_the_death_of_its_bean(
    seat: Seat, pair: Pair, link: LinkProxy
) -> None:
    with pair.path_a.open("r+b") as file:
        file.write(os.urandom(16 << 20))
    seat.trellis("replica", "create", pair.name, *pair.sides).json()
    link.limit_rate(SLOW_BYTES_PER_S)
    try:
        sync = subprocess.Popen(
            [BIN / "trellis", "replica", "sync", pair.name],
            env=seat.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=seat.directory.parent,
        )
        wait_for("synchronisation that moves", lambda: progress(seat, pair.name))
        beans = seat.child("beans-host_a")
        assert beans.signal(signal.SIGKILL)
        assert beans.wait(10.0)
        assert sync.poll() is None
        link.limit_rate(0)
        assert sync.wait(60) == 0
    finally:
        link.limit_rate(0)
        if sync.poll() is None:
            sync.kill()
            sync.wait()
    assert sha256(pair.path_a) == sha256(pair.path_b)


def progress(seat: Seat, name: str) -> bool:
    known = seat.trellis("replica", "show", name).json()["progress"]
    return known is not None and known["done_bytes"] > 0


def test_failed_sync_is_no_success(seat: Seat, pair: Pair, link: LinkProxy) -> None:
    seat.trellis("replica", "create", pair.name, *pair.sides).json()
    link.cut()
    said = seat.type("trellis", "replica", "sync", pair.name)
    assert said.status in (1, 3), said
    assert said.err.startswith("error: ")
    assert seat.trellis("replica", "show", pair.name).json()["state"] == "logging"


def test_mails_wait_for_the_mail_server(seat: Seat) -> None:
    sink = seat.child("mail_sink")
    assert sink.signal(signal.SIGKILL)
    assert sink.wait(10.0)
    seat.volume("host_a", "while_mail_was_away", "1M")

    def told() -> bool:
        mails = seat.trellis("event", "mail").json()
        return sum("while_mail_was_away" in one["subject"] for one in mails) == 1

    wait_for("mail about the volume", told)
