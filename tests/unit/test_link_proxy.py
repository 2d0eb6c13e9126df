"""The link proxy passes bytes both ways, and cuts, stalls and restores at once."""

import socket
import threading
from collections.abc import Iterator

import pytest

from demo.link_proxy import LinkProxy

TIMEOUT_S = 5.0


class EchoServer:
    """Sends back what it gets, on every connection, until closed."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()[:2]
        self.ended = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(sock,), daemon=True).start()

    def _echo(self, sock: socket.socket) -> None:
        with sock:
            try:
                while data := sock.recv(65536):
                    sock.sendall(data)
            except OSError:
                pass
        self.ended.set()


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.listener.close()


@pytest.fixture
def proxy(echo: EchoServer) -> Iterator[LinkProxy]:
    with LinkProxy(("127.0.0.1", 0), echo.address) as running:
        yield running


def connect(proxy: LinkProxy) -> socket.socket:
    sock = socket.create_connection(proxy.address, TIMEOUT_S)
    sock.settimeout(TIMEOUT_S)
    return sock


def receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        assert piece, f"the connection ended after {len(data)} of {count} bytes"
        data += piece
    return data


def test_passes_bytes_both_ways(proxy: LinkProxy) -> None:
    sent = bytes(range(256)) * 16384
    with connect(proxy) as sock:
        writer = threading.Thread(target=sock.sendall, args=(sent,))
        writer.start()
        assert receive(sock, len(sent)) == sent
        writer.join(TIMEOUT_S)
    assert proxy.forwarded_bytes == 2 * len(sent)


def test_passes_the_end_of_one_direction(proxy: LinkProxy, echo: EchoServer) -> None:
    with connect(proxy) as sock:
        sock.sendall(b"last words")
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock, 10) == b"last words"
        assert sock.recv(1) == b""
    assert echo.ended.wait(TIMEOUT_S)


def test_cut_resets_open_connections_and_refuses_new_ones(
    proxy: LinkProxy, echo: EchoServer
) -> None:
    with connect(proxy) as sock:
        sock.sendall(b"x")
        receive(sock, 1)
        proxy.cut()
        assert proxy.connections == 0
        with pytest.raises(ConnectionError):
            sock.recv(1)
        assert echo.ended.wait(TIMEOUT_S)
    with pytest.raises(ConnectionError), connect(proxy) as late:
        late.recv(1)


def test_restore_after_cut_takes_new_connections(proxy: LinkProxy) -> None:
    proxy.cut()
    proxy.restore()
    with connect(proxy) as sock:
        sock.sendall(b"again")
        assert receive(sock, 5) == b"again"


def test_stall_keeps_bytes_until_restore(proxy: LinkProxy) -> None:
    with connect(proxy) as sock:
        sock.sendall(b"1")
        receive(sock, 1)
        proxy.stall()
        before = proxy.forwarded_bytes
        sock.sendall(b"later")
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        assert proxy.forwarded_bytes == before
        assert proxy.connections == 1
        proxy.restore()
        sock.settimeout(TIMEOUT_S)
        assert receive(sock, 5) == b"later"


def test_without_a_target_a_connection_is_reset() -> None:
    with LinkProxy(("127.0.0.1", 0)) as proxy:
        with pytest.raises(ConnectionError), connect(proxy) as sock:
            sock.recv(1)


def test_rate_limit_slows_down(proxy: LinkProxy) -> None:
    import time

    proxy.limit_rate(1_000_000)
    with connect(proxy) as sock:
        start = time.monotonic()
        sock.sendall(bytes(150_000))
        receive(sock, 150_000)
        assert time.monotonic() - start >= 0.2
