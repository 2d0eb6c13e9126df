"""The gate: layers come and go under live I/O, without an error or a lost write."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from facade.engine.fault_volume import FaultVolume
from facade.engine.file_volume import FileVolume
from facade.engine.volume_stack import VolumeStack
from tests.engine.volume_makers import file_volume

SIZE_BYTES = 1 << 20


@pytest.fixture
def bottom(tmp_path: Path) -> Iterator[FileVolume]:
    with file_volume(tmp_path, SIZE_BYTES) as volume:
        yield volume


def wait_until(fact: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < deadline, "the awaited fact did not come"
        time.sleep(0.001)


def test_layers_change_under_load_without_loss(bottom: FileVolume) -> None:
    stack = VolumeStack(bottom)
    layers = [FaultVolume(bottom, is_async=True), FaultVolume(bottom)]
    ended = threading.Event()
    errors: list[BaseException] = []
    model = [bytearray(SIZE_BYTES // 2) for _ in range(2)]

    def load(number: int) -> None:
        dice = random.Random(number)
        base = number * (SIZE_BYTES // 2)
        try:
            while not ended.is_set():
                offset = dice.randrange(SIZE_BYTES // 2 - 512)
                data = dice.randbytes(512)
                stack.pwrite(base + offset, data)
                model[number][offset : offset + 512] = data
                assert stack.pread(base + offset, 512) == data
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for number in range(200):
        stack.set_top([layers[0], bottom, layers[1]][number % 3])
    ended.set()
    for thread in threads:
        thread.join()
    layers[0].close()
    assert errors == []
    assert bottom.pread(0, SIZE_BYTES) == model[0] + model[1]


def test_a_change_waits_for_pending_requests_and_holds_new_ones(bottom: FileVolume) -> None:
    slow = FaultVolume(bottom, is_async=True)
    stack = VolumeStack(slow)
    slow.hold()
    first = threading.Thread(target=stack.pwrite, args=(0, b"first"))
    first.start()
    wait_until(lambda: slow.held == 1)
    change = threading.Thread(target=stack.set_top, args=(bottom,))
    change.start()
    change.join(0.05)
    second = threading.Thread(target=stack.pwrite, args=(100, b"second"))
    second.start()
    second.join(0.05)
    assert change.is_alive()
    assert second.is_alive()
    assert slow.held == 1
    slow.release()
    for thread in (first, change, second):
        thread.join(10)
        assert not thread.is_alive()
    assert stack.top is bottom
    assert bottom.pread(0, 5) == b"first"
    assert bottom.pread(100, 6) == b"second"
    slow.close()


def test_a_change_that_takes_too_long_changes_nothing(bottom: FileVolume) -> None:
    slow = FaultVolume(bottom, is_async=True)
    stack = VolumeStack(slow)
    slow.hold()
    writer = threading.Thread(target=stack.pwrite, args=(0, b"late"))
    writer.start()
    wait_until(lambda: slow.held == 1)
    with pytest.raises(TimeoutError, match="still in flight"):
        stack.set_top(bottom, timeout_s=0.05)
    assert stack.top is slow
    slow.release()
    writer.join(10)
    assert stack.pread(0, 4) == b"late"
    stack.set_top(bottom)
    slow.close()


def test_a_top_of_another_size_is_refused(bottom: FileVolume, tmp_path: Path) -> None:
    stack = VolumeStack(bottom)
    other = tmp_path / "other"
    other.mkdir()
    with file_volume(other, SIZE_BYTES * 2) as larger, pytest.raises(ValueError, match="bytes"):
        stack.set_top(larger)
    assert stack.top is bottom


def test_read_only_stack_reads_and_refuses(bottom: FileVolume) -> None:
    stack = VolumeStack(bottom)
    stack.pwrite(0, b"before")
    stack.set_read_only(True)
    for change in (lambda: stack.pwrite(0, b"x"), lambda: stack.zero(0, 1),
                   lambda: stack.trim(0, 1)):  # fmt: skip
        with pytest.raises(PermissionError):
            change()
    stack.flush()
    assert stack.pread(0, 6) == b"before"
    stack.set_read_only(False)
    stack.pwrite(0, b"after ")


def test_closed_stack_answers_shutdown(bottom: FileVolume) -> None:
    stack = VolumeStack(bottom)
    stack.close()
    stack.close()
    for request in (lambda: stack.pread(0, 1), stack.flush, lambda: stack.extents(0, 1)):
        with pytest.raises(OSError) as caught:
            request()
        assert caught.value.errno == errno.ESHUTDOWN


def test_errors_of_layers_come_up(bottom: FileVolume) -> None:
    for is_async in (False, True):
        layer = FaultVolume(bottom, is_async=is_async)
        stack = VolumeStack(layer)
        layer.fail("write", errno.ENOSPC, skip=1, times=2)
        stack.pwrite(0, b"passes")
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                stack.pwrite(0, b"fails")
        stack.pwrite(0, b"passes again")
        layer.close()
