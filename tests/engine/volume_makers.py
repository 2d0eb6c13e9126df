"""The volumes that the conformance suite runs against: one maker a kind.

A layer joins by adding a maker to MAKERS: a context manager that is given a folder and a size and
yields a volume that reads as zeroes at first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from facade.engine.fault_volume import FaultVolume
from facade.engine.file_volume import FileVolume
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
def stack_of_async_layers(folder: Path, size_bytes: int) -> Iterator[VolumeStack]:
    with async_layer(folder, size_bytes) as lower:
        upper = FaultVolume(lower, is_async=True)
        try:
            yield VolumeStack(VolumeStack(upper))
        finally:
            upper.close()


Maker = Callable[[Path, int], AbstractContextManager[Volume]]

MAKERS: dict[str, Maker] = {
    "file": file_volume,
    "stack": stack,
    "nested-stacks": nested_stacks,
    "fault-layer": fault_layer,
    "async-layer": async_layer,
    "stack-of-async-layers": stack_of_async_layers,
}
