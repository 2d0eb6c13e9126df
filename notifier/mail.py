"""A mail out of an event: what happened, where, when, what it means, what to do. Pure.

What an event says comes from other hosts, so nothing of it is trusted: header fields hold one
printable line of limited length, the body no control characters, and both are cut at named limits.
The Message-ID is made from the event's id alone, so that a mail sent twice is known as one.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Final

from facade.contract.events import Event
from facade.contract.services import NOUNS

SUBJECT_CHARACTERS_MAX: Final = 180
PARAGRAPH_CHARACTERS_MAX: Final = 4000
DETAIL_CHARACTERS_MAX: Final = 500
DETAILS_MAX: Final = 40
LINE_CHARACTERS: Final = 76

MEANING: Final = {
    "info": "This is for your information: everything works as asked for.",
    "warning": "Work goes on, but a protection that you asked for is not there at the moment.",
    "error": "A data service has failed in part, and does not mend itself.",
    "critical": "Data or access to it is in danger. Somebody should look now.",
}
NOTHING_TO_DO: Final = "Nothing has to be done."

_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# The words of the command line that have a `show`, by the service that an event names.
_SHOW_NOUNS = {**NOUNS, "volume": "volume"}


def compose(
    event: Event, sender: str, recipients: Sequence[str], domain: str, sent_at: datetime
) -> EmailMessage:
    """Return the mail that tells `recipients` about `event`; `sent_at` has a time zone."""
    message = EmailMessage(policy=SMTP)
    message["From"] = sender
    message["To"] = ", ".join(recipients)
    message["Subject"] = subject(event)
    message["Date"] = format_datetime(sent_at)
    message["Message-ID"] = message_id(event, domain)
    message["Auto-Submitted"] = "auto-generated"
    message["X-Trellis-Event"] = one_line(event.routing_key(), SUBJECT_CHARACTERS_MAX)
    message.set_content(body(event))
    return message


def subject(event: Event) -> str:
    """Severity, what it is about, what happened: `[Trellis] WARNING: set1 on host_a: link lost`."""
    about = f"{event.subject} on {event.host}" if event.subject else event.host
    what = event.name.removeprefix("state_").replace("_", " ")
    return one_line(f"[Trellis] {event.severity.upper()}: {about}: {what}", SUBJECT_CHARACTERS_MAX)


def message_id(event: Event, domain: str) -> str:
    """The same for every mail about this event, in this process and any other."""
    plain = _PLAIN_ID.fullmatch(event.id) is not None
    left = event.id if plain else hashlib.sha256(event.id.encode("utf-8", "replace")).hexdigest()
    right = re.sub(r"[^A-Za-z0-9-]", "-", domain) or "trellis"
    return f"<{left}@{right}.trellis>"


def body(event: Event) -> str:
    """The text of the mail, lines of at most 76 characters where words allow it."""
    what = event.subject and f", {event.service} of {event.subject}"
    parts = [
        paragraph(event.text or event.name.replace("_", " ")),
        "\n".join(
            (
                f"Where:     host {one_line(event.host, 64)}{one_line(what, 200)}",
                f"When:      {readable_time(event.time)}",
                f"Severity:  {one_line(event.severity, 20)}",
            )
        ),
        f"What it means\n{indent(paragraph(MEANING.get(event.severity, MEANING['error'])))}",
        f"What to do\n{indent(paragraph(event.advice or NOTHING_TO_DO))}",
        "To look closer, type on any host of the domain\n"
        f"    {look_closer(event)}\n"
        f"    trellis event list --host {shlex.quote(one_line(event.host, 64))}",
    ]
    known = details(event)
    if known:
        parts.append("Details\n" + known)
    parts.append(f"Event {one_line(event.id, 120)} ({one_line(event.routing_key(), 200)})")
    return "\n\n".join(parts) + "\n"


def look_closer(event: Event) -> str:
    """The exact command that shows more about the event's subject."""
    host = shlex.quote(one_line(event.host, 64))
    noun = _SHOW_NOUNS.get(event.service)
    if event.subject and noun is not None:
        return f"trellis {noun} show {shlex.quote(one_line(event.subject, 120))} --host {host}"
    return f"trellis host show {host}"


def details(event: Event) -> str:
    """The event's data, one `name: value` a line, cut at `DETAILS_MAX` lines."""
    lines = []
    for name in sorted(event.data)[:DETAILS_MAX]:
        value = event.data[name]
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f"    {one_line(str(name), 60)}: {one_line(text, DETAIL_CHARACTERS_MAX)}")
    if len(event.data) > DETAILS_MAX:
        lines.append(f"    ... and {len(event.data) - DETAILS_MAX} more")
    return "\n".join(lines)


def readable_time(time: str) -> str:
    """`2026-03-01 04:05:06 UTC` of an ISO time; the text itself where it is none."""
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return one_line(time, 40)
    if moment.tzinfo is None:
        return one_line(time, 40)
    return f"{moment:%Y-%m-%d %H:%M:%S} " + ("UTC" if not moment.utcoffset() else f"{moment:%z}")


def one_line(text: str, limit: int) -> str:
    """Text as one printable line: what is not printable becomes a blank, the end is cut."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text[: limit * 4])
    line = " ".join(shown.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def paragraph(text: str) -> str:
    """Text broken into lines between words, without control characters."""
    lines = [""]
    for word in one_line(text, PARAGRAPH_CHARACTERS_MAX).split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > LINE_CHARACTERS:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return "\n".join(lines)


def indent(text: str) -> str:
    """Four blanks before every line."""
    return "\n".join(f"    {line}" for line in text.splitlines())
