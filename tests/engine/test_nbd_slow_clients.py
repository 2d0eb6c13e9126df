"""Clients that are half open, trickle, or do not take their replies: cut off, and no harm done."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from facade.engine import nbd_buffers, nbd_client, nbd_outbox
from facade.engine.nbd_server import NbdServer
from tests.engine import nbd_raw as raw
from tests.engine.nbd_raw import RawClient, serve
from tests.engine.test_volume_stack import wait_until
from tests.engine.volume_makers import file_volume

SIZE_BYTES = 64 << 20
TIMEOUT_S = 0.5
# The engine looks at the clock every two seconds.
CUT_OFF_WITHIN_S = 12.0
LONG = 8 << 20


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NbdServer]:
    monkeypatch.setattr(nbd_client, "HANDSHAKE_TIMEOUT_S", TIMEOUT_S)
    nbd_outbox.limit_client_silence(TIMEOUT_S)
    try:
        with file_volume(tmp_path, SIZE_BYTES) as volume, serve(volume) as running:
            yield running
    finally:
        nbd_outbox.limit_client_silence(60)


def assert_cut_off(
    server: NbdServer, client: RawClient, go_on: Callable[[], object] = lambda: None
) -> None:
    """The client is cut off in time; until then others are served, and then nothing is left."""
    before = nbd_buffers.shared_bytes()
    with RawClient(server.socket_path) as other:
        until = time.monotonic() + CUT_OFF_WITHIN_S
        while server.clients > 1:
            assert time.monotonic() < until, "the client is still connected"
            assert other.ask(raw.request(raw.READ, 0, 8), 8) == bytes(8)
            try:
                go_on()
            except (BrokenPipeError, ConnectionResetError):
                wait_until(lambda: server.clients == 1, CUT_OFF_WITHIN_S)
        assert other.ask(raw.write(0, bytes(8))) == 0
    client.socket.close()
    wait_until(lambda: nbd_buffers.shared_bytes() <= before)


@pytest.mark.parametrize("sent", [
    b"\x25", raw.request(raw.READ, 0, 4096)[:-1], raw.write(0, bytes(500))[:-1],
    raw.write(0, bytes(500_000))[:-1], raw.request(raw.WRITE, 0, 32 << 20),
])  # fmt: skip
def test_silence_in_the_middle_of_a_request(server: NbdServer, sent: bytes) -> None:
    with RawClient(server.socket_path) as client:
        client.send(raw.request(raw.FLUSH) + sent)
        assert client.take_reply()[0] == 0
        assert_cut_off(server, client)


@pytest.mark.parametrize("sent", [
    b"", raw.request(raw.WRITE, 0, 60_000), raw.request(raw.WRITE, 0, 32 << 20),
])  # fmt: skip
def test_a_request_that_trickles(server: NbdServer, sent: bytes) -> None:
    rest = iter(raw.request(raw.WRITE, 0, 1 << 20) + bytes(1 << 20))

    def trickle() -> None:
        client.send(bytes([next(rest)]))
        time.sleep(0.1 if not sent else 0.01)

    with RawClient(server.socket_path) as client:
        client.send(sent)
        assert_cut_off(server, client, trickle)


def test_replies_that_are_never_taken(server: NbdServer) -> None:
    with RawClient(server.socket_path) as client:
        client.send(b"".join(raw.request(raw.READ, 0, LONG, cookie=n) for n in range(20)))
        assert_cut_off(server, client)


def test_replies_that_are_taken_a_byte_at_a_time(server: NbdServer) -> None:
    def sip() -> None:
        client.socket.recv(1)
        time.sleep(0.01)

    with RawClient(server.socket_path) as client:
        client.send(b"".join(raw.request(raw.READ, 0, LONG, cookie=n) for n in range(20)))
        assert_cut_off(server, client, sip)


def test_a_client_that_is_slow_but_steady_is_served(server: NbdServer) -> None:
    length = 2 << 20
    piece = 128 << 10
    with RawClient(server.socket_path) as client:
        stream = raw.write(0, bytes(length))
        for at in range(0, len(stream), piece):
            client.send(stream[at : at + piece])
            time.sleep(0.1)
        assert client.take_reply() == (0, 1, b"")
        client.send(raw.request(raw.READ, 0, length))
        client.take(16)
        for _ in range(length // piece):
            assert client.take(piece) == bytes(piece)
            time.sleep(0.1)


def test_a_client_that_asks_for_nothing_stays(server: NbdServer) -> None:
    with RawClient(server.socket_path) as client:
        assert client.ask(raw.request(raw.FLUSH)) == 0
        client.socket.settimeout(6 * TIMEOUT_S)
        with pytest.raises(TimeoutError):
            client.take(1)
        client.socket.settimeout(raw.TIMEOUT_S)
        assert client.ask(raw.request(raw.READ, 0, 8), 8) == bytes(8)


@pytest.mark.parametrize("sent", [
    b"", b"\0", struct.pack(">I", 3), struct.pack(">I", 3) + raw.option(raw.OPT_GO, b"x" * 9)[:-1],
])  # fmt: skip
def test_silence_in_the_handshake(server: NbdServer, sent: bytes) -> None:
    with RawClient(server.socket_path, transmission=False) as client:
        client.send(sent)
        with RawClient(server.socket_path) as other:
            assert other.ask(raw.request(raw.READ, 0, 8), 8) == bytes(8)
        assert client.is_ended()


def test_a_handshake_that_trickles(server: NbdServer) -> None:
    with RawClient(server.socket_path, transmission=False) as client:
        stream = struct.pack(">I", 3) + raw.option(raw.OPT_LIST) * 50
        until = time.monotonic() + CUT_OFF_WITHIN_S
        try:
            for number in range(len(stream)):
                assert time.monotonic() < until, "the client is still connected"
                client.send(stream[number : number + 1])
                time.sleep(0.02)
        except (BrokenPipeError, ConnectionResetError):
            return
        raise AssertionError("the client was heard to the end")


def test_many_half_open_clients_hinder_nobody(server: NbdServer) -> None:
    clients = []
    for number in range(60):
        client = RawClient(server.socket_path, transmission=number % 2 == 0)
        client.send(b"\0" if number % 2 else raw.request(raw.WRITE, 0, 1 << 20))
        clients.append(client)
    try:
        with RawClient(server.socket_path) as other:
            assert other.ask(raw.write(0, bytes(1 << 20))) == 0
            wait_until(lambda: server.clients == 1, CUT_OFF_WITHIN_S)
            assert other.ask(raw.request(raw.READ, 0, 8), 8) == bytes(8)
    finally:
        for client in clients:
            client.socket.close()


@pytest.mark.parametrize("timeout_s", [0, -1, 61])
def test_a_limit_that_is_none_is_refused(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="time-out"):
        nbd_outbox.limit_client_silence(timeout_s)


def test_threads_of_clients_that_were_cut_off_are_gone(server: NbdServer) -> None:
    before = threading.active_count()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(server.socket_path))
        wait_until(lambda: threading.active_count() == before + 1)
        wait_until(lambda: threading.active_count() == before, CUT_OFF_WITHIN_S)
