"""Writes docs/settings.md, errors.md, events.md and states.md from the code that they describe.

`python scripts/make_reference.py` writes them; a test compares them with what it would write.
"""

import importlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from facade.contract import errors, events, settings_table  # noqa: E402

PACKAGES = ("facade", "broker", "beans", "notifier", "console")
EVENT_MODULES = ("facade.replication_events", "facade.volume_events")

SETTINGS_HEAD = """# Settings

`trellis-engine`, `trellis-beans` and `trellis-notifier` read one TOML file (`--config FILE`, or the
variable `TRELLIS_CONFIG`) and the variables below, which win over the file. `trellis up` writes the
same file. A section, key or `TRELLIS_` variable that is not listed here is refused.

The engine needs `[host]` and `[link]`; beans need `[broker]` and `[redis]` too; the notifier needs
`[broker]` and `[mail]`, and belongs to no host. What is marked *secret* may stand in a file of its
own: `KEY_file = "PATH"`, or the variable with `_FILE` added. In a variable, folders are separated
by `:` and other lists by `,`; in the file a list is a TOML list.

`TRELLIS_DIR` is the command line's: the folder of the federation that `trellis up` made.
"""

ERRORS_HEAD = """# Errors

Every error has a stable code, one sentence of what happened and one of what to do. The command line
prints `error: CODE: SENTENCE` and ends with the status of the last column (1: it was refused, 2:
the command cannot be meant like that, 3: a bean, the broker or an engine cannot be reached). Words
in braces stand for the error's data.
"""

EVENTS_HEAD = """# Events

What Trellis tells people, by mail and on the topic exchange `trellis.events` with the routing key
`HOST.SERVICE.SEVERITY.NAME`. Words in braces stand for the event's data, `{host}` and `{subject}`
(the set or volume) for its own.
"""


STATES_HEAD = """# States of a replication set

Each side has a state of its own; `trellis replica show` gives the primary's. This version has the
states and transitions below, and no other: `facade/engine/states.py` is the table.

| from | what happens | to | what is durable before it counts |
|---|---|---|---|
"""

STATES_FOOT = """
* **disabled**: the engine does not know the set; nothing is recorded.
* **logging**: every change sets a bit, nothing is sent. Both sides may be written.
* **syncing**: blocks with bits are copied while new writes go to both sides. The secondary takes
  no writes of applications and is marked `sync_needed` until the copy is complete and flushed.
* **replicating**: a write is answered when both engines have it. The secondary takes no writes of
  applications.

## Flags

* `sync_needed`: this volume was the target of a copy that did not end, or its engine was killed
  while it followed its primary: it is no usable copy. An update synchronisation completes it.
* `volume_failed`: the volume has failed a write or a flush.
* `bitmap_failed`: the bitmap volume has failed; the map goes on in memory, and after a crash every
  block counts as changed.

`applying` stands in the header and journal of a side that follows its primary; it is not shown,
since the state says so. After an unclean stop it has become `sync_needed`.
"""


def states_page() -> str:
    """Return docs/states.md."""
    from facade.engine.states import TRANSITIONS

    rows = "".join(
        f"| {t.before} | {t.trigger} | {t.after} | {t.durable_first} |\n" for t in TRANSITIONS
    )
    return STATES_HEAD + rows + STATES_FOOT


def settings_page() -> str:
    """Return docs/settings.md."""
    parts = [SETTINGS_HEAD]
    for section in settings_table.SECTIONS:
        parts.append(
            f"\n## [{section}]\n\n| key | variable | default | what it is |\n|---|---|---|---|"
        )
        for row in settings_table.table():
            if row.section == section:
                default = row.default or ("must be set" if row.required_for else "none")
                mark = " *secret*" if row.secret else ""
                parts.append(
                    f"| `{row.key}` | `{row.variable}` | {default} | {row.meaning}{mark} |"
                )
    return "\n".join(parts) + "\n"


def error_modules() -> list[str]:
    """Return every module that defines an error with a code."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if re.search(r'^    code = "', path.read_text(), re.MULTILINE):
                found.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return found


def errors_page() -> str:
    """Return docs/errors.md."""
    modules = error_modules()
    for module in modules:
        importlib.import_module(module)
    lines = [ERRORS_HEAD, "| code | what happened | what to do | status |", "|---|---|---|---|"]
    for code, cls in sorted(errors.known_errors().items()):
        if cls.__module__ in modules:
            row = (f"`{code}`", _cell(cls.message), _cell(cls.hint), str(cls.exit_status))
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def events_page() -> str:
    """Return docs/events.md."""
    for module in EVENT_MODULES:
        importlib.import_module(module)
    lines = [EVENTS_HEAD, "| event | severity | what happened | what to do |", "|---|---|---|---|"]
    for kind in events.known_kinds():
        if kind.service in ("engine", "replication", "volume"):
            row = (f"`{kind.service}.{kind.name}`", kind.severity, kind.sentence, kind.advice)
            lines.append(f"| {' | '.join(_cell(cell) for cell in row)} |")
    return "\n".join(lines) + "\n"


PAGES = {
    "settings.md": settings_page,
    "errors.md": errors_page,
    "events.md": events_page,
    "states.md": states_page,
}


def _cell(text: str) -> str:
    return text.replace("{name!r}", "{name}").replace("|", "\\|")


if __name__ == "__main__":
    for name, page in PAGES.items():
        (ROOT / "docs" / name).write_text(page())
