"""The request loop, spoken to in bytes: errors, limits, malformed input, pending requests."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from facade.engine.fault_volume import FaultVolume
from facade.engine.file_volume import FileVolume
from facade.engine.nbd_server import NbdServer
from facade.engine.volume_stack import VolumeStack
from tests.engine import nbd_raw as raw
from tests.engine.nbd_raw import RawClient, serve
from tests.engine.test_volume_stack import wait_until
from tests.engine.volume_makers import file_volume

SIZE_BYTES = 64 << 20
TOO_LONG = (32 << 20) + 1


@pytest.fixture
def bottom(tmp_path: Path) -> Iterator[FileVolume]:
    with file_volume(tmp_path, SIZE_BYTES) as volume:
        yield volume


@pytest.fixture
def server(bottom: FileVolume) -> Iterator[NbdServer]:
    with serve(bottom) as running:
        yield running


@pytest.fixture
def client(server: NbdServer) -> Iterator[RawClient]:
    with RawClient(server.socket_path) as connected:
        yield connected


@pytest.fixture
def slow(bottom: FileVolume) -> Iterator[FaultVolume]:
    layer = FaultVolume(bottom, is_async=True)
    yield layer
    layer.close()


def is_alive(server: NbdServer) -> bool:
    with RawClient(server.socket_path) as another:
        return another.ask(raw.request(raw.READ, 0, 8), 8) == bytes(8)


@pytest.mark.parametrize(("sent", "expected"), [
    (raw.request(raw.READ, SIZE_BYTES, 1), raw.EINVAL),
    (raw.request(raw.READ, SIZE_BYTES - 1, 2), raw.EINVAL),
    (raw.request(raw.READ, 2**64 - 1, 2), raw.EINVAL),
    (raw.request(raw.READ, 0, TOO_LONG), raw.EINVAL),
    (raw.write(SIZE_BYTES - 1, b"xx"), raw.ENOSPC),
    (raw.write(2**64 - 1, b"xx"), raw.ENOSPC),
    (raw.write(SIZE_BYTES - 100, bytes(200_000)), raw.ENOSPC),
    (raw.request(raw.WRITE_ZEROES, SIZE_BYTES, 1), raw.ENOSPC),
    (raw.request(raw.TRIM, SIZE_BYTES, 1), raw.EINVAL),
    (raw.request(raw.FLUSH, 1, 0), raw.EINVAL),
    (raw.request(raw.FLUSH, 0, 1), raw.EINVAL),
    (raw.request(raw.CACHE, SIZE_BYTES - 1, 2), raw.EINVAL),
    (raw.request(raw.CACHE, 0, 1, flags=raw.DF), raw.EINVAL),
    (raw.request(raw.CACHE, 0, SIZE_BYTES), 0),
    (raw.request(raw.BLOCK_STATUS, 0, 1), raw.EINVAL),
    (raw.request(999, 0, 1), raw.EINVAL),
    (raw.request(raw.READ, 0, 1, flags=raw.DF), raw.EINVAL),
    (raw.request(raw.READ, 0, 1, flags=1 << 15), raw.EINVAL),
    (raw.write(0, b"x", flags=raw.NO_HOLE), raw.EINVAL),
    (raw.write(0, b"x", flags=raw.FAST_ZERO), raw.EINVAL),
    (raw.request(raw.READ, 0, 1, flags=raw.REQ_ONE), raw.EINVAL),
    (raw.request(raw.WRITE_ZEROES, 0, 1, flags=raw.FAST_ZERO | raw.NO_HOLE), raw.ENOTSUP),
    (raw.request(raw.WRITE_ZEROES, 0, 70_000, flags=raw.FAST_ZERO), 0),
    (raw.request(raw.READ, 0, 0), 0),
    (raw.write(0, b""), 0),
    (raw.request(raw.WRITE_ZEROES, 0, SIZE_BYTES), 0),
    (raw.request(raw.TRIM, 5, 100, flags=raw.FUA), 0),
    (raw.request(raw.FLUSH, flags=raw.FUA), 0),
    (raw.write(SIZE_BYTES - 1, b"x", flags=raw.FUA), 0),
])  # fmt: skip
def test_each_request_has_its_answer(client: RawClient, sent: bytes, expected: int) -> None:
    assert client.ask(sent) == expected
    # Whatever it was, the stream is still in step.
    assert client.ask(raw.request(raw.READ, 1 << 20, 16), 16) == bytes(16)


@pytest.mark.parametrize("length", [1, 28, 4096, 65_535, 65_536, 65_537, 300_000, 32 << 20])
def test_data_of_any_length_survives(client: RawClient, length: int) -> None:
    data = random.Random(length).randbytes(length)
    assert client.ask(raw.write(777, data)) == 0
    assert client.ask(raw.request(raw.READ, 777, length), length) == data


def test_requests_cut_anywhere_are_put_together(client: RawClient) -> None:
    data = random.Random(1).randbytes(70_000)
    stream = b"".join(
        raw.write(at * 10, data[at * 10 : at * 10 + 10], cookie=at) for at in range(500)
    ) + raw.write(10_000, data, cookie=7)
    dice = random.Random(2)
    while stream:
        cut = dice.choice([1, 27, 28, 29, 1000, 40_000])
        client.send(stream[:cut])
        stream = stream[cut:]
    assert [client.take_reply()[:2] for _ in range(501)] == [
        *((0, at) for at in range(500)), (0, 7),
    ]  # fmt: skip
    assert client.ask(raw.request(raw.READ, 10_000, 70_000), 70_000) == data


def test_a_flood_of_requests_is_answered_in_full(client: RawClient) -> None:
    count = 3000
    stream = b"".join(raw.request(raw.READ, n * 4096, 4096, cookie=n) for n in range(count))
    sender = threading.Thread(target=client.send, args=(stream,))
    sender.start()
    for number in range(count):
        assert client.take_reply(4096) == (0, number, bytes(4096))
    sender.join()


@pytest.mark.parametrize("sent", [
    raw.request(raw.READ, 0, 1, magic=0x12560953),
    raw.request(raw.WRITE, 0, TOO_LONG) + bytes(100),
    raw.request(raw.WRITE, 0, 2**32 - 1),
    bytes(28),
    random.Random(5).randbytes(5000),
    raw.request(raw.DISC),
])  # fmt: skip
def test_connection_ends_and_the_server_stays(server: NbdServer, sent: bytes) -> None:
    with RawClient(server.socket_path) as client:
        client.send(raw.request(raw.READ, 0, 8, cookie=9) + sent)
        assert client.take_reply(8) == (0, 9, bytes(8))
        assert client.is_ended()
    assert is_alive(server)
    wait_until(lambda: server.clients == 0)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_do_not_hurt(server: NbdServer, seed: int) -> None:
    dice = random.Random(seed)
    for transmission in (False, True):
        with RawClient(server.socket_path, transmission=transmission) as client:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.send(dice.randbytes(dice.choice([1, 30, 4000, 100_000])))
                client.socket.shutdown(socket.SHUT_WR)
            while True:
                try:
                    if not client.socket.recv(65_536):
                        break
                except ConnectionResetError:
                    break
    assert is_alive(server)


@pytest.mark.parametrize("sent", [
    b"", raw.request(raw.READ, 0, 1)[:20], raw.write(0, bytes(5000))[:2000],
    raw.write(0, bytes(500_000))[:300_000],
])  # fmt: skip
def test_client_that_vanishes_leaves_nothing(server: NbdServer, sent: bytes) -> None:
    client = RawClient(server.socket_path)
    client.send(sent)
    wait_until(lambda: server.clients == 1)
    client.socket.close()
    wait_until(lambda: server.clients == 0)
    assert is_alive(server)


def test_a_torn_write_is_not_done(server: NbdServer, bottom: FileVolume) -> None:
    client = RawClient(server.socket_path)
    client.send(raw.write(0, b"\xff" * 200_000)[:-1])
    client.socket.close()
    wait_until(lambda: server.clients == 0)
    assert bottom.pread(0, 200_000) == bytes(200_000)


@pytest.mark.parametrize(("number", "expected"), [
    (errno.EPERM, raw.EPERM), (errno.EROFS, raw.EPERM), (errno.EACCES, raw.EPERM),
    (errno.EIO, raw.EIO), (errno.ENOMEM, raw.ENOMEM), (errno.EINVAL, raw.EINVAL),
    (errno.ENOSPC, raw.ENOSPC), (errno.EDQUOT, raw.ENOSPC), (errno.EFBIG, raw.ENOSPC),
    (errno.EOVERFLOW, raw.EOVERFLOW), (errno.EOPNOTSUPP, raw.ENOTSUP),
    (errno.ENOSYS, raw.ENOTSUP), (errno.ESHUTDOWN, raw.ESHUTDOWN), (errno.ETIMEDOUT, raw.EIO),
])  # fmt: skip
@pytest.mark.parametrize("is_async", [False, True])
def test_errors_are_told_in_the_protocols_words(
    bottom: FileVolume, number: int, expected: int, is_async: bool
) -> None:
    layer = FaultVolume(bottom, is_async=is_async)
    with serve(layer) as server, RawClient(server.socket_path) as client:
        for sent in (raw.write(0, b"x"), raw.request(raw.READ, 0, 5), raw.request(raw.FLUSH)):
            layer.fail("any", number)
            assert client.ask(sent) == expected
        assert client.ask(raw.request(raw.READ, 0, 5), 5) == bytes(5)
    layer.close()


def test_zeroing_that_may_be_slow_is_not_fast(bottom: FileVolume) -> None:
    with serve(bottom, can_trim=False) as server, RawClient(server.socket_path) as client:
        zero = raw.request(raw.WRITE_ZEROES, 0, 1 << 20, flags=raw.FAST_ZERO)
        client.ask(raw.write(0, b"kept"))
        assert client.ask(zero) == raw.ENOTSUP
        assert client.ask(raw.request(raw.READ, 0, 4), 4) == b"kept"
        assert client.ask(raw.request(raw.WRITE_ZEROES, 0, 1 << 20)) == 0
        assert client.ask(raw.request(raw.READ, 0, 4), 4) == bytes(4)


@pytest.mark.parametrize("is_async", [False, True])
def test_cache_reads_and_tells_only_how_it_went(bottom: FileVolume, is_async: bool) -> None:
    layer = FaultVolume(bottom, is_async=is_async)
    with serve(layer) as server, RawClient(server.socket_path) as client:
        assert client.ask(raw.request(raw.CACHE, 5, 100_000)) == 0
        layer.fail("read", errno.EIO)
        assert client.ask(raw.request(raw.CACHE, 5, 100_000)) == raw.EIO
        assert client.ask(raw.request(raw.READ, 0, 4), 4) == bytes(4)
    layer.close()


def test_read_only_export(bottom: FileVolume) -> None:
    with serve(VolumeStack(bottom, read_only=True)) as server:
        with RawClient(server.socket_path) as client:
            for sent in (raw.write(0, b"x"), raw.request(raw.WRITE_ZEROES, 0, 1),
                         raw.request(raw.TRIM, 0, 1), raw.write(0, bytes(100_000))):  # fmt: skip
                assert client.ask(sent) == raw.EPERM
            assert client.ask(raw.request(raw.FLUSH)) == 0
            assert client.ask(raw.request(raw.READ, 0, 4), 4) == bytes(4)
            assert (server.clients, server.writable_clients) == (1, 0)


# ---- requests that other threads complete


def test_pending_requests_are_answered_when_they_end(slow: FaultVolume) -> None:
    with serve(slow) as server, RawClient(server.socket_path) as client:
        slow.hold()
        client.send(raw.write(0, b"data", cookie=1) + raw.request(raw.READ, 0, 4, cookie=2)
                    + raw.request(raw.READ, 1 << 20, 100_000, cookie=3))  # fmt: skip
        wait_until(lambda: slow.held == 3)
        # Bad ones overtake: they never reach the volume.
        assert client.ask(raw.request(raw.READ, SIZE_BYTES, 1, cookie=4)) == raw.EINVAL
        slow.release()
        assert client.take_reply() == (0, 1, b"")
        assert client.take_reply(4) == (0, 2, b"data")
        assert client.take_reply(100_000) == (0, 3, bytes(100_000))


def test_no_more_than_the_limit_are_in_flight(slow: FaultVolume) -> None:
    count = 500
    with serve(slow) as server, RawClient(server.socket_path) as client:
        slow.hold()
        client.send(b"".join(raw.write(n, b"x", cookie=n) for n in range(count)))
        wait_until(lambda: slow.held == 128)
        slow.release()
        assert [client.take_reply()[1] for _ in range(count)] == list(range(count))


def test_memory_of_a_connection_is_bounded(slow: FaultVolume) -> None:
    with serve(slow) as server, RawClient(server.socket_path) as client:
        slow.hold()
        count, length = 20, 8 << 20
        sender = threading.Thread(target=client.send, args=(b"".join(
            raw.request(raw.READ, 0, length, cookie=n) for n in range(count)),))  # fmt: skip
        sender.start()
        # 64 MiB hold seven such replies beside the input.
        wait_until(lambda: slow.held == 7)
        slow.release()
        for number in range(count):
            assert client.take_reply(length)[:2] == (0, number)
        sender.join()


def test_client_that_vanishes_with_requests_pending(slow: FaultVolume) -> None:
    with serve(slow) as server:
        client = RawClient(server.socket_path)
        slow.hold()
        client.send(raw.write(0, b"kept") + raw.write(100_000, b"too" * 50_000)
                    + raw.request(raw.READ, 0, 200_000))  # fmt: skip
        wait_until(lambda: slow.held == 3)
        client.socket.close()
        # Buffers live until the volume is done with them.
        assert server.clients == 1
        slow.release()
        wait_until(lambda: server.clients == 0)
        assert is_alive_at(server, b"kept")


def is_alive_at(server: NbdServer, data: bytes) -> bool:
    with RawClient(server.socket_path) as another:
        return another.ask(raw.request(raw.READ, 0, len(data)), len(data)) == data


def test_a_client_that_does_not_read_stalls_only_itself(slow: FaultVolume) -> None:
    with serve(slow) as server, RawClient(server.socket_path) as lazy:
        lazy.send(b"".join(raw.request(raw.READ, 0, 1 << 20, cookie=n) for n in range(30)))
        with RawClient(server.socket_path) as brisk:
            for _ in range(20):
                assert brisk.ask(raw.request(raw.READ, 0, 10), 10) == bytes(10)
        for number in range(30):
            assert lazy.take_reply(1 << 20)[:2] == (0, number)


def test_replies_that_the_socket_does_not_take_at_once_arrive(slow: FaultVolume) -> None:
    with serve(slow) as server:
        for _ in range(60):
            with RawClient(server.socket_path) as client:
                client.send(raw.request(raw.READ, 0, 2 << 20, cookie=5))
                wait_until(lambda: slow.held == 0)
                assert client.take_reply(2 << 20) == (0, 5, bytes(2 << 20))


def test_pending_requests_in_random_order_with_a_model(bottom: FileVolume) -> None:
    layer = FaultVolume(bottom, is_async=True, delay_us=20)
    model = bytearray(1 << 20)
    dice = random.Random(11)
    with serve(layer) as server, RawClient(server.socket_path) as client:
        for _ in range(40):
            stream, expected = b"", {}
            for cookie in range(dice.randrange(1, 60)):
                length = dice.choice([1, 512, 4096, 70_000, 200_000])
                offset = dice.randrange(len(model) - length)
                if dice.random() < 0.5:
                    data = dice.randbytes(length)
                    model[offset : offset + length] = data
                    stream += raw.write(offset, data, cookie=cookie)
                    expected[cookie] = b""
                else:
                    stream += raw.request(raw.READ, offset, length, cookie=cookie)
                    expected[cookie] = bytes(model[offset : offset + length])
            sender = threading.Thread(target=client.send, args=(stream,))
            sender.start()
            for _ in range(len(expected)):
                error, cookie = struct.unpack(">4xIQ", client.take(16))
                assert error == 0
                data = expected.pop(cookie)
                assert client.take(len(data)) == data
            sender.join()
    layer.close()
    assert bottom.pread(0, len(model)) == model
