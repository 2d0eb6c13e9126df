"""The link's frames and its proof of identity under arbitrary bytes, from either side.

An input is what the other engine sends: as it is, or cut into payloads that get whole frames around
them, so that the checksum is no wall. It ends in a typed error, or in the data that it proved to be
entitled to, which no input can.
"""

from facade.contract.errors import TrellisError
from facade.engine import link_connection
from facade.engine.link_connection import Identity, LinkConnection, welcome
from facade.engine.link_wire import PAYLOAD_LIMIT, pack_frame, unpack_frame

ME = Identity("b", "not to be guessed", True)
IS_RAW, IS_DIALER, IS_PAST_PROOF = 1, 2, 4


class Wire:
    """A socket whose other side has said everything already."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.told = bytearray()

    def recv(self, most: int) -> bytes:
        assert most <= PAYLOAD_LIMIT
        piece, self.data = bytes(self.data[:most]), self.data[most:]
        return piece

    def sendall(self, data: bytes) -> None:
        self.told += data

    def setsockopt(self, *_: object) -> None:
        pass

    def setblocking(self, _: bool) -> None:
        pass


def frames_of(data: bytes) -> bytes:
    """Cut into frames: kind, flags, length of the payload, payload."""
    frames, at = [], 0
    while at + 3 <= len(data):
        kind, flags, length = data[at : at + 3]
        frames.append(pack_frame(kind & 15, data[at + 3 : at + 3 + length], flags=flags))
        at += 3 + length
    return b"".join(frames)


def fuzz_one(data: bytes) -> None:
    """Be told all this by the other side. Raises AssertionError for what must not come of it."""
    if not data:
        return
    wire = Wire(data[1:] if data[0] & IS_RAW else frames_of(data[1:]))
    connection = LinkConnection(wire, "peer")
    try:
        if data[0] & IS_PAST_PROOF:
            while True:
                offset, piece, _ = connection.expect_map_piece()
                assert 0 <= offset < 2**64
                assert len(piece) <= PAYLOAD_LIMIT
        elif data[0] & IS_DIALER:
            link_connection._prove_as_dialer(connection, ME, "a", "0" * 32)
        else:
            welcome(connection, ME)
    except TrellisError:
        pass
    else:
        raise AssertionError("a stranger was let in")
    # What was said in answer, a refusal too, is whole frames of ours.
    at = 0
    while at < len(wire.told):
        size = 40 + int.from_bytes(wire.told[at + 32 : at + 36])
        unpack_frame(bytes(wire.told[at : at + size]))
        at += size
