"""docs/nbd.md says what the code does: limits, options, and bytes, as a server sends them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from facade.engine import nbd_numbers, nbd_wire
from facade.engine.nbd_server import NbdServer
from tests.engine import nbd_raw as raw
from tests.engine.nbd_raw import RawClient, serve
from tests.engine.volume_makers import file_volume
from tests.unit.test_format_docs import DOCS, rows

ENGINE = Path(nbd_wire.__file__).parent
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
SIZE_BYTES = 1 << 20
ALLOCATION = "base:allocation"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NbdServer]:
    with file_volume(tmp_path, SIZE_BYTES) as volume, serve(volume) as running:
        yield running


def constant(name: str) -> float:
    """The value of a limit in the engine's sources, NBD's first; the same wherever it is told."""
    module, _, name = name.rpartition(".")
    told: set[float] = set()
    for pattern in [f"{module}.p*"] if module else ["nbd_*.p*", "*.p*"]:
        for source in () if told else ENGINE.glob(pattern):
            for value in re.findall(
                rf"^ *{name}(?:: Final)? = (\d[\w* .]*?) *(?:#.*)?$", source.read_text(), re.M
            ):
                told.add(math.prod(map(factor_of, value.split("*"))))
    assert len(told) == 1, (name, told)
    return told.pop()


def factor_of(text: str) -> float:
    """A number, or another limit by its name."""
    text = text.strip()
    return constant(text) if text.isidentifier() else float(text)


def numbers(text: str) -> list[float]:
    """Every number of a cell, in bytes or as it stands."""
    found = []
    for power, plain, unit in re.findall(r"(?:2\^(\d+)|([\d.]+)) ?([KMG]iB)?", text):
        found.append((2.0 ** int(power) if power else float(plain)) * UNITS.get(unit, 1))
    return found


def test_limits() -> None:
    table = rows("nbd.md", "Limits")
    assert len(table) > 15
    for limit, value, where in table:
        names = re.findall(r"`([\w.]+)`", where)
        assert names, limit
        told = [constant(name) / (1000 if name.endswith("_MS") else 1) for name in names]
        assert numbers(value)[: len(names)] == told, limit


def test_every_option_and_flag_is_named() -> None:
    text = (DOCS / "nbd.md").read_text()
    for numbered in (nbd_numbers.Opt, nbd_numbers.TransmissionFlag):
        names = {name for name in vars(numbered) if name.isupper()} - {"HAS_FLAGS"}
        assert {name for name in names if f"`{name}`" not in text} == set()


def pack(heading: str, **values: int) -> bytes:
    """A header by the document's table; what is not given is 0."""
    data = b""
    for offset, size, field in rows("nbd.md", heading):
        name, _, fixed = field.partition(", ")
        assert len(data) == int(offset)
        data += (int(fixed, 16) if fixed else values.get(name, 0)).to_bytes(int(size))
    return data


def take(client: RawClient, heading: str) -> dict[str, int]:
    """Receive a header and cut it by the document's table."""
    table = rows("nbd.md", heading)
    data = client.take(sum(int(size) for _, size, _ in table))
    found = {}
    for offset, size, field in table:
        name, _, fixed = field.partition(", ")
        found[name] = int.from_bytes(data[int(offset) : int(offset) + int(size)])
        if fixed:
            assert found[name] == int(fixed, 16)
    return found


def test_bytes_of_simple_replies(server: NbdServer) -> None:
    with RawClient(server.socket_path) as client:
        client.send(pack("A request", type=raw.WRITE, offset=3, length=4, cookie=9) + b"data")
        assert take(client, "A simple reply")["cookie"] == 9
        client.send(pack("A request", type=raw.READ, offset=3, length=4, cookie=8))
        assert take(client, "A simple reply")["error"] == 0
        assert client.take(4) == b"data"


@pytest.mark.parametrize("is_extended", [False, True])
def test_bytes_of_chunks(server: NbdServer, is_extended: bool) -> None:
    which = "n extended" if is_extended else ""
    asking = f"A{which} request" if is_extended else "A request"
    chunk = f"A{which} chunk" if is_extended else "A chunk"
    options = {"extended": True} if is_extended else {"structured": True}
    kinds = {row[0]: row[1] for row in rows("nbd.md", "What is in a chunk")}

    def ask(kind: int, offset: int, length: int, flags: int = 0, data: bytes = b"") -> bytes:
        values = {"type": kind, "offset": offset, "length": length, "flags": flags, "cookie": 77}
        client.send(pack(asking, **values) + data)
        head = take(client, chunk)
        assert (head["flags"], head["cookie"]) == (1, 77)
        assert not is_extended or head["offset"] == offset
        seen.add(str(head["type"]))
        payload = client.take(head["length"])
        sizes = [int(size) for size in re.findall(r"\((\d+)\)", kinds[str(head["type"])])]
        assert len(payload) >= sum(sizes)
        return payload

    seen: set[str] = set()
    with RawClient(server.socket_path, contexts=(ALLOCATION,), **options) as client:
        if is_extended:
            assert ask(raw.WRITE, 0, 4, flags=32, data=b"data") == b""
            hole = (SIZE_BYTES - 4096).to_bytes(8) + (3).to_bytes(8)
            told = ask(raw.BLOCK_STATUS, 4096, SIZE_BYTES - 4096)
            assert told == (1).to_bytes(4) + (1).to_bytes(4) + hole
        else:
            client.send(pack(asking, type=raw.WRITE, length=4) + b"data")
            take(client, "A simple reply")
            assert ask(raw.READ, 0, 0) == b""
            hole = (SIZE_BYTES - 4096).to_bytes(4) + (3).to_bytes(4)
            assert ask(raw.BLOCK_STATUS, 4096, SIZE_BYTES - 4096) == (1).to_bytes(4) + hole
        assert ask(raw.READ, 0, 4) == (0).to_bytes(8) + b"data"
        assert ask(raw.READ, 4096, 128 << 10) == (4096).to_bytes(8) + (128 << 10).to_bytes(4)
        told = ask(raw.READ, SIZE_BYTES, 1)
        assert int.from_bytes(told[:4]) == raw.EINVAL
        assert int.from_bytes(told[4:6]) == len(told[6:].decode())
    assert seen == set(kinds) - {"5" if is_extended else "6"}
