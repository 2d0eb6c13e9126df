"""How the predecessor names, writes and lists replication sets. Pure.

A set is named by its name, or by its secondary as `SHOST:SVOLUME`. In a set file, and behind `-e`,
it is `PHOST PVOLUME PBITMAP SHOST SVOLUME SBITMAP ip sync [g GROUP] [set NAME]`; `-` as a bitmap
lets Trellis make one, and without a name the set is called `SVOLUME@SHOST`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from console.avs_options import wrong
from console.avs_tables import NO_CLUSTER, NO_QUEUE
from console.errors import NoMeaningHere
from facade.contract.names import check_group, check_host, check_set, check_volume

TUPLE_WORDS: Final = 8
PATENT_WORDS: Final = 11
PATENT_FORM: Final = "-C p|s s|a y|n y|n SET PHOST PVOL PBITMAP SHOST SVOL SBITMAP"
MODES: Final = {"s": "sync", "a": "async"}
YES_NO: Final = {"y": True, "n": False}

Set = Mapping[str, Any]


def from_patent(command: str, words: Sequence[str], this_host: Callable[[], str]) -> dict[str, Any]:
    """The arguments of a `create` out of `-C ROLE MODE ENABLE AUTOSYNC SET ...`.

    ROLE is the role of this host (asked for last), which must be one of the two. Raises
    NoMeaningHere for the later product's `-C tag`, WrongUsage, BadName.
    """
    if not words or words[0] not in ("p", "s") or len(words) == 1:
        raise NoMeaningHere(command=command, option="-C tag", reason=NO_CLUSTER)
    if len(words) != PATENT_WORDS:
        raise wrong(command, f"The form is {PATENT_FORM}; {len(words)} words follow -C.")
    role, mode, enable, autosync, name = words[:5]
    for letter, allowed, what in (
        (mode, MODES, "the mode"),
        (enable, YES_NO, "enable"),
        (autosync, YES_NO, "autosync"),
    ):
        if letter not in allowed:
            raise wrong(command, f"'{letter}' cannot be {what}: it is {' or '.join(allowed)}.")
    sides = [side(words[5:8]), side(words[8:11])]
    host = this_host()
    here = [number for number, one in enumerate(sides) if one["host"] == host]
    if not here:
        raise wrong(
            command,
            f"'{role}' is the role of this host, {host}, and the set is between "
            f"{sides[0]['host']} and {sides[1]['host']}.",
        )
    primary = here[0] if role == "p" else 1 - here[0]
    return {
        "name": check_set(name),
        "primary": sides[primary],
        "secondary": sides[1 - primary],
        "mode": MODES[mode],
        "autosync": YES_NO[autosync],
        "enable": YES_NO[enable],
    }


def from_tuple(command: str, words: Sequence[str]) -> dict[str, Any]:
    """The arguments of a `create` out of the later product's tuple."""
    if len(words) < TUPLE_WORDS:
        raise wrong(command, "A set is PHOST PVOL PBITMAP SHOST SVOL SBITMAP ip sync|async.")
    if words[6] != "ip":
        raise wrong(command, f"'{words[6]}' is no way to the other host: it is ip.")
    if words[7] not in MODES.values():
        raise wrong(command, f"'{words[7]}' is no mode: it is sync or async.")
    primary, secondary = side(words[0:3]), side(words[3:6])
    found: dict[str, Any] = {
        "name": f"{secondary['volume']}@{secondary['host']}",
        "primary": primary,
        "secondary": secondary,
        "mode": words[7],
    }
    rest = list(words[TUPLE_WORDS:])
    while rest:
        key = rest.pop(0)
        if not rest:
            raise wrong(command, f"'{key}' at the end of a set lacks its value.")
        value = rest.pop(0)
        if key == "g":
            found["group"] = check_group(value)
        elif key == "set":
            found["name"] = check_set(value)
        elif key in ("q", "C"):
            reason = NO_QUEUE if key == "q" else NO_CLUSTER
            raise NoMeaningHere(command=command, option=f"{key} {value}", reason=reason)
        else:
            raise wrong(command, f"'{key}' cannot stand behind a set: g, q, C or set can.")
    return found


def side(words: Sequence[str]) -> dict[str, Any]:
    """Host, volume and bitmap volume as the replication bean takes them."""
    bitmap = None if words[2] == "-" else check_volume(words[2])
    return {"host": check_host(words[0]), "volume": check_volume(words[1]), "bitmap": bitmap}


def chosen(sets: Sequence[Set], words: Sequence[str], group: str | None) -> list[Set | str]:
    """The sets that a command line names: all of them where it names none.

    A word that names no known set comes back as it is, for the bean to answer.
    """
    of_group = [one for one in sets if group is None or one["group"] == group]
    if not words:
        return list(of_group)
    found: list[Set | str] = []
    for word in words:
        host, colon, volume = word.partition(":")
        match = next(
            (
                one
                for one in of_group
                if one["name"] == word
                or (
                    colon
                    and one["secondary"]["host"] == host.lower()
                    and one["secondary"]["volume"] == volume
                )
            ),
            None,
        )
        found.append(word if match is None else match)
    return found


def arrow(one: Set) -> str:
    """`host_a:Volume_a -> host_b:Volume_b`."""
    first, second = one["primary"], one["secondary"]
    return f"{first['host']}:{first['volume']} -> {second['host']}:{second['volume']}"


def details(one: Set) -> str:
    """What `-P` shows of a set."""
    blocks = "not known" if one["dirty_blocks"] is None else one["dirty_blocks"]
    autosync = "on" if one["autosync"] else "off"
    flags = f" ({', '.join(one['flags'])})" if one["flags"] else ""
    return (
        f"{arrow(one)}\n  name: {one['name']}, state: {one['state']}{flags}, mode: {one['mode']}, "
        f"autosync: {autosync}, changed blocks: {blocks}"
    )


def file_line(one: Set) -> str:
    """A set as a line of a set file."""
    words = []
    for known in (one["primary"], one["secondary"]):
        words += [known["host"], known["volume"], known["bitmap"] or "-"]
    words += ["ip", one["mode"]]
    if one["group"]:
        words += ["g", one["group"]]
    return " ".join([*words, "set", one["name"]])


def health(one: Set) -> str:
    """What `-H` says of a set's link."""
    return f"{arrow(one)}: link {'active' if one['connected'] else 'inactive'}"
