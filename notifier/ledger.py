"""What was mailed to whom, durably, so that a person is told once however often an event comes.

One SQLite file. An address is entered after the mail server has accepted the mail for it; a crash
between the two may repeat a mail, with the same Message-ID. Entries older than `KEEP_DAYS` are
dropped. A mail that the server refuses for good is kept as refused, with its reason.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from facade.contract.events import Event, event_from_wire

KEEP_DAYS: Final = 90
REFUSED_MAX: Final = 10_000
BUSY_TIMEOUT_S: Final = 10.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS delivered (
    event_id TEXT NOT NULL, recipient TEXT NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (event_id, recipient)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS delivered_at ON delivered (at);
CREATE TABLE IF NOT EXISTS refused (
    event_id TEXT NOT NULL, recipient TEXT NOT NULL, at TEXT NOT NULL,
    reason TEXT NOT NULL, event TEXT NOT NULL,
    PRIMARY KEY (event_id, recipient)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Refused:
    """A mail that the mail server would not take for this recipient."""

    event: Event
    recipient: str
    reason: str


class Ledger:
    """The file; one connection, used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open or make the file, and forget what is older than `KEEP_DAYS`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)
        oldest = (datetime.now(UTC) - timedelta(days=KEEP_DAYS)).isoformat()
        self._write([("DELETE FROM delivered WHERE at < ?", (oldest,))])

    def missing(self, event_id: str, recipients: Iterable[str]) -> tuple[str, ...]:
        """Those who have not been told yet, nor are refused by the mail server."""
        with self._lock:
            known = {
                row[0]
                for table in ("delivered", "refused")
                for row in self._db.execute(
                    f"SELECT recipient FROM {table} WHERE event_id = ?", (event_id,)
                )
            }
        return tuple(name for name in recipients if name not in known)

    def delivered(self, event_id: str, recipients: Iterable[str]) -> None:
        """Enter, durably when it returns, that the mail was accepted for these."""
        at = datetime.now(UTC).isoformat()
        self._write(
            step
            for name in recipients
            for step in (
                ("INSERT OR IGNORE INTO delivered VALUES (?, ?, ?)", (event_id, name, at)),
                ("DELETE FROM refused WHERE event_id = ? AND recipient = ?", (event_id, name)),
            )
        )

    def refused(self, event: Event, reasons: dict[str, str]) -> None:
        """Enter those for whom the server refused the mail for good; the oldest give way."""
        at = datetime.now(UTC).isoformat()
        text = json.dumps(event.to_wire())
        steps: list[tuple[str, tuple[Any, ...]]] = [
            ("INSERT OR REPLACE INTO refused VALUES (?, ?, ?, ?, ?)",
             (event.id, name, at, reason, text))
            for name, reason in reasons.items()
        ]
        steps.append(
            ("DELETE FROM refused WHERE (event_id, recipient) IN (SELECT event_id, recipient "
             "FROM refused ORDER BY at DESC LIMIT -1 OFFSET ?)", (REFUSED_MAX,))
        )
        self._write(steps)

    def all_refused(self) -> list[Refused]:
        """The refused mails, oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT event, recipient, reason FROM refused ORDER BY at"
            ).fetchall()
        return [Refused(event_from_wire(json.loads(row[0])), row[1], row[2]) for row in rows]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, steps: Iterable[tuple[str, tuple[Any, ...]]]) -> None:
        with self._lock, self._db:
            for statement, values in steps:
                self._db.execute(statement, values)
