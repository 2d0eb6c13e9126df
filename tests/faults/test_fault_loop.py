"""The fault loop: the first, second, third ... operation of a backing fails, until none is hit.

One life of a set (enable, writes, full synchronisation, replicated writes, logging, update) is
lived again for each operation of each backing of both sides, and then the invariants are checked.
`TEST_FAULT_STRIDE` (default 4, soak 1): of so many operations one is made to fail.
"""

from __future__ import annotations

import errno
import os
import random
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from facade.engine import replica_source
from tests.faults.faulty_hosts import PIECE, SIZE_BYTES, Life

STRIDE = int(os.environ.get("TEST_FAULT_STRIDE", "4"))
OPERATIONS_MAX = 500  # of one backing in one life; more would be a loop without end


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_source, "SETTLE_IDLE_S", 0.01)
    monkeypatch.setattr(replica_source, "CANCEL_GRACE_S", 0.2)


class DigestLife(Life):
    """Sides that differ in some pieces only are made equal by their digests, twice."""

    def live(self) -> None:
        same = bytearray(self.dice.randbytes(SIZE_BYTES))
        self.a.files[0].pwrite(0, bytes(same))
        for piece in range(SIZE_BYTES // PIECE):
            self.must_be[piece] = bytes(same[piece * PIECE : (piece + 1) * PIECE])
            if piece % 7 == 3:
                same[piece * PIECE : (piece + 1) * PIECE] = self.dice.randbytes(PIECE)
        self.b.files[0].pwrite(0, bytes(same))
        self.enable()
        self.write_all()
        self.sync("update")
        self.write_all()
        self.log()
        self.write_all()
        self.sync("update")
        self.log()


def loop(
    folder: Path, host: str, backing: str, operation: str, error: int, kind: type[Life] = Life
) -> int:
    """Live until the n-th operation is not reached any more; returns how many faults were hit."""
    hits = 0
    for n in count(random.randrange(STRIDE), STRIDE):
        assert n < OPERATIONS_MAX
        home = folder / str(n)
        home.mkdir()
        with ExitStack() as stack:
            life = kind(home, stack)
            layer = {"a": life.a, "b": life.b}[host].layers[backing]
            before = life.events()
            layer.fail(operation, error, skip=n)
            life.live()
            print(f"{host} {backing} {operation} {n}: {life.told}")
            life.check()
            if layer.hits == 0:
                return hits  # and the order would strike what follows
            hits += 1
            known = {"volume_failed", "bitmap_failed", "sync_failed", "link_lost"}
            new = life.events() - before
            assert life.told or new & known, f"operation {n} failed and nobody was told"
            life.recover()
    raise AssertionError


@pytest.mark.timeout(900)
@pytest.mark.parametrize("operation", ["write", "flush", "read"])
@pytest.mark.parametrize("backing", ["data", "bits"])
@pytest.mark.parametrize("host", ["a", "b"])
def test_each_operation_fails_once(tmp_path: Path, host: str, backing: str, operation: str) -> None:
    error = errno.ENOSPC if operation == "write" and backing == "data" else errno.EIO
    hits = loop(tmp_path, host, backing, operation, error)
    print(f"{hits} faults")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("operation", ["write", "flush", "read"])
@pytest.mark.parametrize("host", ["a", "b"])
def test_each_operation_of_a_synchronisation_by_digests_fails_once(
    tmp_path: Path, host: str, operation: str
) -> None:
    hits = loop(tmp_path, host, "data", operation, errno.EIO, DigestLife)
    print(f"{hits} faults")
