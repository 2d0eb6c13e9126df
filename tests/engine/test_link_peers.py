"""Peers that are hostile or broken: what they say ends their link, and nothing but their link."""

from __future__ import annotations

import errno
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from facade.bitmap_size import bitmap_bytes
from facade.engine import autosync, link_connection, replica_source, states
from facade.engine.bitmap_header import BitmapHeader
from facade.engine.change_map import ChangeMap
from facade.engine.copier import Copier
from facade.engine.file_volume import FileVolume
from facade.engine.job import DONE, FAILED
from facade.engine.link_connection import LinkConnection
from facade.engine.link_errors import LinkBroken
from facade.engine.link_sender import LinkSender
from facade.engine.link_wire import CONTROL, HEADER_SIZE_BYTES, pack_frame, unpack_frame
from facade.engine.link_wire import payload_bytes as payload_bytes_of
from facade.engine.replication import ReplicationLayer
from tests.engine.fake_peers import FakeSource, FakeTarget, Frame, Wire, towards
from tests.engine.harness import KIB, MIB, wait_for
from tests.engine.hosts_inside import (
    SIZE_BYTES,
    Host,
    ends,
    full_journal,
    hosts,
    in_thread,
    wait_off,
)

DEEP_JSON = b"[" * 60_000
RING_BYTES = 16 << 20


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autosync, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(replica_source, "CANCEL_GRACE_S", 0.2)


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Host]:
    with hosts(tmp_path, "a") as [host]:
        yield host


@pytest.fixture
def secondary(tmp_path: Path) -> Iterator[Host]:
    with hosts(tmp_path, "b") as [host]:
        host.add(uuid.uuid4().hex, "secondary", "a", "127.0.0.1:1")
        yield host


# ---- a source that our target cannot trust -----------------------------------------------------


def says_synced_twice(source: FakeSource) -> None:
    source.start()
    for seq in (1, 2):
        source.say(seq, type="synced")


def says_deep_json(source: FakeSource) -> None:
    source.start()
    source.wire.control(DEEP_JSON, seq=1)


def says_no_json(source: FakeSource) -> None:
    source.start()
    source.wire.control(b"\xff\xfe", seq=1)


def refuses_with_no_object(source: FakeSource) -> None:
    source.wire.connection.send("refused", error="x")


def starts_with_no_object(source: FakeSource) -> None:
    source.wire.control(b'["start"]')


def leaves_without_reason(source: FakeSource) -> None:
    source.start()
    source.say(1, type="leaving", reason={"a": [1]})


def skips_a_place(source: FakeSource) -> None:
    source.start()
    source.wire.control(b'{"type":"synced"}', seq=2)


@pytest.mark.parametrize(
    "play",
    [
        says_synced_twice,
        says_deep_json,
        says_no_json,
        refuses_with_no_object,
        starts_with_no_object,
        leaves_without_reason,
        skips_a_place,
    ],
    ids=lambda play: play.__name__,
)
def test_target_is_free_again_after(secondary: Host, play: object) -> None:
    with FakeSource(secondary) as source:
        play(source)  # type: ignore[operator]
    assert_free(secondary)


@pytest.mark.parametrize("moment", ["start", "synced"])
def test_target_is_free_again_after_its_journal_was_full(secondary: Host, moment: str) -> None:
    with FakeSource(secondary) as source:
        if moment == "synced":
            source.start()
        with full_journal(secondary, "sides"):
            if moment == "start":
                with pytest.raises(LinkBroken):
                    source.start()
            else:
                source.say(1, type="synced")
            wait_for(lambda: secondary.spec.set_id not in secondary.replicas._targets)
    assert_free(secondary)


def assert_free(host: Host) -> None:
    """The side logs, takes applications' writes, obeys `log`, and takes a new synchronisation."""
    wait_off(host)
    host.write(0, b"x" * 4 * KIB)
    assert ends(in_thread(host.log), 5)
    with FakeSource(host, keep="primary") as source:
        source.start()
        source.say(1, type="synced")
        wait_for(lambda: host.state == states.REPLICATING, what="replicating after a new start")
        assert host.replica.flags == {"applying"}
    wait_off(host)


# ---- a target that our source cannot trust -----------------------------------------------------


def test_deep_json_from_the_target_costs_the_link_nothing_else(primary: Host) -> None:
    a = primary
    with FakeTarget("b") as target:
        towards(a, target, autosync=True)
        assert a.sync("full").state == DONE
        target.wires[0].control(DEEP_JSON)
        target.wires[0].control(b"\xff\xfe")
        a.write(0, b"x" * 4 * KIB)
        target.cut()
        wait_for(lambda: len(target.wires) == 2, what="a second link, by itself")
        wait_for(lambda: a.state == states.REPLICATING, what="replicating again")
        a.log()
        assert a.is_off()


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (2**64 - (1 << 19), (1 << 19) + 8),  # offset and size wrap to the map's beginning
        (2**64 - 4096, 4096),
        (4096, 4096),
        (8, 4096),
    ],
)
def test_piece_of_a_map_out_of_its_place(primary: Host, offset: int, size: int) -> None:
    a = primary

    def exchange(wire: Wire) -> None:
        connection = wire.connection
        connection.expect("attach")
        connection.send("attached", map_bytes=a.replica.changes.map_bytes, dirty_blocks=0)
        connection.send_map_piece(offset, b"\xff" * size, last=True)
        wire.take()

    with FakeTarget("b", exchange=exchange) as target:
        towards(a, target)
        job = a.sync("full")
    assert job.state == FAILED
    assert isinstance(job.error, LinkBroken)
    assert a.is_off()


@pytest.mark.parametrize("offset", [2**64 - (1 << 20), 2**64 - 4096, 8192, 4100])
def test_map_takes_no_piece_past_its_end(tmp_path: Path, offset: int) -> None:
    changes = new_map(tmp_path, SIZE_BYTES, 32 * KIB)
    changes.format(header_of(changes, 32 * KIB), False)
    with pytest.raises(IndexError):
        changes.merge(offset, b"\xff" * ((1 << 20) + 8 if offset > 2**63 else 4096))
    assert changes.dirty_blocks == 0
    changes.close()


def test_error_frame_may_carry_any_number(primary: Host) -> None:
    a = primary
    size_bytes = 64 * MIB

    def behave(wire: Wire, frame: Frame) -> bool:
        if frame.payload[:1] == b"X":
            wire.error(frame.seq - 1, errno.EAGAIN)
            return True
        return False

    with FakeTarget("b", behave) as target:
        towards(a, target, size_bytes=size_bytes)
        assert a.sync("full").state == DONE
        # More than the ring holds, so that the writer waits for room when the error comes.
        writer = in_thread(lambda: a.write(0, b"X" * (32 * MIB)))
        assert ends(writer, 10)
        wait_off(a)
        assert a.source.sender is not None
        assert a.source.sender.dead_errno == errno.EPROTO
        assert a.replica.changes.dirty_blocks == 32 * MIB // a.spec.block_bytes
        assert ends(in_thread(lambda: a.replicas.disable(a.spec.set_id)), 5)
        assert a.volume.stack.top is a.volume.file
        assert a.volume.sets == set()


# ---- slow hands --------------------------------------------------------------------------------


def trickle(sock: socket.socket, over: threading.Event) -> None:
    """Send a frame that never ends, a byte at a time."""
    whole = pack_frame(CONTROL, b"{" * 60_000)
    for at in range(len(whole)):
        if over.wait(0.05):
            return
        try:
            sock.sendall(whole[at : at + 1])
        except OSError:
            return


def test_dialer_that_trickles_is_cut_off(secondary: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_connection, "EXCHANGE_TIMEOUT_S", 0.5)
    name, _, port = secondary.address.rpartition(":")
    over = threading.Event()
    with socket.create_connection((name, int(port)), 5) as sock:
        sender = in_thread(lambda: trickle(sock, over))
        try:
            assert sock.recv(1) == b""
        except ConnectionResetError:
            pass  # the end, with bytes that nobody has read
        finally:
            over.set()
            assert ends(sender)


def test_listener_that_trickles_is_given_up(primary: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    a, over = primary, threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"

    def answer() -> None:
        sock, _ = listener.accept()
        with sock:
            trickle(sock, over)

    peer = in_thread(answer)
    monkeypatch.setattr(link_connection, "EXCHANGE_TIMEOUT_S", 0.5)
    a.add(uuid.uuid4().hex, "primary", "b", address)
    began = time.monotonic()
    job = a.sync("full")
    over.set()
    assert job.state == FAILED
    assert isinstance(job.error, LinkBroken)
    assert time.monotonic() - began < 5
    assert ends(peer)
    listener.close()


# ---- the ring's end ----------------------------------------------------------------------------


def new_map(folder: Path, size_bytes: int, block_bytes: int) -> ChangeMap:
    path = folder / "bitmap"
    path.write_bytes(bytes(bitmap_bytes(size_bytes, block_bytes)))
    return ChangeMap(FileVolume(path), size_bytes, block_bytes)


def header_of(changes: ChangeMap, block_bytes: int) -> BitmapHeader:
    return BitmapHeader(
        bytes(16), "primary", "logging", frozenset(), block_bytes, changes.size_bytes
    )


def test_frame_that_ends_with_the_ring_is_not_sent_with_the_next_one(tmp_path: Path) -> None:
    block_bytes, size_bytes = 4 * KIB, 32 * MIB
    # 511 frames of 8 blocks and one of 3, headers included, fill the ring to its last byte.
    lengths = [8] * 511 + [3] + [8] * 20
    assert sum(HEADER_SIZE_BYTES + n * block_bytes for n in lengths[:512]) == RING_BYTES
    path = tmp_path / "volume.img"
    path.write_bytes(bytes(range(1, 256)) * (size_bytes // 255) + bytes([7]) * (size_bytes % 255))
    volume = FileVolume(path)
    changes = new_map(tmp_path, size_bytes, block_bytes)
    changes.format(header_of(changes, block_bytes), False)
    block = 0
    for n in lengths:
        changes.mark(block, block + n - 1)
        block += n + 1
    layer = ReplicationLayer(volume, changes, lambda _: False)
    near, far = socket.socketpair()
    far.settimeout(5)
    sender = LinkSender(near.fileno(), changes, 30, 10)
    layer.attach(sender)
    changes.plan_copy()
    # The ring is filled before anything is sent: the rest waits for room.
    copier = Copier(layer)
    copier.copy(sum(lengths[:512]) * block_bytes)
    assert sender.in_flight == 512
    threads = [in_thread(sender.run_sender), in_thread(lambda: copier.copy(size_bytes))]
    try:
        data = LinkConnection.__new__(LinkConnection)
        data.sock, data.peer, data.deadline_s, data.received_bytes = far, "", float("inf"), 0
        for number, n in enumerate(lengths, 1):
            if number == 40:
                # Room at the ring's front: now frames stand behind the one that ends the ring.
                wait_for(lambda: sender.in_flight > 512, what="frames past the ring's end")
            header = data._receive(HEADER_SIZE_BYTES)
            frame = Frame(*unpack_frame(header + data._receive(payload_bytes_of(header))))
            assert (frame.seq, frame.length) == (number, n * block_bytes)
    finally:
        sender.stop()
        for thread in threads:
            assert ends(thread)
        layer.detach(sender)
        near.close()
        far.close()
        changes.close()
        volume.close()
