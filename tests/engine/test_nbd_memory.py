"""What NBD connections share has a limit; past it one waits for another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from facade.engine import nbd_buffers
from facade.engine.nbd_server import NbdServer
from tests.engine import nbd_raw as raw
from tests.engine.nbd_raw import RawClient, serve
from tests.engine.test_volume_stack import wait_until
from tests.engine.volume_makers import file_volume

MIB = 1 << 20
SIZE_BYTES = 64 * MIB
LIMIT_BYTES = 64 * MIB
LONG_READ_BYTES = 32 * MIB


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NbdServer]:
    before = nbd_buffers.shared_bytes()
    nbd_buffers.limit_shared_bytes(LIMIT_BYTES)
    try:
        with file_volume(tmp_path, SIZE_BYTES) as volume, serve(volume) as running:
            yield running
        wait_until(lambda: nbd_buffers.shared_bytes() == before)
    finally:
        nbd_buffers.limit_shared_bytes(1024 * MIB)


def hoard(client: RawClient) -> None:
    """Leave a long reply in the engine: with its first bytes here it has its memory."""
    client.send(raw.request(raw.READ, 0, LONG_READ_BYTES))
    client.take(16)


def test_a_client_waits_for_memory_that_others_hold(server: NbdServer) -> None:
    path = server.socket_path
    with RawClient(path) as first, RawClient(path) as second, RawClient(path) as other:
        hoard(first)
        hoard(second)
        assert nbd_buffers.shared_bytes() > LIMIT_BYTES - MIB
        other.send(raw.request(raw.READ, 0, 4096, cookie=2))
        assert other.take_reply(4096)[:2] == (0, 2)  # small requests go on
        other.send(raw.request(raw.READ, 0, LONG_READ_BYTES, cookie=3))
        other.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            other.take(1)
        assert nbd_buffers.shared_bytes() <= LIMIT_BYTES
        other.socket.settimeout(raw.TIMEOUT_S)
        first.take(LONG_READ_BYTES)
        assert other.take_reply(LONG_READ_BYTES)[:2] == (0, 3)


def test_memory_of_a_client_that_vanishes_is_given_back(server: NbdServer) -> None:
    path = server.socket_path
    with RawClient(path) as other, RawClient(path) as first:
        hoard(first)
        with RawClient(path) as second:
            hoard(second)
            other.send(raw.request(raw.READ, 0, LONG_READ_BYTES, cookie=9))
        assert other.take_reply(LONG_READ_BYTES)[:2] == (0, 9)


def test_many_long_writes_at_once_all_succeed(server: NbdServer) -> None:
    clients = [RawClient(server.socket_path) for _ in range(6)]
    try:
        for number, client in enumerate(clients):
            client.socket.settimeout(raw.TIMEOUT_S)
            client.send(raw.write(number * 8 * MIB, bytes([number]) * (8 * MIB)))
        for client in clients:
            assert client.take_reply()[0] == 0
    finally:
        for client in clients:
            client.socket.close()


@pytest.mark.parametrize("size_bytes", [0, LIMIT_BYTES - 1, 1024 * MIB + 1])
def test_a_limit_that_cannot_serve_is_refused(size_bytes: int) -> None:
    with pytest.raises(ValueError, match="NBD connections"):
        nbd_buffers.limit_shared_bytes(size_bytes)
