"""What can happen to a replication set, in sentences for a person woken at 3 am.

Every event of a set has `peer` (the other host) in its data; those of the engine also `state`.
"""

from typing import Final

from facade.contract.events import EventKind, register

SERVICE: Final = "replication"

_WATCH = "Nothing has to be done."
_SHOW = "`trellis replica show {subject}` tells how things stand."


def _kind(name: str, severity: str, sentence: str, advice: str = _WATCH) -> EventKind:
    return EventKind(SERVICE, name, severity, sentence, advice)


SET_KINDS: Final = (
    _kind(
        "set_created",
        "info",
        "The replication set {subject} was created, {primary} to {secondary}.",
    ),
    _kind(
        "set_create_undone",
        "warning",
        "The replication set {subject} could not be created on"
        " both hosts; what had been made was removed again.",
        "Repeat the command when both hosts answer.",
    ),
    _kind(
        "set_enabled",
        "info",
        "The replication set {subject} is enabled: changes are being"
        " recorded, nothing is copied yet.",
        "Start a synchronisation when you want a copy: `trellis replica sync {subject}`.",
    ),
    _kind(
        "set_disabled",
        "warning",
        "The replication set {subject} is disabled: the two volumes"
        " go their own ways and nothing is recorded.",
        "Enabling it again needs a full synchronisation.",
    ),
    _kind(
        "set_deleted",
        "warning",
        "The replication set {subject} was deleted; both volumes keep their data.",
    ),
    _kind(
        "set_deleted_one_side",
        "warning",
        "The replication set {subject} was deleted on {host} only; {peer} took no part.",
        "If {peer} still lists it, delete it there too:"
        " `trellis replica delete {subject} --host {peer}`.",
    ),
)

STATE_KINDS: Final = (
    _kind(
        "state_logging",
        "warning",
        "{subject} is logging on {host}: writes go on and are"
        " recorded, the copy on {peer} no longer follows ({reason}).",
        "When the cause is gone, `trellis replica sync {subject}` sends what has changed.",
    ),
    _kind(
        "state_syncing",
        "info",
        "{subject} is being synchronised; until it has ended, the"
        " secondary volume is no usable copy.",
    ),
    _kind(
        "state_reverse_syncing",
        "warning",
        "{subject} is being synchronised backwards: the"
        " primary volume is overwritten from the secondary.",
        "Do not stop either host.",
    ),
    _kind(
        "state_replicating",
        "info",
        "{subject} is replicating: every write is on both hosts before it is answered.",
    ),
    _kind(
        "state_queuing",
        "warning",
        "{subject} keeps its writes in the queue, because {peer} does not take them ({reason}).",
        "Look at the link to {peer}; the queue empties by itself.",
    ),
    _kind(
        "state_disabled",
        "warning",
        "{subject} is no longer known to the engine of {host}.",
        "If nobody disabled it: " + _SHOW,
    ),
)

SYNC_KINDS: Final = (
    _kind(
        "sync_started",
        "info",
        "A synchronisation ({kind}) of {subject} to {peer} has started:"
        " {total_bytes} bytes to look at.",
    ),
    _kind(
        "sync_finished",
        "info",
        "The synchronisation ({kind}) of {subject} has ended well:"
        " {sent_bytes} bytes were sent, both volumes are equal.",
    ),
    _kind(
        "sync_failed",
        "error",
        "The synchronisation ({kind}) of {subject} failed: {reason} The"
        " secondary volume is not usable until one has ended well.",
        "Remove the cause, then"
        " repeat `trellis replica sync {subject}`: it goes on with what is left.",
    ),
    _kind(
        "sync_cancelled",
        "warning",
        "The synchronisation ({kind}) of {subject} was cancelled."
        " The secondary volume is not usable until one has ended well.",
        "`trellis replica sync {subject}` goes on with what is left.",
    ),
)

LINK_KINDS: Final = (
    _kind(
        "link_lost",
        "error",
        "{host} has lost the link to {peer} ({reason}): {subject} is not"
        " being copied. Applications go on, their changes are recorded.",
        "Look at {peer} and the"
        " network; then `trellis replica sync {subject}` sends what has changed.",
    ),
    _kind(
        "link_restored",
        "info",
        "The link between {host} and {peer} is back for {subject}.",
        "If it is still logging: `trellis replica sync {subject}`.",
    ),
)

TROUBLE_KINDS: Final = (
    _kind(
        "bitmap_untrusted",
        "warning",
        "The record of changes of {subject} on {host} cannot be"
        " trusted ({reason}); every block counts as changed.",
        "The next synchronisation copies the whole volume: `trellis replica sync {subject}`.",
    ),
    _kind(
        "bitmap_failed",
        "critical",
        "The bitmap volume of {subject} on {host} cannot be written"
        " ({reason}): changes can no longer be recorded safely.",
        "Look at that disk; then"
        " disable and enable the set with a working bitmap volume and synchronise.",
    ),
    _kind(
        "volume_failed",
        "critical",
        "The volume {volume} of {subject} on {host} fails ({reason}).",
        "Look at the disk of {host} now. Do not synchronise from a failed volume:"
        " the copy on {peer} may be the good one.",
    ),
    _kind(
        "queue_failed",
        "critical",
        "The queue volume of {subject} on {host} fails ({reason}).",
        "Look at that disk; then synchronise.",
    ),
    _kind(
        "diverged",
        "critical",
        "{subject} has been written on both hosts since they parted.",
        "Decide which side is to win: `trellis replica sync {subject} --keep"
        " primary|secondary`. The other side's writes are lost.",
    ),
    _kind(
        "sync_needed",
        "warning",
        "The secondary volume of {subject} on {host} is not usable: a"
        " synchronisation to it did not end.",
        "`trellis replica sync {subject}` completes it.",
    ),
)

register(*SET_KINDS, *STATE_KINDS, *SYNC_KINDS, *LINK_KINDS, *TROUBLE_KINDS)
