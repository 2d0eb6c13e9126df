"""Planning a replication set: pure functions from what was asked and found to what is to be made.

Nothing is changed here, and nothing looked at: the bean brings the facts of both hosts.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from facade.bitmap_size import BLOCK_BYTES, bitmap_bytes
from facade.config_records import Use
from facade.contract.names import check_group, check_host, check_set, check_volume
from facade.errors import BitmapTooSmall, SameHost, Unsupported, VolumeBusy

SERVICE: Final = "replication"
ROLES: Final = ("primary", "secondary")


@dataclass(frozen=True)
class SideRequest:
    """One side, as it was asked for; without a bitmap volume Trellis makes a bitmap."""

    host: str
    volume: str
    bitmap: str | None = None


@dataclass(frozen=True)
class CreateRequest:
    """A set, as it was asked for."""

    name: str
    primary: SideRequest
    secondary: SideRequest
    mode: str = "sync"
    group: str | None = None
    queue: str | None = None
    autosync: bool = False
    enable: bool = True
    identical: bool = False


@dataclass(frozen=True)
class SideFacts:
    """What is known of one side once its host was asked."""

    host: str
    volume: str
    size_bytes: int
    link: str
    release: tuple[str, ...] = ()  # volumes not under control yet: undoing puts them back so


@dataclass(frozen=True)
class SideOrder:
    """One side of a planned set, enough for its host to make it."""

    set_id: str
    name: str
    spec: dict[str, Any]
    size_bytes: int
    enable: bool
    init: str  # "dirty", "clean"


def check_request(request: CreateRequest) -> CreateRequest:
    """Return the request with proper names, or raise what speaks against it by itself.

    Raises BadName, Unsupported, SameHost, VolumeBusy (a volume twice in this very request).
    """
    check_set(request.name)
    checked = dataclasses.replace(
        request,
        primary=_check_side(request.name, "primary", request.primary),
        secondary=_check_side(request.name, "secondary", request.secondary),
    )
    _check_supported(request)
    if checked.primary.host == checked.secondary.host:
        raise SameHost(name=request.name, host=checked.primary.host)
    return checked


def check_claims(volumes: Iterable[str], held: Iterable[Use]) -> None:
    """Raise VolumeBusy when one of a side's volumes has a role in a set already."""
    wanted = set(volumes)
    for use in held:
        if use.volume in wanted and (use.service == SERVICE or use.role == "bitmap"):
            raise VolumeBusy(volume=use.volume, used_by=use.set_name, role=use.role)


def check_bitmap(bitmap: str, bitmap_size_bytes: int, data_bytes: int, block_bytes: int) -> None:
    """Raise BitmapTooSmall, saying how big it must be."""
    needed = bitmap_bytes(data_bytes, block_bytes)
    if bitmap_size_bytes < needed:
        raise BitmapTooSmall(
            volume=bitmap,
            size_bytes=bitmap_size_bytes,
            data_bytes=data_bytes,
            needed_bytes=needed,
        )


def plan_create(
    request: CreateRequest,
    set_id: str,
    primary: SideFacts,
    secondary: SideFacts,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[SideOrder, SideOrder]:
    """Return what the primary's and what the secondary's host is to make."""
    orders = []
    for role, mine, other in (("primary", primary, secondary), ("secondary", secondary, primary)):
        side: SideRequest = getattr(request, role)
        peer = request.secondary if role == "primary" else request.primary
        spec = {
            "set_id": set_id,
            "name": request.name,
            "role": role,
            "mode": request.mode,
            "group": request.group,
            "volume": side.volume,
            "bitmap": side.bitmap,
            "bitmap_path": "",  # its own host fills it in
            "size_bytes": primary.size_bytes,  # of the set: a larger secondary's rest is not in it
            "block_bytes": block_bytes,
            "autosync": request.autosync,
            "peer_host": peer.host,
            "peer_volume": peer.volume,
            "peer_bitmap": peer.bitmap,
            "peer_link": other.link,
            "identical": request.identical,
        }
        init = "clean" if request.identical else "dirty"
        orders.append(SideOrder(set_id, request.name, spec, mine.size_bytes, request.enable, init))
    return orders[0], orders[1]


def claims(name: str, spec: dict[str, Any]) -> list[Use]:
    """Return the volumes that one side of a set uses on its host."""
    found = [Use(spec["volume"], SERVICE, name, spec["role"])]
    if spec["bitmap"] is not None:
        found.append(Use(spec["bitmap"], SERVICE, name, "bitmap"))
    return found


def volumes_of(spec: dict[str, Any]) -> list[str]:
    """Return the names of the volumes that one side of a set uses on its host."""
    return [use.volume for use in claims(spec["name"], spec)]


def side_hosts(own_host: str, spec: dict[str, Any]) -> dict[str, str]:
    """Return the host of each role, for the spec that `own_host` keeps."""
    other = "secondary" if spec["role"] == "primary" else "primary"
    return {spec["role"]: own_host, other: spec["peer_host"]}


def _check_side(name: str, role: str, side: SideRequest) -> SideRequest:
    host = check_host(side.host)
    check_volume(side.volume)
    if side.bitmap is not None:
        check_volume(side.bitmap)
        if side.bitmap == side.volume:
            raise VolumeBusy(volume=side.volume, used_by=f"{name} on {host}", role=role)
    return dataclasses.replace(side, host=host)


def _check_supported(request: CreateRequest) -> None:
    if request.mode != "sync":
        raise Unsupported(
            what=f"The mode {request.mode}",
            why="sets replicate synchronously only",
            instead="Leave --mode out, or say --mode sync.",
        )
    if request.group is not None:
        check_group(request.group)
        raise Unsupported(
            what=f"The consistency group {request.group}",
            why="each set stands by itself",
            instead="Leave --group out.",
        )
    if request.queue is not None:
        raise Unsupported(
            what=f"The queue volume {request.queue}",
            why="only asynchronous sets would have one",
            instead="Leave --queue out.",
        )
