"""A mail says what happened, where, when, what it means and what to do; no event can forge one."""

from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP

import pytest

from facade.contract.events import Event
from notifier.mail import SUBJECT_CHARACTERS_MAX, compose, look_closer, message_id

SENT_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def event(**changes: object) -> Event:
    values: dict[str, object] = {
        "id": "0f1e2d3c4b5a",
        "time": "2026-01-02T03:04:00.000Z",
        "host": "host_a",
        "service": "replication",
        "subject": "MySNDRSet",
        "severity": "warning",
        "name": "link_lost",
        "data": {"peer": "host_b", "dirty_blocks": 7},
        "text": "The link to host_b is lost, so changes are recorded and not sent.",
        "advice": "Look at the network, then synchronise with `trellis replica sync MySNDRSet`.",
    }
    return Event(**{**values, **changes})  # type: ignore[arg-type]


def mail(**changes: object) -> EmailMessage:
    to = ["ops@site.example"]
    composed = compose(event(**changes), "trellis@site.example", to, "d1", SENT_AT)
    parsed = message_from_bytes(composed.as_bytes(), policy=SMTP)
    assert isinstance(parsed, EmailMessage)
    return parsed


def text(**changes: object) -> str:
    return str(mail(**changes).get_content())


def test_subject_names_severity_set_and_what() -> None:
    assert mail()["Subject"] == "[Trellis] WARNING: MySNDRSet on host_a: link lost"


def test_body_says_what_where_when_meaning_and_what_to_do() -> None:
    body = " ".join(text().split())
    assert "The link to host_b is lost, so changes are recorded and not sent." in body
    assert "host host_a, replication of MySNDRSet" in body
    assert "2026-01-02 03:04:00 UTC" in body
    assert "What it means" in body
    assert "Look at the network, then synchronise with" in body
    assert "dirty_blocks: 7" in body


def test_body_holds_the_exact_command_to_look_closer() -> None:
    assert "    trellis replica show MySNDRSet --host host_a" in text().splitlines()


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, "trellis replica show MySNDRSet --host host_a"),
        ({"service": "volume", "subject": "v1"}, "trellis volume show v1 --host host_a"),
        ({"service": "engine", "subject": ""}, "trellis host show host_a"),
        (
            {"subject": "x; rm -rf /"},
            "trellis replica show 'x; rm -rf /' --host host_a",
        ),
    ],
)
def test_command_fits_the_subject(changes: dict[str, object], command: str) -> None:
    assert look_closer(event(**changes)) == command


def test_message_id_is_of_the_event_alone() -> None:
    first, second = mail(), mail(text="said otherwise")
    assert first["Message-ID"] == second["Message-ID"] == "<0f1e2d3c4b5a@d1.trellis>"
    assert mail(id="other")["Message-ID"] != first["Message-ID"]


def test_message_id_of_a_strange_id_is_a_digest() -> None:
    strange = message_id(event(id="a>\r\nBcc: x@y"), "d1")
    assert len(strange.split("@")[0]) == 65
    assert strange == message_id(event(id="a>\r\nBcc: x@y"), "d1")
    assert strange != message_id(event(id="a>\r\nBcc: x@z"), "d1")


@pytest.mark.parametrize("field", ["subject", "host", "severity", "name", "service", "id"])
@pytest.mark.parametrize(
    "poison",
    [
        "x\r\nBcc: thief@evil.example",
        "x\nBcc: thief@evil.example",
        "x\r\n\r\n<b>hi</b>",
        "x\x00\x1b[2J\u2028Bcc: thief@evil.example",
        "\ud800",
        "x" * 5000,
    ],
)
def test_hostile_event_adds_no_header(field: str, poison: str) -> None:
    parsed = mail(**{field: poison})
    allowed = {
        "From",
        "To",
        "Subject",
        "Date",
        "Message-ID",
        "Auto-Submitted",
        "X-Trellis-Event",
        "MIME-Version",
        "Content-Type",
        "Content-Transfer-Encoding",
    }
    assert set(parsed.keys()) <= allowed
    assert parsed["To"] == "ops@site.example"
    assert len(str(parsed["Subject"])) <= SUBJECT_CHARACTERS_MAX


def test_hostile_text_and_data_stay_text() -> None:
    body = text(text="a\x1b[31m\r\n.\r\nQUIT", advice="b\x07", data={"k\r\nX": ["\x1b", "\ud800"]})
    assert "\x1b" not in body
    assert "\x07" not in body
    assert "\r\n.\r\n" not in body


def test_without_advice_nothing_has_to_be_done() -> None:
    assert "Nothing has to be done." in text(advice="")


def test_endless_data_is_cut() -> None:
    body = text(data={f"key{n}": "v" * 10_000 for n in range(1000)})
    assert len(body) < 50_000
    assert "and 960 more" in body
