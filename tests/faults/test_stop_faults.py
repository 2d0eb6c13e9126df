"""Disabling a set, and stopping its hosts, while the n-th operation of a backing fails.

Whatever fails, the end comes in time, every other volume is flushed and closed, nothing
acknowledged is lost, and at the next start each difference has its bit.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from facade.contract.fault_script import FaultOrder
from facade.engine import replica_source
from facade.engine.fault_volume import FaultVolume
from facade.engine.replica_source import SyncRequest
from tests.engine.harness import MIB
from tests.engine.hosts_inside import ends, in_thread
from tests.faults.faulty_hosts import FaultyHost, Life

STOP_LIMIT_S = 20.0
OPERATIONS_MAX = 100
STATES = ["logging", "syncing", "replicating"]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_source, "SETTLE_IDLE_S", 0.01)
    monkeypatch.setattr(replica_source, "CANCEL_GRACE_S", 0.2)


class EndingLife(Life):
    """A set that was brought to `state` with no fault; a volume `other` lies beside it on each."""

    def __init__(self, folder: Path, stack: ExitStack, state: str) -> None:
        super().__init__(folder, stack)
        self.others = [self.add_other(host) for host in (self.a, self.b)]
        self.enable()
        self.write_all()
        if state != "logging":
            self.sync("full")
            self.write_all()
        if state == "syncing":
            self.log()
            self.write_all()
            request = SyncRequest("full", "primary", self.b.address)
            self.a.replicas.sync(self.set_id, request)
        assert self.told == []

    @staticmethod
    def add_other(host: FaultyHost) -> FaultVolume:
        layer = host._open("zother", MIB)  # closed last
        layer.order(FaultOrder("flush", 1, 0, "delay", delay_us=1))
        host.volumes.get("zother").stack.pwrite(0, b"o" * 4096)
        return layer

    def each(self, n: int, body: Callable[[FaultyHost], object]) -> None:
        """Do it on both hosts, in either order, in time."""
        for host in (self.a, self.b) if n % 2 else (self.b, self.a):
            done = in_thread(lambda h=host: self.tell("end", lambda: body(h)))
            assert ends(done, STOP_LIMIT_S), f"{host.name} does not end"


def loop(
    folder: Path,
    where: tuple[str, str, str, str],
    body: Callable[[EndingLife, FaultVolume, int], None],
) -> None:
    """Until the n-th operation of the end is not reached in either order of the hosts."""
    state, host, backing, operation = where
    hits = missed = 0
    for n in count():
        assert n < OPERATIONS_MAX
        home = folder / str(n)
        home.mkdir()
        with ExitStack() as stack:
            life = EndingLife(home, stack, state)
            layer = {"a": life.a, "b": life.b}[host].layers[backing]
            layer.fail(operation, errno.EIO, skip=n // 2)
            body(life, layer, n)
            print(f"{where} {n}: {life.told}")
            hits += layer.hits
            missed = 0 if layer.hits else missed + 1
        if missed == 2:
            print(f"{hits} faults")
            return


def stop(life: EndingLife, _: FaultVolume, n: int) -> None:
    life.each(n, lambda host: host.stop())
    for other in life.others:
        assert other.hits == 1, "another volume is not flushed"
    for host in (life.a, life.b):
        for file in host.files:
            with pytest.raises(OSError, match=r"shut"):
                file.pread(0, 1)
    life.restart()
    life.check()
    life.recover()


def disable(life: EndingLife, layer: FaultVolume, n: int) -> None:
    life.each(n, lambda host: host.replicas.disable(life.set_id))
    if layer.hits == 0:
        return  # and the order would strike what follows
    for host in (life.a, life.b):
        assert host.replicas.all() == []
        assert all(not opened.sets for opened in host.volumes.all())
        assert host.volume.stack.top is host.volume.file
        host.volumes.get("bits").stack.pwrite(0, b"free")
        host.engage(life.set_id, "primary" if host is life.a else "secondary", "x")
    # Engaged anew all is dirty; what was acknowledged is still there.
    for host, peer in ((life.a, "b"), (life.b, "a")):
        host.replicas.disable(life.set_id)
        host.engage(life.set_id, "primary" if host is life.a else "secondary", peer)
    life.check()
    life.recover()


WHERE = [
    (state, host, backing, operation)
    for state in STATES
    for host in "ab"
    for backing in ("data", "bits")
    for operation in ("write", "flush")
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("where", WHERE, ids="-".join)
def test_stop(tmp_path: Path, where: tuple[str, str, str, str]) -> None:
    loop(tmp_path, where, stop)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("where", WHERE, ids="-".join)
def test_disable(tmp_path: Path, where: tuple[str, str, str, str]) -> None:
    loop(tmp_path, where, disable)
