"""`trellis event`: what has happened, what is happening, and the mails about it."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from console.base import Group, pass_console
from console.console import Console
from console.errors import WrongUsage
from console.host import STATION, known_hosts
from console.output import note, printable, table
from facade.contract.errors import UnreachableError

LIST_DEFAULT: Final = 50
LIST_MAX: Final = 1000
TAIL_WAITING_MAX: Final = 10_000
"""Events that wait to be printed; a terminal that is slower than this loses the newest."""
KEY_CHARACTERS_MAX: Final = 255


@click.group(cls=Group)
def event() -> None:
    """What has happened on the hosts, and the mails about it."""


@event.command("list")
@click.option(
    "--limit",
    type=click.IntRange(1, LIST_MAX),
    default=LIST_DEFAULT,
    show_default=True,
    help="How many, the latest.",
)
@pass_console
def list_(console: Console, limit: int) -> None:
    """List what has happened: on every host, or with --host on one."""
    names = (
        [console.host]
        if console.named_hosts
        else [one["host"] for one in known_hosts(console) if STATION in one["beans"]]
    )
    found: list[Mapping[str, Any]] = []
    for name in names or [console.host]:
        found += events_of(console, name, limit, bool(console.named_hosts) or len(names) < 2)
    found = sorted(found, key=lambda one: (one["time"], one["host"], one["number"]))[-limit:]
    rows = [
        (one["time"], one["host"], one["severity"], one["subject"] or "-", one["text"])
        for one in found
    ]
    console.show(found, table(("time", "host", "severity", "subject", "what"), rows))


@event.command()
@click.option(
    "--match",
    "pattern",
    metavar="KEY",
    default="#",
    help="Pattern of <host>.<service>.<severity>.<event>; * is a word, # any number.",
)
@click.option("--count", type=click.IntRange(1), help="End after so many events.")
@pass_console
def tail(console: Console, pattern: str, count: int | None) -> None:
    """Print events as they happen, until Ctrl-C; with --json one document a line."""
    if not 0 < len(pattern) <= KEY_CHARACTERS_MAX:
        raise WrongUsage(
            problem=f"--match has 1 to {KEY_CHARACTERS_MAX} characters.",
            help="For example --match '*.replication.#'.",
        )
    try:
        for number, one in enumerate(live_events(console, pattern), 1):
            click.echo(json.dumps(one, ensure_ascii=False) if console.json else event_line(one))
            if number == count:
                return
    except KeyboardInterrupt:
        return


@event.command()
@click.option("--full", is_flag=True, help="With the text of each mail.")
@click.option(
    "--limit",
    type=click.IntRange(1, LIST_MAX),
    default=LIST_DEFAULT,
    show_default=True,
    help="How many, the latest.",
)
@pass_console
def mail(console: Console, full: bool, limit: int) -> None:
    """Show the mails in the sink of a federation made by `trellis up`."""
    from console.mails import mail_text, read_mails
    from console.place import mail_folder

    mails = read_mails(mail_folder(console.directory), limit)
    if full:
        text = ("\n" + "-" * 72 + "\n").join(mail_text(one) for one in mails)
    else:
        rows = [(one["number"], one["date"], one["to"], one["subject"]) for one in mails]
        text = table(("number", "date", "to", "subject"), rows)
    shown = mails if full else [{k: v for k, v in one.items() if k != "body"} for one in mails]
    console.show(shown, text)


def events_of(console: Console, host: str, limit: int, must: bool) -> list[Mapping[str, Any]]:
    """The last events of a host; where not all `must` answer, one that does not is only noted."""
    try:
        return list(console.bean(STATION, host).events(limit=limit))
    except UnreachableError as error:
        if must:
            raise
        note(f"note: {printable(error)}")
        return []


def live_events(console: Console, pattern: str) -> Iterator[dict[str, Any]]:
    """Events as they come, over an own queue that ends with us; goes on when the broker comes back.

    Raises BrokerUnavailable, BrokerRefused when there is no broker to begin with.
    """
    from broker.connection import connect
    from broker.events import EventSubscriber

    connect(console.settings).close()
    waiting: queue.Queue[dict[str, Any]] = queue.Queue(TAIL_WAITING_MAX)

    def keep(one: Any) -> None:
        if not waiting.full():
            waiting.put(one.to_wire())

    subscriber = EventSubscriber(console.settings, keep, patterns=[pattern])
    subscriber.start()
    try:
        if subscriber.ready.wait(timeout=10.0) and not console.json:
            note("Waiting for events; Ctrl-C ends.")
        while True:
            yield waiting.get()
    finally:
        subscriber.stop()


def event_line(one: Mapping[str, Any]) -> str:
    """One event as one line."""
    about = f" {one['subject']}" if one["subject"] else ""
    return printable(f"{one['time']} {one['severity']:8} {one['host']}{about}: {one['text']}")
