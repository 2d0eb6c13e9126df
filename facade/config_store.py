"""The configuration store of a host: what was asked for, in one SQLite file.

Each change is one transaction, durable when the method returns: after a crash at any point the
configuration is the one before or after, never half. Several processes and threads may use the file
at once; the engine opens it read only at boot, while beans write or none runs.
"""

import fcntl
import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from facade.attachment_errors import VolumeAttached
from facade.config_records import Attachment, Change, Intent, SetRecord, Use, VolumeRecord
from facade.config_schema import MIGRATIONS, SCHEMA_VERSION, TABLES, store_error
from facade.contract.events import now
from facade.errors import PathRefused, SetExists, StoreDamaged, StoreVersion, VolumeBusy

__all__ = ["Attachment", "Change", "ConfigStore", "Intent", "SetRecord", "Use", "VolumeRecord"]

BUSY_TIMEOUT_S: Final = 10.0
"""How long a change waits for another process's change."""

HISTORY_CHANGES_MAX: Final = 1000
"""Older changes are dropped."""

_VOLUME: Final = "name, path, control, export, read_only"  # the columns of a VolumeRecord

# A volume that holds one of these roles is written by Trellis itself, so it has no other use.
EXCLUSIVE_ROLES: Final = frozenset({"bitmap"})


class ConfigStore:
    """One host's configuration.

    Raises a StoreError where the file cannot be used; the reading methods on a read-only store
    whose file does not exist yet find it empty.
    """

    def __init__(self, path: Path, read_only: bool = False, host: str = "this host") -> None:
        """Open the file, making it unless `read_only`; `host` stands in errors."""
        self.path = path
        self.host = host
        self._lock = threading.RLock()
        self._db = self._open(read_only)

    def __enter__(self) -> "ConfigStore":
        """Use as a context that closes."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; the store cannot be used afterwards."""
        with self._lock:
            self._db.close()

    # Volumes

    def volumes(self) -> list[VolumeRecord]:
        """Return every volume under control, by name."""
        rows = self._rows(f"SELECT {_VOLUME} FROM volumes ORDER BY name")
        return [_volume(row) for row in rows]

    def volume(self, name: str) -> VolumeRecord | None:
        """Return the record of a volume, None where it is not under control."""
        rows = self._rows(f"SELECT {_VOLUME} FROM volumes WHERE name = ?", name)
        return _volume(rows[0]) if rows else None

    def put_volume(self, record: VolumeRecord, who: str = "") -> None:
        """Record a volume. Raises PathRefused where its path has another name already."""
        export = None if record.export is None else _text(record.export)
        with self._change(who, "put_volume", asdict(record)) as db:
            other = db.execute(
                "SELECT name FROM volumes WHERE path = ? AND name <> ?", (record.path, record.name)
            ).fetchone()
            if other is not None:
                raise PathRefused(path=record.path, reason=f"it is the volume {other[0]} already")
            db.execute(
                f"INSERT INTO volumes ({_VOLUME}) VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO"
                " UPDATE SET path = excluded.path, control = excluded.control,"
                " export = excluded.export, read_only = excluded.read_only",
                (record.name, record.path, record.control, export, int(record.read_only)),
            )

    def drop_volume(self, name: str, who: str = "") -> None:
        """Forget a volume; one that is not there is fine.

        Raises VolumeBusy while a set uses it, VolumeAttached while it is attached.
        """
        with self._change(who, "drop_volume", {"name": name}) as db:
            use = db.execute(
                "SELECT set_name, role FROM uses WHERE volume = ? LIMIT 1", (name,)
            ).fetchone()
            if use is not None:
                raise VolumeBusy(volume=name, used_by=use[0], role=use[1])
            attached = db.execute(
                "SELECT path FROM attachments WHERE volume = ?", (name,)
            ).fetchone()
            if attached is not None:
                raise VolumeAttached(volume=name, path=attached[0], host=self.host)
            db.execute("DELETE FROM volumes WHERE name = ?", (name,))

    # Attachments

    def attachments(self) -> list[Attachment]:
        """Return every volume that is attached to a path, by volume."""
        rows = self._rows(
            "SELECT volume, path, helper, target, read_only FROM attachments ORDER BY volume"
        )
        return [Attachment(row[0], row[1], row[2], row[3], bool(row[4])) for row in rows]

    def attachment(self, volume: str) -> Attachment | None:
        """Return where a volume is attached, None where it is not."""
        return next((one for one in self.attachments() if one.volume == volume), None)

    def put_attachment(self, record: Attachment, who: str = "") -> None:
        """Record an attachment. Raises PathRefused where another volume has its path."""
        with self._change(who, "put_attachment", asdict(record)) as db:
            other = db.execute(
                "SELECT volume FROM attachments WHERE path = ? AND volume <> ?",
                (record.path, record.volume),
            ).fetchone()
            if other is not None:
                raise PathRefused(path=record.path, reason=f"{other[0]} is attached there")
            db.execute(
                "INSERT OR REPLACE INTO attachments VALUES (?, ?, ?, ?, ?)",
                (record.volume, record.path, record.helper, record.target, int(record.read_only)),
            )

    def drop_attachment(self, volume: str, who: str = "") -> None:
        """Forget an attachment; one that is not there is fine."""
        with self._change(who, "drop_attachment", {"volume": volume}) as db:
            db.execute("DELETE FROM attachments WHERE volume = ?", (volume,))

    # Sets and the volumes they use

    def sets(self, service: str | None = None) -> list[SetRecord]:
        """Return the sets of a service (of all), by name."""
        return self._sets("?1 IS NULL OR service = ?1", service)

    def set(self, service: str, name: str) -> SetRecord | None:
        """Return a set by its name, None where there is none."""
        found = self._sets("service = ?1 AND name = ?2", service, name)
        return found[0] if found else None

    def set_by_id(self, set_id: str) -> SetRecord | None:
        """Return a set by its id, None where there is none."""
        found = self._sets("set_id = ?1", set_id)
        return found[0] if found else None

    def put_set(self, record: SetRecord, uses: Sequence[Use], who: str = "") -> None:
        """Record a set and claim its volumes; the set's former claims are replaced.

        Raises SetExists where another set has the name, VolumeBusy where a volume has a role
        already; then nothing is changed.
        """
        detail = {**asdict(record), "uses": [asdict(use) for use in uses]}
        with self._change(who, "put_set", detail) as db:
            other = db.execute(
                "SELECT set_id FROM sets WHERE service = ? AND name = ?",
                (record.service, record.name),
            ).fetchone()
            if other is not None and other[0] != record.set_id:
                raise SetExists(service=record.service, name=record.name, host=self.host)
            # A set keeps its id for life, and its name: an id under another name is a new claim.
            db.execute("DELETE FROM sets WHERE set_id = ?", (record.set_id,))
            db.execute(
                "INSERT INTO sets VALUES (?, ?, ?, ?, ?)",
                (
                    record.service,
                    record.name,
                    record.set_id,
                    int(record.enabled),
                    _text(record.spec),
                ),
            )
            for use in uses:
                _claim(db, use)

    def drop_set(self, service: str, name: str, who: str = "") -> None:
        """Forget a set and its claims; one that is not there is fine."""
        with self._change(who, "drop_set", {"service": service, "name": name}) as db:
            db.execute("DELETE FROM sets WHERE service = ? AND name = ?", (service, name))

    def uses(self, volume: str | None = None) -> list[Use]:
        """Return who uses a volume (every volume), by volume."""
        rows = self._rows(
            "SELECT volume, service, set_name, role FROM uses WHERE ?1 IS NULL OR volume = ?1"
            " ORDER BY volume, service",
            volume,
        )
        return [Use(*row) for row in rows]

    # Operations in progress, and the history

    def intents(self, service: str) -> list[Intent]:
        """Return the operations of a service that have begun and not ended, the oldest first."""
        rows = self._rows(
            "SELECT id, service, operation, body, started_at FROM intents WHERE service = ?"
            " ORDER BY started_at, id",
            service,
        )
        return [Intent(row[0], row[1], row[2], json.loads(row[3]), row[4]) for row in rows]

    def put_intent(self, intent: Intent) -> None:
        """Record an operation before its first step, or what it has come to since."""
        row = (intent.id, intent.service, intent.operation, _text(intent.body), intent.started_at)
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO intents VALUES (?, ?, ?, ?, ?)", row)

    def drop_intent(self, intent_id: str) -> None:
        """Forget an operation: it is finished or undone."""
        with self._transaction() as db:
            db.execute("DELETE FROM intents WHERE id = ?", (intent_id,))

    def history(self, limit: int = 100) -> list[Change]:
        """Return the latest changes, the newest first."""
        rows = self._rows(
            "SELECT number, time, who, what, detail FROM history ORDER BY number DESC LIMIT ?",
            limit,
        )
        return [Change(row[0], row[1], row[2], row[3], json.loads(row[4])) for row in rows]

    # Inside

    def _sets(self, condition: str, *values: object) -> list[SetRecord]:
        rows = self._rows(
            "SELECT service, name, set_id, enabled, spec FROM sets"
            f" WHERE {condition} ORDER BY service, name",
            *values,
        )
        return [SetRecord(r[0], r[1], r[2], bool(r[3]), json.loads(r[4])) for r in rows]

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise store_error(self.path, error) from error

    @contextmanager
    def _change(self, who: str, what: str, detail: dict[str, Any]) -> Iterator[sqlite3.Connection]:
        with self._transaction() as db:
            yield db
            cursor = db.execute(
                "INSERT INTO history (time, who, what, detail) VALUES (?, ?, ?, ?)",
                (now(), who or self.host, what, _text(detail)),
            )
            last = cursor.lastrowid or 0
            db.execute("DELETE FROM history WHERE number <= ?", (last - HISTORY_CHANGES_MAX,))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    # SQLite may have rolled back by itself (a full disk).
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            raise store_error(self.path, error) from error

    def _open(self, read_only: bool) -> sqlite3.Connection:
        try:
            if read_only:
                return self._open_read_only()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Two processes that make the file at once would see each other's half.
            with self.path.with_name(self.path.name + ".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                return self._prepared(_connect(f"file:{_quoted(self.path)}?mode=rwc"))
        except OSError as error:
            raise PathRefused(path=str(self.path), reason=error.strerror or str(error)) from error
        except sqlite3.Error as error:
            raise store_error(self.path, error) from error

    def _open_read_only(self) -> sqlite3.Connection:
        if not self.path.exists():
            return _empty()
        db = _connect(f"file:{_quoted(self.path)}?mode=ro")
        found = self._version(db)
        if found == SCHEMA_VERSION:
            return db
        with closing(db):
            return _empty() if found == 0 else _upgraded_copy(db, found)

    def _prepared(self, db: sqlite3.Connection) -> sqlite3.Connection:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        found = self._version(db)
        if found == 0:
            _create_tables(db)
        elif found < SCHEMA_VERSION:
            _migrate(db, found)
        return db

    def _version(self, db: sqlite3.Connection) -> int:
        found = int(db.execute("PRAGMA user_version").fetchone()[0])
        if found > SCHEMA_VERSION:
            db.close()
            raise StoreVersion(path=str(self.path), found=found, known=SCHEMA_VERSION)
        # Small enough to be read as a whole: damage is found here, not in the middle of a change.
        verdict = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
        if verdict != "ok":
            db.close()
            raise StoreDamaged(path=str(self.path), reason=verdict)
        return found


def _claim(db: sqlite3.Connection, use: Use) -> None:
    held = db.execute("SELECT service, set_name, role FROM uses WHERE volume = ?", (use.volume,))
    for service, set_name, role in held.fetchall():
        if service == use.service or EXCLUSIVE_ROLES & {role, use.role}:
            raise VolumeBusy(volume=use.volume, used_by=set_name, role=role)
    db.execute(
        "INSERT INTO uses VALUES (?, ?, ?, ?)", (use.volume, use.service, use.set_name, use.role)
    )


def _connect(uri: str) -> sqlite3.Connection:
    db = sqlite3.connect(
        uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    db.execute("PRAGMA foreign_keys = ON")
    return db


def _empty() -> sqlite3.Connection:
    db = _connect("file::memory:")
    _create_tables(db)
    return db


def _upgraded_copy(db: sqlite3.Connection, found: int) -> sqlite3.Connection:
    """Return what a file of an earlier format says, in this one: a reader may not change it."""
    copy = _connect("file::memory:")
    db.backup(copy)
    _migrate(copy, found)
    return copy


def _create_tables(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    with closing(db.cursor()) as cursor:
        for table in TABLES:
            cursor.execute(table)
        cursor.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    db.execute("COMMIT")


def _migrate(db: sqlite3.Connection, found: int) -> None:
    """Bring a file of an earlier format to this one, whole or not at all."""
    db.execute("BEGIN IMMEDIATE")
    for version in range(found, SCHEMA_VERSION):
        for statement in MIGRATIONS[version]:
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    db.execute("COMMIT")


def _volume(row: tuple[Any, ...]) -> VolumeRecord:
    name, path, control, export, read_only = row
    exported = None if export is None else json.loads(export)
    return VolumeRecord(name, path, control, exported, bool(read_only))


def _quoted(path: Path) -> str:
    return path.absolute().as_uri().removeprefix("file://")


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
