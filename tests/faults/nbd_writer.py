"""A client that writes at random and knows what was answered."""

from __future__ import annotations

import random
import threading

import nbd

SECTOR_BYTES = 512


class NbdWriter(threading.Thread):
    """Writes 4 KiB pieces, each stamped with its number, until the server goes or stop() is called.

    `acknowledged[piece]` is the stamp of the last answered write to a piece, `sent[piece]` of the
    last one sent: what is read later must be one of those from the first to the second.
    """

    PIECE_BYTES = 4096

    def __init__(self, uri: str, size_bytes: int, seed: int, start_stamp: int = 1) -> None:
        super().__init__(daemon=True)
        self.uri = uri
        self.pieces = size_bytes // self.PIECE_BYTES
        self.rng = random.Random(seed)
        self.stamp = start_stamp
        self.acknowledged: dict[int, int] = {}
        self.sent: dict[int, int] = {}
        self.ended = threading.Event()
        self.writes = 0
        self.first_write = threading.Event()

    def stop(self) -> None:
        self.ended.set()
        self.join(30)
        assert not self.is_alive(), "the writer hangs"

    def run(self) -> None:
        handle = nbd.NBD()
        try:
            handle.connect_uri(self.uri)
            while not self.ended.is_set():
                self._write(handle)
            handle.shutdown()
        except nbd.Error:
            return

    def _write(self, handle: nbd.NBD) -> None:
        piece = self.rng.randrange(self.pieces)
        stamp, self.stamp = self.stamp, self.stamp + 1
        self.sent[piece] = stamp
        data = stamp.to_bytes(8, "big") * (self.PIECE_BYTES // 8)
        flags = nbd.CMD_FLAG_FUA if self.rng.random() < 0.02 else 0
        handle.pwrite(data, piece * self.PIECE_BYTES, flags)
        self.acknowledged[piece] = stamp
        self.writes += 1
        self.first_write.set()


def check_acknowledged(image: bytes, writers: list[NbdWriter]) -> None:
    """Every piece holds what was last answered, or what was sent after that; whole sectors."""
    acknowledged: dict[int, int] = {}
    sent: dict[int, int] = {}
    for writer in writers:
        acknowledged.update(writer.acknowledged)
        sent.update(writer.sent)
    for piece, stamp in acknowledged.items():
        offset = piece * NbdWriter.PIECE_BYTES
        for sector in range(0, NbdWriter.PIECE_BYTES, SECTOR_BYTES):
            found = int.from_bytes(image[offset + sector : offset + sector + 8], "big")
            assert stamp <= found <= sent[piece], (
                f"piece {piece}: {found} is there, {stamp} was answered, {sent[piece]} sent"
            )
