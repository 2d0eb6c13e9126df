"""`trellis volume`: the volumes of a host, and which service uses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from console.base import Group, pass_console
from console.console import Console
from console.errors import unsupported
from console.output import fields, table
from console.sizes import Size, human_bytes
from facade.contract.errors import TrellisError

BEAN = "volume"


@click.group(cls=Group)
def volume() -> None:
    """Volumes of a host: block devices and image files."""


@volume.command("list")
@pass_console
def list_(console: Console) -> None:
    """List the volumes of the host."""
    volumes = console.bean(BEAN).list()
    rows = [
        (
            one["name"],
            human_bytes(one["size_bytes"]),
            one["control"],
            uses_line(one["uses"]),
            one["path"],
        )
        for one in volumes
    ]
    console.show(volumes, table(("name", "size", "control", "used by", "path"), rows))


@volume.command()
@click.argument("name", metavar="V")
@pass_console
def show(console: Console, name: str) -> None:
    """Show one volume."""
    _show(console, console.bean(BEAN).show(name=name))


@volume.command()
@click.argument("name", metavar="V")
@click.option(
    "--size",
    "size_bytes",
    type=Size(),
    required=True,
    metavar="SIZE",
    help="Such as 64M or 1G; K, M, G are binary.",
)
@pass_console
def create(console: Console, name: str, size_bytes: int) -> None:
    """Make an image file of SIZE in the host's first volume folder."""
    _show(console, console.bean(BEAN).create(name=name, size_bytes=size_bytes))


@volume.command()
@click.argument("name", metavar="V")
@click.option("--export", is_flag=True, help="Export it to other hosts (STE); not in this version.")
@pass_console
def enable(console: Console, name: str, export: bool) -> None:
    """Put a volume under SVI control, so that services can use it."""
    if export:
        raise unsupported(
            "Exporting a volume to other hosts (STE)",
            "a volume is served on its own host only",
            f"`trellis volume enable {name}` does that.",
        )
    _show(console, console.bean(BEAN).enable(name=name))


@volume.command()
@click.argument("name", metavar="V")
@pass_console
def disable(console: Console, name: str) -> None:
    """Take a volume out of control; refused while a set uses it."""
    _show(console, console.bean(BEAN).disable(name=name))


@volume.command()
@click.argument("name", metavar="V")
@pass_console
def uses(console: Console, name: str) -> None:
    """Tell who uses a volume, and as what."""
    found = console.bean(BEAN).uses(name=name)
    rows = [(use["service"], use["set"], use["role"]) for use in found]
    text = table(("service", "set", "role"), rows) if rows else f"Nobody uses {name}."
    console.show(found, text)


@volume.command()
@click.argument("name", metavar="V")
@pass_console
def uri(console: Console, name: str) -> None:
    """Print the NBD address under which applications reach a volume."""
    found = console.bean(BEAN).uri(name=name)
    console.show(found, found["uri"])


@volume.command()
@click.argument("name", metavar="V")
@click.argument("path", metavar="PATH")
def attach(name: str, path: str) -> None:
    """Not in this version: make a local device of a volume."""
    raise _no_attach(name)


@volume.command()
@click.argument("name", metavar="V")
def detach(name: str) -> None:
    """Not in this version: undo `attach`."""
    raise _no_attach(name)


def _no_attach(name: str) -> TrellisError:
    return unsupported(
        "Attaching a volume",
        "it makes no local devices yet",
        f"Any NBD client reaches the volume at the address that `trellis volume uri {name}` prints;"
        " `nbd-client -unix` makes a device of it.",
    )


def uses_line(found: list[Mapping[str, Any]]) -> str:
    """`replication MySNDRSet (primary)`, or `-` for a volume that nobody uses."""
    return ", ".join(f"{use['service']} {use['set']} ({use['role']})" for use in found) or "-"


def _show(console: Console, one: Mapping[str, Any]) -> None:
    pairs: list[tuple[str, object]] = [
        ("name", one["name"]),
        ("host", one["host"]),
        ("path", one["path"]),
        ("size", f"{human_bytes(one['size_bytes'])} ({one['size_bytes']} bytes)"),
        ("control", one["control"]),
        ("uri", one["uri"]),
        ("used by", uses_line(one["uses"])),
    ]
    if one.get("problem"):
        pairs.append(("problem", one["problem"]))
    console.show(one, fields(pairs))
