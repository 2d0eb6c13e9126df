"""The listening side: socket files, limits, stopping, idle connections."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from facade.engine import nbd_client, nbd_listener
from facade.engine.fault_volume import FaultVolume
from facade.engine.file_volume import FileVolume
from facade.engine.nbd_server import NbdServer
from facade.engine.volume_stack import VolumeStack
from tests.engine import nbd_raw as raw
from tests.engine.nbd_raw import RawClient, serve
from tests.engine.test_volume_stack import wait_until
from tests.engine.volume_makers import file_volume

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bottom(tmp_path: Path) -> Iterator[FileVolume]:
    with file_volume(tmp_path, 1 << 20) as volume:
        yield volume


def test_socket_file_is_private_and_gone_after_stop(bottom: FileVolume) -> None:
    with serve(bottom) as server:
        assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o600
        server.stop()
        assert not server.socket_path.exists()
        server.stop()


def test_server_can_start_again(bottom: FileVolume) -> None:
    with serve(bottom) as server:
        server.stop()
        server.start()
        with RawClient(server.socket_path) as client:
            assert client.ask(raw.request(raw.READ, 0, 1), 1) == b"\0"


def test_stale_socket_file_is_replaced(bottom: FileVolume, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = NbdServer(VolumeStack(bottom), path)
    server.start()
    RawClient(path).socket.close()
    server.stop()


def test_socket_of_a_living_server_is_left_alone(bottom: FileVolume) -> None:
    with serve(bottom) as server:
        second = NbdServer(VolumeStack(bottom), server.socket_path)
        with pytest.raises(OSError, match="another process serves") as caught:
            second.start()
        assert caught.value.errno == errno.EADDRINUSE
        RawClient(server.socket_path).socket.close()


def test_file_that_is_no_socket_is_left_alone(bottom: FileVolume, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(FileExistsError):
        NbdServer(VolumeStack(bottom), path).start()
    assert path.read_text() == "data"


def test_socket_file_of_a_successor_is_left_alone(bottom: FileVolume, tmp_path: Path) -> None:
    path = tmp_path / "s"
    first, second = (NbdServer(VolumeStack(bottom), path) for _ in range(2))
    first.start()
    path.unlink()
    second.start()
    first.stop()
    RawClient(path).socket.close()
    second.stop()


def test_path_that_is_too_long_is_refused_in_a_sentence(bottom: FileVolume, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="shorter folder") as caught:
        NbdServer(VolumeStack(bottom), tmp_path / ("x" * 120)).start()
    assert caught.value.errno == errno.ENAMETOOLONG


def test_clients_are_counted_once_past_the_handshake(bottom: FileVolume) -> None:
    with serve(bottom) as server:
        with RawClient(server.socket_path, transmission=False):
            assert server.clients == 0
            with RawClient(server.socket_path):
                wait_until(lambda: (server.clients, server.writable_clients) == (1, 1))
        wait_until(lambda: server.clients == 0)


def test_one_client_too_many_is_closed(bottom: FileVolume) -> None:
    with serve(bottom, connections_max=2) as server:
        with RawClient(server.socket_path) as first, RawClient(server.socket_path):
            with pytest.raises((EOFError, ConnectionResetError)):
                RawClient(server.socket_path)
            assert first.ask(raw.request(raw.READ, 0, 1), 1) == b"\0"
        wait_until(lambda: server.clients == 0)
        RawClient(server.socket_path).socket.close()


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\3IHAVEOPT"])
def test_silent_handshake_ends(
    bottom: FileVolume, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(nbd_client, "HANDSHAKE_TIMEOUT_S", 0.2)
    with serve(bottom) as server, RawClient(server.socket_path, transmission=False) as client:
        client.send(sent)
        assert client.is_ended()


def test_trickling_handshake_ends(bottom: FileVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd_client, "HANDSHAKE_TIMEOUT_S", 0.3)
    with serve(bottom) as server, RawClient(server.socket_path, transmission=False) as client:
        began = time.monotonic()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            trickle(client, began + 10)


def trickle(client: RawClient, until: float) -> None:
    while time.monotonic() < until:
        client.send(b"\0")
        time.sleep(0.02)


def test_stop_answers_what_was_received(bottom: FileVolume) -> None:
    slow = FaultVolume(bottom, is_async=True)
    with serve(slow) as server, RawClient(server.socket_path) as client:
        slow.hold()
        client.send(raw.write(0, b"last words"))
        wait_until(lambda: slow.held == 1)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        slow.release()
        assert client.take_reply() == (0, 1, b"")
        assert client.is_ended()
        stopping.join()
    slow.close()
    assert bottom.pread(0, 10) == b"last words"


def test_stop_says_when_requests_never_end(
    bottom: FileVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd_listener, "ABORT_TIMEOUT_S", 0.05)
    slow = FaultVolume(bottom, is_async=True)
    with serve(slow) as server, RawClient(server.socket_path) as client:
        slow.hold()
        client.send(raw.write(0, b"x"))
        wait_until(lambda: slow.held == 1)
        with pytest.raises(TimeoutError, match="1 connections still have requests"):
            server.stop(0.05)
        slow.release()
        server.stop(5)
        assert server.clients == 0
    slow.close()


def test_stop_cuts_off_a_client_that_takes_no_replies(tmp_path: Path) -> None:
    with file_volume(tmp_path, 64 << 20) as volume, serve(volume) as server:
        with RawClient(server.socket_path) as client:
            client.send(b"".join(raw.request(raw.READ, 0, 8 << 20) for _ in range(4)))
            wait_until(lambda: server.clients == 1)
            began = time.monotonic()
            server.stop(0.3)
            assert time.monotonic() - began < 5


def test_layers_change_under_connected_clients(bottom: FileVolume) -> None:
    layer = FaultVolume(bottom, is_async=True)
    stack = VolumeStack(bottom)
    with serve(stack) as server, RawClient(server.socket_path) as client:
        ended = threading.Event()

        def change() -> None:
            while not ended.is_set():
                stack.set_top(layer)
                stack.set_top(bottom)

        changer = threading.Thread(target=change)
        changer.start()
        for number in range(100):
            batch = b"".join(raw.write(n * 4096, bytes([number]) * 4096, cookie=n)
                             for n in range(64))  # fmt: skip
            client.send(batch)
            assert {client.take_reply()[:2] for _ in range(64)} == {(0, n) for n in range(64)}
        ended.set()
        changer.join()
        stack.set_top(bottom)
    layer.close()
    assert bottom.pread(0, 64 * 4096) == bytes([99]) * (64 * 4096)


IDLE_SERVER = """
import resource, signal, sys, threading
from pathlib import Path
from facade.engine.file_volume import FileVolume
from facade.engine.nbd_server import NbdServer
from facade.engine.volume_stack import VolumeStack
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
server = NbdServer(VolumeStack(FileVolume(sys.argv[1])), Path(sys.argv[2]))
server.start()
print("ready", flush=True)
sys.stdin.readline()
server.stop()
"""


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.parametrize("is_used", [False, True])
def test_a_thousand_idle_connections_are_cheap(tmp_path: Path, is_used: bool) -> None:
    image, path = tmp_path / "volume.img", tmp_path / "s"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    command = [sys.executable, "-c", IDLE_SERVER, str(image), str(path)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ)
    clients: list[RawClient] = []
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        before = resident_bytes(server.pid)
        for _ in range(1000):
            clients.append(RawClient(path))
            if is_used:
                assert clients[-1].ask(raw.request(raw.READ, 0, 4096), 4096) == bytes(4096)
                assert clients[-1].ask(raw.write(0, bytes(100_000))) == 0
        wait_until(lambda: resident_bytes(server.pid) - before < 64 << 20, 20)
        assert clients[0].ask(raw.request(raw.READ, 0, 8), 8) == bytes(8)
    finally:
        for client in clients:
            client.socket.close()
        server.communicate(b"\n", timeout=20)
    assert server.returncode == 0
