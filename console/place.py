"""What lies in the folder of a federation made by `trellis up`, for those who only read it."""

from __future__ import annotations

import os
from pathlib import Path

from console.supervisor_errors import FederationDamaged
from console.supervisor_plan import Federation, Paths, from_json


def paths_of(directory: Path) -> Paths:
    """The places in a federation's folder."""
    return Paths(directory.expanduser().resolve(), os.getuid())


def record_of(directory: Path) -> Federation | None:
    """The federation's record; None where no federation has been made."""
    path = paths_of(directory).record
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FederationDamaged(path=path, reason=error.strerror or str(error)) from error
    except ValueError as error:
        raise FederationDamaged(path=path, reason=str(error)) from error


def hosts_of(directory: Path) -> tuple[str, ...]:
    """The federation's hosts in their order, the default one first; none without a federation."""
    record = record_of(directory)
    return record.hosts if record is not None else ()


def host_settings(directory: Path, host: str) -> Path:
    """The settings file of a host of the federation."""
    return paths_of(directory).settings(host)


def mail_folder(directory: Path) -> Path:
    """Where the federation's mail sink keeps its mails."""
    return paths_of(directory).mail
