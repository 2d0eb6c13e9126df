"""The engine's journal: what is. States, numbered events and jobs, in SQLite, durable at return.

A change of state and its event are one transaction, so there is never one without the other. What
was asked for stands in the configuration store; where the two differ this journal and the bitmap
headers decide.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from pathlib import Path
from typing import Any, Final

from facade.contract.events import Event, new_event

EVENTS_KEPT_MAX: Final = 100_000  # not yet relayed; older ones are dropped beyond this
JOBS_KEPT_MAX: Final = 1_000
BUSY_TIMEOUT_S: Final = 10.0

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sides (
    set_id TEXT PRIMARY KEY, name TEXT NOT NULL, state TEXT NOT NULL, flags TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, job_id TEXT UNIQUE NOT NULL, set_id TEXT NOT NULL,
    job TEXT NOT NULL);
"""


class Journal:
    """The journal of one host's engine; threads may share it. Methods raise sqlite3.Error."""

    def __init__(self, path: Path, host: str) -> None:
        """Open or make the file."""
        self.host = host
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_TABLES)
        self.new_event = threading.Condition()
        self._identity = self._make_identity()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _make_identity(self) -> str:
        # Event ids stay unique when a journal is lost and numbered again from 1.
        with self._lock, self._db:
            self._db.execute(
                "INSERT OR IGNORE INTO meta VALUES ('identity', ?)", (uuid.uuid4().hex,)
            )
            row = self._db.execute("SELECT value FROM meta WHERE key='identity'").fetchone()
        return str(row[0])

    # ---- a stop that was meant -------------------------------------------------------------

    def begin_run(self) -> bool:
        """Note that the engine runs; tell whether the last run ended cleanly."""
        with self._lock, self._db:
            row = self._db.execute("SELECT value FROM meta WHERE key='running'").fetchone()
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('running', '1')")
        return row is None or row[0] == "0"

    def end_run(self) -> None:
        """Note a clean stop."""
        with self._lock, self._db:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('running', '0')")

    def set_following(self, set_id: str, following: bool) -> None:
        """Note whether the sides are to be joined again by themselves (autosync)."""
        with self._lock, self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)",
                (f"following:{set_id}", "1" if following else "0"),
            )

    def is_following(self, set_id: str) -> bool:
        """Tell what set_following noted last; False before any."""
        with self._lock:
            row = self._db.execute(
                "SELECT value FROM meta WHERE key=?", (f"following:{set_id}",)
            ).fetchone()
        return row is not None and row[0] == "1"

    # ---- states and events -----------------------------------------------------------------

    def change(
        self,
        set_id: str,
        name: str,
        state: str,
        flags: frozenset[str],
        event: Event | None,
        bitmap_sequence: int | None = None,
    ) -> None:
        """Durably record the state of one side, and its event with it.

        `bitmap_sequence` is the number of the header that its bitmap has now, where it is known.
        """
        with self._lock, self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO sides VALUES (?, ?, ?, ?)",
                (set_id, name, state, json.dumps(sorted(flags))),
            )
            self._note_bitmap(set_id, bitmap_sequence)
            self._insert(event)
        self._tell()

    def forget(self, set_id: str, event: Event | None) -> None:
        """Durably forget a side: it was disabled."""
        with self._lock, self._db:
            self._db.execute("DELETE FROM sides WHERE set_id=?", (set_id,))
            self._db.execute(
                "DELETE FROM meta WHERE key IN (?, ?)",
                (f"following:{set_id}", f"bitmap_sequence:{set_id}"),
            )
            self._insert(event)
        self._tell()

    def side(self, set_id: str) -> tuple[str, frozenset[str]] | None:
        """State and flags as recorded, or None."""
        with self._lock:
            row = self._db.execute(
                "SELECT state, flags FROM sides WHERE set_id=?", (set_id,)
            ).fetchone()
        return None if row is None else (row[0], frozenset(json.loads(row[1])))

    def note_bitmap(self, set_id: str, sequence: int) -> None:
        """Durably record the number of the last header that was written to a side's bitmap."""
        with self._lock, self._db:
            self._note_bitmap(set_id, sequence)

    def _note_bitmap(self, set_id: str, sequence: int | None) -> None:
        if sequence is not None:
            self._db.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)",
                (f"bitmap_sequence:{set_id}", str(sequence)),
            )

    def bitmap_sequence(self, set_id: str) -> int:
        """Return what was recorded last; 0 before anything: every header is as new as that."""
        with self._lock:
            row = self._db.execute(
                "SELECT value FROM meta WHERE key=?", (f"bitmap_sequence:{set_id}",)
            ).fetchone()
        return 0 if row is None else int(row[0])

    def record(self, event: Event) -> None:
        """Durably record an event that changes no state."""
        with self._lock, self._db:
            self._insert(event)
        self._tell()

    def event(self, name: str, subject: str, service: str = "replication", **data: Any) -> Event:
        """Make an event of the catalogue; its id is set when it gets its number."""
        return new_event(service, name, self.host, subject, **data)

    def _insert(self, event: Event | None) -> None:
        if event is None:
            return
        number = self._db.execute("INSERT INTO events (event) VALUES ('')").lastrowid or 0
        document = event.to_wire()
        document["id"] = f"{self.host}-{self._identity[:12]}-{number}"
        self._db.execute("UPDATE events SET event=? WHERE number=?", (json.dumps(document), number))
        self._db.execute("DELETE FROM events WHERE number <= ?", (number - EVENTS_KEPT_MAX,))

    def _tell(self) -> None:
        with self.new_event:
            self.new_event.notify_all()

    def events_after(self, number: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
        """Return numbered events above `number`, oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT number, event FROM events WHERE number > ? ORDER BY number LIMIT ?",
                (number, limit),
            ).fetchall()
        return [(row[0], json.loads(row[1])) for row in rows]

    def wait_events(
        self, number: int, limit: int, wait_s: float
    ) -> list[tuple[int, dict[str, Any]]]:
        """Like events_after, but waits up to `wait_s` for the first one."""
        with self.new_event:
            found = self.events_after(number, limit)
            if not found and wait_s > 0:
                self.new_event.wait(wait_s)
                found = self.events_after(number, limit)
        return found

    def events_done(self, up_to: int) -> None:
        """Forget events up to this number: they have been relayed."""
        with self._lock, self._db:
            self._db.execute("DELETE FROM events WHERE number <= ?", (up_to,))

    # ---- jobs --------------------------------------------------------------------------------

    def put_job(self, job: dict[str, Any]) -> None:
        """Durably record a job as it stands."""
        with self._lock, self._db:
            self._db.execute(
                "INSERT INTO jobs (job_id, set_id, job) VALUES (:job_id, :set_id, :job)"
                " ON CONFLICT (job_id) DO UPDATE SET job=excluded.job",
                {"job_id": job["job_id"], "set_id": job["set_id"], "job": json.dumps(job)},
            )
            self._db.execute(
                "DELETE FROM jobs WHERE number <= (SELECT max(number) FROM jobs) - ?",
                (JOBS_KEPT_MAX,),
            )

    def end_stale_jobs(self, state: str, error: dict[str, Any], ended_at: str) -> None:
        """Close the record of every job that an earlier run of the engine left running."""
        for job in self.jobs():
            if job["state"] == "running":
                self.put_job({**job, "state": state, "error": error, "ended_at": ended_at})

    def job(self, job_id: str) -> dict[str, Any] | None:
        """Return a job's record, or None."""
        with self._lock:
            row = self._db.execute("SELECT job FROM jobs WHERE job_id=?", (job_id,)).fetchone()
        return None if row is None else json.loads(row[0])

    def jobs(self, set_id: str | None = None) -> list[dict[str, Any]]:
        """Return the jobs on record, newest last."""
        with self._lock:
            rows = self._db.execute(
                "SELECT job FROM jobs WHERE ?1 IS NULL OR set_id=?1 ORDER BY number", (set_id,)
            ).fetchall()
        return [json.loads(row[0]) for row in rows]
