"""Runs a host's station and probe as `trellis-beans` does: `python -m ... SETTINGS.pickle`."""

import contextlib
import logging
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

from facade.contract import events, services


@contextlib.contextmanager
def probe_service() -> Iterator[None]:
    """Meanwhile the probe is a data service of this process, beside those that it has."""
    from tests.federation import probe

    others = services.DATA_SERVICES
    sys.modules["beans.probe"] = probe
    services.DATA_SERVICES = ("probe", *others)
    events.register(probe.POKED)
    try:
        yield
    finally:
        del events._kinds[probe.POKED.service, probe.POKED.name]
        services.DATA_SERVICES = others
        del sys.modules["beans.probe"]


def main() -> int:
    """Run the workers until SIGTERM."""
    from beans.logs import log_to_stderr
    from beans.process import Parent
    from beans.supervise import ChildSpec

    log_to_stderr("trellis-beans", getattr(logging, os.environ.get("LOG_LEVEL", "INFO")))
    settings = pickle.loads(Path(sys.argv[1]).read_bytes())
    children = [ChildSpec("probe", False), ChildSpec("probe", True), ChildSpec("station", False)]
    with probe_service():
        return Parent(settings, children).run()


if __name__ == "__main__":
    sys.exit(main())
