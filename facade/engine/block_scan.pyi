from typing_extensions import Buffer

from facade.engine.block_job import BlockJob
from facade.engine.volume import Volume

MAP_BLOCK_BYTES_MIN: int
PIECE_BYTES_MIN: int
RUNS_LIMIT: int

class BlockMapJob(BlockJob):
    @property
    def block_bytes(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    def list_runs(self, value: bool, start: int, limit: int) -> list[tuple[int, int]]: ...

class CompareJob(BlockMapJob):
    def __init__(
        self,
        left: Volume,
        right: Volume,
        left_offset: int = 0,
        right_offset: int = 0,
        length: int | None = None,
        block_bytes: int = 32768,
        threads: int | None = None,
    ) -> None: ...
    @property
    def differing_blocks(self) -> int: ...
    def runs(self, start: int = 0, limit: int = ...) -> list[tuple[int, int]]: ...
    def export(self) -> bytes: ...

class ZeroScanJob(BlockMapJob):
    def __init__(
        self,
        volume: Volume,
        offset: int = 0,
        length: int | None = None,
        block_bytes: int = 4096,
        threads: int | None = None,
    ) -> None: ...
    @property
    def zero_blocks(self) -> int: ...
    def runs(self, start: int = 0, limit: int = ...) -> list[tuple[int, int]]: ...

class DigestJob(BlockJob):
    def __init__(
        self,
        volume: Volume,
        seed: bytes,
        offset: int = 0,
        length: int | None = None,
        piece_bytes: int = 4096,
        threads: int | None = None,
    ) -> None: ...
    @property
    def piece_bytes(self) -> int: ...
    @property
    def pieces(self) -> int: ...
    @property
    def digests(self) -> bytes: ...

def zero_runs(data: Buffer, granule_bytes: int = 4096) -> list[tuple[int, int]]: ...
