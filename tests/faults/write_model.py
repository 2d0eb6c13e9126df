"""What each sector of a volume may hold after a power cut, and writers that keep the record."""

from __future__ import annotations

import random
import threading

from facade.engine.volume import Volume

SECTOR_BYTES = 512
SLOT_BYTES = 8192  # of one writer; a block is shared by several
SLOT_SECTORS = SLOT_BYTES // SECTOR_BYTES
STAMP_BYTES = 8


def pattern(stamp: int, length: int) -> bytes:
    return stamp.to_bytes(STAMP_BYTES, "big") * (length // STAMP_BYTES)


class WriteModel:
    """Each sector's stamps since it was last durable, oldest first; stamp 0 reads as zeroes.

    Only `slots` pieces of SLOT_BYTES, spread evenly over the volume, are ever written; sectors are
    counted over them alone.
    """

    def __init__(self, size_bytes: int, slots: int) -> None:
        self.slots = slots
        self.stride_bytes = size_bytes // slots
        self.lock = threading.Lock()
        self.stamp = 0
        self.may_be: list[list[int]] = [[0] for _ in range(slots * SLOT_SECTORS)]
        self.answered: dict[int, int] = {}  # sector: stamp of the last answered, not durable write

    def offset_bytes(self, sector: int) -> int:
        """Where a sector lies in the volume."""
        slot, within = divmod(sector, SLOT_SECTORS)
        return slot * self.stride_bytes + within * SECTOR_BYTES

    def begin(self, sectors: range, is_zero: bool) -> int:
        with self.lock:
            self.stamp += 1
            stamp = 0 if is_zero else self.stamp
            for sector in sectors:
                self.may_be[sector].append(stamp)
            return stamp

    def end(self, sectors: range, stamp: int, durable: bool) -> None:
        with self.lock:
            for sector in sectors:
                if durable:
                    self.may_be[sector] = [stamp]
                    self.answered.pop(sector, None)
                else:
                    self.answered[sector] = len(self.may_be[sector]) - 1

    def flush_begins(self) -> dict[int, list[int]]:
        """What is answered before the flush, as the stamps that may then be there at the least."""
        with self.lock:
            return {s: self.may_be[s][: index + 1] for s, index in self.answered.items()}

    def flush_ended(self, covered: dict[int, list[int]]) -> None:
        with self.lock:
            for sector, stamps in covered.items():
                now = self.may_be[sector]
                # Unless a later flush or FUA write has made it shorter already.
                if now[: len(stamps)] == stamps and len(stamps) > 1:
                    self.may_be[sector] = now[len(stamps) - 1 :]
                    index = self.answered.get(sector, 0) - len(stamps) + 1
                    if index > 0:
                        self.answered[sector] = index
                    else:
                        self.answered.pop(sector, None)

    def check(self, image: bytes) -> None:
        for sector, allowed in enumerate(self.may_be):
            at = self.offset_bytes(sector)
            found = image[at : at + SECTOR_BYTES]
            stamp = int.from_bytes(found[:STAMP_BYTES], "big")
            assert found == pattern(stamp, SECTOR_BYTES), f"sector {sector} is no whole write"
            assert stamp in allowed, f"sector {sector} holds {stamp}, may hold {allowed}"

    def take(self, image: bytes) -> int:
        """Go on from what a start has found; returns how many sectors lost their last write."""
        lost = 0
        for sector, stamps in enumerate(self.may_be):
            at = self.offset_bytes(sector)
            found = int.from_bytes(image[at : at + STAMP_BYTES], "big")
            lost += stamps[-1] != found
            self.may_be[sector] = [found]
        self.answered.clear()
        return lost


class Writer(threading.Thread):
    """Writes at random into the slots that are its own until a request fails, or until stop()."""

    def __init__(
        self, volume: Volume, model: WriteModel, number: int, count: int, seed: int
    ) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self.volume, self.model = volume, model
        self.slots = range(number, model.slots, count)
        self.dice = random.Random(seed)
        self.ended = threading.Event()
        self.requests = 0
        self.error: OSError | None = None
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.ended.is_set():
                self.request()
                self.requests += 1
        except OSError as error:
            self.error = error
        except BaseException as fault:
            self.fault = fault

    def stop(self) -> None:
        self.ended.set()
        self.join(20)
        assert not self.is_alive(), "a request does not end"
        assert self.fault is None, self.fault

    def request(self) -> None:
        dice = self.dice
        kind = dice.choices(["write", "fua", "zero", "trim", "flush"], [60, 8, 6, 6, 10])[0]
        if kind == "flush":
            covered = self.model.flush_begins()
            self.volume.flush()
            self.model.flush_ended(covered)
            return
        count = dice.choice([1, 8, 8, dice.randint(1, SLOT_SECTORS)])
        slot = dice.choice(self.slots) * SLOT_SECTORS
        first = slot + dice.randrange(SLOT_SECTORS - count + 1)
        sectors = range(first, first + count)
        offset, length = self.model.offset_bytes(first), count * SECTOR_BYTES
        durable = kind == "fua" or dice.random() < 0.05
        stamp = self.model.begin(sectors, is_zero=kind in ("zero", "trim"))
        if kind == "zero":
            self.volume.zero(offset, length, fua=durable)
        elif kind == "trim":
            self.volume.trim(offset, length, fua=durable)
        else:
            self.volume.pwrite(offset, pattern(stamp, length), fua=durable)
        self.model.end(sectors, stamp, durable)
