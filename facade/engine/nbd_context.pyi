from facade.engine.bitmap import Bitmap
from facade.engine.volume import Volume

CONTEXT_NAME_MAX_BYTES: int
ALLOCATION_NAME: str
DIRTY_BITMAP_PREFIX: str

class MetaContext:
    withdrawn: bool
    def __init__(self, name: str) -> None: ...
    @property
    def name(self) -> str: ...

class AllocationContext(MetaContext):
    def __init__(self, volume: Volume) -> None: ...

class BitmapContext(MetaContext):
    def __init__(self, set_name: str, bitmap: Bitmap) -> None: ...
