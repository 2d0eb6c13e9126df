"""The supervisor in a process of its own: `python -m console.supervisor_main --dir D ...`.

Whoever starts it gives it the writing end of a pipe (`--report FD`) and reads one JSON line from
it: `{"ready": true}` once every bean answers, or `{"error": ...}`, an error in its wire form.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from console.supervisor import up
from facade.contract.errors import TrellisError, error_to_wire


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep a federation up until a signal comes; returns the exit status."""
    parser = argparse.ArgumentParser(prog="trellis-supervisor")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--host", action="append", default=[])
    parser.add_argument("--advertise", action="append", default=[])
    parser.add_argument("--report", type=int, required=True, metavar="FD")
    given = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    # pika tells every step of every connection.
    logging.getLogger("pika").setLevel(logging.WARNING)
    os.set_inheritable(given.report, False)
    reported = False

    def report(document: dict[str, Any]) -> None:
        nonlocal reported
        if not reported:
            reported = True
            with os.fdopen(given.report, "w", encoding="utf-8") as pipe:
                pipe.write(json.dumps(document, default=str) + "\n")

    try:
        up(
            given.dir,
            given.host,
            given.advertise,
            lambda _federation, _paths: report({"ready": True}),
        )
    except TrellisError as error:
        report({"error": error_to_wire(error)})
        logging.getLogger("trellis.supervisor").error("%s %s", error, error.hint)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
