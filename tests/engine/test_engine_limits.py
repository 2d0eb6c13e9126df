"""A process that is out of descriptors serves again once it has some."""

from __future__ import annotations

import logging
import os
import resource
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from facade.engine.control import ControlServer
from facade.engine.file_volume import FileVolume
from facade.engine.link_server import LinkServer
from facade.engine.nbd_server import NbdServer
from facade.engine.volume_stack import VolumeStack
from tests.engine.harness import MIB, free_port, wait_for
from tests.engine.hosts_inside import identity

CLIENT_TIMEOUT_S = 5.0


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let every new descriptor of this process fail with EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def assert_survives(
    caplog: pytest.LogCaptureFixture, address: str | tuple[str, int], served: Callable[..., bool]
) -> None:
    """Serve `served` a connection that could not be accepted at first, and then a second one."""
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    threads = threading.active_count()
    with socket.socket(family) as first, socket.socket(family) as second:
        for client in (first, second):
            client.settimeout(CLIENT_TIMEOUT_S)
        with caplog.at_level(logging.WARNING), no_descriptors():
            first.connect(address)
            wait_for(lambda: "accept" in caplog.text, 5, "a refused accept")
        assert served(first)
        second.connect(address)
        assert served(second)
    # What the server holds for these clients must be closed before the next test counts.
    wait_for(lambda: threading.active_count() <= threads, 5, "the end of the connections")


def test_control_socket(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tempfile.TemporaryDirectory(prefix="tr-") as folder:
        path = Path(folder) / "engine.sock"
        server = ControlServer(path, {"ping": lambda: "pong"})
        server.start()

        def served(client: socket.socket) -> bool:
            client.sendall(b'{"id":1,"method":"ping"}\n')
            return b"pong" in client.recv(4096)

        try:
            assert_survives(caplog, str(path), served)
        finally:
            server.stop()


def test_link(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    server = LinkServer(f"127.0.0.1:{port}", identity("b"), lambda *_: None)
    server.start()

    def served(client: socket.socket) -> bool:
        client.sendall(b"x" * 64)  # no frame: a stranger is shown the door
        try:
            return client.recv(1) == b""
        except ConnectionResetError:
            return True

    try:
        assert_survives(caplog, ("127.0.0.1", port), served)
    finally:
        server.stop()


def test_export(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(MIB))
    volume = FileVolume(path)
    with tempfile.TemporaryDirectory(prefix="tr-") as folder:
        server = NbdServer(VolumeStack(volume), Path(folder) / "s")
        server.start()
        try:
            assert_survives(
                caplog, str(Path(folder) / "s"), lambda client: client.recv(8) == b"NBDMAGIC"
            )
        finally:
            server.stop(5)
            volume.close()
