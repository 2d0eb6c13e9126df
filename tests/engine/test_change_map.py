"""When a bit of the change map is cleared: what happens while a clean is under way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from facade.engine.change_map import ChangeMap
from facade.engine.copier import Copier
from facade.engine.fault_volume import FaultVolume
from facade.engine.link_sender import LinkSender
from facade.engine.link_target import LinkTarget
from facade.engine.replication import ReplicationLayer
from tests.engine.harness import wait_for
from tests.engine.volume_makers import BLOCK_BYTES, change_map, file_volume

SIZE_BYTES = 2048 * BLOCK_BYTES
DATA = b"d" * 4096


@dataclass
class Sending:
    """A layer that sends to a second file, over a volume whose requests can be held."""

    layer: ReplicationLayer
    changes: ChangeMap
    lower: FaultVolume

    def write(self, *blocks: int) -> None:
        for block in blocks:
            self.layer.pwrite(block * BLOCK_BYTES, DATA)

    def during_clean(self, act: Callable[[], object]) -> int | None:
        """Clean, and `act` between its flip and the end of its local flush; what it cleared."""
        found: list[int | None] = []
        self.lower.hold()
        cleaner = threading.Thread(target=lambda: found.append(self.layer.settle(10)))
        cleaner.start()
        wait_for(lambda: self.lower.held, what="the flush of the clean")
        act()
        self.lower.release()
        cleaner.join(15)
        return found[0]

    def marked(self) -> set[int]:
        return {first + i for first, count in self.changes.runs() for i in range(count)}


@pytest.fixture
def sending(tmp_path: Path) -> Iterator[Sending]:
    (tmp_path / "other").mkdir()
    source, sink = socket.socketpair()
    with ExitStack() as stack:
        stack.enter_context(source)
        stack.enter_context(sink)
        bottom = stack.enter_context(file_volume(tmp_path, SIZE_BYTES))
        other = stack.enter_context(file_volume(tmp_path / "other", SIZE_BYTES))
        changes = stack.enter_context(change_map(tmp_path, SIZE_BYTES))
        lower = FaultVolume(bottom, is_async=True)
        layer = ReplicationLayer(lower, changes, lambda _: False)
        sender = LinkSender(source.fileno(), changes, 10.0, 1.0)
        target = LinkTarget(sink.fileno(), other)
        threads = [
            threading.Thread(target=body)
            for body in (
                sender.run_sender,
                lambda: sender.run_receiver(lambda _: None),
                lambda: target.run(lambda _: None),
            )
        ]
        for thread in threads:
            thread.start()
        layer.attach(sender)
        try:
            yield Sending(layer, changes, lower)
        finally:
            sender.stop()
            for thread in threads:
                thread.join()
            lower.close()


def test_a_clean_clears_what_was_written_before_it(sending: Sending) -> None:
    sending.write(1, 2, 1999)
    assert sending.during_clean(lambda: None) == 3
    assert sending.marked() == set()


def test_a_write_during_a_clean_keeps_its_bit(sending: Sending) -> None:
    sending.write(1, 2)
    writer = threading.Thread(target=lambda: sending.write(2))

    def begin() -> None:
        writer.start()
        wait_for(lambda: sending.lower.held == 2, what="the write")

    assert sending.during_clean(begin) == 1
    writer.join(10)
    assert sending.marked() == {2}
    assert sending.layer.settle(10) == 1
    assert sending.marked() == set()


@pytest.mark.parametrize("act", ["fill", "merge", "plan_copy", "drop_copy"])
def test_a_clean_clears_nothing_when_bits_came_in_bulk_meanwhile(
    sending: Sending, act: str
) -> None:
    changes = sending.changes
    sending.write(1, 2)
    theirs = (1 << 1000).to_bytes(changes.map_bytes, "little")
    acts: dict[str, Callable[[], object]] = {
        "fill": changes.fill,
        "merge": lambda: changes.merge(0, theirs),
        "plan_copy": changes.plan_copy,
        "drop_copy": changes.drop_copy,
    }
    assert sending.during_clean(acts[act]) == 0
    assert sending.marked() >= {1, 2}
    if act == "merge":
        assert 1000 in sending.marked()


def test_blocks_still_to_be_copied_keep_their_bits(sending: Sending) -> None:
    sending.changes.mark(5, 6)
    assert sending.changes.plan_copy() == 2
    sending.write(9)
    assert sending.layer.settle(10) == 1
    assert sending.marked() == {5, 6}
    assert Copier(sending.layer).copy(1) == 2 * BLOCK_BYTES
    assert sending.layer.settle(10) == 2
    assert sending.marked() == set()
    assert sending.changes.todo_blocks == 0
