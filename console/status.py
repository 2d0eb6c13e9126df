"""`trellis status`: hosts, beans, sets, and what needs attention. Reading only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from console.base import Command, pass_console
from console.console import Console
from console.host import UP, known_hosts, things_of
from console.output import table

GOOD_STATES = ("replicating", "queuing", "syncing", "reverse_syncing", "disabled")
ADVICE = {
    "logging": "changes are recorded and not copied; `trellis replica sync {name}` sends them",
    "reverse_syncing": "the primary volume is being overwritten from the secondary",
}


@click.command(cls=Command)
@pass_console
def status(console: Console) -> None:
    """Hosts, beans, sets, and what needs attention."""
    hosts = known_hosts(console)
    things = {one["host"]: things_of(console, one) for one in hosts}
    sets = merge_sets([known["sets"] or [] for known in things.values()])
    document = {
        "domain": console.settings.host.domain,
        "hosts": [
            {
                **one,
                "volumes": None
                if things[one["host"]]["volumes"] is None
                else len(things[one["host"]]["volumes"]),
            }
            for one in hosts
        ],
        "sets": sets,
        "attention": attention(hosts, sets, things),
    }
    console.show(document, text(document))


def merge_sets(lists: Sequence[Sequence[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """Each set once, though both of its hosts list it; the answer that knows more wins."""
    found: dict[str, Mapping[str, Any]] = {}
    for one in (one for sets in lists for one in sets):
        other = found.get(one["set_id"])
        if other is None or len(one["unreachable"]) < len(other["unreachable"]):
            found[one["set_id"]] = one
    return sorted(found.values(), key=lambda one: str(one["name"]))


def attention(
    hosts: Sequence[Mapping[str, Any]],
    sets: Sequence[Mapping[str, Any]],
    things: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """What somebody should look at: `about`, `problem` in words, worst first."""
    found = []
    for one in hosts:
        if one["state"] != UP:
            missing = ", ".join(one["missing"])
            found.append(_item(one["host"], f"does not answer: {missing}"))
        for volume in things[one["host"]]["volumes"] or ():
            if volume["control"] != "none" and volume["problem"]:
                found.append(_item(f"{one['host']}:{volume['name']}", volume["problem"]))
            attached = volume["attached"]
            if attached is not None and attached["state"] == "broken":
                problem = f"attached to {attached['path']}, but {attached['reason']}"
                found.append(_item(f"{one['host']}:{volume['name']}", problem))
    for one in sets:
        name = str(one["name"])
        # A secondary is marked `applying` for as long as it takes writes: no trouble while it does.
        usual = {"applying"} if one["state"] in GOOD_STATES else set()
        for flag in [flag for flag in one["flags"] if flag not in usual]:
            found.append(_item(name, f"{flag}: `trellis replica show {name}`"))
        if one["state"] in ADVICE:
            found.append(_item(name, f"{one['state']}: {ADVICE[one['state']].format(name=name)}"))
        elif one["state"] not in GOOD_STATES:
            found.append(_item(name, str(one["state"])))
        if one["unreachable"]:
            found.append(_item(name, f"no answer from {', '.join(one['unreachable'])}"))
    return found


def text(document: Mapping[str, Any]) -> str:
    """The page for people."""
    hosts = [
        (
            one["host"],
            one["state"],
            "not known" if one["volumes"] is None else one["volumes"],
            ", ".join(one["beans"]) or "-",
        )
        for one in document["hosts"]
    ]
    parts = [f"domain {document['domain']}", table(("host", "state", "volumes", "beans"), hosts)]
    if document["sets"]:
        from console.replication_output import list_text

        parts.append(list_text(document["sets"]))
    else:
        parts.append("No sets.")
    if document["attention"]:
        rows = [(one["about"], one["problem"]) for one in document["attention"]]
        parts.append("NEEDS ATTENTION\n" + "\n".join(f"  {who}: {what}" for who, what in rows))
    else:
        parts.append("Nothing needs attention.")
    return "\n\n".join(parts)


def _item(about: str, problem: str) -> dict[str, Any]:
    return {"about": about, "problem": problem}
