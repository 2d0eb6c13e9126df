"""`trellis up` and `trellis down`: a federation on this machine, brought up and taken down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from console.base import Command, pass_console, take_host
from console.console import Console
from console.output import fields

if TYPE_CHECKING:
    from console.supervisor_plan import Federation, Paths


def _dir_option(function: Any) -> Any:
    return click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path),
        metavar="D",
        help="The federation's folder (default: TRELLIS_DIR, else .trellis).",
    )(function)


@click.command(cls=Command, own_host=True)
@_dir_option
@click.option(
    "--host",
    multiple=True,
    metavar="NAME",
    expose_value=False,
    callback=take_host,
    help="A host of the federation; may be given again (default: host_a and host_b).",
)
@click.option(
    "--advertise",
    multiple=True,
    metavar="HOST=ADDRESS:PORT",
    help="Where the other engines reach HOST's link, when a proxy stands before it.",
)
@click.option("--detach", is_flag=True, help="Return when every bean answers.")
@pass_console
def up(console: Console, directory: Path | None, advertise: tuple[str, ...], detach: bool) -> None:
    """Bring up a federation on this machine: RabbitMQ, Redis, hosts, notifier, Flower.

    Everything is private to the folder D, with random passwords, and listens on the loopback
    only. Without --detach it stays up until Ctrl-C, which takes it down again.
    """
    from console import supervisor

    where = directory or console.directory
    if detach:
        known = describe(*supervisor.up_detached(where, console.named_hosts, advertise))
        console.show(known, text(known))
        return

    def ready(federation: Federation, paths: Paths) -> None:
        known = describe(federation, paths)
        note = "" if console.json else "\n\nCtrl-C takes it down."
        console.show(known, text(known) + note)

    supervisor.up(where, console.named_hosts, advertise, ready)


@click.command(cls=Command)
@_dir_option
@pass_console
def down(console: Console, directory: Path | None) -> None:
    """Take a federation of this machine down; engines flush before they end."""
    from console import supervisor

    where = directory or console.directory
    supervisor.down(where)
    console.show({"directory": str(where), "down": True}, f"The federation in {where} is down.")


def describe(federation: Federation, paths: Paths) -> dict[str, Any]:
    """Where everything of a federation is."""
    return {
        "directory": str(paths.directory),
        "domain": federation.domain,
        "hosts": [
            {
                "host": host,
                "settings": str(paths.settings(host)),
                "link": federation.advertise.get(host, federation.links[host]),
                "listen": federation.links[host],
                "export": federation.exports.get(host),
            }
            for host in federation.hosts
        ],
        "broker": f"127.0.0.1:{federation.ports['amqp']}",
        "flower": federation.flower_login_url,
        "mail": str(paths.mail),
        "client_certificates": str(paths.client_certificates),
        "log": str(paths.log),
    }


def text(known: Mapping[str, Any]) -> str:
    """The addresses for people, and what to type next."""
    pairs = [
        ("hosts", ", ".join(one["host"] for one in known["hosts"])),
        ("broker", known["broker"]),
        ("flower", known["flower"]),
        ("mail", known["mail"]),
        ("client certificates", known["client_certificates"]),
        ("logs", known["log"]),
    ]
    return f"The federation in {known['directory']} is up.\n\n{fields(pairs)}"
