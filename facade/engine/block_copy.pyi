from facade.engine.block_job import BlockJob
from facade.engine.volume import Volume

class CopyJob(BlockJob):
    def __init__(
        self,
        source: Volume,
        target: Volume,
        source_offset: int = 0,
        target_offset: int = 0,
        length: int | None = None,
        target_is_zero: bool = False,
        durable: bool = True,
        threads: int | None = None,
    ) -> None: ...
    @property
    def target_is_zero(self) -> bool: ...
    @property
    def durable(self) -> bool: ...
    @property
    def written_bytes(self) -> int: ...
    @property
    def zeroed_bytes(self) -> int: ...
    @property
    def skipped_bytes(self) -> int: ...
