"""Power cut at random moments of a replicated volume's life, and what the next start finds.

Volume and bitmap of both sides stand on backings that lose, reorder and tear what is not flushed.
`TEST_POWER_CUT_ROUNDS` says how many rounds (default a few, soak 500), `TEST_SEED` replays.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest

from facade.contract.errors import TrellisError
from facade.engine import replica_source, states
from facade.engine.bitmap_header import BitmapHeader
from facade.engine.job import DONE
from tests.engine.harness import wait_for
from tests.faults.powered_hosts import PoweredHost
from tests.faults.write_model import WriteModel, Writer

ROUNDS = int(os.environ.get("TEST_POWER_CUT_ROUNDS", "30"))
SIZE_BYTES = 8 << 20  # several extents of the bitmap
SLOTS = 64
BLOCK_BYTES = 4096
WRITERS = 2
ROUND_S = 0.3  # a cut whose moment does not come by itself comes then
GROUP_ROUNDS = 50  # with one pair of hosts; then everything begins anew


@pytest.fixture(autouse=True)
def quick_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_source, "SETTLE_IDLE_S", 0.004)
    monkeypatch.setattr(replica_source, "SETTLE_BUSY_S", 0.008)
    monkeypatch.setattr(replica_source, "LEAVE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(replica_source, "CANCEL_GRACE_S", 0.2)


class Commander(threading.Thread):
    """Synchronises and logs at random until the primary has no power any more, or stop()."""

    def __init__(self, a: PoweredHost, b: PoweredHost, seed: int) -> None:
        super().__init__(name="commander", daemon=True)
        self.a, self.b = a, b
        self.dice = random.Random(seed)
        self.ended = threading.Event()
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            while not (self.ended.is_set() or self.a.power.is_off or self.b.power.is_off):
                self.step()
        except (TrellisError, OSError, sqlite3.Error):
            pass  # without power, on one side or the other
        except BaseException as fault:
            self.fault = fault

    def step(self) -> None:
        job = self.a.start_sync_to(self.b, self.dice.choice(["full", "update", "update", "update"]))
        if self.dice.random() < 0.8:
            job.ended.wait(5)
        for _ in range(self.dice.choice([0, 2, 6])):
            self.ended.wait(0.005)
            self.a.replica.cool_bitmap()  # as the engine's cooler does every few seconds
        self.a.log()

    def stop(self) -> None:
        self.ended.set()
        self.join(20)
        assert not self.is_alive(), "a command does not end"
        assert self.fault is None, self.fault


class Campaign:
    """A pair of hosts through many cuts."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.folder, self.dice = folder, dice
        self.set_id = uuid.UUID(int=dice.getrandbits(128)).hex
        self.model = WriteModel(SIZE_BYTES, SLOTS)
        self.seen: Counter[str] = Counter()
        self.b = self.boot("b", "secondary", "dirty")
        self.a = self.boot("a", "primary", "dirty")

    def boot(self, name: str, role: str, init: str = "resume") -> PoweredHost:
        seed = self.dice.getrandbits(64)
        host = PoweredHost(self.folder, name, seed, self.dice.choice([0, 0, 200, 2000]))
        host.engage(self.set_id, role, SIZE_BYTES, BLOCK_BYTES, init)
        return host

    def round(self) -> None:
        a, b, dice = self.a, self.b, self.dice
        writers = [
            Writer(a.volume.stack, self.model, n, WRITERS, dice.getrandbits(64))
            for n in range(WRITERS)
        ]
        commander = Commander(a, b, dice.getrandbits(64))
        victims = dice.choice([[a], [a], [b], [a, b]])
        for host in victims:
            host.power.cut_after(dice.choice([1, 5, 20, 60, 200, 400]) + dice.randrange(20))
        for thread in (*writers, commander):
            thread.start()
        self.wait_for_cut(victims)
        state_b = b.state
        if b in victims and a not in victims:
            # The primary goes on alone, and keeps account of it.
            goal = writers[0].requests + 5
            wait_for(lambda: writers[0].requests >= goal, what="writes without the secondary")
        for thread in (*writers, commander):
            thread.stop()
        left = b.header()
        for host in victims:
            host.bury()
        self.after_cut(victims, state_b, left)

    def wait_for_cut(self, victims: list[PoweredHost]) -> None:
        deadline = time.monotonic() + ROUND_S
        while not any(host.power.is_off for host in victims) and time.monotonic() < deadline:
            time.sleep(0.001)
        for host in victims:
            if not host.power.is_off:
                host.power.cut()

    def after_cut(
        self, victims: list[PoweredHost], state_b: str, left: BitmapHeader | None
    ) -> None:
        lost_a, lost_b = self.a in victims, self.b in victims
        if lost_b:
            self.b = self.boot("b", "secondary")
            self.check_start(self.b)
            if left is not None and left.state in (states.SYNCING, states.REPLICATING):
                # Blocks may have changed in any order: nobody may take this side for a whole one.
                assert "sync_needed" in self.b.replica.flags
            self.seen[f"secondary cut while {state_b}"] += 1
        else:
            wait_for(self.b.is_off, what="the secondary without a link")
        if lost_a:
            self.a = self.boot("a", "primary")
            self.check_start(self.a)
            self.seen["primary cut"] += 1
        else:
            wait_for(self.a.is_off, what="the primary without a link")
        self.model.check(self.a.image())
        self.check_bits()
        self.resync()
        if lost_a:
            self.seen["sectors lost"] += self.model.take(self.a.image())

    def check_start(self, host: PoweredHost) -> None:
        assert "bitmap_untrusted" not in host.events(), f"{host.name}: the header is not whole"
        header = host.header()
        assert header is not None
        assert header.state == states.LOGGING
        assert header.set_id.hex() == self.set_id
        assert host.state == states.LOGGING

    def check_bits(self) -> None:
        ours, theirs = self.a.image(), self.b.image()
        bits = self.a.dirty() | self.b.dirty()
        different = 0
        for block in range(SIZE_BYTES // BLOCK_BYTES):
            at = block * BLOCK_BYTES
            if ours[at : at + BLOCK_BYTES] != theirs[at : at + BLOCK_BYTES]:
                different += 1
                assert block in bits, f"block {block} differs and has no bit"
        self.seen["rounds with differences"] += different > 0
        self.seen["rounds with clean blocks"] += len(bits) < SIZE_BYTES // BLOCK_BYTES

    def resync(self) -> None:
        job = self.a.sync_to(self.b)
        assert job.state == DONE, job.to_wire()
        assert self.a.image() == self.b.image()
        assert "sync_needed" not in self.b.replica.flags
        self.a.log()
        wait_for(self.b.is_off, what="the secondary without a link")

    def end(self) -> None:
        for host in (self.a, self.b):
            host.bury()


@pytest.mark.timeout(120 + ROUNDS * 2)
def test_power_cut_campaign(tmp_path: Path) -> None:
    seed = int(os.environ.get("TEST_SEED") or random.randrange(1 << 32))
    begun = time.monotonic()
    seen: Counter[str] = Counter()
    for first in range(0, ROUNDS, GROUP_ROUNDS):
        dice = random.Random(f"{seed}:{first}")
        group = tmp_path / str(first)
        group.mkdir()
        campaign = Campaign(group, dice)
        try:
            for number in range(first, min(first + GROUP_ROUNDS, ROUNDS)):
                print(f"TEST_SEED={seed} round {number}")
                campaign.round()
        finally:
            campaign.end()
        seen += campaign.seen
    each_ms = (time.monotonic() - begun) * 1000 / ROUNDS
    print(f"{ROUNDS} rounds, {each_ms:.0f} ms each: {dict(seen)}")
    assert seen["rounds with differences"]
    assert seen["rounds with clean blocks"]
