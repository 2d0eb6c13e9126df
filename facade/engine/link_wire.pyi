from typing_extensions import Buffer

HEADER_SIZE_BYTES: int
PAYLOAD_LIMIT: int
VERSION: int
CONTROL: int
MAP: int
LAST: int

def pack_frame(
    kind: int, payload: Buffer, seq: int = 0, offset: int = 0, length: int = 0, flags: int = 0
) -> bytes: ...
def payload_bytes(header: Buffer) -> int: ...
def unpack_frame(frame: Buffer) -> tuple[int, int, int, int, int, bytes]: ...
