"""Exports over TCP with TLS: who gets in, who does not, and that data comes through unharmed."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from facade.engine import nbd_client
from facade.engine.fault_volume import FaultVolume
from facade.engine.nbd_server import NbdServer
from facade.engine.volume_stack import VolumeStack
from facade.errors import ExportNobody, ExportUnavailable, VolumeBusy
from tests.engine import nbd_raw as raw
from tests.engine.nbd_raw import serve
from tests.engine.test_volume_stack import wait_until
from tests.engine.tls_makers import HOST, Authority, Exported, exporting
from tests.engine.volume_makers import file_volume

Process = subprocess.Popen[bytes]

SIZE_BYTES = 32 << 20
TOOL_TIMEOUT_S = 60
OPT_STARTTLS = 5
ACK, POLICY, INVALID, TLS_REQD, UNKNOWN = 1, *((1 << 31) + n for n in (2, 3, 5, 6))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another CA, with its own clients."""
    return Authority.make(tmp_path_factory.mktemp("other-tls"))


@pytest.fixture(params=["direct", "pending"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NbdServer]:
    folder = tmp_path / "served"
    folder.mkdir()
    with file_volume(folder, SIZE_BYTES) as bottom:
        layer = FaultVolume(bottom, is_async=request.param == "pending")
        with serve(VolumeStack(layer)) as running:
            yield running
        layer.close()


@pytest.fixture
def exported(server: NbdServer, authority: Authority) -> Iterator[Exported]:
    with exporting(server, authority.settings()) as running:
        yield running


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.img"
    path.write_bytes(random.Random(5).randbytes(SIZE_BYTES))
    return path


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run([str(word) for word in command], capture_output=True, text=True,
                          timeout=TOOL_TIMEOUT_S, check=False)  # fmt: skip


def succeed(*command: str | Path) -> str:
    ended = run(*command)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def image_of(tmp_path: Path) -> Path:
    return tmp_path / "served" / "volume.img"


class TcpClient(raw.RawClient):
    """The client made of bytes, over TCP; TLS by Python's own library."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), raw.TIMEOUT_S)
        self.greeting = self.take(18)
        self.send(struct.pack(">I", 3))

    def option(self, data: bytes) -> tuple[int, bytes]:
        self.send(data)
        _, kind, payload = self.take_option_reply()
        return kind, payload

    def start_tls(self, certificates: Path) -> None:
        assert self.option(raw.option(OPT_STARTTLS)) == (ACK, b"")
        context = ssl.create_default_context(cafile=certificates / "ca-cert.pem")
        context.load_cert_chain(certificates / "client-cert.pem", certificates / "client-key.pem")
        self.socket = context.wrap_socket(self.socket, server_hostname="127.0.0.1")


# ---- clients that we did not write ---------------------------------------------------------------


def test_nbdinfo(exported: Exported, authority: Authority) -> None:
    (export,) = json.loads(succeed("nbdinfo", "--json", exported.uri(authority.client)))["exports"]
    assert export["export-name"] == exported.name
    assert export["export-size"] == SIZE_BYTES
    assert export["can_multi_conn"] is True


def test_nbdinfo_lists_what_the_client_may_use(exported: Exported, authority: Authority) -> None:
    listed = json.loads(succeed("nbdinfo", "--list", "--json", exported.uri(authority.client)))
    assert [one["export-name"] for one in listed["exports"]] == [exported.name]


@pytest.mark.parametrize("connections", ["1", "8"])
def test_nbdcopy_both_ways(
    exported: Exported, authority: Authority, source: Path, tmp_path: Path, connections: str
) -> None:
    uri, back = exported.uri(authority.client), tmp_path / "back.img"
    succeed("nbdcopy", "-C", connections, "-R", "32", "--flush", source, uri)
    assert image_of(tmp_path).read_bytes() == source.read_bytes()
    succeed("nbdcopy", "-C", connections, uri, back)
    assert back.read_bytes() == source.read_bytes()


def qemu_options(exported: Exported, certificates: Path) -> tuple[list[str], str]:
    tls = f"tls-creds-x509,id=tls0,dir={certificates},endpoint=client"
    where = (f"driver=nbd,host=127.0.0.1,port={exported.port},export={exported.name},"
             "tls-creds=tls0")  # fmt: skip
    return ["--object", tls, "--image-opts"], where


def test_qemu_img(exported: Exported, authority: Authority, source: Path, tmp_path: Path) -> None:
    options, where = qemu_options(exported, authority.client)
    info = json.loads(succeed("qemu-img", "info", "--output=json", *options, where))
    assert info["virtual-size"] == SIZE_BYTES
    succeed("nbdcopy", source, exported.uri(authority.client))
    succeed("qemu-img", "convert", *options, "-O", "raw", where, tmp_path / "back.img")
    assert (tmp_path / "back.img").read_bytes() == source.read_bytes()


def test_qemu_io(exported: Exported, authority: Authority) -> None:
    options, where = qemu_options(exported, authority.client)
    told = succeed(
        "qemu-io", *options, "-c", "write -P 0xa5 1000 70000", "-c", "read -P 0xa5 1000 70000",
        "-c", "write -z 4096 8192", "-c", "read -P 0 4096 8192", "-c", "discard 65536 4096",
        "-c", "write -f -P 7 1M 5M", "-c", "read -P 7 1M 5M", "-c", "flush",
        "-c", "aio_write -P 3 8M 1M", "-c", "aio_write -P 4 9M 64k", "-c", "aio_flush",
        "-c", "read -P 3 8M 1M", where,
    )  # fmt: skip
    assert "Pattern verification failed" not in told


@contextmanager
def nbdkit_before(exported: Exported, authority: Authority) -> Iterator[tuple[str, Process]]:
    """Serve the export without TLS, for fio, whose libnbd may not read certificates."""
    if shutil.which("nbdkit") is None:
        pytest.skip("nbdkit is not installed")
    with tempfile.TemporaryDirectory(prefix="nbd-") as folder:
        path = Path(folder) / "s"
        proxy = subprocess.Popen(
            ["nbdkit", "-f", "-t", "32", "-U", str(path), "nbd", "tls=require",
             f"tls-certificates={authority.client}",
             f"uri=nbds://{exported.settings.listen}/{exported.name}"]
        )  # fmt: skip
        try:
            wait_until(path.exists)
            yield f"nbd+unix:///?socket={path}", proxy
        finally:
            proxy.terminate()
            proxy.wait(10)


@pytest.mark.slow
@pytest.mark.parametrize("mix", [["--bs=4k", "--iodepth=32"], ["--bsrange=512-128k", "--iodepth=8"],
                                 ["--bs=1m", "--iodepth=8"]])  # fmt: skip
def test_fio_verifies(
    exported: Exported, authority: Authority, tmp_path: Path, mix: list[str]
) -> None:
    with nbdkit_before(exported, authority) as (uri, _):
        succeed("fio", "--name=verify", f"--aux-path={tmp_path}", "--ioengine=nbd", f"--uri={uri}",
                "--rw=randwrite", "--size=8M", "--verify=crc32c", "--verify_fatal=1",
                "--do_verify=1", *mix)  # fmt: skip


def test_libnbd_large_and_small(exported: Exported, authority: Authority) -> None:
    nbd = pytest.importorskip("nbd", reason="python3-libnbd is not importable")
    handle = nbd.NBD()
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(exported.uri(authority.client))
    assert handle.get_tls_negotiated()
    assert handle.get_structured_replies_negotiated()
    data = os.urandom(24 << 20)
    handle.pwrite(data, 12_345, nbd.CMD_FLAG_FUA)
    assert handle.pread(24 << 20, 12_345) == data
    assert handle.pread(1, 12_345) == data[:1]
    handle.zero(8192, 16_384)
    assert handle.pread(8192, 16_384) == bytes(8192)
    handle.shutdown()


# ---- who does not get in -------------------------------------------------------------------------


def test_client_without_a_certificate(exported: Exported, authority: Authority) -> None:
    ended = run("nbdinfo", exported.uri(authority.folder / HOST))  # a CA, no client certificate
    assert ended.returncode != 0
    wait_until(lambda: exported.events)
    (name, subject, data) = exported.events[0]
    assert (name, subject) == ("tls_refused", HOST)
    assert "did not return a certificate" in data["reason"]


def test_client_of_another_ca(
    exported: Exported, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(stranger.client, mixed)
    shutil.copy(authority.client / "ca-cert.pem", mixed)  # it trusts us, we do not trust it
    assert run("nbdinfo", exported.uri(mixed)).returncode != 0
    wait_until(lambda: exported.events)
    assert "certificate is not accepted" in exported.events[0][2]["reason"]


def test_client_that_does_not_trust_us(exported: Exported, stranger: Authority) -> None:
    ended = run("nbdinfo", exported.uri(stranger.client))
    assert ended.returncode != 0
    assert "TLS" in ended.stderr or "certificate" in ended.stderr


def test_client_whose_certificate_has_expired(exported: Exported, authority: Authority,
                                              request: pytest.FixtureRequest) -> None:  # fmt: skip
    folder = authority.other_client(f"late-{request.node.name[-9:-1]}", days=-1)
    assert run("nbdinfo", exported.uri(folder)).returncode != 0
    wait_until(lambda: exported.events)
    assert "expired" in exported.events[0][2]["reason"]


def test_client_that_is_not_on_the_list(
    exported: Exported, authority: Authority, caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    folder = authority.other_client(f"nobody-{request.node.name[-9:-1]}")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with TcpClient(exported.port) as client:
                client.start_tls(folder)
                kind, told = client.option(raw.option(raw.OPT_GO, raw.go_data(b"volume.img")))
                assert kind == POLICY
                assert b"is not on the list of volume.img" in told
        wait_until(lambda: len(caplog.records) == 2)
    assert "refused nobody-" in caplog.messages[0]
    assert [(name, subject) for name, subject, _ in exported.events] == [
        ("export_refused", "volume.img")
    ]
    listed = json.loads(succeed("nbdinfo", "--list", "--json", exported.uri(folder)))
    assert listed["exports"] == []


def test_a_dns_name_counts_as_well(exported: Exported, authority: Authority,
                                   request: pytest.FixtureRequest) -> None:  # fmt: skip
    folder = authority.other_client(f"any-{request.node.name[-9:-1]}",
                                    extension="subjectAltName=DNS:backup.example")  # fmt: skip
    assert run("nbdinfo", exported.uri(folder)).returncode != 0
    exported.exports.add(exported.server, False, ("backup.example",))
    succeed("nbdinfo", exported.uri(folder))
    assert run("nbdinfo", exported.uri(authority.client)).returncode != 0


def test_plain_client_on_the_tls_port(exported: Exported) -> None:
    assert run("nbdinfo", f"nbd://{exported.settings.listen}/{exported.name}").returncode != 0
    with TcpClient(exported.port) as client:
        for option in (raw.OPT_LIST, raw.OPT_INFO, raw.OPT_GO, raw.OPT_STRUCTURED, 11, 77):
            kind, _ = client.option(raw.option(option, raw.go_data(exported.name.encode())))
            assert kind == TLS_REQD
        assert client.option(raw.option(OPT_STARTTLS, b"x"))[0] == INVALID
        assert client.option(raw.option(raw.OPT_ABORT))[0] == ACK
        assert client.is_ended()
    with TcpClient(exported.port) as client:
        client.send(raw.option(raw.OPT_EXPORT_NAME, exported.name.encode()))
        assert client.is_ended()


def test_long_options_before_tls_are_no_exception(exported: Exported) -> None:
    with TcpClient(exported.port) as client:
        assert client.option(raw.option(raw.OPT_INFO, bytes(100_000)))[0] == TLS_REQD


def test_plaintext_after_starttls_is_an_attack(exported: Exported) -> None:
    with TcpClient(exported.port) as client:
        client.send(raw.option(OPT_STARTTLS) + raw.option(raw.OPT_LIST))
        assert client.is_ended()  # not even an acknowledgement


def test_garbage_instead_of_a_client_hello(exported: Exported) -> None:
    with TcpClient(exported.port) as client:
        assert client.option(raw.option(OPT_STARTTLS))[0] == ACK
        client.send(random.Random(1).randbytes(5000))
        with pytest.raises(EOFError):
            client.take(10_000)  # an alert at most
    assert_serves(exported)


def test_what_was_agreed_on_before_tls_is_void(exported: Exported, authority: Authority) -> None:
    with TcpClient(exported.port) as client:
        client.start_tls(authority.client)
        assert client.option(raw.option(OPT_STARTTLS))[0] == INVALID
        asked = raw.meta_data(("base:allocation",), exported.name.encode())
        # Structured replies are not agreed on under TLS, so contexts are refused.
        assert client.option(raw.option(raw.OPT_SET_META, asked))[0] == INVALID


def test_no_export_is_the_default(exported: Exported, authority: Authority) -> None:
    with TcpClient(exported.port) as client:
        client.start_tls(authority.client)
        kind, told = client.option(raw.option(raw.OPT_GO, raw.go_data(b"")))
        assert kind == UNKNOWN
        assert b"name the export" in told
        assert client.option(raw.option(raw.OPT_GO, raw.go_data(b"other")))[0] == UNKNOWN


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_stalled_tls_handshake_ends(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(nbd_client, "HANDSHAKE_TIMEOUT_S", 0.3)
    with TcpClient(exported.port) as client:
        assert client.option(raw.option(OPT_STARTTLS))[0] == ACK
        client.send(sent)
        began = time.monotonic()
        assert client.is_ended()
        assert time.monotonic() - began < 5


def test_old_tls_is_refused(exported: Exported, authority: Authority) -> None:
    with TcpClient(exported.port) as client:
        assert client.option(raw.option(OPT_STARTTLS))[0] == ACK
        context = ssl.create_default_context(cafile=authority.client / "ca-cert.pem")
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.load_cert_chain(
            authority.client / "client-cert.pem", authority.client / "client-key.pem"
        )
        # 1.2 is the oldest that is served, with forward secrecy and AEAD alone.
        client.socket = context.wrap_socket(client.socket, server_hostname="127.0.0.1")
        version, cipher = client.socket.version(), client.socket.cipher()
        assert version == "TLSv1.2"
        assert cipher is not None
        assert cipher[0].startswith("ECDHE")
        client.send(raw.option(raw.OPT_GO, raw.go_data(exported.name.encode())))
        while client.take_option_reply()[1] != ACK:
            pass
        assert client.ask(raw.write(0, b"over 1.2")) == 0
        assert client.ask(raw.request(raw.READ, 0, 8), 8) == b"over 1.2"


def assert_serves(exported: Exported) -> None:
    authority = Authority(exported.settings.certificate.parent.parent)
    succeed("nbdinfo", exported.uri(authority.client))


# ---- the data path under TLS ---------------------------------------------------------------------


def transmission(exported: Exported, authority: Authority) -> TcpClient:
    client = TcpClient(exported.port)
    client.start_tls(authority.client)
    client.send(raw.option(raw.OPT_GO, raw.go_data(exported.name.encode())))
    while client.take_option_reply()[1] != ACK:
        pass
    return client


def test_requests_of_one_byte_records(exported: Exported, authority: Authority) -> None:
    with transmission(exported, authority) as client:
        for byte in raw.write(5, b"slowly"):
            client.send(bytes([byte]))
        assert client.take_reply() == (0, 1, b"")
        assert client.ask(raw.request(raw.READ, 5, 6), 6) == b"slowly"


def test_many_requests_in_one_record(exported: Exported, authority: Authority) -> None:
    with transmission(exported, authority) as client:
        client.send(b"".join(raw.write(n * 100, bytes([n]) * 100, cookie=n) for n in range(100)))
        found = {client.take_reply()[1] for _ in range(100)}
        assert found == set(range(100))
        client.send(b"".join(raw.request(raw.READ, n * 100, 100, cookie=n) for n in range(100)))
        for _ in range(100):
            error, cookie, data = client.take_reply(100)
            assert (error, data) == (0, bytes([cookie]) * 100)


def test_a_client_that_reads_late_gets_everything(exported: Exported, authority: Authority) -> None:
    """Replies fill the socket and our buffers; what is stuck must not wait for another request."""
    with transmission(exported, authority) as client:
        pattern = random.Random(2).randbytes(1 << 20)
        for number in range(16):
            assert client.ask(raw.write(number << 20, pattern)) == 0
        client.send(b"".join(raw.request(raw.READ, n << 20, 1 << 20, cookie=n) for n in range(16)))
        time.sleep(0.5)
        cookies = []
        for _ in range(16):
            error, cookie, data = client.take_reply(1 << 20)
            assert error == 0
            assert data == pattern
            cookies.append(cookie)
        assert sorted(cookies) == list(range(16))


def test_many_connections_at_once(exported: Exported, authority: Authority) -> None:
    failures: list[str] = []

    def work(number: int) -> None:
        dice = random.Random(number)
        try:
            with transmission(exported, authority) as client:
                for _ in range(20):
                    data = dice.randbytes(dice.choice([1, 4096, 200_000]))
                    assert client.ask(raw.write(number << 20, data)) == 0
                    found = client.ask(raw.request(raw.READ, number << 20, len(data)), len(data))
                    assert found == data
        except Exception as error:
            failures.append(f"{number}: {error!r}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_client_killed_in_the_middle(
    exported: Exported, authority: Authority, tmp_path: Path
) -> None:
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed")
    for _ in range(3):
        with nbdkit_before(exported, authority) as (uri, proxy):
            command = ["fio", "--name=k", "--ioengine=nbd", f"--uri={uri}", "--rw=randrw",
                       "--thread", "--bs=64k", "--iodepth=32", "--size=32M", "--time_based",
                       "--runtime=30"]  # fmt: skip
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                  cwd=tmp_path) as fio:  # fmt: skip
                wait_until(lambda: exported.server.clients == 1)
                before = written_bytes()
                wait_until(lambda before=before: written_bytes() > before + (4 << 20))
                proxy.send_signal(signal.SIGKILL)
                wait_until(lambda: exported.server.clients == 0)
                fio.kill()
    assert_serves(exported)


def written_bytes() -> int:
    """What this process, which serves, has written so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


def test_stop_answers_what_was_received(exported: Exported, authority: Authority) -> None:
    with transmission(exported, authority) as client:
        client.send(raw.write(0, b"last words"))
        wait_until(lambda: bytes(image_bytes(exported, 10)) == b"last words")
        stopping = threading.Thread(target=exported.server.stop)
        stopping.start()
        assert client.take_reply() == (0, 1, b"")
        assert client.is_ended()
        stopping.join(10)
        assert not stopping.is_alive()


def image_bytes(exported: Exported, count: int) -> bytes:
    with raw.RawClient(exported.server.socket_path) as local:
        found = local.ask(raw.request(raw.READ, 0, count), count)
        assert isinstance(found, bytes)
        return found


# ---- what an administrator does ------------------------------------------------------------------


def test_taking_a_client_off_the_list_cuts_it_off(exported: Exported, authority: Authority) -> None:
    with (
        transmission(exported, authority) as remote,
        raw.RawClient(exported.server.socket_path) as local,
    ):
        exported.exports.add(exported.server, False, ("somebody-else",))
        assert remote.is_ended()
        assert local.ask(raw.request(raw.READ, 0, 1), 1) == b"\0"
        exported.exports.add(exported.server, False, ())
        assert_serves(exported)


def test_an_export_in_use_is_not_taken_away(exported: Exported, authority: Authority) -> None:
    with transmission(exported, authority) as remote:
        wait_until(lambda: exported.server.clients == 1)
        with pytest.raises(VolumeBusy):
            exported.exports.remove(exported.name)
        assert remote.ask(raw.request(raw.READ, 0, 1), 1) == b"\0"
    wait_until(lambda: exported.server.clients == 0)
    with raw.RawClient(exported.server.socket_path) as local:
        exported.exports.remove(exported.name)
        exported.exports.remove(exported.name)
        assert run("nbdinfo", exported.uri(authority.client)).returncode != 0
        assert local.ask(raw.request(raw.READ, 0, 1), 1) == b"\0"


def test_new_certificates_need_no_restart(
    exported: Exported, authority: Authority, tmp_path: Path
) -> None:
    folder = tmp_path / "tls"
    fresh = Authority.make(folder)
    settings = fresh.settings()
    with exporting(exported.server, settings) as running:
        old = transmission(running, fresh)
        assert run("nbdinfo", running.uri(authority.client)).returncode != 0
        for name in ("server-cert.pem", "server-key.pem", "ca-cert.pem"):
            shutil.copy(authority.folder / HOST / name, folder / HOST / name)
        succeed("nbdinfo", running.uri(authority.client))
        assert old.ask(raw.request(raw.READ, 0, 1), 1) == b"\0"
        settings.certificate.write_text("half a cert")
        succeed("nbdinfo", running.uri(authority.client))  # what was read before stays in use
        old.socket.close()


def test_a_key_that_everybody_can_read_is_refused(server: NbdServer, tmp_path: Path) -> None:
    settings = Authority.make(tmp_path / "tls").settings()
    settings.key.chmod(0o644)
    with pytest.raises(ExportUnavailable, match="mode 0600"), exporting(server, settings):
        pass


def test_missing_certificates_are_named(server: NbdServer, authority: Authority) -> None:
    settings = authority.settings(certificate=Path("/nowhere/cert.pem"))
    with pytest.raises(ExportUnavailable, match=r"/nowhere/cert\.pem"), exporting(server, settings):
        pass


def test_an_export_for_nobody_is_refused(server: NbdServer, authority: Authority) -> None:
    with pytest.raises(ExportNobody), exporting(server, authority.settings(clients=())):
        pass


# ---- plain exports -------------------------------------------------------------------------------


def test_plain_export_is_used_by_name_only(server: NbdServer, authority: Authority) -> None:
    with exporting(server, authority.settings(), plain=True) as exported:
        address = exported.settings.plain_listen
        succeed("nbdinfo", f"nbd://{address}/{exported.name}")
        assert run("nbdinfo", f"nbd://{address}/").returncode != 0
        listed = json.loads(succeed("nbdinfo", "--list", "--json", f"nbd://{address}/"))
        assert listed["exports"] == []
        # It is not on the other listener, nor are those of the other one here.
        exported.exports.add(server, False, ())
        assert run("nbdinfo", f"nbd://{address}/{exported.name}").returncode != 0
        succeed("nbdinfo", exported.uri(authority.client))


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_plain_export_off_the_loopback_is_refused(
    server: NbdServer, authority: Authority, address: str
) -> None:
    settings = authority.settings(plain_listen=address)
    with (
        pytest.raises(ExportUnavailable, match="loopback only"),
        exporting(server, settings, plain=True),
    ):
        pass
