"""What the engine is told of one side of a replication set."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from facade.engine.link_errors import PeerNotReady


@dataclass(frozen=True)
class ReplicaSpec:
    """One side of a set, as the configuration store has it."""

    set_id: str  # 32 hexadecimal digits
    name: str
    role: str  # "primary" or "secondary"
    mode: str  # "sync"
    volume: str
    bitmap_path: Path
    size_bytes: int  # the set's: the primary's size; a secondary may be larger
    block_bytes: int
    peer_host: str
    peer_volume: str
    peer_link: str  # HOST:PORT to dial
    autosync: bool = False

    @classmethod
    def from_wire(cls, document: dict[str, Any]) -> ReplicaSpec:
        """Build a spec from a JSON object; keys of other tiers are ignored.

        Raises PeerNotReady when one is missing or wrong.
        """
        name = str(document.get("name"))
        try:
            values = {f.name: document[f.name] for f in fields(cls) if f.name in document}
            values["bitmap_path"] = Path(values["bitmap_path"])
            spec = cls(**values)
            bytes.fromhex(spec.set_id)
        except (KeyError, TypeError, ValueError) as error:
            raise PeerNotReady(
                host="the engine", name=name, reason=f"its specification lacks {error}"
            ) from error
        if spec.role not in ("primary", "secondary") or len(spec.set_id) != 32:
            raise PeerNotReady(
                host="the engine", name=name, reason=f"role {spec.role}, id {spec.set_id}"
            )
        return spec
