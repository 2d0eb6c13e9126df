"""One mail to one mail server: for whom it was taken, and for whom not and why. No retries here."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Final
from urllib.parse import unquote, urlsplit

from notifier.errors import MailServerAway
from notifier.mail import one_line

TIMEOUT_S: Final = 20.0
REASON_CHARACTERS_MAX: Final = 300
Problems = Mapping[str, tuple[int, bytes]] | Mapping[str, tuple[int, bytes | str]]

_PORTS: Final = {"smtp": 25, "smtps": 465}


@dataclass(frozen=True)
class Answer:
    """What the server said: for whom it took the mail, and who is left, each with the reason."""

    accepted: tuple[str, ...] = ()
    left: dict[str, str] = field(default_factory=dict)


class MailServer:
    """A mail server by its address, `smtp://[USER:PASSWORD@]HOST[:PORT]` or `smtps://...`.

    On `smtp://` the connection goes over to TLS when the server offers it, and must before a
    password is sent to a server that is not on this machine.
    """

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        """Take the address; nothing is connected."""
        parts = urlsplit(url)
        self._scheme = parts.scheme
        self._host = parts.hostname or ""
        self._port = parts.port or _PORTS[parts.scheme]
        self._user = unquote(parts.username or "")
        self._password = unquote(parts.password or "")
        self._timeout_s = timeout_s
        self.name = f"{self._host}:{self._port}"

    def send(self, message: EmailMessage, sender: str, recipients: Sequence[str]) -> Answer:
        """Hand the mail over. Raises MailServerAway when nothing was decided for anybody."""
        try:
            with self._connect() as session:
                problems = session.send_message(message, sender, list(recipients))
                return _answer(recipients, problems)
        except smtplib.SMTPRecipientsRefused as error:
            return _answer(recipients, error.recipients)
        except smtplib.SMTPResponseException as error:
            reason = (error.smtp_code, error.smtp_error)
            # What the server says about the whole session (login, greeting) mends itself at the
            # server, not with this mail; what it says about sender or content is about this mail.
            about_mail = isinstance(error, smtplib.SMTPSenderRefused | smtplib.SMTPDataError)
            if about_mail and error.smtp_code >= 500:
                return _answer(recipients, dict.fromkeys(recipients, reason))
            raise self._away(_words(reason)) from error
        except (OSError, smtplib.SMTPException) as error:
            raise self._away(str(error) or type(error).__name__) from error

    def _connect(self) -> smtplib.SMTP:
        if self._scheme == "smtps":
            context = ssl.create_default_context()
            session: smtplib.SMTP = smtplib.SMTP_SSL(
                self._host, self._port, timeout=self._timeout_s, context=context
            )
        else:
            session = smtplib.SMTP(self._host, self._port, timeout=self._timeout_s)
        try:
            session.ehlo_or_helo_if_needed()
            if self._scheme == "smtp" and session.has_extn("starttls"):
                session.starttls(context=ssl.create_default_context())
            if self._user:
                self._log_in(session)
        except BaseException:
            session.close()
            raise
        return session

    def _log_in(self, session: smtplib.SMTP) -> None:
        secured = isinstance(session.sock, ssl.SSLSocket)
        if not secured and self._host not in ("localhost", "127.0.0.1", "::1"):
            raise self._away("it offers no TLS, and a password is not sent in clear")
        session.login(self._user, self._password)

    def _away(self, reason: str) -> MailServerAway:
        text = one_line(reason, REASON_CHARACTERS_MAX).rstrip(".")
        return MailServerAway(server=self.name, reason=text)


def _answer(recipients: Sequence[str], problems: Problems) -> Answer:
    left = {name: _words(said) for name, said in problems.items()}
    return Answer(tuple(name for name in recipients if name not in left), left)


def _words(said: tuple[int, bytes | str]) -> str:
    code, text = said
    shown = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return one_line(f"{code} {shown}", REASON_CHARACTERS_MAX)
