"""Who gets a mail about which event: a table of rules, each with a pattern of routing keys. Pure.

A pattern is RabbitMQ's: words between dots, `*` for exactly one word, `#` for any number of them.
`*.replication.#` is everything about replication, `host_a.#` everything that host_a says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from facade.contract.events import SEVERITIES, Event

EVERYTHING = "#"


@dataclass(frozen=True, slots=True)
class Rule:
    """Events whose key fits `match`, of at least `min_severity`, go to `recipients`."""

    match: str
    min_severity: str
    recipients: tuple[str, ...]


def default_rules(recipients: Sequence[str]) -> tuple[Rule, ...]:
    """Every event, so every change of state, to everybody."""
    return (Rule(EVERYTHING, SEVERITIES[0], tuple(recipients)),)


def recipients_of(event: Event, rules: Iterable[Rule]) -> tuple[str, ...]:
    """All who are told about the event, each once, in the order of the rules."""
    found: dict[str, None] = {}
    for rule in rules:
        if severe_enough(event.severity, rule.min_severity) and fits(
            rule.match, event.routing_key()
        ):
            found.update(dict.fromkeys(rule.recipients))
    return tuple(found)


def severe_enough(severity: str, least: str) -> bool:
    """An unknown severity counts as the highest: better one mail too many."""
    rank = {name: number for number, name in enumerate(SEVERITIES)}
    return rank.get(severity, len(SEVERITIES)) >= rank[least]


def fits(pattern: str, key: str) -> bool:
    """True when a topic pattern matches a routing key, as RabbitMQ matches them."""
    words = key.split(".")
    reached = {0}  # numbers of the key's words that a beginning of the pattern can match
    for part in pattern.split("."):
        if part == "#":
            reached = set(range(min(reached), len(words) + 1)) if reached else set()
        else:
            reached = {at + 1 for at in reached if at < len(words) and part in ("*", words[at])}
    return len(words) in reached
