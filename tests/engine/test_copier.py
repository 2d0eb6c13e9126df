"""Synchronising by digests: only pieces that differ are sent, and both sides end up equal."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from facade.engine.copier import Copier
from facade.engine.file_volume import FileVolume
from facade.engine.link_sender import LinkSender
from facade.engine.link_target import LinkTarget
from facade.engine.link_wire import pack_frame
from facade.engine.power_cut_volume import PowerCutVolume, PowerSupply
from facade.engine.replication import ReplicationLayer
from tests.engine.volume_makers import BLOCK_BYTES, change_map

KIB, MIB = 1 << 10, 1 << 20
SIZE_BYTES = 8 * MIB + 12 * KIB + 512  # neither whole blocks nor whole pieces
SEED = bytes(range(32))
PIECE_BYTES = 4096
FLUSH, DIGEST, DIFFER = 4, 9, 10
EPROTO = 71
SEND_TIMEOUT_US = 100_000
FLUSH_US = 500_000
# A frame's header, a digest of each piece of a block, an acknowledgement and an answer.
PER_BLOCK_BYTES = 40 + BLOCK_BYTES // PIECE_BYTES * 16 + 40 + 41


@dataclass
class Link:
    """Two files, a layer over the first, and a link between them."""

    layer: ReplicationLayer
    sender: LinkSender
    target: LinkTarget
    ours: Path
    theirs: Path
    sink: socket.socket
    receiver: threading.Thread

    def update(self, seed: bytes | None = SEED) -> Copier:
        """Copy every dirty block; returns once both sides have flushed."""
        self.layer.changes.plan_copy()
        assert self.layer.wait_epoch(10.0)
        copier = Copier(self.layer, seed)
        copy_all(copier)
        assert self.layer.settle(10.0) is not None
        return copier

    def assert_equal(self) -> None:
        assert self.layer.settle(10.0) is not None
        assert self.layer.changes.dirty_blocks == 0
        assert self.ours.read_bytes() == self.theirs.read_bytes()

    def ending_errno(self) -> int:
        """Wait for the link's end and return what ended it."""
        self.receiver.join(10.0)
        assert not self.receiver.is_alive()
        return self.sender.dead_errno

    @property
    def moved_bytes(self) -> int:
        return self.sender.sent_bytes + self.sender.received_bytes


def copy_all(copier: Copier) -> None:
    while copier.copy(MIB):
        pass


@contextmanager
def linked(folder: Path, ours: bytes, theirs: bytes, seed: bytes | None = SEED) -> Iterator[Link]:
    paths = [folder / "ours", folder / "theirs"]
    for path, data in zip(paths, (ours, theirs), strict=True):
        path.write_bytes(data)
    source, sink = socket.socketpair()
    lower, other = FileVolume(paths[0]), FileVolume(paths[1])
    with source, sink, change_map(folder, len(ours)) as changes:
        layer = ReplicationLayer(lower, changes, lambda _: False)
        sender = LinkSender(source.fileno(), changes, 10.0, 1.0)
        target = LinkTarget(sink.fileno(), other, seed)
        bodies = (
            sender.run_sender,
            lambda: sender.run_receiver(lambda _: None),
            lambda: target.run(lambda _: None),
        )
        threads = [threading.Thread(target=body) for body in bodies]
        for thread in threads:
            thread.start()
        layer.attach(sender)
        try:
            yield Link(layer, sender, target, *paths, sink, threads[1])
        finally:
            sender.stop()
            for thread in threads:
                thread.join()
            lower.close()
            other.close()


def changed(data: bytes, dice: random.Random, pieces: int) -> tuple[bytes, list[int]]:
    """Return data that differs in some pieces, and which."""
    fresh = bytearray(data)
    where = sorted(dice.sample(range((len(data) + PIECE_BYTES - 1) // PIECE_BYTES), pieces))
    for piece in where:
        fresh[min(piece * PIECE_BYTES + dice.randrange(PIECE_BYTES), len(data) - 1)] ^= 1
    return bytes(fresh), where


def blocks_of(pieces: list[int]) -> set[int]:
    return {piece * PIECE_BYTES // BLOCK_BYTES for piece in pieces}


@pytest.mark.parametrize("count", [0, 1, 40, 700])
def test_only_pieces_that_differ_are_sent(tmp_path: Path, count: int) -> None:
    dice = random.Random(count)
    theirs = dice.randbytes(SIZE_BYTES)
    ours, where = changed(theirs, dice, count)
    with linked(tmp_path, ours, theirs) as link:
        dirty = blocks_of(where) | set(range(20))
        for block in dirty:
            link.layer.changes.mark(block, block)
        copier = link.update()
        assert copier.compares
        link.assert_equal()
        sent = len(where) * (PIECE_BYTES + 40)
        assert sent - PIECE_BYTES <= link.moved_bytes <= sent + len(dirty) * PER_BLOCK_BYTES + 4096


def test_the_last_piece_of_a_volume_counts(tmp_path: Path) -> None:
    theirs = os.urandom(SIZE_BYTES)
    ours = theirs[:-1] + bytes([theirs[-1] ^ 1])
    last = (SIZE_BYTES - 1) // BLOCK_BYTES
    with linked(tmp_path, ours, theirs) as link:
        link.layer.changes.mark(last, last)
        link.update()
        link.assert_equal()


def test_zeroes_are_neither_digested_nor_sent(tmp_path: Path) -> None:
    with linked(tmp_path, bytes(SIZE_BYTES), os.urandom(SIZE_BYTES)) as link:
        link.layer.changes.mark(0, link.layer.changes.blocks - 1)
        assert link.update().compared_bytes == 0
        link.assert_equal()
        assert link.moved_bytes < 8192


def test_where_most_differs_digests_end(tmp_path: Path) -> None:
    size_bytes = 80 * MIB
    with linked(tmp_path, os.urandom(size_bytes), os.urandom(size_bytes)) as link:
        link.layer.changes.mark(0, link.layer.changes.blocks - 1)
        copier = link.update()
        assert not copier.compares
        assert copier.compared_bytes < size_bytes
        link.assert_equal()


def test_writes_go_on_while_pieces_are_compared(tmp_path: Path) -> None:
    dice = random.Random(7)
    theirs = dice.randbytes(SIZE_BYTES)
    ours, _ = changed(theirs, dice, 600)
    ended = threading.Event()

    def write(link: Link, number: int) -> None:
        own = random.Random(number)
        while not ended.is_set():
            offset = own.randrange(SIZE_BYTES - 9000)
            if own.random() < 0.2:
                link.layer.zero(offset, 9000)
            else:
                link.layer.pwrite(offset, own.randbytes(own.choice([1, 512, 4096, 9000])))

    with linked(tmp_path, ours, theirs) as link:
        link.layer.changes.mark(0, link.layer.changes.blocks - 1)
        writers = [threading.Thread(target=write, args=(link, number)) for number in range(3)]
        for one in writers:
            one.start()
        try:
            for _ in range(3):
                link.layer.changes.mark(0, link.layer.changes.blocks - 1)
                link.layer.changes.plan_copy()
                copier = Copier(link.layer, SEED)
                while copier.copy(256 * KIB):
                    pass
        finally:
            ended.set()
            for one in writers:
                one.join()
        link.assert_equal()


def test_without_a_seed_blocks_go_whole(tmp_path: Path) -> None:
    data = os.urandom(SIZE_BYTES)
    with linked(tmp_path, data, data, seed=None) as link:
        link.layer.changes.mark(0, 9)
        link.update(seed=None)
        assert link.moved_bytes > 10 * BLOCK_BYTES


def test_a_target_that_did_not_agree_takes_no_digests(tmp_path: Path) -> None:
    data = os.urandom(SIZE_BYTES)
    with linked(tmp_path, data, data, seed=None) as link:
        link.layer.changes.mark(0, 0)
        link.layer.changes.plan_copy()
        copier = Copier(link.layer, SEED)
        with pytest.raises(OSError):
            copy_all(copier)
        assert link.layer.changes.dirty_blocks == 1


@pytest.mark.parametrize(("offset", "length", "asked"), [
    (1, 4096, b"\x01"),
    (0, 0, b""),
    (0, 4096, b"\x01\x00"),
    (0, 2 * MIB, bytes(64)),
    (SIZE_BYTES // 4096 * 4096, 4096, b"\x01"),
    (1 << 63, 4096, b"\x01"),
])  # fmt: skip
def test_an_answer_that_cannot_be_ends_the_link(
    tmp_path: Path, offset: int, length: int, asked: bytes
) -> None:
    data = os.urandom(SIZE_BYTES)
    with linked(tmp_path, data, data) as link:
        link.layer.changes.mark(0, 3)
        link.update()
        link.sink.sendall(pack_frame(DIFFER, asked, seq=1, offset=offset, length=length))
        assert link.ending_errno() == EPROTO


def test_an_answer_to_no_question_ends_the_link(tmp_path: Path) -> None:
    data = os.urandom(SIZE_BYTES)
    with linked(tmp_path, data, data) as link:
        link.sink.sendall(pack_frame(DIFFER, b"\x01", seq=1, offset=0, length=4096))
        assert link.ending_errno() == EPROTO


def test_nothing_is_acknowledged_after_an_answer_that_was_not_sent(tmp_path: Path) -> None:
    # A source that takes nothing for a while and then goes on: without the answer, the
    # acknowledgement of a later frame would say that the piece is equal.
    path = tmp_path / "theirs"
    path.write_bytes(os.urandom(PIECE_BYTES))
    supply = PowerSupply(flush_delay_us=FLUSH_US)
    file = FileVolume(path)
    source, sink = socket.socketpair()
    with source, sink:
        sink.setblocking(False)
        stuffed = 0
        with suppress(BlockingIOError):
            while True:
                stuffed += sink.send(bytes(1024))
        sink.setblocking(True)
        timeout = struct.pack("ll", 0, SEND_TIMEOUT_US)
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        target = LinkTarget(sink.fileno(), PowerCutVolume(file, supply), SEED)
        thread = threading.Thread(target=lambda: target.run(lambda _: None))
        thread.start()
        source.sendall(pack_frame(DIGEST, bytes(16), seq=1, length=PIECE_BYTES))
        source.sendall(pack_frame(FLUSH, b"", seq=2))
        while thread.is_alive() and not supply.changes:
            thread.join(0.001)
        source.settimeout(2 * FLUSH_US / 1e6)
        taken = b""
        with suppress(TimeoutError):
            while thread.is_alive() or len(taken) < stuffed:
                taken += source.recv(1 << 20)
        source.shutdown(socket.SHUT_RDWR)
        thread.join()
        assert len(taken) == stuffed
        assert target.apply_errno == 0
    file.close()
