"""`trellis`: the one command of the upper tier, a group of nouns.

A noun's module is imported when the noun is typed, so that `trellis --help` stays quick. The nouns
of data services come from their registration (`facade.contract.services`), not from a line here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from console.base import Group, run
from facade.contract.services import NOUNS

_LAUNCHER = {
    "up": "console.federation:up|Bring up a federation on this machine.",
    "down": "console.federation:down|Take a federation of this machine down.",
}
_SEAT = {
    "status": "console.status:status|Hosts, beans, sets, and what needs attention.",
    "host": "console.host:host|Hosts of this management domain.",
    "volume": "console.volume:volume|Volumes of a host.",
}
_SERVICES = {noun: f"console.{service}:COMMANDS" for service, noun in NOUNS.items()}
_REST = {"event": "console.event:event|What has happened, and the mails about it."}


@click.group(
    cls=Group,
    lazy={**_LAUNCHER, **_SEAT, **_SERVICES, **_REST},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="trellis-storage", prog_name="trellis")
def trellis() -> None:
    """Manage replication and other block-level data services on many hosts from one seat."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `trellis`; returns the exit status."""
    return run(trellis, "trellis", arguments)


if __name__ == "__main__":
    sys.exit(main())
