"""The states of one side of a replication set and every legal transition, in one table.

docs/states.md and tests are made from this table. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DISABLED: Final = "disabled"
LOGGING: Final = "logging"
SYNCING: Final = "syncing"
REPLICATING: Final = "replicating"

STATES: Final = (DISABLED, LOGGING, SYNCING, REPLICATING)


@dataclass(frozen=True)
class Transition:
    """From one state to another, by what, and what is durable before it counts."""

    before: str
    trigger: str
    after: str
    durable_first: str


TRANSITIONS: Final = (
    Transition(DISABLED, "enable", LOGGING, "bitmap: all dirty, or clean when both are identical"),
    Transition(LOGGING, "boot", LOGGING, "nothing: the bitmap covers every difference"),
    Transition(SYNCING, "boot", LOGGING, "nothing: a target keeps sync_needed"),
    Transition(REPLICATING, "boot", LOGGING, "a target that was applying gets sync_needed"),
    Transition(
        LOGGING, "sync", SYNCING, "merged map on the source, then sync_needed on the target"
    ),
    Transition(SYNCING, "synced", REPLICATING, "flush on both sides, then sync_needed removed"),
    Transition(SYNCING, "log", LOGGING, "nothing: bits stay until both sides have flushed"),
    Transition(SYNCING, "link_lost", LOGGING, "nothing: bits stay until both sides have flushed"),
    Transition(SYNCING, "failed", LOGGING, "nothing: bits stay until both sides have flushed"),
    Transition(REPLICATING, "log", LOGGING, "nothing: every write had its bit before it was sent"),
    Transition(REPLICATING, "link_lost", LOGGING, "nothing: every write had its bit before"),
    Transition(REPLICATING, "failed", LOGGING, "nothing: every write had its bit before"),
    Transition(LOGGING, "disable", DISABLED, "nothing: the configuration store says so first"),
    Transition(SYNCING, "disable", DISABLED, "nothing: the configuration store says so first"),
    Transition(REPLICATING, "disable", DISABLED, "nothing: the configuration store says so first"),
)

_TABLE: Final = {(t.before, t.trigger): t for t in TRANSITIONS}


def next_state(state: str, trigger: str) -> str:
    """The state after `trigger`. Raises ValueError for a transition that is not in the table."""
    try:
        return _TABLE[state, trigger].after
    except KeyError:
        raise ValueError(f"no transition from {state} by {trigger}") from None


def allows(state: str, trigger: str) -> bool:
    """Tell whether `trigger` is legal in `state`."""
    return (state, trigger) in _TABLE
