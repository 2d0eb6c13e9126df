"""Runs a host's station and probe as `trellis-beans` does: `python -m ... SETTINGS.pickle`."""

import logging
import os
import pickle
import sys
from pathlib import Path

import facade.contract.services as services


def register_probe() -> None:
    """Make the probe a data service of this process."""
    from tests.federation import probe

    sys.modules["beans.probe"] = probe
    services.BASE_SERVICES = ("station",)
    services.DATA_SERVICES = ("probe",)


if __name__ == "__main__":
    register_probe()
    from beans.logs import log_to_stderr
    from beans.process import Parent
    from beans.supervise import ChildSpec

    log_to_stderr("trellis-beans", getattr(logging, os.environ.get("LOG_LEVEL", "INFO")))
    settings = pickle.loads(Path(sys.argv[1]).read_bytes())
    children = [ChildSpec("probe", False), ChildSpec("probe", True), ChildSpec("station", False)]
    sys.exit(Parent(settings, children).run())
