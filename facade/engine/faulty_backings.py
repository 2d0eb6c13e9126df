"""Faults that the settings order, put over the backings of real volumes and bitmaps."""

from __future__ import annotations

import logging
from typing import Any, Final

from facade.contract.fault_script import parse, parse_power_cut
from facade.contract.settings import FaultSettings
from facade.engine.fault_volume import FaultVolume
from facade.engine.power_cut_volume import PowerCutVolume, PowerSupply
from facade.engine.volume import Volume

log = logging.getLogger("trellis.faults")

VOLUME: Final = "volume"
BITMAP: Final = "bitmap"  # of a set, where Trellis made it itself


class FaultyBackings:
    """What `[faults]` asks for. Without such settings every backing is itself."""

    def __init__(self, settings: FaultSettings | None = None) -> None:
        """Read the scripts, which the settings have checked, and say loudly that there are some."""
        settings = settings or FaultSettings()
        self._scripts = {
            (kind, name): script
            for kind, table in ((VOLUME, settings.volumes), (BITMAP, settings.bitmaps))
            for name, script in (_split(item) for item in table)
        }
        self._power_cut = settings.power_cut
        self._supply: PowerSupply | None = None
        self._layers: dict[tuple[str, str], FaultVolume] = {}
        if self._power_cut:
            order = parse_power_cut(self._power_cut)
            self._supply = PowerSupply(cut_at=order.change, seed=order.seed, exits=True)
            log.warning("FAULTS: power is cut at change %d, seed %d", order.change, order.seed)
        for (kind, name), script in self._scripts.items():
            log.warning("FAULTS are ordered for the %s of %s: %s", kind, name, script)

    def wrap(self, kind: str, name: str, backing: Volume) -> Volume:
        """Return what stands for a backing that was just opened; `name` of volume or set."""
        if self._supply is not None:
            backing = PowerCutVolume(backing, self._supply)
        script = self._scripts.get((kind, name))
        if script is None:
            return backing
        layer = FaultVolume(backing)
        for order in parse(script):
            layer.order(order)
        self._layers[kind, name] = layer
        return layer

    def of(self, kind: str, name: str) -> dict[str, Any] | None:
        """Tell what is ordered for one backing and how often it has struck; None: nothing."""
        script = self._scripts.get((kind, name))
        if script is None:
            return None
        layer = self._layers.get((kind, name))
        return {"script": script, "hits": 0 if layer is None else layer.hits}

    def to_wire(self) -> list[dict[str, Any]]:
        """Return every order, for `engine.info`."""
        found: list[dict[str, Any]] = [
            {"kind": kind, "name": name, **(self.of(kind, name) or {})}
            for kind, name in self._scripts
        ]
        if self._supply is not None:
            found.append({"kind": "power_cut", "script": self._power_cut,
                          "changes": self._supply.changes})  # fmt: skip
        return found


def _split(item: str) -> tuple[str, str]:
    name, _, script = item.partition(":")
    return name.strip(), script.strip()
