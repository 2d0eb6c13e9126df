"""Clients over TCP that trickle under TLS, or vanish without a word: cut off, and no harm done."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from facade.engine import nbd_buffers, nbd_client, nbd_listener, nbd_outbox
from tests.engine import nbd_raw as raw
from tests.engine.harness import free_port
from tests.engine.nbd_raw import serve
from tests.engine.test_nbd_tls import ACK, OPT_STARTTLS, TcpClient
from tests.engine.test_volume_stack import wait_until
from tests.engine.tls_makers import Authority, Exported, exporting
from tests.engine.volume_makers import file_volume

SIZE_BYTES = 64 << 20
TIMEOUT_S = 0.5
# The engine looks at the clock every two seconds.
CUT_OFF_WITHIN_S = 12.0
LONG = 8 << 20
CLONE_NEWNET = 0x40000000
NEAR, FAR = "10.77.0.1", "10.77.0.2"
Result = TypeVar("Result")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls"))


class SlowTls:
    """A TLS client whose ciphertext is at hand before it is sent."""

    def __init__(self, plain: socket.socket, certificates: Path) -> None:
        self.plain = plain
        context = ssl.create_default_context(cafile=certificates / "ca-cert.pem")
        context.check_hostname = False
        context.load_cert_chain(certificates / "client-cert.pem", certificates / "client-key.pem")
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self.incoming, self.outgoing)

    def hello(self) -> bytes:
        """The client's first flight."""
        with pytest.raises(ssl.SSLWantReadError):
            self.session.do_handshake()
        return self.outgoing.read()

    def handshake(self) -> None:
        while True:
            try:
                self.session.do_handshake()
            except ssl.SSLWantReadError:
                self.plain.sendall(self.outgoing.read())
                self.incoming.write(self.plain.recv(65536))
            else:
                self.plain.sendall(self.outgoing.read())
                return

    def seal(self, data: bytes) -> bytes:
        """`data` as ciphertext, in records as long as they may be."""
        while data:
            data = data[self.session.write(data) :]
        return self.outgoing.read()

    def take(self, length: int) -> bytes:
        found = b""
        while len(found) < length:
            try:
                found += self.session.read(length - len(found))
            except ssl.SSLWantReadError:
                self.incoming.write(self.plain.recv(65536))
        return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(nbd_client, "HANDSHAKE_TIMEOUT_S", TIMEOUT_S)
    nbd_outbox.limit_client_silence(TIMEOUT_S)
    yield
    nbd_outbox.limit_client_silence(60)


@pytest.fixture
def exported(tmp_path: Path, authority: Authority, quick: None) -> Iterator[Exported]:
    with (
        file_volume(tmp_path, SIZE_BYTES) as volume,
        serve(volume) as server,
        exporting(server, authority.settings()) as running,
    ):
        yield running


@pytest.fixture
def other(exported: Exported, authority: Authority) -> Iterator[raw.RawClient]:
    """A client that is to be served all the while."""
    with raw.RawClient(exported.server.socket_path) as client:
        assert client.ask(raw.request(raw.FLUSH)) == 0
        yield client


def connected(plain: socket.socket, exported: Exported, authority: Authority) -> SlowTls:
    """A client in the transmission phase, over a connection on which nothing was said yet."""
    assert plain.recv(18, socket.MSG_WAITALL).startswith(b"NBDMAGICIHAVEOPT")
    plain.sendall(struct.pack(">I", 3) + raw.option(OPT_STARTTLS))
    assert struct.unpack(">QIII", plain.recv(20, socket.MSG_WAITALL))[2] == ACK
    tls = SlowTls(plain, authority.client)
    tls.handshake()
    tls.plain.sendall(tls.seal(raw.option(raw.OPT_GO, raw.go_data(exported.name.encode()))))
    kind = 0
    while kind != ACK:
        _, _, kind, length = struct.unpack(">QIII", tls.take(20))
        tls.take(length)
    # Who is answered is counted.
    tls.plain.sendall(tls.seal(raw.request(raw.FLUSH)))
    tls.take(16)
    return tls


@pytest.fixture
def slow(exported: Exported, authority: Authority) -> Iterator[SlowTls]:
    """A client in the transmission phase."""
    with socket.create_connection(("127.0.0.1", exported.port), raw.TIMEOUT_S) as plain:
        yield connected(plain, exported, authority)


def assert_cut_off(
    exported: Exported, other: raw.RawClient, go_on: Callable[[], object] = lambda: None
) -> None:
    """The slow client is cut off in time, and until then the other one is served."""
    until = time.monotonic() + CUT_OFF_WITHIN_S
    while exported.server.clients > 1:
        assert time.monotonic() < until, "the client is still connected"
        assert other.ask(raw.request(raw.READ, 0, 8), 8) == bytes(8)
        try:
            go_on()
        except (BrokenPipeError, ConnectionResetError):
            wait_until(lambda: exported.server.clients == 1, CUT_OFF_WITHIN_S)


# ---- slow under TLS ------------------------------------------------------------------------------


def test_a_tls_handshake_that_trickles(exported: Exported, authority: Authority) -> None:
    with TcpClient(exported.port) as client:
        assert client.option(raw.option(OPT_STARTTLS))[0] == ACK
        until = time.monotonic() + CUT_OFF_WITHIN_S
        try:
            for byte in SlowTls(client.socket, authority.client).hello():
                assert time.monotonic() < until, "the client is still connected"
                client.send(bytes([byte]))
                time.sleep(0.02)
        except (BrokenPipeError, ConnectionResetError):
            return
        raise AssertionError("the client was heard to the end")


@pytest.mark.parametrize("length", [100, 60_000, 1 << 20])
def test_requests_that_trickle_in_records_of_one_byte(
    exported: Exported, other: raw.RawClient, slow: SlowTls, length: int
) -> None:
    rest = iter(raw.write(0, bytes(length)))

    def trickle() -> None:
        slow.plain.sendall(slow.seal(bytes([next(rest)])))
        time.sleep(0.1 if length == 100 else 0.01)

    assert_cut_off(exported, other, trickle)


@pytest.mark.parametrize("length", [100, 60_000, 1 << 20])
@pytest.mark.parametrize("begun_bytes", [10, 400])
def test_a_record_that_trickles(
    exported: Exported, other: raw.RawClient, slow: SlowTls, length: int, begun_bytes: int
) -> None:
    stream = slow.seal(raw.write(0, bytes(length)))
    begun_bytes = min(begun_bytes, len(stream) - 40)
    rest = iter(stream[begun_bytes:])
    slow.plain.sendall(stream[:begun_bytes])

    def trickle() -> None:
        slow.plain.sendall(bytes([next(rest)]))
        time.sleep(0.3 if length == 100 else 0.01)

    assert_cut_off(exported, other, trickle)


@pytest.mark.parametrize("left_bytes", [1, 50])
def test_silence_in_the_middle_of_a_record(
    exported: Exported, other: raw.RawClient, slow: SlowTls, left_bytes: int
) -> None:
    slow.plain.sendall(slow.seal(raw.write(0, bytes(500)))[:-left_bytes])
    assert_cut_off(exported, other)


@pytest.mark.parametrize("sips", [False, True])
def test_replies_that_are_not_taken(
    exported: Exported, other: raw.RawClient, slow: SlowTls, sips: bool
) -> None:
    before = nbd_buffers.shared_bytes()
    asked = b"".join(raw.request(raw.READ, 0, LONG, cookie=n) for n in range(20))
    slow.plain.sendall(slow.seal(asked))

    def sip() -> None:
        if sips:
            slow.plain.recv(1)
            time.sleep(0.01)

    assert_cut_off(exported, other, sip)
    wait_until(lambda: nbd_buffers.shared_bytes() <= before)


def test_a_tls_client_that_is_slow_but_steady_is_served(exported: Exported, slow: SlowTls) -> None:
    piece = 128 << 10
    data = random.Random(3).randbytes(2 << 20)
    stream = slow.seal(raw.write(0, data))
    for at in range(0, len(stream), piece):
        slow.plain.sendall(stream[at : at + piece])
        time.sleep(0.1)
    assert slow.take(16) == struct.pack(">IIQ", raw.SIMPLE_REPLY_MAGIC, 0, 1)
    slow.plain.sendall(slow.seal(raw.request(raw.READ, 0, len(data))))
    slow.take(16)
    for at in range(0, len(data), piece):
        assert slow.take(piece) == data[at : at + piece]
        time.sleep(0.1)


def test_a_tls_client_that_asks_for_nothing_stays(exported: Exported, slow: SlowTls) -> None:
    slow.plain.settimeout(6 * TIMEOUT_S)
    with pytest.raises(TimeoutError):
        slow.take(1)
    slow.plain.settimeout(raw.TIMEOUT_S)
    slow.plain.sendall(slow.seal(raw.request(raw.READ, 0, 8)))
    assert slow.take(24)[16:] == bytes(8)


# ---- gone without a word -------------------------------------------------------------------------


class Machine:
    """A thread in a network of its own; what it opens there stays there."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.run(self._leave)
        self.thread_id = self.run(threading.get_native_id)

    @staticmethod
    def _leave() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")

    def run(self, body: Callable[[], Result]) -> Result:
        return self.thread.submit(body).result(30)

    def ip(self, *words: str) -> None:
        self.run(lambda: subprocess.run(["ip", *words], check=True, capture_output=True))


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    """Two machines with a cable between them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("networks of one's own want root and iproute2")
    near, far = Machine(), Machine()
    try:
        near.ip("link", "add", "near0", "type", "veth", "peer", "name", "far0")
        near.ip("link", "set", "far0", "netns", str(far.thread_id))
        for machine, device, address in ((near, "near0", NEAR), (far, "far0", FAR)):
            machine.ip("address", "add", f"{address}/24", "dev", device)
            machine.ip("link", "set", device, "up")
        yield near, far
    finally:
        for machine in (near, far):
            machine.thread.shutdown()


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("how", ["the cable is cut", "the machine is gone"])
def test_a_client_that_vanishes(
    machines: tuple[Machine, Machine],
    tmp_path: Path,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    busy: bool,
    how: str,
) -> None:
    """No FIN comes: the system asks, or waits for what it has sent to be acknowledged."""
    near, far = machines
    monkeypatch.setattr(nbd_listener, "KEEPALIVE_IDLE_S", 1)
    monkeypatch.setattr(nbd_listener, "KEEPALIVE_INTERVAL_S", 1)
    monkeypatch.setattr(nbd_listener, "KEEPALIVE_PROBES", 2)
    monkeypatch.setattr(nbd_listener, "UNACKNOWLEDGED_TIMEOUT_MS", 3000)
    port = free_port()
    settings = authority.settings(listen=f"{NEAR}:{port}", advertise=f"{NEAR}:{port}")
    with ExitStack() as stack:
        volume = stack.enter_context(file_volume(tmp_path, SIZE_BYTES))
        server = stack.enter_context(serve(volume))
        exported = near.run(lambda: stack.enter_context(exporting(server, settings)))
        plain = stack.enter_context(far.run(lambda: socket.create_connection((NEAR, port), 10)))
        client = connected(plain, exported, authority)
        shared_bytes = nbd_buffers.shared_bytes()
        if busy:
            client.plain.sendall(client.seal(raw.request(raw.READ, 0, LONG) * 8))
            wait_until(lambda: nbd_buffers.shared_bytes() > shared_bytes)
        assert server.clients == 1
        if how == "the cable is cut":
            far.ip("link", "set", "far0", "down")
        else:
            far.ip("address", "flush", "dev", "far0")
        wait_until(lambda: server.clients == 0, 20)
        wait_until(lambda: nbd_buffers.shared_bytes() <= shared_bytes)


def test_a_client_that_is_only_silent_stays(
    machines: tuple[Machine, Machine],
    tmp_path: Path,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near, far = machines
    for name in ("KEEPALIVE_IDLE_S", "KEEPALIVE_INTERVAL_S", "KEEPALIVE_PROBES"):
        monkeypatch.setattr(nbd_listener, name, 1)
    monkeypatch.setattr(nbd_listener, "UNACKNOWLEDGED_TIMEOUT_MS", 2000)
    port = free_port()
    settings = authority.settings(listen=f"{NEAR}:{port}", advertise=f"{NEAR}:{port}")
    with ExitStack() as stack:
        volume = stack.enter_context(file_volume(tmp_path, SIZE_BYTES))
        server = stack.enter_context(serve(volume))
        exported = near.run(lambda: stack.enter_context(exporting(server, settings)))
        plain = stack.enter_context(far.run(lambda: socket.create_connection((NEAR, port), 10)))
        client = connected(plain, exported, authority)
        plain.settimeout(6)
        with pytest.raises(TimeoutError):
            client.take(1)
        plain.sendall(client.seal(raw.request(raw.READ, 0, 8)))
        assert client.take(24)[16:] == bytes(8)
