"""Rules choose recipients by pattern and severity; patterns match as RabbitMQ's topics do."""

import pytest

from facade.contract.events import Event
from notifier.rules import Rule, default_rules, fits, recipients_of


def event(severity: str = "warning", name: str = "link_lost") -> Event:
    return Event("1", "t", "host_a", "replication", "s", severity, name, {}, "text", "")


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("#", "a.b.c", True),
        ("#", "", True),
        ("a.b.c", "a.b.c", True),
        ("a.b", "a.b.c", False),
        ("a.*.c", "a.b.c", True),
        ("a.*", "a.b.c", False),
        ("*", "a", True),
        ("*.*", "a", False),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("#.c", "a.b.c", True),
        ("#.b", "a.b.c", False),
        ("a.#.c", "a.c", True),
        ("a.#.c", "a.x.y.c", True),
        ("#.b.#", "a.b.c", True),
        ("#.#", "a", True),
        ("a.#.*", "a", False),
        ("*.replication.#", "host_a.replication.warning.link_lost", True),
    ],
)
def test_pattern(pattern: str, key: str, expected: bool) -> None:
    assert fits(pattern, key) is expected


def test_default_is_every_event_to_everybody() -> None:
    assert recipients_of(event("info"), default_rules(["a@x", "b@x"])) == ("a@x", "b@x")


def test_rules_add_up_and_name_each_recipient_once() -> None:
    rules = [
        Rule("*.replication.#", "info", ("a@x", "b@x")),
        Rule("#", "critical", ("boss@x",)),
        Rule("host_a.#", "warning", ("b@x", "c@x")),
    ]
    assert recipients_of(event("info"), rules) == ("a@x", "b@x")
    assert recipients_of(event("warning"), rules) == ("a@x", "b@x", "c@x")
    assert recipients_of(event("critical"), rules) == ("a@x", "b@x", "boss@x", "c@x")


def test_unknown_severity_counts_as_the_highest() -> None:
    assert recipients_of(event("doom"), [Rule("#", "critical", ("a@x",))]) == ("a@x",)
