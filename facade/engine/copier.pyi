from typing_extensions import Buffer

from facade.engine.replication import ReplicationLayer

class Copier:
    compares: bool
    compared_bytes: int
    def __init__(self, layer: ReplicationLayer, seed: Buffer | None = None) -> None: ...
    def copy(self, limit_bytes: int) -> int: ...
