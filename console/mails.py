"""Mails in the folder of a mail sink, read for people."""

from __future__ import annotations

from collections.abc import Mapping
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any, Final

from console.errors import NoMailSink

MAIL_BYTES_MAX: Final = 1024 * 1024
HEADERS: Final = ("date", "from", "to", "subject", "message_id")


def read_mails(folder: Path, limit: int) -> list[dict[str, Any]]:
    """The last `limit` mails, oldest first. Raises NoMailSink when there is no such folder."""
    if not folder.is_dir():
        raise NoMailSink(directory=folder)
    files = sorted(path for path in folder.glob("*.eml") if path.stem.isdecimal())
    return [read_mail(path) for path in files[-limit:]]


def read_mail(path: Path) -> dict[str, Any]:
    """One mail: `number`, `date`, `from`, `to`, `subject`, `message_id`, `body`."""
    with path.open("rb") as file:
        message = message_from_bytes(file.read(MAIL_BYTES_MAX), policy=default)
    headers = {name: str(message[name.replace("_", "-")] or "") for name in HEADERS}
    return {"number": int(path.stem), **headers, "body": _body(message)}


def mail_text(one: Mapping[str, Any]) -> str:
    """One mail as a person would see it."""
    head = "\n".join(f"{name.title()}: {one[name]}" for name in ("date", "from", "to", "subject"))
    return f"{head}\n\n{one['body'].rstrip()}"


def _body(message: Any) -> str:
    if not isinstance(message, EmailMessage):
        return ""
    part = message.get_body(("plain",))
    content = "" if part is None else part.get_content()
    # Line ends of mail are CR LF; nothing else that is not printable reaches a terminal.
    lines = str(content).splitlines()
    return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines) + "\n"
