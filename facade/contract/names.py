"""What hosts, volumes and sets may be called.

A host name stands in routing keys, where a dot splits words; names of volumes and sets stand in
`HOST:VOLUME:BITMAP` and become file names, so they hold neither `:` nor `/`.
"""

import re

from facade.contract.errors import BadName

HOST_RULE = "1 to 63 characters of a-z, 0-9, _ and - (capital letters are lowered)"
VOLUME_RULE = "1 to 100 characters of A-Z, a-z, 0-9 and _ . + @ = -, the first a letter, digit or _"

_HOST = re.compile(r"[a-z0-9_-]{1,63}")
_VOLUME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@=-]{0,99}")


def check_host(name: str) -> str:
    """Return the lower-cased host name. Raises BadName."""
    lowered = name.lower() if name.isascii() else name
    return _check(_HOST, "host", lowered, HOST_RULE)


def check_volume(name: str) -> str:
    """Return the volume's name unchanged (names keep their case). Raises BadName."""
    return _check(_VOLUME, "volume", name, VOLUME_RULE)


def check_set(name: str) -> str:
    """Return the set's name unchanged (names keep their case). Raises BadName."""
    return _check(_VOLUME, "set", name, VOLUME_RULE)


def check_group(name: str) -> str:
    """Return the consistency group's name unchanged. Raises BadName."""
    return _check(_VOLUME, "group", name, VOLUME_RULE)


def _check(pattern: re.Pattern[str], kind: str, name: str, rule: str) -> str:
    if pattern.fullmatch(name) is None:
        raise BadName(kind=kind, name=name, rule=rule)
    return name
