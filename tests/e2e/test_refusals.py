"""When things are wrong: one sentence, the right status, nothing changed, nothing half made."""

import contextlib
import signal
from collections.abc import Iterator

import pytest

from console.supervisor_process import session_members
from tests.e2e.conftest import Pair
from tests.e2e.seat import Seat, one_sentence, wait_for

ODD_NAMES = ["a:b", "a/b", "../x", "-x", "", "x" * 101, "ä", "a b", ".x", "a\nb"]


def create(seat: Seat, name: str, primary: str, secondary: str, code: str, status: int = 1) -> str:
    """Try a create that must fail, and prove that it has changed nothing on either host."""
    before = seat.configuration()
    said = seat.say("replica", "create", name, "--primary", primary, "--secondary", secondary)
    sentence = one_sentence(said, code, status)
    assert seat.configuration() == before
    return sentence


@pytest.mark.parametrize(
    ("line", "code", "status"),
    [
        ("volume show nosuch", "unknown_volume", 1),
        ("volume show nosuch --host host_b", "unknown_volume", 1),
        ("volume list --host host_z", "bean_unavailable", 3),
        ("host show host_z", "host_unknown", 3),
        ("replica show nosuch", "unknown_set", 1),
        ("replica sync nosuch", "unknown_set", 1),
        ("replica delete nosuch --yes", "unknown_set", 1),
        ("volume create big --size 1000T", "space_short", 1),
    ],
)
def test_unknown_things(seat: Seat, line: str, code: str, status: int) -> None:
    one_sentence(seat.type("trellis", *line.split()), code, status)


def test_set_of_unknown_volumes_or_hosts(seat: Seat, pair: Pair) -> None:
    good_a, good_b = f"host_a:{pair.volume_a}", f"host_b:{pair.volume_b}"
    assert "nosuch" in create(seat, pair.name, "host_a:nosuch", good_b, "unknown_volume")
    assert "host_b" in create(seat, pair.name, good_a, "host_b:nosuch", "unknown_volume")
    create(seat, pair.name, good_a, f"{good_b}:nosuch", "unknown_volume")
    create(seat, pair.name, good_a, f"host_a:{pair.volume_b}", "same_host")
    assert "host_z" in create(seat, pair.name, good_a, "host_z:v", "bean_unavailable", 3)
    assert "host_z" in create(seat, pair.name, "host_z:v", good_b, "bean_unavailable", 3)


def test_volume_used_twice_or_in_two_roles(seat: Seat, pair: Pair) -> None:
    seat.trellis("replica", "create", pair.name, *pair.sides).json()
    seat.volume("host_a", f"{pair.name}a")
    seat.volume("host_b", f"{pair.name}b")
    free_a, free_b = f"host_a:{pair.name}a", f"host_b:{pair.name}b"
    used_a, used_b = f"host_a:{pair.volume_a}", f"host_b:{pair.volume_b}"
    sentence = create(seat, "other", used_a, free_b, "volume_busy")
    assert pair.name in sentence
    assert "primary" in sentence
    create(seat, "other", free_a, used_b, "volume_busy")
    create(seat, "other", f"{free_a}:{pair.volume_a}", free_b, "volume_busy")
    create(seat, "other", free_a, f"{free_b}:{pair.volume_b}", "volume_busy")
    create(seat, pair.name, free_a, free_b, "set_exists")
    said = seat.type("trellis", "volume", "disable", pair.volume_a)
    assert pair.name in one_sentence(said, "volume_busy")


def test_secondary_smaller_than_primary(seat: Seat, pair: Pair) -> None:
    seat.volume("host_b", f"small-{pair.name}", "8M")
    sentence = create(
        seat, pair.name, f"host_a:{pair.volume_a}", f"host_b:small-{pair.name}", "volume_too_small"
    )
    assert str(16 << 20) in sentence


def test_bitmap_too_small_says_how_big_it_must_be(seat: Seat, pair: Pair) -> None:
    seat.volume("host_b", f"bits-{pair.name}", "4K")
    bitmap = f"host_b:{pair.volume_b}:bits-{pair.name}"
    sentence = create(seat, pair.name, f"host_a:{pair.volume_a}", bitmap, "bitmap_too_small")
    assert str(12 * 1024) in sentence


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names(seat: Seat, name: str) -> None:
    before = seat.configuration()
    error = seat.trellis("volume", "create", "--size", "1M", "--", name).error()
    assert error["code"] == "bad_name"
    sides = ["--primary", "host_a:a", "--secondary", "host_b:b"]
    assert seat.trellis("replica", "create", *sides, "--", name).error()["code"] == "bad_name"
    assert seat.configuration() == before


@pytest.mark.parametrize(
    "more",
    [["--mode", "async"], ["--group", "g"], ["--queue", "q"]],
)
def test_what_this_version_does_not_do_is_one_sentence(
    seat: Seat, pair: Pair, more: list[str]
) -> None:
    before = seat.configuration()
    said = seat.say("replica", "create", pair.name, *pair.sides, *more)
    one_sentence(said, "unsupported")
    assert seat.configuration() == before


@pytest.mark.parametrize(
    "line", ["verify S", "swap S", "set S autosync=on", "sync S --reverse --yes"]
)
def test_operations_of_later_versions_say_so(seat: Seat, pair: Pair, line: str) -> None:
    seat.trellis("replica", "create", pair.name, *pair.sides).json()
    said = seat.say("replica", *line.replace("S", pair.name).split())
    one_sentence(said, "unsupported")


def test_while_the_other_hosts_beans_are_down(seat: Seat, pair: Pair) -> None:
    before = seat.configuration()
    with held_down(seat, "beans-host_b"):
        error = one_sentence(
            seat.type("trellis", "replica", "create", pair.name, *pair.sides), "bean_unavailable", 3
        )
        assert "host_b" in error
    wait_for("host_b that is up again", lambda: all_up(seat))
    assert seat.configuration() == before


def test_while_the_broker_is_gone(seat: Seat, pair: Pair) -> None:
    with held_down(seat, "rabbitmq"):
        one_sentence(seat.type("trellis", "volume", "list"), "broker_unavailable", 3)
    wait_for("broker that is back", lambda: all_up(seat))
    seat.trellis("replica", "create", pair.name, *pair.sides).json()


@contextlib.contextmanager
def held_down(seat: Seat, name: str) -> Iterator[None]:
    """Meanwhile a child of the supervisor is dead: the supervisor, stopped, starts nothing."""
    supervisor, child = seat.supervisor(), seat.child(name)
    assert supervisor.signal(signal.SIGSTOP)
    try:
        assert child.signal(signal.SIGKILL)
        wait_for("end of all its processes", lambda: not session_members(child.pid))
        yield
    finally:
        assert supervisor.signal(signal.SIGCONT)


def all_up(seat: Seat) -> bool:
    """Every bean takes calls again: announced is not enough, its worker may come back later."""
    asked = [(noun, host) for noun in ("volume", "replica") for host in ("host_a", "host_b")]
    return all(seat.trellis(noun, "list", "--host", host).status == 0 for noun, host in asked)
