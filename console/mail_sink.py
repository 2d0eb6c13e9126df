"""The mail sink: an SMTP server on the loopback that stores each mail as a file.

    python -m console.mail_sink --listen 127.0.0.1:2525 --dir DIR

The n-th mail becomes `DIR/<n>.eml` (n has eight digits, so that names sort as the mails came). A
mail is acknowledged only when its file is durable under its final name; a reader never sees half a
mail. It sends nothing on. SIGTERM and SIGINT end it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from aiosmtpd.smtp import SMTP, Envelope, Session

from facade.contract.settings import split_address

MAIL_LIMIT_BYTES: Final = 4 * 1024 * 1024
IDLE_TIMEOUT_S: Final = 60.0
NUMBER_DIGITS: Final = 8
_NAME_TRIES: Final = 10_000


class MailStore:
    """A folder of numbered mails; one process writes at a time."""

    def __init__(self, directory: Path) -> None:
        """Make the folder (mode 0700) and go on after the highest number in it."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.directory = directory
        for rest in directory.glob("*.part"):
            rest.unlink(missing_ok=True)
        numbers = [int(path.stem) for path in directory.glob("*.eml") if path.stem.isdecimal()]
        self._last = max(numbers, default=0)

    def put(self, content: bytes) -> Path:
        """Store one mail durably and return its file; OSError leaves nothing behind."""
        part = self.directory / f"{os.getpid()}.part"
        try:
            with part.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            return self._name(part)
        finally:
            part.unlink(missing_ok=True)

    def _name(self, part: Path) -> Path:
        for _ in range(_NAME_TRIES):
            self._last += 1
            final = self.directory / f"{self._last:0{NUMBER_DIGITS}}.eml"
            # A link never replaces a mail that somebody else put there.
            with contextlib.suppress(FileExistsError):
                final.hardlink_to(part)
                self._sync_folder()
                return final
        raise FileExistsError(f"no free number in {self.directory}")

    def _sync_folder(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class StoringHandler:
    """What aiosmtpd calls for a mail: store it, then say so."""

    def __init__(self, store: MailStore) -> None:
        """Take the store."""
        self._store = store

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Answer 250 once the mail is stored, 452 when it cannot be (the sender tries again)."""
        head = "".join(f"X-Envelope-To: {to}\r\n" for to in envelope.rcpt_tos)
        content = envelope.content
        body = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
        try:
            path = self._store.put(head.encode("utf-8", "replace") + (body or b""))
        except OSError as error:
            return f"452 the mail could not be stored: {error.strerror}"
        return f"250 stored as {path.name}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal comes; returns the exit status."""
    parser = argparse.ArgumentParser(prog="trellis-mail-sink", description="Stores mails as files.")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--dir", required=True, type=Path, metavar="DIR")
    given = parser.parse_args(arguments)
    try:
        asyncio.run(_serve(*split_address(given.listen), MailStore(given.dir)))
    except OSError as error:
        sys.stderr.write(f"error: mail_sink: cannot serve on {given.listen}: {error}\n")
        return 1
    return 0


async def _serve(host: str, port: int, store: MailStore) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    handler = StoringHandler(store)

    def connection() -> SMTP:
        return SMTP(
            handler,
            data_size_limit=MAIL_LIMIT_BYTES,
            timeout=IDLE_TIMEOUT_S,
            enable_SMTPUTF8=True,
            hostname="trellis-mail-sink",
            loop=loop,
        )

    server = await loop.create_server(connection, host, port)
    try:
        await ended.wait()
    finally:
        server.close()


if __name__ == "__main__":
    sys.exit(main())
