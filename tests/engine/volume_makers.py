"""The volumes that the conformance suite runs against: one maker a kind.

A layer joins by adding a maker to MAKERS: a context manager that is given a folder and a size and
yields a volume that reads as zeroes at first.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from facade.engine.bitmap_header import BitmapHeader
from facade.engine.change_map import ChangeMap
from facade.engine.fault_volume import FaultVolume
from facade.engine.file_volume import FileVolume
from facade.engine.link_sender import LinkSender
from facade.engine.link_target import LinkTarget
from facade.engine.power_cut_volume import PowerCutVolume
from facade.engine.replication import ReplicationLayer
from facade.engine.volume import Volume
from facade.engine.volume_stack import VolumeStack


@contextmanager
def file_volume(folder: Path, size_bytes: int) -> Iterator[FileVolume]:
    path = folder / "volume.img"
    with path.open("wb") as image:
        image.truncate(size_bytes)
    volume = FileVolume(path)
    try:
        yield volume
    finally:
        volume.close()


@contextmanager
def stack(folder: Path, size_bytes: int) -> Iterator[VolumeStack]:
    with file_volume(folder, size_bytes) as bottom:
        yield VolumeStack(bottom)


@contextmanager
def nested_stacks(folder: Path, size_bytes: int) -> Iterator[VolumeStack]:
    with file_volume(folder, size_bytes) as bottom:
        yield VolumeStack(VolumeStack(bottom))


@contextmanager
def fault_layer(folder: Path, size_bytes: int) -> Iterator[FaultVolume]:
    with file_volume(folder, size_bytes) as bottom:
        yield FaultVolume(bottom)


@contextmanager
def async_layer(folder: Path, size_bytes: int) -> Iterator[FaultVolume]:
    with file_volume(folder, size_bytes) as bottom:
        layer = FaultVolume(bottom, is_async=True)
        try:
            yield layer
        finally:
            layer.close()


@contextmanager
def power_cut(folder: Path, size_bytes: int) -> Iterator[PowerCutVolume]:
    with file_volume(folder, size_bytes) as bottom:
        yield PowerCutVolume(bottom)


@contextmanager
def stack_of_async_layers(folder: Path, size_bytes: int) -> Iterator[VolumeStack]:
    with async_layer(folder, size_bytes) as lower:
        upper = FaultVolume(lower, is_async=True)
        try:
            yield VolumeStack(VolumeStack(upper))
        finally:
            upper.close()


BLOCK_BYTES = 32 << 10


@contextmanager
def change_map(folder: Path, size_bytes: int) -> Iterator[ChangeMap]:
    path = folder / "bitmap"
    path.write_bytes(bytes(64 << 10))
    volume = FileVolume(path)
    changes = ChangeMap(volume, size_bytes, BLOCK_BYTES)
    header = BitmapHeader(
        bytes(16), "primary", "logging", frozenset(), BLOCK_BYTES, changes.size_bytes
    )
    changes.format(header, False)
    try:
        yield changes
    finally:
        changes.close()
        volume.close()


@contextmanager
def tracking_layer(folder: Path, size_bytes: int) -> Iterator[ReplicationLayer]:
    with file_volume(folder, size_bytes) as bottom, change_map(folder, size_bytes) as changes:
        yield ReplicationLayer(bottom, changes, lambda _: False)


@contextmanager
def replicating_layer(folder: Path, size_bytes: int) -> Iterator[ReplicationLayer]:
    """Sends to a second file over a socket; both files are equal at the end."""
    other = folder / "other"
    other.mkdir()
    source, sink = socket.socketpair()
    with (
        source,
        sink,
        file_volume(other, size_bytes) as secondary,
        tracking_layer(folder, size_bytes) as layer,
    ):
        sender = LinkSender(source.fileno(), layer.changes, 10.0, 1.0)
        target = LinkTarget(sink.fileno(), secondary)
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
            yield layer
            assert layer.settle(10.0) is not None
            assert layer.changes.dirty_blocks == 0
            assert (other / "volume.img").read_bytes() == (folder / "volume.img").read_bytes()
        finally:
            sender.stop()
            for thread in threads:
                thread.join()


@contextmanager
def stack_of_replicating_layer(folder: Path, size_bytes: int) -> Iterator[VolumeStack]:
    with replicating_layer(folder, size_bytes) as layer:
        yield VolumeStack(layer)


Maker = Callable[[Path, int], AbstractContextManager[Volume]]

MAKERS: dict[str, Maker] = {
    "file": file_volume,
    "stack": stack,
    "nested-stacks": nested_stacks,
    "fault-layer": fault_layer,
    "async-layer": async_layer,
    "power-cut": power_cut,
    "stack-of-async-layers": stack_of_async_layers,
    "tracking-layer": tracking_layer,
    "replicating-layer": replicating_layer,
    "stack-of-replicating-layer": stack_of_replicating_layer,
}
