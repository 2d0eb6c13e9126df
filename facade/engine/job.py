"""A long operation in the engine: how far it is, how it ended."""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any, Final

from facade.contract.errors import TrellisError, error_to_wire
from facade.contract.events import now

RATE_WINDOW_S: Final = 2.0

RUNNING: Final = "running"
DONE: Final = "done"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"


class Job:
    """One synchronisation. Counters are written by its thread and read by any."""

    def __init__(self, set_id: str, kind: str) -> None:
        """Begin a job now."""
        self.job_id = uuid.uuid4().hex
        self.set_id = set_id
        self.kind = kind
        self.state = RUNNING
        self.total_bytes = 0
        self.done_bytes = 0
        self.sent_bytes = 0
        self.error: TrellisError | None = None
        self.started_at = now()
        self.ended_at: str | None = None
        self.cancelled = threading.Event()
        self.ended = threading.Event()
        self._ended_s: float | None = None
        self._marks: list[tuple[float, int]] = [(time.monotonic(), 0)]

    def advance(self, done_bytes: int) -> None:
        """Note that so many bytes are done in all."""
        self.done_bytes = done_bytes
        moment = time.monotonic()
        if moment - self._marks[-1][0] >= RATE_WINDOW_S / 10:
            self._marks = [m for m in self._marks if moment - m[0] <= RATE_WINDOW_S] or self._marks[
                -1:
            ]
            self._marks.append((moment, done_bytes))

    def finish(self, state: str, error: TrellisError | None = None) -> None:
        """End the job; `state` is done, failed or cancelled."""
        self.error = error
        self.ended_at = now()
        self._ended_s = time.monotonic()
        self.state = state
        self.ended.set()

    @property
    def rate_bytes_per_s(self) -> int:
        """How fast it has been in the last seconds."""
        (since, before) = self._marks[0]
        spent_s = (self._ended_s or time.monotonic()) - since
        return int((self.done_bytes - before) / spent_s) if spent_s > 0 else 0

    def progress(self) -> dict[str, int]:
        """Return what a progress bar needs."""
        return {
            "done_bytes": self.done_bytes,
            "total_bytes": self.total_bytes,
            "rate_bytes_per_s": self.rate_bytes_per_s,
        }

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON object of this job."""
        return {
            "job_id": self.job_id,
            "set_id": self.set_id,
            "kind": self.kind,
            "state": self.state,
            **self.progress(),
            "sent_bytes": self.sent_bytes,
            "error": None if self.error is None else error_to_wire(self.error),
            "started_at": self.started_at,
            "ended_at": self.ended_at,
        }
