"""`trellis-engine`: the process of a host that serves its volumes."""

from __future__ import annotations

import argparse
import logging
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Final

from facade.contract.errors import TrellisError
from facade.contract.settings import load
from facade.engine.engine import Engine

THREAD_STACK_BYTES: Final = 512 << 10  # many connections, each with a thread


def main() -> int:
    """Serve until SIGTERM or SIGINT, then flush and end with 0; 1 when the start fails."""
    parser = argparse.ArgumentParser(prog="trellis-engine", description=__doc__)
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings (TOML); TRELLIS_* variables win"
    )
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(threadName)s %(message)s"
    )
    threading.stack_size(THREAD_STACK_BYTES)
    _raise_descriptor_limit()
    os.umask(0o077)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        settings = load(arguments.config, os.environ).need("host", "link")
        engine = Engine(settings)
        engine.start()
    except TrellisError as error:
        print(f"error: {error.code}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: engine_start: {error}", file=sys.stderr)
        return 1
    stop.wait()
    engine.stop()
    return 0


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as the system lets us: each connection takes up to two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
