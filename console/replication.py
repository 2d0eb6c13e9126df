"""`trellis replica`: replication sets. The commands of the replication service.

Every command goes to the replication bean of the host to act on, which may be either host of the
set; what this version does not do comes back from the bean as one sentence (`unsupported`).
"""

from __future__ import annotations

from typing import Any, Final

import click

from console.base import Group, pass_console
from console.console import Console
from console.errors import VolumeSpecWrong, WrongUsage, unsupported
from console.progress import Bar
from console.replication_output import deleted_text, list_text, set_text
from console.sync_follow import Follower, check_ended_well, check_replicating
from facade.contract.names import check_host, check_set, check_volume

BEAN: Final = "replication"


@click.group(cls=Group)
def replica() -> None:
    """Replication sets: a primary volume and its copy on another host."""


@replica.command()
@click.argument("name", metavar="NAME")
@click.option(
    "--primary",
    required=True,
    metavar="HOST:VOLUME[:BITMAP]",
    help="The volume that applications write to.",
)
@click.option(
    "--secondary",
    required=True,
    metavar="HOST:VOLUME[:BITMAP]",
    help="The volume that becomes its copy; as large, or larger.",
)
@click.option(
    "--mode",
    type=click.Choice(["sync", "async"]),
    default="sync",
    show_default=True,
    help="Whether a write waits for the other host; async not in this version.",
)
@click.option("--group", metavar="G", help="Consistency group; not in this version.")
@click.option("--queue", metavar="VOLUME", help="Volume of the disk queue; not in this version.")
@click.option("--autosync", is_flag=True, help="Synchronise by itself when the link is back.")
@click.option("--no-enable", is_flag=True, help="Create it disabled.")
@click.option(
    "--identical",
    is_flag=True,
    help="Take your word that both volumes hold the same: nothing counts as changed.",
)
@pass_console
def create(
    console: Console,
    name: str,
    primary: str,
    secondary: str,
    mode: str,
    group: str | None,
    queue: str | None,
    autosync: bool,
    no_enable: bool,
    identical: bool,
) -> None:
    """Create a set on both hosts, and enable it."""
    order = {
        "name": check_set(name),
        "primary": parse_side("--primary", primary),
        "secondary": parse_side("--secondary", secondary),
        "mode": mode,
        "group": group,
        "queue": queue,
        "autosync": autosync,
        "enable": not no_enable,
        "identical": identical,
    }
    made = console.bean(BEAN).create(**order)
    console.show(made, set_text(made))


@replica.command("list")
@pass_console
def list_(console: Console) -> None:
    """List the sets of the host."""
    sets = console.bean(BEAN).list()
    console.show(sets, list_text(sets))


@replica.command()
@click.argument("name", metavar="N")
@pass_console
def show(console: Console, name: str) -> None:
    """Show one set, as both hosts know it."""
    one = console.bean(BEAN).show(name=name)
    console.show(one, set_text(one))


@replica.command()
@click.argument("name", metavar="N")
@pass_console
def enable(console: Console, name: str) -> None:
    """Enable a set on both hosts: changes are recorded from now on."""
    one = console.bean(BEAN).enable(name=name)
    console.show(one, set_text(one))


@replica.command()
@click.argument("name", metavar="N")
@pass_console
def disable(console: Console, name: str) -> None:
    """Disable a set on both hosts; it stays configured."""
    one = console.bean(BEAN).disable(name=name)
    console.show(one, set_text(one))


@replica.command()
@click.argument("name", metavar="N")
@click.option("--force", is_flag=True, help="Also when the other host does not answer.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_console
def delete(console: Console, name: str, force: bool, yes: bool) -> None:
    """Delete a set on both hosts; the volumes keep their data."""
    console.confirm(f"Deleting the replication set {name}", yes)
    done = console.bean(BEAN).delete(name=name, force=force)
    console.show(done, deleted_text(done))


@replica.command()
@click.argument("name", metavar="N")
@click.option("--full", is_flag=True, help="Copy every block.")
@click.option("--update", is_flag=True, help="Copy what has changed (the default).")
@click.option(
    "--reverse", is_flag=True, help="From the secondary to the primary; not in this version."
)
@click.option(
    "--keep",
    type=click.Choice(["primary", "secondary"]),
    help="Which side wins where both were written.",
)
@click.option("--no-wait", is_flag=True, help="Return once it has started.")
@click.option("--yes", is_flag=True, help="Do not ask (reverse only).")
@pass_console
def sync(
    console: Console,
    name: str,
    full: bool,
    update: bool,
    reverse: bool,
    keep: str | None,
    no_wait: bool,
    yes: bool,
) -> None:
    """Synchronise the secondary with the primary, and wait until it replicates."""
    if full and update:
        raise WrongUsage(
            problem="--full and --update exclude each other.",
            help="Give one of them; without one it is an update.",
        )
    if reverse:
        console.confirm(f"Overwriting the primary volume of {name} from its secondary", yes)
    one = synchronise(console, name, "full" if full else "update", keep, reverse, not no_wait)
    console.show(one, set_text(one))


@replica.command()
@click.argument("name", metavar="N")
@pass_console
def log(console: Console, name: str) -> None:
    """Stop copying; both sides record their changes (logging)."""
    one = console.bean(BEAN).log(name=name)
    console.show(one, set_text(one))


@replica.command()
@click.argument("name", metavar="N")
@pass_console
def wait(console: Console, name: str) -> None:
    """Wait until the running synchronisation has ended; fails unless the set replicates then."""
    one = await_end(console, name)
    check_replicating(one)
    console.show(one, set_text(one))


@replica.command()
@click.argument("name", metavar="N")
def verify(name: str) -> None:
    """Not in this version: compare both sides."""
    raise unsupported(
        f"Verifying {name}",
        "there is no comparison of a running set yet",
        "Put the set into logging and compare checksums of both volumes.",
    )


@replica.command()
@click.argument("name", metavar="N")
def swap(name: str) -> None:
    """Not in this version: swap primary and secondary."""
    raise unsupported(
        f"Swapping the roles of {name}",
        "a set keeps its direction",
        "Delete the set and create it the other way round with --identical.",
    )


@replica.command("set")
@click.argument("name", metavar="N")
@click.argument("pairs", metavar="KEY=VALUE...", nargs=-1, required=True)
def set_(name: str, pairs: tuple[str, ...]) -> None:
    """Not in this version: change properties of a set."""
    raise unsupported(
        f"Changing {', '.join(pair.partition('=')[0] for pair in pairs)} of {name}",
        "a set keeps what it was created with",
        "Delete the set and create it anew.",
    )


COMMANDS: Final = {"replica": replica}


def parse_side(option: str, text: str) -> dict[str, Any]:
    """HOST:VOLUME[:BITMAP] as the replication bean takes it. Raises VolumeSpecWrong, BadName."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise VolumeSpecWrong(option=option, text=text)
    bitmap = check_volume(parts[2]) if len(parts) == 3 else None
    return {"host": check_host(parts[0]), "volume": check_volume(parts[1]), "bitmap": bitmap}


def synchronise(
    console: Console,
    name: str,
    kind: str,
    keep: str | None = None,
    reverse: bool = False,
    wait_for_end: bool = True,
) -> dict[str, Any]:
    """Start a synchronisation and follow it; gives the set, with `sent_bytes` of this one.

    Raises the reason when it does not end `replicating`, SyncNotFollowed when nobody can be asked.
    """
    bean = console.bean(BEAN)
    job = bean.sync(name=name, kind=kind, keep=keep, reverse=reverse)
    job_id = job["job_id"]
    follower = Follower(name, Bar(f"{name}: {kind} synchronisation", quiet=console.json))
    if wait_for_end:
        job = follower.follow(lambda: bean.job(job_id=job_id))
        check_ended_well(name, job)
    one = follower.ask(lambda: bean.show(name=name))
    if wait_for_end:
        check_replicating(one)
    return {**one, "sent_bytes": job["sent_bytes"], "job_id": job_id}


def await_end(console: Console, name: str) -> dict[str, Any]:
    """Wait until the set's running synchronisation, if there is one, has ended; gives the set."""
    bean = console.bean(BEAN)
    one = bean.show(name=name)
    job_id = one["job_id"]
    if job_id is not None and one["progress"] is not None:
        follower = Follower(name, Bar(f"{name}: synchronisation", quiet=console.json))
        check_ended_well(name, follower.follow(lambda: bean.job(job_id=job_id)))
        one = follower.ask(lambda: bean.show(name=name))
    return dict(one)
