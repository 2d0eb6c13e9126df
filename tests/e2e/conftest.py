"""One real federation for all tests of this folder, its link to host_b through a proxy."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from demo.link_proxy import LinkProxy
from facade.contract.settings import split_address
from tests.e2e.seat import Seat

_numbers = count(1)


@dataclass
class Federation:
    """The federation's folder, a seat on host_a, the link, and what `trellis up` said."""

    seat: Seat
    link: LinkProxy
    up_said: dict[str, object]


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    directory = tmp_path_factory.mktemp("e2e") / "federation"
    seat = Seat(directory)
    with LinkProxy(("127.0.0.1", 0)) as link:
        advertise = "host_b={}:{}".format(*link.address)
        said = seat.type("trellis", "up", "--detach", "--json", "--advertise", advertise)
        document = said.json()
        try:
            listen = {one["host"]: one["listen"] for one in document["hosts"]}
            link.set_target(split_address(listen["host_b"]))
            yield Federation(seat, link, document)
        finally:
            assert seat.type("trellis", "down").status == 0


@pytest.fixture
def seat(federation: Federation) -> Seat:
    return federation.seat


@pytest.fixture
def link(federation: Federation) -> Iterator[LinkProxy]:
    yield federation.link
    federation.link.restore()


@dataclass(frozen=True)
class Pair:
    """A new name for a set, and the volumes for it on both hosts."""

    name: str
    volume_a: str
    volume_b: str
    path_a: Path
    path_b: Path

    @property
    def sides(self) -> list[str]:
        return ["--primary", f"host_a:{self.volume_a}", "--secondary", f"host_b:{self.volume_b}"]


@pytest.fixture
def pair(seat: Seat) -> Pair:
    number = next(_numbers)
    a, b = f"va{number}", f"vb{number}"
    return Pair(f"Set{number}", a, b, seat.volume("host_a", a), seat.volume("host_b", b))
