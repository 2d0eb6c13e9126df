"""Writes docs/commands.md from the commands themselves.

`python scripts/make_commands_page.py` writes it; a test compares it with what it would write.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from console.avs_cfg import WHAT as CFG_WHAT  # noqa: E402
from console.avs_options import NONE, Option  # noqa: E402
from console.avs_sndr import WHAT as SNDR_WHAT  # noqa: E402
from console.avs_stat import WHAT as STAT_WHAT  # noqa: E402
from console.avs_sv import WHAT as SV_WHAT  # noqa: E402
from console.avs_tables import DSCFG, DSSTAT, NOT_HERE, SNDRADM, SVADM  # noqa: E402
from console.base import common_options  # noqa: E402
from console.cli import trellis  # noqa: E402

PAGE = ROOT / "docs/commands.md"

HEAD = """# Commands

Made by `scripts/make_commands_page.py` from the commands themselves; `--help` behind any of them
says the same.

`trellis` acts on this host. Before or after the subcommand may stand `--host HOST` (act on another
host; in `up` it names the hosts), `--json` (print one JSON document on standard output and nothing
else there) and `--config FILE` (this host's settings file).

Who and where one is: in a federation made by `trellis up`, `TRELLIS_DIR` names its folder (default
`.trellis`) and `TRELLIS_HOST` the host (default its first one). Elsewhere `TRELLIS_CONFIG` or
`--config` names the host's settings file.

Exit status: 0 done; 1 refused or failed; 2 the command cannot be meant like that; 3 a bean, the
broker or an engine cannot be reached. An error is one line on standard error, `error: CODE:
SENTENCE`, with `--json` a document of `code`, `message`, `hint` and `data` there.
[errors.md](errors.md) lists every code. A command that waits for a synchronisation shows its
progress on a terminal, and its exit status is the true outcome.
"""

AVS_HEAD = """
## The predecessor's commands

Typed as before, on the host that `TRELLIS_HOST` names; host names compare without regard to case.
A set is named by its name, or by its secondary as `SHOST:SVOLUME`; without one a command acts on
every set of the host. `-C`, `-c`, `-m` and `-u` wait for the end and return the true status. The
patent's example runs as it is printed:

    snradm -C p s y n MySNDRSet Host_a Volume_a MetaInfoVolume_a Host_b Volume_b MetaInfoVolume_b
    sndradm -c s MySNDRSet

Behind `-C` stand the role of this host (`p`, `s`), the mode (`s`, `a`), whether to enable now (`y`,
`n`) and autosync (`y`, `n`). `-d` disables a set on both hosts and keeps it configured; `trellis
replica delete` forgets it.
"""

AVS = (
    ("sndradm, snradm", SNDR_WHAT, SNDRADM),
    ("svadm", SV_WHAT, SVADM),
    ("dscfg", CFG_WHAT, DSCFG),
    ("dsstat", STAT_WHAT, DSSTAT),
)


def page() -> str:
    """Return the text of docs/commands.md."""
    parts = [HEAD]
    context = click.Context(trellis, info_name="trellis")
    for name in trellis.list_commands(context):
        command = trellis.get_command(context, name)
        assert command is not None
        parts.append(f"\n## trellis {name}\n\n{sentence(command)}\n")
        parts += list(sections(command, f"trellis {name}"))
    parts.append(AVS_HEAD)
    parts += [predecessor(*row) for row in AVS]
    dead = "; ".join(f"`{name}`: {reason}" for name, reason in NOT_HERE.items())
    parts.append(f"\n### iiadm, scmadm\n\nThey say in a sentence why they do nothing: {dead}.\n")
    return "".join(parts)


def sections(command: click.Command, path: str) -> Iterator[str]:
    """Give a block for the command, or for each of a group's."""
    if not isinstance(command, click.Group):
        yield block(command, path)
        return
    context = click.Context(command, info_name=path)
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        yield f"\n### {path} {name}\n\n{sentence(inner)}\n"
        yield block(inner, f"{path} {name}")


def block(command: click.Command, path: str) -> str:
    """Give usage and options, without those that every command has."""
    context = click.Context(command, info_name=path)
    common = {option.name for option in common_options()}
    own = [
        one
        for one in command.get_params(context)
        if isinstance(one, click.Option)
        and "--help" not in one.opts
        and (one.name not in common or one.multiple)
    ]
    words = " ".join(part for part in command.collect_usage_pieces(context) if part != "[OPTIONS]")
    lines = [f"    {path} {'[OPTIONS] ' if own else ''}{words}".rstrip()]
    records = [record for one in own if (record := one.get_help_record(context)) is not None]
    if records:
        lines += ["", "| option | what it does |", "|---|---|"]
        lines += [f"| `{cell(name)}` | {cell(text)} |" for name, text in records]
    return "\n" + "\n".join(lines) + "\n"


def predecessor(name: str, what: str, table: tuple[Option, ...]) -> str:
    """Give a section for one of the predecessor's commands."""
    lines = [f"\n### {name}\n", f"{what[0].upper()}{what[1:]}.\n", "| form | what it does |"]
    lines.append("|---|---|")
    lines += [f"| `{cell(row.usage)}` | {row.meaning} |" for row in table if row.kind != NONE]
    lines += [
        f"| `-{row.letter}` | *no meaning here:* {row.meaning} |"
        for row in table
        if row.kind == NONE
    ]
    return "\n".join(lines) + "\n"


def sentence(command: click.Command) -> str:
    """Give the whole help text of a command."""
    paragraphs = (command.help or "").split("\n\n")
    return "\n\n".join(" ".join(text.split()) for text in paragraphs)


def cell(text: str) -> str:
    """Text in a table: a bar would end the cell."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
