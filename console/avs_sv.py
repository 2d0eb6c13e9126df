"""`svadm`: volumes under control, in the predecessor's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from console.avs_options import parse, usage, wrong
from console.avs_tables import SVADM
from console.avs_text import lines_of, version_text
from console.console import Console
from console.output import table
from console.sizes import human_bytes
from console.volume import BEAN, uses_line

WHAT: Final = "volumes under control of Trellis"


def main(command: str, arguments: Sequence[str], console: Console) -> int:
    """Run one command line; returns the exit status."""
    parsed = parse(command, SVADM, arguments)
    if parsed.action == "h":
        console.show({"usage": usage(command, WHAT, SVADM)}, usage(command, WHAT, SVADM))
    elif parsed.action == "v":
        console.show({"version": version_text()}, version_text())
    elif parsed.action in ("e", "d"):
        source = parsed.modifier("f")
        names = [*parsed.rest, *(lines_of(Path(source)) if source is not None else [])]
        if not names:
            raise wrong(command, f"-{parsed.action} is followed by volumes, or by -f FILE.")
        bean = console.bean(BEAN)
        act = bean.enable if parsed.action == "e" else bean.disable
        done = [act(name=name) for name in names]
        console.show(done, "\n".join(f"{one['name']}: {one['control']}" for one in done))
    else:
        volumes = [one for one in console.bean(BEAN).list() if one["control"] != "none"]
        console.show(volumes, _long(volumes) if parsed.action == "i" else _short(volumes))
    return 0


def _short(volumes: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(str(one["name"]) for one in volumes)


def _long(volumes: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            one["name"],
            human_bytes(one["size_bytes"]),
            one["control"],
            uses_line(one["uses"]),
            one["uri"],
        )
        for one in volumes
    ]
    return table(("name", "size", "control", "used by", "uri"), rows)
