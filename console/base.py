"""How every command is built: `--json`, `--host` and `--config` before or after the subcommand,
commands loaded only when they are called, and one place where an error becomes an exit status."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from console.console import Console
from console.errors import EXIT_INTERRUPTED, from_click, report
from facade.contract.errors import InternalError, TrellisError


def _take_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Console).json = True


def take_host(context: click.Context, _: click.Parameter, value: Any) -> None:
    """Callback of every `--host`: the names stand in `Console.named_hosts`, in their order."""
    names = (value,) if isinstance(value, str) else value or ()
    context.ensure_object(Console).named_hosts.extend(names)


def _take_config(context: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        context.ensure_object(Console).config_path = value


def common_options(many_hosts: bool = False) -> list[click.Parameter]:
    """The options that every command takes; `many_hosts` lets `--host` be given again."""
    return [
        click.Option(
            ["--host"],
            metavar="HOST",
            multiple=many_hosts,
            expose_value=False,
            callback=take_host,
            help="Act on HOST in place of this host.",
        ),
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            callback=_take_json,
            help="Print one JSON document.",
        ),
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            expose_value=False,
            callback=_take_config,
            help="Settings file of this host (default: TRELLIS_CONFIG).",
        ),
    ]


class Command(click.Command):
    """A command that takes the common options after its name."""

    def __init__(self, *args: Any, own_host: bool = False, **kwargs: Any) -> None:
        """`own_host`: the command gives `--host` a meaning of its own."""
        super().__init__(*args, **kwargs)
        options = common_options()
        self.params = self.params + (options[1:] if own_host else options)


class Group(click.Group):
    """A group that takes the common options, and finds some commands only when asked for."""

    command_class = Command

    def __init__(self, *args: Any, lazy: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        """`lazy`: command name to `module:attribute|help line`; the attribute is the command, or
        a mapping that holds it by its name. Without a help line the command's own is shown."""
        super().__init__(*args, **kwargs)
        self.params = self.params + common_options()
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which they were declared."""
        return [*self._lazy, *(name for name in self.commands if name not in self._lazy)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a lazy command now; None when there is no such command."""
        entry = self._lazy.get(cmd_name)
        if entry is None:
            return super().get_command(ctx, cmd_name)
        module, attribute = entry.partition("|")[0].split(":")
        found = getattr(importlib.import_module(module), attribute)
        command: click.Command = found[cmd_name] if isinstance(found, Mapping) else found
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands; a lazy one's line comes from the table, without importing it."""
        rows = []
        for name in self.list_commands(ctx):
            line = self._lazy.get(name, "").partition("|")[2]
            if line:
                rows.append((name, line))
                continue
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, command.get_short_help_str(limit=formatter.width)))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


pass_console = click.make_pass_decorator(Console)


@dataclass(frozen=True)
class Outcome:
    """A command that ended without an error, but not with success."""

    exit_status: int


def run(
    command: click.Command | Callable[[str, Sequence[str], Console], object],
    name: str,
    arguments: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> int:
    """Run a command and return its exit status; every error is reported here, and only here."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(os.environ if environ is None else environ)
    console.json = "--json" in (given[: given.index("--")] if "--" in given else given)
    try:
        return _run(command, name, given, console)
    except BrokenPipeError:
        # The reader (`| head`) has gone; Python must not complain once more when it flushes.
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123 - lives until the exit
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    finally:
        console.close()


def _run(command: Any, name: str, given: list[str], console: Console) -> int:
    try:
        if isinstance(command, click.Command):
            result = command.main(given, prog_name=name, obj=console, standalone_mode=False)
        else:
            result = command(name, given, console)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return report(from_click(error), console.json)
    except click.Abort:
        return EXIT_INTERRUPTED
    except TrellisError as error:
        return report(error, console.json)
    except (KeyboardInterrupt, BrokenPipeError):
        raise
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        return report(InternalError(kind=type(error).__name__, text=str(error)), console.json)
    if isinstance(result, Outcome):
        return result.exit_status
    return result if isinstance(result, int) and not isinstance(result, bool) else 0
