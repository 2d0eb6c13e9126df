"""What goes wrong on the upper tier, and how any error reaches the person who typed the command.

    UsageError
      WrongUsage  ConfirmationNeeded  NoMeaningHere  ListUnreadable  VolumeSpecWrong
    UnreachableError
      NoFederation  HostUnknown  NoMailSink  SyncNotFollowed
    TrellisError
      NotConfirmed  SyncFailed  WaitFailed

Exit status: 1 for a refusal or failure, 2 for wrong usage, 3 when nobody is there to answer.
"""

from __future__ import annotations

import json
import sys

import click

from console.output import printable
from facade.contract.errors import (
    TrellisError,
    UnreachableError,
    UsageError,
    error_from_wire,
    error_to_wire,
)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class WrongUsage(UsageError):
    """The command line cannot be understood."""

    code = "usage"
    message = "{problem}"
    hint = "{help}"


class ConfirmationNeeded(UsageError):
    """A command that destroys something was given without a terminal and without --yes."""

    code = "confirmation_needed"
    message = "{action} must be confirmed, and there is no terminal to ask on."
    hint = "Give {option} to go ahead without a question."


class NotConfirmed(TrellisError):
    """The person who was asked said no."""

    code = "not_confirmed"
    message = "{action}: not done, because it was not confirmed."
    hint = "Nothing was changed."


class NoMeaningHere(UsageError):
    """An option of the predecessor that this system does not have."""

    code = "no_meaning_here"
    message = "{command} {option}: {reason}."
    hint = "See `{command} -h` for the options that work here."


class ListUnreadable(UsageError):
    """A file with a list of sets or volumes cannot be read."""

    code = "list_unreadable"
    message = "The list {path} cannot be read: {reason}."
    hint = "It is a text file, one entry a line, # before a comment."


class VolumeSpecWrong(UsageError):
    """A volume was not named as HOST:VOLUME[:BITMAP]."""

    code = "volume_spec_wrong"
    message = "{option} '{text}' does not name a volume: it is HOST:VOLUME or HOST:VOLUME:BITMAP."
    hint = "For example {option} host_a:data."


class NoFederation(UnreachableError):
    """Neither a federation's folder nor a settings file says where the beans are."""

    code = "no_federation"
    message = "There is no federation in {directory}."
    hint = (
        "Start one with `trellis up`, say where one is with TRELLIS_DIR, or name this host's "
        "settings file with --config or TRELLIS_CONFIG."
    )


class NoMailSink(UnreachableError):
    """The federation's folder has no mail sink."""

    code = "no_mail_sink"
    message = "There is no mail sink in {directory}."
    hint = "Only a federation made by `trellis up` has one; elsewhere mails go to [mail] smtp."


class SyncNotFollowed(UnreachableError):
    """The beans were away for too long to learn how a synchronisation ends."""

    code = "sync_not_followed"
    message = (
        "The synchronisation of {set} goes on in the engine, but for {limit_s} seconds nobody "
        "could be asked how far it is ({reason})."
    )
    hint = "Ask later with `trellis replica show {set}`."


class SyncFailed(TrellisError):
    """A synchronisation ended otherwise than `replicating`."""

    code = "sync_failed"
    message = "The synchronisation of {set} did not succeed: {reason}."
    hint = "See `trellis replica show {set}`; the bitmap keeps what is still to copy, try again."


class WaitFailed(TrellisError):
    """The synchronisation that was waited for did not end `replicating`."""

    code = "not_replicating"
    message = "{set} is not replicating: its state is {state}."
    hint = "Start a synchronisation with `trellis replica sync {set}`."


class HostUnknown(UnreachableError):
    """A host is named that no bean of this domain announces and no configuration knows."""

    code = "host_unknown"
    message = "No host {host} is known here: known are {known}."
    hint = "Check the spelling with `trellis host list`; a host that is down is listed once seen."


def unsupported(what: str, why: str, instead: str) -> TrellisError:
    """The error for what this version does not do, the same that a bean gives."""
    return error_from_wire(
        {
            "code": "unsupported",
            "message": f"{what} is not possible in this version: {why}.",
            "hint": instead,
            "data": {"what": what, "why": why, "instead": instead},
        }
    )


def from_click(error: click.ClickException) -> TrellisError:
    """Return click's complaint about the command line as an error of ours."""
    sentence = error.format_message().strip().rstrip(".") or "The command is not complete"
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "trellis"
    return WrongUsage(problem=f"{sentence}.", help=f"See `{path} --help`.")


def report(error: TrellisError, as_json: bool) -> int:
    """Write the error on standard error, one line or one JSON document; return the exit status."""
    if as_json:
        text = json.dumps(error_to_wire(error), indent=2, ensure_ascii=False, default=str)
    else:
        sentence = printable(" ".join(f"{error} {error.hint}".split()))
        text = f"error: {error.code}: {sentence}"
    click.echo(text, file=sys.stderr)
    return error.exit_status
