"""A host's events on disk: what is still to be relayed, and what was (SQLite, `events.db`).

Any process of the host puts events in; the station's relay takes them out in their order. An event
is in at most once, by its id, for as long as the history remembers it.
"""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.errors import OutboxFailed, OutboxFull
from facade.contract.events import Event, event_from_wire

HISTORY_LIMIT_EVENTS = 20_000
"""Relayed events that are kept; the oldest beyond it are dropped."""
OUTBOX_LIMIT_EVENTS = 200_000
"""Events waiting for the broker; one more is refused, nothing is dropped."""
BUSY_TIMEOUT_S = 5.0
READ_LIMIT_EVENTS = 1_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    body TEXT NOT NULL,
    relayed INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS waiting ON events (number) WHERE relayed = 0;
"""


class Outbox:
    """Outbox and history of one host; for any number of threads and processes.

    Every method raises OutboxFailed when the file cannot be used. The file is opened at first use,
    so that an object may be made before a fork.
    """

    def __init__(self, path: Path, history_limit_events: int = HISTORY_LIMIT_EVENTS) -> None:
        """Take the path of `events.db`, made when it is not there."""
        self.path = path
        self._history_limit_events = history_limit_events
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def put(self, event: Event) -> bool:
        """Store an event durably; False when its id is there already. Raises OutboxFull."""
        return self.put_many([event]) == 1

    def put_many(self, events: Iterable[Event]) -> int:
        """Store events in one transaction; returns how many were new. Raises OutboxFull."""
        rows = [(event.id, json.dumps(event.to_wire())) for event in events]
        with self._transaction() as database:
            before = database.total_changes
            database.executemany("INSERT OR IGNORE INTO events (id, body) VALUES (?, ?)", rows)
            added = database.total_changes - before
            if added:
                self._check_room(database)
            return added

    def waiting(self, limit: int = READ_LIMIT_EVENTS) -> list[tuple[int, Event]]:
        """Give the oldest events not yet relayed, with their numbers."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT number, body FROM events WHERE relayed = 0 ORDER BY number LIMIT ?",
                (limit,),
            ).fetchall()
        return [(number, event_from_wire(json.loads(body))) for number, body in rows]

    def waiting_count(self) -> int:
        """Count the events not yet relayed."""
        with self._transaction() as database:
            return _count_waiting(database)

    def relayed(self, numbers: Iterable[int]) -> None:
        """Note that the broker has confirmed these events, and drop history beyond its limit."""
        with self._transaction() as database:
            database.executemany(
                "UPDATE events SET relayed = 1 WHERE number = ?", [(n,) for n in numbers]
            )
            database.execute(
                "DELETE FROM events WHERE relayed = 1 AND number <= "
                "(SELECT max(number) FROM events) - ?",
                (self._history_limit_events,),
            )

    def history(self, limit: int, after: int | None = None) -> list[tuple[int, Event]]:
        """Give events in their order with their numbers: the last `limit`, or those `after` one."""
        limit = min(limit, READ_LIMIT_EVENTS)
        if after is None:
            order, bound = "DESC", -1
        else:
            order, bound = "ASC", after
        with self._transaction() as database:
            rows = database.execute(
                f"SELECT number, body FROM events WHERE number > ? ORDER BY number {order} LIMIT ?",
                (bound, limit),
            ).fetchall()
        return sorted(
            ((number, event_from_wire(json.loads(body))) for number, body in rows),
            key=lambda row: row[0],
        )

    def change_mark(self) -> int:
        """Give a number that changes when another connection has written; cheap to ask often."""
        with self._transaction() as database:
            return int(database.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def _check_room(self, database: sqlite3.Connection) -> None:
        count = _count_waiting(database)
        if count > OUTBOX_LIMIT_EVENTS:
            raise OutboxFull(path=str(self.path), count=count, limit=OUTBOX_LIMIT_EVENTS)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                database = self._open()
                with database:
                    yield database
            except sqlite3.Error as error:
                raise OutboxFailed(path=str(self.path), reason=str(error)) from error

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            database = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
            database.execute("PRAGMA journal_mode = WAL")
            # Whoever hands an event over forgets it when `put` returns.
            database.execute("PRAGMA synchronous = FULL")
            database.executescript(_SCHEMA)
            self._database = database
        return self._database


def _count_waiting(database: sqlite3.Connection) -> int:
    row = database.execute("SELECT count(*) FROM events WHERE relayed = 0").fetchone()
    return int(row[0])
