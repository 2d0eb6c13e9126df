"""Volumes that become longer and shorter while clients write: nothing fails, nothing is lost."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from facade.contract.errors import UnreachableError
from facade.engine.fault_volume import FaultVolume
from facade.engine.file_volume import FileVolume
from facade.engine.volume_stack import VolumeStack
from facade.errors import PathRefused, UnknownVolume, VolumeBusy
from tests.engine import nbd_raw as raw
from tests.engine.harness import EngineProcess, Pair, new_secret, wait_for
from tests.engine.nbd_raw import RawClient, serve
from tests.engine.test_dirty_bitmap_export import socket_of
from tests.engine.volume_makers import file_volume

MIB = 1 << 20
SIZE_BYTES = 8 * MIB
CONTEXT = "base:allocation"


@pytest.fixture
def bottom(tmp_path: Path) -> Iterator[FileVolume]:
    with file_volume(tmp_path, SIZE_BYTES) as volume:
        yield volume


@pytest.fixture
def stack(bottom: FileVolume) -> VolumeStack:
    return VolumeStack(bottom)


def file_bytes(bottom: FileVolume) -> int:
    return Path(bottom.path).stat().st_size


def test_longer_and_shorter(stack: VolumeStack, bottom: FileVolume) -> None:
    stack.pwrite(SIZE_BYTES - 4096, b"e" * 4096)
    stack.resize(64 * MIB)
    assert stack.size_bytes == bottom.size_bytes == file_bytes(bottom) == 64 * MIB
    assert stack.pread(SIZE_BYTES - 1, 3) == b"e\0\0"
    assert Path(bottom.path).stat().st_blocks * 512 < MIB  # what is added is a hole
    stack.resize(SIZE_BYTES - 1024)
    assert stack.size_bytes == file_bytes(bottom) == SIZE_BYTES - 1024
    stack.resize(SIZE_BYTES)
    assert stack.pread(SIZE_BYTES - 2048, 2048) == b"e" * 1024 + bytes(1024)


def test_without_a_size_it_is_as_long_as_its_file(stack: VolumeStack, bottom: FileVolume) -> None:
    os.truncate(bottom.path, SIZE_BYTES * 2)
    stack.resize()
    assert stack.size_bytes == SIZE_BYTES * 2
    os.truncate(bottom.path, SIZE_BYTES)
    stack.resize()
    assert stack.size_bytes == SIZE_BYTES


def test_a_resize_that_fails_leaves_the_file_as_it_was(
    stack: VolumeStack, bottom: FileVolume
) -> None:
    # What others have appended is not ours to cut off; what we have added is.
    with Path(bottom.path).open("ab") as file:
        file.write(b"appended")
    stack.close()
    for size_bytes in (None, MIB, 16 * MIB):
        with pytest.raises(OSError, match="closed"):
            stack.resize(size_bytes)
        assert file_bytes(bottom) == SIZE_BYTES + len(b"appended")
    with Path(bottom.path).open("rb") as file:
        file.seek(SIZE_BYTES)
        assert file.read() == b"appended"


def test_what_is_past_the_new_end_is_refused_at_the_gate(stack: VolumeStack) -> None:
    # As a border would that checked before the size changed.
    outer = VolumeStack(stack)
    stack.resize(MIB)
    with pytest.raises(OSError, match="space") as caught:
        outer.pwrite(MIB - 1, b"xx")
    assert caught.value.errno == errno.ENOSPC
    for ask in (lambda: outer.pread(MIB, 1), lambda: outer.extents(0, MIB + 1)):
        with pytest.raises(OSError, match=r".") as caught:
            ask()
        assert caught.value.errno == errno.EINVAL


def test_clients_use_the_new_size_at_once(stack: VolumeStack) -> None:
    def told(client: RawClient, sent: bytes) -> int:
        client.send(sent)
        chunks = client.take_chunks() if sent[7] == raw.BLOCK_STATUS else None
        if chunks is None:
            return client.take_reply()[0]
        return int.from_bytes(chunks[0].payload[:4]) if chunks[0].kind == raw.ERROR else 0

    with serve(stack) as server, RawClient(server.socket_path) as old:
        with RawClient(server.socket_path, structured=True, contexts=(CONTEXT,)) as other:
            far = 20 * MIB
            assert old.ask(raw.write(far, b"new")) == raw.ENOSPC
            stack.resize(32 * MIB)
            assert old.ask(raw.write(far, b"new")) == 0
            assert old.ask(raw.request(raw.READ, far, 3), 3) == b"new"
            assert told(other, raw.request(raw.BLOCK_STATUS, 0, 32 * MIB)) == 0
            with RawClient(server.socket_path, transmission=False) as later:
                later.send(b"\0\0\0\3")
                (export,) = later.negotiate(raw.option(raw.OPT_INFO, raw.go_data()))
                assert int.from_bytes(export[2:10]) == 32 * MIB
            stack.resize(MIB)
            assert old.ask(raw.write(far, b"new")) == raw.ENOSPC
            assert old.ask(raw.request(raw.READ, far, 3), 3) == raw.EINVAL
            assert old.ask(raw.request(raw.TRIM, 0, MIB + 1)) == raw.EINVAL
            assert old.ask(raw.request(raw.WRITE_ZEROES, MIB, 1)) == raw.ENOSPC
            assert told(other, raw.request(raw.BLOCK_STATUS, 0, 32 * MIB)) == raw.EINVAL
            assert told(other, raw.request(raw.BLOCK_STATUS, 0, MIB)) == 0


@contextmanager
def writers(socket: Path, count: int) -> Iterator[list[bytearray]]:
    """Clients that write and read back below MIB, each in its own part; what each has written."""
    ended = threading.Event()
    failed: list[BaseException] = []
    part = MIB // count
    models = [bytearray(part) for _ in range(count)]

    def load(number: int) -> None:
        dice = random.Random(number)
        try:
            with RawClient(socket) as client:
                while not ended.is_set():
                    at = dice.randrange(part - 5000)
                    data = dice.randbytes(dice.randrange(1, 5000))
                    assert client.ask(raw.write(number * part + at, data)) == 0
                    models[number][at : at + len(data)] = data
                    whole = client.ask(raw.request(raw.READ, number * part, part), part)
                    assert whole == bytes(models[number])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    yield models
    ended.set()
    for thread in threads:
        thread.join()
    assert failed == []


def test_writers_notice_nothing(stack: VolumeStack, bottom: FileVolume) -> None:
    dice = random.Random(5)
    with serve(stack) as server, writers(server.socket_path, 4) as models:
        for _ in range(150):
            stack.resize(dice.randrange(MIB // 512, 64 * MIB // 512) * 512)
    stack.resize(MIB)
    assert stack.pread(0, MIB) == b"".join(models)
    assert file_bytes(bottom) == MIB


def test_a_layer_is_not_resized(bottom: FileVolume) -> None:
    layered = VolumeStack(FaultVolume(bottom))
    with pytest.raises(OSError, match="layer") as caught:
        layered.resize(16 * MIB)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert layered.size_bytes == file_bytes(bottom) == SIZE_BYTES


def test_requests_that_do_not_end_leave_all_as_it_was(
    stack: VolumeStack, bottom: FileVolume
) -> None:
    def is_late() -> bool:
        for size_bytes in (4 * MIB, 16 * MIB):
            try:
                stack.resize(size_bytes, timeout_s=0)
            except TimeoutError:
                assert stack.size_bytes == bottom.size_bytes == file_bytes(bottom) == SIZE_BYTES
                late.add(size_bytes)
            else:
                stack.resize(SIZE_BYTES)
        return len(late) == 2

    late: set[int] = set()
    with serve(stack) as server, writers(server.socket_path, 4):
        wait_for(is_late, 30, "a resize that gives up")


def test_a_backing_that_cannot_be_longer_leaves_all_as_it_was(
    stack: VolumeStack, bottom: FileVolume
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * MIB, hard))
    try:
        with pytest.raises(OSError, match="large") as caught:
            stack.resize(32 * MIB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.errno == errno.EFBIG
    assert stack.size_bytes == file_bytes(bottom) == SIZE_BYTES
    stack.pwrite(SIZE_BYTES - 1, b"x")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EngineProcess]:
    one = EngineProcess(tmp_path, "host_a", new_secret())
    try:
        yield one.start()
    finally:
        one.dispose()


def test_the_engine_resizes_what_no_set_uses(engine: EngineProcess) -> None:
    path = engine.make_volume("data", SIZE_BYTES)
    with pytest.raises(UnknownVolume):
        engine.call("volume.resize", name="nosuch", size_bytes=MIB)
    with pytest.raises(PathRefused):
        engine.call("volume.resize", name="data", size_bytes=1 << 62)
    assert engine.call("volume.resize", name="data", size_bytes=2 * MIB)["size_bytes"] == 2 * MIB
    assert path.stat().st_size == 2 * MIB
    engine.make_volume("bits", MIB)
    pair = Pair(engine, engine, SIZE_BYTES)
    engine.call("volume.resize", name="data", size_bytes=SIZE_BYTES)
    spec = pair.spec(engine) | {"bitmap": "bits", "bitmap_path": str(engine.volume_dir / "bits")}
    engine.call("set.enable", spec=spec, init="dirty")
    for name in ("data", "bits"):
        with pytest.raises(VolumeBusy):
            engine.call("volume.resize", name=name, size_bytes=16 * MIB)
    engine.call("set.disable", set_id=pair.set_id)
    for name in ("data", "bits"):
        engine.call("volume.resize", name=name, size_bytes=16 * MIB)


class Resizing:
    """Resizes a volume again and again until the engine is gone; knows which sizes it may have."""

    def __init__(self, engine: EngineProcess, seed: int, size_bytes: int) -> None:
        self.engine = engine
        self.dice = random.Random(seed)
        self.sizes = {size_bytes}
        self.has_begun = threading.Event()
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def work(self) -> None:
        while True:
            size_bytes = self.dice.choice([MIB, 64 * MIB, 300 * MIB])
            self.sizes.add(size_bytes)
            try:
                self.engine.call("volume.resize", name="data", size_bytes=size_bytes)
            except UnreachableError:
                return
            self.sizes = {size_bytes}
            self.has_begun.set()


def test_an_engine_that_is_killed_has_the_one_size_or_the_other(engine: EngineProcess) -> None:
    path = engine.make_volume("data", MIB)
    for number in range(6):
        with RawClient(socket_of(engine)) as client:
            assert client.ask(raw.write(0, bytes([number]) * 4096, flags=raw.FUA)) == 0
            resizing = Resizing(engine, number, path.stat().st_size)
            assert resizing.has_begun.wait(10)
            resizing.thread.join(resizing.dice.random() * 0.02)  # a random moment
            engine.kill()
            resizing.thread.join()
        engine.start()
        (opened,) = engine.call("volume.list")
        assert opened["size_bytes"] == path.stat().st_size
        assert opened["size_bytes"] in resizing.sizes
        with path.open("rb") as image:
            assert image.read(4096) == bytes([number]) * 4096
