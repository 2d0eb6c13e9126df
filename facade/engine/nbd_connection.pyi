from facade.engine.nbd_tls import TlsSession

class Connection:
    def __init__(
        self,
        fd: int,
        leftover: bytes,
        is_structured: bool = False,
        is_extended: bool = False,
        session: TlsSession | None = None,
    ) -> None: ...
