"""What the configuration store holds, as values."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VolumeRecord:
    """A volume that was put under control; the engine opens it at boot."""

    name: str
    path: str
    control: str  # "none", "svi", "ste"
    # Under STE how it is exported: `plain` (bool), `clients` (list of names; none: the default's).
    export: dict[str, Any] | None = None
    read_only: bool = False


@dataclass(frozen=True)
class Attachment:
    """A volume that local programs reach by a path, from `attach` until `detach`."""

    volume: str
    path: str  # what programs open: a symbolic link to the target
    helper: str  # "nbd", "nbdfuse"
    target: str  # the device, or the file that FUSE serves
    read_only: bool


@dataclass(frozen=True)
class SetRecord:
    """A set of one data service, as this host was asked to have it."""

    service: str
    name: str
    set_id: str
    enabled: bool
    spec: dict[str, Any]


@dataclass(frozen=True)
class Use:
    """A claim: one volume in one role of one set."""

    volume: str
    service: str
    set_name: str
    role: str  # "primary", "secondary", "bitmap", ...


@dataclass(frozen=True)
class Intent:
    """An operation over several hosts that has begun and is to be finished or undone."""

    id: str
    service: str
    operation: str
    body: dict[str, Any]
    started_at: str


@dataclass(frozen=True)
class Change:
    """One line of the history: who changed what, when."""

    number: int
    time: str
    who: str
    what: str
    detail: dict[str, Any]
