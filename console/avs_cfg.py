"""`dscfg`: the host's configuration, in the predecessor's words; only shown, never changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from console.avs_options import parse, usage
from console.avs_tables import DSCFG
from console.avs_text import version_text
from console.console import Console

WHAT: Final = "the host's configuration"
BEAN: Final = "config"


def main(command: str, arguments: Sequence[str], console: Console) -> int:
    """Run one command line; returns the exit status."""
    parsed = parse(command, DSCFG, arguments)
    if parsed.action == "h":
        console.show({"usage": usage(command, WHAT, DSCFG)}, usage(command, WHAT, DSCFG))
    elif parsed.action == "v":
        console.show({"version": version_text()}, version_text())
    elif parsed.action == "l":
        configuration = console.bean(BEAN).show()
        console.show(configuration, dump(configuration))
    elif parsed.action == "L":
        latest = console.bean(BEAN).history(limit=1)
        by = f"last changed by {latest[0]['who']} at {latest[0]['time']}" if latest else "unchanged"
        text = f"not locked ({by}); the config bean of {console.host} is its only writer"
        console.show({"locked": False, "latest": latest[0] if latest else None}, text)
    else:
        path = str(console.settings.host.config_path)
        console.show({"path": path}, path)
    return 0


def dump(configuration: Mapping[str, Any]) -> str:
    """One line for each volume under control and each set, by section."""
    lines = [f"# configuration of {configuration['host']}"]
    lines += [
        f"sv: {one['name']} {one['control']} {one['path']}" for one in configuration["volumes"]
    ]
    roles: dict[tuple[str, str], list[str]] = {}
    for use in configuration["uses"]:
        known = roles.setdefault((use["service"], use["set_name"]), [])
        known.append(f"{use['role']}={use['volume']}")
    for one in configuration["sets"]:
        uses = " ".join(roles.get((one["service"], one["name"]), ()))
        enabled = "enabled" if one["enabled"] else "disabled"
        lines.append(f"{one['service']}: {one['name']} {enabled} {uses}")
    return "\n".join(lines)
