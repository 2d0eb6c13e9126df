"""What is still to be mailed, and what was mailed to whom: durable, in one SQLite file.

An event is stored before it is acknowledged to the broker, so that a mail server that is away costs
no broker queue and loses nothing. An address is entered as told after the mail server has accepted
the mail for it; a crash between the two may repeat a mail, with the same Message-ID.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from facade.contract.events import Event, event_from_wire

KEEP_DAYS: Final = 90
"""For how long the ledger knows who was told of what."""
GIVEN_UP_MAX: Final = 10_000
"""Undeliverable events that are kept to be looked at; the oldest give way."""
BUSY_TIMEOUT_S: Final = 10.0
READ_MAX: Final = 50

_SCHEMA = """
CREATE TABLE IF NOT EXISTS told (
    event_id TEXT NOT NULL, recipient TEXT NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (event_id, recipient)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS told_at ON told (at);
CREATE TABLE IF NOT EXISTS inbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT NOT NULL UNIQUE, event TEXT NOT NULL,
    due_at REAL NOT NULL, tries INTEGER NOT NULL, reason TEXT NOT NULL, given_up INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS inbox_due ON inbox (given_up, due_at);
"""

Step = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Entry:
    """An event that somebody is still to be told of."""

    event: Event
    tries: int
    reason: str  # why it is still here; "" before the first try


class Ledger:
    """The file; its methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Open or make the file, and forget what is older than `KEEP_DAYS`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)
        oldest = (datetime.now(UTC) - timedelta(days=KEEP_DAYS)).isoformat()
        self._write([("DELETE FROM told WHERE at < ?", (oldest,))])

    def receive(self, event: Event) -> None:
        """Store an event durably; one that is there already is nothing."""
        self._write(
            [
                (
                    "INSERT OR IGNORE INTO inbox (event_id, event, due_at, tries, reason, given_up)"
                    " VALUES (?, ?, 0, 0, '', 0)",
                    (event.id, json.dumps(event.to_wire())),
                )
            ]
        )

    def due(self, now_s: float) -> list[Entry]:
        """The oldest events whose time has come, at most `READ_MAX`."""
        return self._entries(
            "given_up = 0 AND due_at <= ? ORDER BY number LIMIT ?", (now_s, READ_MAX)
        )

    def next_due_s(self) -> float | None:
        """When the next event is to be tried, in seconds since the epoch; None: nothing waits."""
        with self._lock:
            row = self._db.execute("SELECT min(due_at) FROM inbox WHERE given_up = 0").fetchone()
        return None if row[0] is None else float(row[0])

    def given_up(self) -> list[Entry]:
        """Events that the mail server has refused too often, oldest first."""
        return self._entries("given_up = 1 ORDER BY number LIMIT ?", (GIVEN_UP_MAX,))

    def untold(self, event_id: str, recipients: Iterable[str]) -> tuple[str, ...]:
        """Those of the recipients who have not been told of the event."""
        with self._lock:
            rows = self._db.execute("SELECT recipient FROM told WHERE event_id = ?", (event_id,))
            known = {row[0] for row in rows}
        return tuple(name for name in recipients if name not in known)

    def told(self, event_id: str, recipients: Iterable[str]) -> None:
        """Enter that the mail server has accepted the mail for these."""
        at = datetime.now(UTC).isoformat()
        self._write(
            [
                ("INSERT OR IGNORE INTO told VALUES (?, ?, ?)", (event_id, name, at))
                for name in recipients
            ]
        )

    def done(self, event_id: str) -> None:
        """Everybody knows: the event needs no further try."""
        self._write([("DELETE FROM inbox WHERE event_id = ?", (event_id,))])

    def put_off(self, event_id: str, due_at_s: float, reason: str) -> None:
        """Count a try that did not reach everybody, and say when the next one is due."""
        self._write(
            [
                (
                    "UPDATE inbox SET due_at = ?, tries = tries + 1, reason = ? WHERE event_id = ?",
                    (due_at_s, reason, event_id),
                )
            ]
        )

    def give_up(self, event_id: str, reason: str) -> None:
        """Try no more, but keep the event to be looked at."""
        self._write(
            [
                (
                    "UPDATE inbox SET given_up = 1, reason = ? WHERE event_id = ?",
                    (reason, event_id),
                ),
                (
                    "DELETE FROM inbox WHERE number IN (SELECT number FROM inbox WHERE given_up = 1"
                    " ORDER BY number DESC LIMIT -1 OFFSET ?)",
                    (GIVEN_UP_MAX,),
                ),
            ]
        )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _entries(self, where: str, values: tuple[Any, ...]) -> list[Entry]:
        with self._lock:
            rows = self._db.execute(
                f"SELECT event, tries, reason FROM inbox WHERE {where}", values
            ).fetchall()
        return [Entry(event_from_wire(json.loads(row[0])), row[1], row[2]) for row in rows]

    def _write(self, steps: Iterable[Step]) -> None:
        with self._lock, self._db:
            for statement, values in steps:
                self._db.execute(statement, values)
