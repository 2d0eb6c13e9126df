"""`trellis host`: the hosts of the management domain and the beans that answer on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from console.base import Group, pass_console
from console.console import Console
from console.errors import HostUnknown
from console.output import fields, table
from console.place import hosts_of
from facade.contract.errors import UnreachableError
from facade.contract.names import check_host
from facade.contract.services import BASE_SERVICES, DATA_SERVICES

STATION = "station"
UP, PARTLY, DOWN = "up", "partly", "down"
EXPECTED_BEANS = frozenset((*BASE_SERVICES, *DATA_SERVICES))


@click.group(cls=Group)
def host() -> None:
    """Hosts of this management domain."""


@host.command("list")
@pass_console
def list_(console: Console) -> None:
    """List the hosts and the beans that answer on each."""
    hosts = known_hosts(console)
    rows = [(one["host"], one["state"], ", ".join(one["beans"]) or "-") for one in hosts]
    console.show(hosts, table(("host", "state", "beans"), rows))


@host.command()
@click.argument("name", metavar="[H]", required=False)
@pass_console
def show(console: Console, name: str | None) -> None:
    """Show one host: its beans, volumes and sets."""
    wanted = check_host(name) if name else console.host
    hosts = known_hosts(console)
    found = next((one for one in hosts if one["host"] == wanted), None)
    if found is None:
        known = ", ".join(one["host"] for one in hosts) or "none"
        raise HostUnknown(host=wanted, known=known)
    one = {**found, **things_of(console, found)}
    pairs = [
        ("host", one["host"]),
        ("state", one["state"]),
        ("beans", ", ".join(one["beans"]) or "-"),
        ("no answer", ", ".join(one["missing"]) or "-"),
        ("volumes", _names(one["volumes"])),
        ("sets", _names(one["sets"])),
    ]
    console.show(one, fields(pairs))


def known_hosts(console: Console) -> list[dict[str, Any]]:
    """Every host: those whose beans are announced, and those of a federation made by `trellis up`.

    Each with `host`, `state` (`up`, `partly`, `down`), `beans` and `missing`. Raises what the
    broker raises when nobody can be asked.
    """
    alive = live_beans(console)
    for name in hosts_of(console.directory) if console.in_embedded else ():
        alive.setdefault(name, [])
    return [_host(name, beans) for name, beans in sorted(alive.items())]


def live_beans(console: Console) -> dict[str, list[str]]:
    """The beans that are announced, by host: this host's station knows, else the exchange does."""
    try:
        hosts = console.bean(STATION, console.this_host).hosts()
    except UnreachableError:
        from broker.lookup import query

        found: dict[str, list[str]] = {}
        for handle in query(console.settings):
            found.setdefault(handle.host, []).append(handle.bean)
        return found
    return {one["host"]: list(one["beans"]) for one in hosts}


def things_of(console: Console, one: Mapping[str, Any]) -> dict[str, Any]:
    """The volumes and sets of a host as its beans tell; null where a bean is not there."""
    return {
        "volumes": _list(console, one, "volume"),
        "sets": _all_sets(console, one),
    }


def _all_sets(console: Console, one: Mapping[str, Any]) -> list[Any] | None:
    found: list[Any] = []
    for service in DATA_SERVICES:
        sets = _list(console, one, service)
        if sets is None:
            return None
        found += sets
    return found


def _list(console: Console, one: Mapping[str, Any], bean: str) -> list[Any] | None:
    if bean not in one["beans"]:
        return None
    try:
        return list(console.bean(bean, one["host"]).list())
    except UnreachableError:
        return None


def _host(name: str, beans: Sequence[str]) -> dict[str, Any]:
    missing = sorted(EXPECTED_BEANS - set(beans))
    state = DOWN if not beans else PARTLY if missing else UP
    return {"host": name, "state": state, "beans": sorted(beans), "missing": missing}


def _names(things: Sequence[Mapping[str, Any]] | None) -> str:
    if things is None:
        return "not known"
    return ", ".join(str(one["name"]) for one in things) or "none"
