"""`trellis volume`: the volumes of a host, and which service uses them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from console.base import Group, pass_console
from console.console import Console
from console.output import fields, table
from console.sizes import Size, human_bytes

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
@click.option(
    "--export/--no-export",
    default=None,
    help="Export it to other hosts over TLS (STE), or no longer; neither leaves that as it is.",
)
@click.option("--plain", is_flag=True, help="With --export: to this machine only, without TLS.")
@click.option(
    "--client",
    "clients",
    multiple=True,
    metavar="NAME",
    help="With --export: a client that may use it, by the name in its certificate; the list takes"
    " the place of an earlier one. Without: the list in the host's settings.",
)
@click.option(
    "--read-only", is_flag=True, help="Nobody may write it, and no set use it, until `disable`."
)
@pass_console
def enable(
    console: Console,
    name: str,
    export: bool | None,
    plain: bool,
    clients: tuple[str, ...],
    read_only: bool,
) -> None:
    """Put a volume under control, so that services and applications can use it."""
    if (plain or clients) and not export:
        raise click.UsageError("--plain and --client go with --export.")
    if plain and clients:
        raise click.UsageError("A plain export knows no clients: leave --client or --plain out.")
    asked: dict[str, Any] = {"read_only": True} if read_only else {}
    if export:
        asked["export"] = {"plain": plain, "clients": list(dict.fromkeys(clients))}
    elif export is not None:
        asked["local"] = True
    _show(console, console.bean(BEAN).enable(name=name, **asked))


@volume.command()
@click.argument("name", metavar="V")
@click.option(
    "--size",
    "size_bytes",
    type=Size(),
    metavar="SIZE",
    help="Such as 64M or 1G; K, M, G are binary. Without: as its file or device has become.",
)
@click.option("--yes", is_flag=True, help="Do not ask (when it becomes smaller).")
@pass_console
def resize(console: Console, name: str, size_bytes: int | None, yes: bool) -> None:
    """Make a volume larger or smaller under its clients; refused while a set uses it."""
    bean = console.bean(BEAN)
    asked: dict[str, Any] = {}
    if size_bytes is not None:
        asked["size_bytes"] = size_bytes
        if size_bytes < bean.show(name=name)["size_bytes"]:
            console.confirm(f"Cutting {name} off at {human_bytes(size_bytes)}", yes)
            asked["may_shrink"] = True
    _show(console, bean.resize(name=name, **asked))


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
@click.option(
    "--helper",
    type=click.Choice(["nbd", "nbdfuse"]),
    help="What makes the path: the kernel's nbd (default where there is one), or FUSE.",
)
@click.option("--read-only", is_flag=True, help="Programs can read there and not write.")
@pass_console
def attach(console: Console, name: str, path: str, helper: str | None, read_only: bool) -> None:
    """Give local programs a path for a volume, until `detach`.

    PATH must not exist; it becomes a symbolic link to a device or file of the volume's size, on
    the host that the command names. It is there again after a restart of engine or machine.
    """
    where = os.path.normpath(Path(path).absolute())
    done = console.bean(BEAN).attach(name=name, path=where, helper=helper, read_only=read_only)
    _show(console, done)


@volume.command()
@click.argument("name", metavar="V")
@pass_console
def detach(console: Console, name: str) -> None:
    """Flush a volume and take its path away; refused while the path is in use."""
    _show(console, console.bean(BEAN).detach(name=name))


def uses_line(found: list[Mapping[str, Any]]) -> str:
    """`replication MySNDRSet (primary)`, or `-` for a volume that nobody uses."""
    return ", ".join(f"{use['service']} {use['set']} ({use['role']})" for use in found) or "-"


def _export_lines(one: Mapping[str, Any]) -> list[tuple[str, object]]:
    export = one["export"]
    if export is None:
        return []
    allowed = ", ".join(export["clients"]) or "nobody"
    if export["plain"]:
        allowed = "every program on this host, without TLS"
    elif export["is_default"]:
        allowed += " (from the host's settings)"
    return [
        ("local uri", one["local_uri"]),
        ("clients", allowed),
        ("connected", export["connected"]),
    ]


def _show(console: Console, one: Mapping[str, Any]) -> None:
    pairs: list[tuple[str, object]] = [
        ("name", one["name"]),
        ("host", one["host"]),
        ("path", one["path"]),
        ("size", f"{human_bytes(one['size_bytes'])} ({one['size_bytes']} bytes)"),
        ("control", one["control"] + (", read-only" if one["read_only"] else "")),
        ("uri", one["uri"]),
        *_export_lines(one),
        ("used by", uses_line(one["uses"])),
    ]
    attached = one.get("attached")
    if attached:
        state = attached["state"] + (f": {attached['reason']}" if attached["reason"] else "")
        mode = ", read-only" if attached["read_only"] else ""
        pairs.append(("attached", f"{attached['path']} ({attached['helper']}{mode}), {state}"))
    if one.get("problem"):
        pairs.append(("problem", one["problem"]))
    console.show(one, fields(pairs))
