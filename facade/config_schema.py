"""Tables of the configuration store, and how SQLite's errors read to a person."""

import sqlite3
from pathlib import Path
from typing import Final

from facade.errors import StoreDamaged, StoreError, StoreFull, StoreUnavailable

SCHEMA_VERSION: Final = 4
"""Stands in the file's user_version; a later one is refused, 0 is an empty file."""

_ATTACHMENTS: Final = """CREATE TABLE attachments (
        volume TEXT PRIMARY KEY,
        path TEXT NOT NULL UNIQUE,
        helper TEXT NOT NULL CHECK (helper IN ('nbd', 'nbdfuse')),
        target TEXT NOT NULL,
        read_only INTEGER NOT NULL CHECK (read_only IN (0, 1))
    ) STRICT"""

_READ_ONLY: Final = "read_only INTEGER NOT NULL DEFAULT 0 CHECK (read_only IN (0, 1))"

MIGRATIONS: Final[dict[int, tuple[str, ...]]] = {
    1: (_ATTACHMENTS,),
    2: ("ALTER TABLE volumes ADD COLUMN export TEXT",),
    3: (f"ALTER TABLE volumes ADD COLUMN {_READ_ONLY}",),
}
"""Statements that make the next format of the one that is the key; data stays."""

TABLES: Final = (
    f"""CREATE TABLE volumes (
        name TEXT PRIMARY KEY,
        path TEXT NOT NULL UNIQUE,
        control TEXT NOT NULL CHECK (control IN ('none', 'svi', 'ste')),
        export TEXT,
        {_READ_ONLY}
    ) STRICT""",
    """CREATE TABLE sets (
        service TEXT NOT NULL,
        name TEXT NOT NULL,
        set_id TEXT NOT NULL UNIQUE,
        enabled INTEGER NOT NULL CHECK (enabled IN (0, 1)),
        spec TEXT NOT NULL,
        PRIMARY KEY (service, name)
    ) STRICT""",
    # One role in one set of a service for each volume: the key is what refuses a second.
    """CREATE TABLE uses (
        volume TEXT NOT NULL,
        service TEXT NOT NULL,
        set_name TEXT NOT NULL,
        role TEXT NOT NULL,
        PRIMARY KEY (volume, service),
        FOREIGN KEY (service, set_name) REFERENCES sets (service, name) ON DELETE CASCADE
    ) STRICT""",
    """CREATE TABLE intents (
        id TEXT PRIMARY KEY,
        service TEXT NOT NULL,
        operation TEXT NOT NULL,
        body TEXT NOT NULL,
        started_at TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE history (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        time TEXT NOT NULL,
        who TEXT NOT NULL,
        what TEXT NOT NULL,
        detail TEXT NOT NULL
    ) STRICT""",
    _ATTACHMENTS,
)


def store_error(path: Path, error: sqlite3.Error) -> StoreError:
    """Return the typed error for one of SQLite's; every one means that nothing was changed."""
    # The low byte is the error's kind, the rest its detail.
    kind = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if kind == sqlite3.SQLITE_FULL:
        return StoreFull(path=str(path), reason=str(error))
    if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreDamaged(path=str(path), reason=str(error))
    return StoreUnavailable(path=str(path), reason=str(error))
