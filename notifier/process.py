"""The notifier: one process that subscribes to the federation's events and sends mail about them.

`python -m notifier --config FILE` needs [broker] and [mail] of the settings, and no host. It may
run several times in a domain: all take from one queue, each event goes to one of them. SIGTERM and
SIGINT end it; what it has taken and not mailed stands in its ledger (`notifier.db` in the data
folder) and is mailed after the next start.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from broker.events import EventSubscriber
from facade.contract.errors import TrellisError
from facade.contract.settings import Settings, load
from notifier.delivery import Delivery
from notifier.ledger import Ledger
from notifier.rules import default_rules
from notifier.smtp import MailServer

log = logging.getLogger("trellis.notifier")

QUEUE: Final = "mail"
"""Name of the durable queue; every notifier of a domain takes from this one."""
LEDGER_FILE: Final = "notifier.db"


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run until a signal ends it; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="trellis-notifier", description="Sends mail about the events of a federation."
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings file (default: TRELLIS_CONFIG)"
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    # pika tells every step of every connection.
    logging.getLogger("pika").setLevel(logging.WARNING)
    try:
        settings = load(given.config, os.environ if environ is None else environ)
        return serve(settings.need("broker", "mail"))
    except TrellisError as error:
        sys.stderr.write(f"error: {error.code}: {error} {error.hint}\n")
        return error.exit_status


def serve(settings: Settings) -> int:
    """Subscribe and send until SIGTERM or SIGINT; call from the main thread."""
    ledger = Ledger(settings.host.data_dir / LEDGER_FILE)
    delivery = Delivery(
        rules=default_rules(settings.mail.recipients),
        ledger=ledger,
        server=MailServer(settings.mail.smtp),
        sender=settings.mail.sender,
        domain=settings.host.domain,
    )

    def end(_number: int, _frame: FrameType | None) -> None:
        delivery.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    subscriber = EventSubscriber(settings, delivery.receive, name=QUEUE)
    subscriber.start()
    log.info("notifier of domain %s sends by %s", settings.host.domain, delivery.server.name)
    try:
        delivery.run()
    finally:
        subscriber.stop()
        ledger.close()
    log.info("notifier has ended")
    return 0
