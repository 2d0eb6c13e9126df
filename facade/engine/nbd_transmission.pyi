from facade.engine.nbd_connection import Connection
from facade.engine.nbd_context import MetaContext
from facade.engine.nbd_tls import TlsSession
from facade.engine.volume import Volume

ENDINGS: tuple[str, ...]

class Transmission(Connection):
    def __init__(
        self,
        fd: int,
        volume: Volume,
        read_only: bool = False,
        leftover: bytes = b"",
        *,
        structured: bool = False,
        extended: bool = False,
        can_zero_fast: bool = False,
        contexts: tuple[MetaContext, ...] = (),
        session: TlsSession | None = None,
    ) -> None: ...
    @property
    def requests(self) -> int: ...
    @property
    def read_bytes(self) -> int: ...
    @property
    def write_bytes(self) -> int: ...
    def run(self) -> str: ...
