"""What would wait leaves the connection's thread: one slow request does not hold up the others."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from facade.engine.fault_volume import FaultVolume
from facade.engine.file_volume import FileVolume
from facade.engine.replication import ReplicationLayer
from facade.engine.volume_stack import VolumeStack
from tests.engine import nbd_raw as raw
from tests.engine.nbd_raw import RawClient, serve
from tests.engine.test_volume_stack import wait_until
from tests.engine.volume_makers import change_map, file_volume

SIZE_BYTES = 4 << 20
POOL_THREADS_MAX = 32
# More than waits at a time, fewer than one connection may have in flight.
WAITING = POOL_THREADS_MAX + 20
NO_SUCH_COMMAND = 999
COLD_READS_MAX = 200


@contextmanager
def waiting_stack(folder: Path) -> Iterator[tuple[VolumeStack, FaultVolume]]:
    """Yield a stack whose writes wait on their thread while the layer at the bottom holds them."""
    with file_volume(folder, SIZE_BYTES) as bottom, change_map(folder, SIZE_BYTES) as changes:
        held = FaultVolume(bottom, is_async=True)
        stack = VolumeStack(ReplicationLayer(held, changes, lambda _: False))
        try:
            yield stack, held
        finally:
            held.release()
            stack.close()
            held.close()


def test_writes_that_wait_do_not_hold_up_what_does_not(tmp_path: Path) -> None:
    with waiting_stack(tmp_path) as (stack, held), serve(stack) as server:
        with RawClient(server.socket_path) as client:
            held.hold()
            for number in range(WAITING):
                client.send(raw.write(number * 65536, b"x", cookie=number))
            wait_until(lambda: held.held == POOL_THREADS_MAX)
            client.send(raw.request(NO_SUCH_COMMAND, cookie=7777))
            assert client.take_reply()[:2] == (raw.EINVAL, 7777)
            held.release()
            answers = {client.take_reply()[1] for _ in range(WAITING)}
            assert answers == set(range(WAITING))


def test_a_waiting_volume_does_not_hold_up_another(tmp_path: Path) -> None:
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    with waiting_stack(tmp_path) as (stack, held), file_volume(other_folder, SIZE_BYTES) as other:
        with serve(stack) as slow, serve(VolumeStack(other)) as fast:
            with RawClient(slow.socket_path) as waiting, RawClient(fast.socket_path) as client:
                held.hold()
                for number in range(WAITING):
                    waiting.send(raw.write(number * 65536, b"x", cookie=number))
                wait_until(lambda: held.held == POOL_THREADS_MAX)
                assert client.ask(raw.write(0, b"data", flags=raw.FUA)) == 0
                assert client.ask(raw.request(raw.FLUSH)) == 0
                held.release()
                for _ in range(WAITING):
                    assert waiting.take_reply()[0] == 0


def test_block_status_does_not_hold_up_writes_that_a_change_waits_for(tmp_path: Path) -> None:
    context = "base:allocation"
    with waiting_stack(tmp_path) as (stack, held), serve(stack) as server:
        with RawClient(server.socket_path, structured=True, contexts=(context,)) as client:
            held.hold()
            for number in range(POOL_THREADS_MAX):
                client.send(raw.write(number * 65536, b"x", cookie=number))
            wait_until(lambda: held.held == POOL_THREADS_MAX)
            # Whatever these wait for, the writes behind them are inside the gate already.
            for number in range(POOL_THREADS_MAX):
                client.send(raw.request(raw.BLOCK_STATUS, 0, 4096, cookie=1000 + number))
            for number in range(POOL_THREADS_MAX, WAITING):
                client.send(raw.write(number * 65536, b"x", cookie=number))
            client.send(raw.request(NO_SUCH_COMMAND, cookie=7777))
            cookies = []
            while 7777 not in cookies:
                cookies.append(client.take_cookie())
            changing = threading.Thread(target=stack.set_top, args=(stack.top,))
            changing.start()
            held.release()
            changing.join(10.0)
            assert not changing.is_alive()
            while len(cookies) < WAITING + POOL_THREADS_MAX + 1:
                cookies.append(client.take_cookie())
            assert len(set(cookies)) == len(cookies)


def test_a_layer_can_be_changed_once_what_waits_in_the_pool_has_ended(tmp_path: Path) -> None:
    with waiting_stack(tmp_path) as (stack, held):
        tracking = stack.top
        held.hold()
        writer = threading.Thread(target=stack.pwrite, args=(0, b"new"))
        writer.start()
        wait_until(lambda: held.held == 1)
        with pytest.raises(TimeoutError):
            stack.set_top(held, timeout_s=0.05)
        assert stack.top is tracking
        held.release()
        writer.join()
        stack.set_top(held)
        assert stack.pread(0, 3) == b"new"


def thread_ids() -> list[str]:
    return [one.name for one in Path("/proc/self/task").iterdir()]


def test_closing_ends_every_thread(tmp_path: Path) -> None:
    before = thread_ids()
    with waiting_stack(tmp_path) as (stack, _):
        writers = [
            threading.Thread(target=stack.pwrite, args=(number * 65536, b"x" * 512))
            for number in range(8)
        ]
        for one in writers:
            one.start()
        for one in writers:
            one.join()
    wait_until(lambda: len(thread_ids()) <= len(before))


def test_an_error_from_the_pool_is_told(tmp_path: Path) -> None:
    with file_volume(tmp_path, SIZE_BYTES) as bottom:
        faulty = FaultVolume(bottom)
        stack = VolumeStack(faulty)
        faulty.fail("write", raw.ENOSPC)
        with pytest.raises(OSError, match="No space left"):
            stack.pwrite(0, b"x")
        stack.pwrite(0, b"x")
        assert stack.pread(0, 1) == b"x"
        stack.close()


# ---- reads that meet the page cache, and such that do not


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """Return an image of SIZE_BYTES on a disk, all of it data."""
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent, prefix="on-disk-") as folder:
        image = Path(folder) / "volume.img"
        image.write_bytes(os.urandom(SIZE_BYTES))
        yield image


def drop_cache(path: Path) -> None:
    """Put a file out of the page cache; skip where it cannot be (it lies in memory)."""
    with path.open("rb") as image:
        os.fsync(image.fileno())
        os.posix_fadvise(image.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident_bytes(path):
        pytest.skip("the folder of the tests lies in memory")


def resident_bytes(path: Path) -> int:
    """Return how much of a file the page cache holds."""
    command = ["fincore", "--bytes", "--noheadings", "--raw", "--output", "RES", str(path)]
    return int(subprocess.run(command, check=True, capture_output=True).stdout)


def test_cold_and_warm_reads_are_the_same(on_disk: Path) -> None:
    volume = FileVolume(on_disk)
    stack = VolumeStack(volume)
    expected = on_disk.read_bytes()
    drop_cache(on_disk)
    assert not volume.is_in_memory
    for offset in range(0, SIZE_BYTES, SIZE_BYTES // 256):
        assert stack.pread(offset, 5000) == expected[offset : offset + 5000]  # cold
        if offset > SIZE_BYTES // 2:  # before, one cold read follows the other
            assert stack.pread(offset, 5000) == expected[offset : offset + 5000]  # warm
    assert stack.pread(0, SIZE_BYTES) == expected
    stack.close()
    volume.close()


def test_a_warm_read_starts_no_thread_and_a_cold_one_does(on_disk: Path) -> None:
    volume = FileVolume(on_disk)
    stack = VolumeStack(volume)
    on_disk.read_bytes()
    for offset in range(0, SIZE_BYTES, 65536):
        stack.pread(offset, 4096)
    # The kernel may have taken pages back meanwhile; then somebody had to wait.
    assert stack.waiting_threads == 0 or resident_bytes(on_disk) < SIZE_BYTES
    # Asking for a page begins to read it, and a fast disk may have it at once.
    for _ in range(COLD_READS_MAX):
        drop_cache(on_disk)
        stack.pread(0, 4096)
        if stack.waiting_threads:
            break
    assert stack.waiting_threads
    stack.close()
    assert stack.waiting_threads == 0
    volume.close()


def test_on_a_disk_flushes_leave_the_thread_and_writes_do_not(on_disk: Path) -> None:
    volume = FileVolume(on_disk)
    stack = VolumeStack(volume)
    stack.pwrite(0, b"x" * 4096)
    assert stack.waiting_threads == 0
    stack.flush()
    assert stack.waiting_threads == 1
    stack.close()
    volume.close()
