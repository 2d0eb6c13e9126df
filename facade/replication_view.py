"""A replication set as both sides together know it: pure functions over what each host tells."""

from dataclasses import dataclass
from typing import Any

from facade.config_records import SetRecord
from facade.replication_plan import side_hosts


@dataclass(frozen=True)
class SideTruth:
    """What one host knows of a set."""

    host: str
    set_id: str
    known: bool  # its configuration has the set
    enabled: bool
    link: str  # where its engine takes links
    engine: dict[str, Any] | None  # the engine's set object; None where it has none
    engine_error: dict[str, Any] | None  # why the engine could not be asked, a wire error
    attached: str | None = None  # the local path of its volume


def set_view(record: SetRecord, own: SideTruth, peer: SideTruth | None) -> dict[str, Any]:
    """Return the JSON object of a set (DESIGN section 9).

    State, changed blocks and progress are the primary engine's wherever it could be asked; flags
    are those of both sides. `peer` is None when the other host did not answer.
    """
    spec = record.spec
    hosts = side_hosts(own.host, spec)
    primary = own if spec["role"] == "primary" else peer
    teller = primary if primary is not None else own
    truths = [truth for truth in (own, peer) if truth is not None]
    engine = teller.engine or {}
    return {
        "name": record.name,
        "set_id": record.set_id,
        "group": spec["group"],
        "mode": spec["mode"],
        "state": _state(teller),
        "flags": sorted({flag for t in truths if t.engine for flag in t.engine["flags"]}),
        "dirty_blocks": engine.get("dirty_blocks", 0 if teller.known else None),
        "block_bytes": spec["block_bytes"],
        "autosync": spec["autosync"],
        "primary": _side("primary", hosts, spec),
        "secondary": _side("secondary", hosts, spec),
        "progress": engine.get("progress"),
        "job_id": engine.get("job_id"),
        "last_error": engine.get("last_error"),
        "connected": bool(engine.get("connected", False)),
        "note": _note(own, peer, spec),
        "unreachable": [] if peer is not None else [spec["peer_host"]],
    }


def _state(teller: SideTruth) -> str:
    if teller.engine is not None:
        return str(teller.engine["state"])
    # An engine that does not run replicates nothing; once it runs again the set is logging.
    return "logging" if teller.enabled and teller.engine_error is not None else "disabled"


def _side(role: str, hosts: dict[str, str], spec: dict[str, Any]) -> dict[str, Any]:
    own = role == spec["role"]
    return {
        "host": hosts[role],
        "volume": spec["volume"] if own else spec["peer_volume"],
        "bitmap": spec["bitmap"] if own else spec["peer_bitmap"],
    }


def _note(own: SideTruth, peer: SideTruth | None, spec: dict[str, Any]) -> str | None:
    if peer is None:
        return f"{spec['peer_host']} does not answer: shown is what {own.host} knows."
    for truth in (own, peer):
        if not truth.known:
            return f"{truth.host} does not know this set: it is left over on the other host."
        if truth.engine_error is not None:
            return f"The engine of {truth.host} cannot be asked: {truth.engine_error['message']}"
    if own.enabled != peer.enabled:
        enabled, disabled = (own, peer) if own.enabled else (peer, own)
        return f"It is enabled on {enabled.host} and not on {disabled.host}."
    return None
