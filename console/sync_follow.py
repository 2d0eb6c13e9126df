"""Following a synchronisation to its end by asking the replication bean about the job.

The job runs in the engine; bean, broker and Redis may die and come back meanwhile without harm to
it. That is borne for `SILENCE_MAX_S` at a time; then the asking ends, never the job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from console.errors import SyncFailed, SyncNotFollowed, WaitFailed
from console.progress import Bar, Progress
from facade.contract.errors import TrellisError, UnreachableError, error_from_wire

POLL_FIRST_S: Final = 0.05
POLL_MAX_S: Final = 0.5
SILENCE_MAX_S: Final = 120.0
"""For how long nobody may answer before the asking ends."""
SILENT_NOTE: Final = "nobody answers, the synchronisation goes on"

NOT_STARTED: Final = Progress(0, 0, 0.0)

Document = Mapping[str, Any]
Ask = Callable[[], Document]


@dataclass
class Follower:
    """Asks about the synchronisation of one set, through the absence of those who answer."""

    name: str
    bar: Bar
    silence_max_s: float = SILENCE_MAX_S
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _last: Progress = NOT_STARTED

    def ask(self, question: Ask) -> Document:
        """One answer. Raises SyncNotFollowed when nobody gives one for `silence_max_s`, and at once
        any error that is not about somebody being away."""
        heard_at = self.clock()
        pause_s = POLL_FIRST_S
        while True:
            try:
                return question()
            except UnreachableError as error:
                if self.clock() - heard_at > self.silence_max_s:
                    reason = str(error).rstrip(".")
                    raise SyncNotFollowed(
                        set=self.name, limit_s=int(self.silence_max_s), reason=reason
                    ) from error
            self.bar.show(self._last, SILENT_NOTE)
            self.sleep(pause_s)
            pause_s = min(POLL_MAX_S, pause_s * 2)

    def follow(self, question: Ask) -> Document:
        """Ask for the job until it has ended; gives the ended job, whatever its end."""
        pause_s = POLL_FIRST_S
        try:
            while True:
                job = self.ask(question)
                self._last = Progress(
                    job["done_bytes"], job["total_bytes"], job["rate_bytes_per_s"]
                )
                if job["state"] != "running":
                    self.bar.show(self._last)
                    return job
                if self._last.total_bytes:  # what is to be done is known a moment after the start
                    self.bar.show(self._last)
                self.sleep(pause_s)
                pause_s = min(POLL_MAX_S, pause_s * 1.5)
        finally:
            self.bar.close()


def check_ended_well(name: str, job: Document) -> None:
    """Raise the job's own error, or SyncFailed, unless it is done."""
    if job["state"] == "done":
        return
    wire = job.get("error")
    if isinstance(wire, Mapping):
        raise _as_failure(name, error_from_wire(wire))
    raise SyncFailed(set=name, reason=f"it is {job['state']}")


def check_replicating(one: Document) -> None:
    """Raise WaitFailed unless the set replicates."""
    if one["state"] != "replicating":
        raise WaitFailed(set=one["name"], state=one["state"])


def _as_failure(name: str, error: TrellisError) -> TrellisError:
    """A failed job is a failure (status 1), also when its cause was that somebody was away."""
    if error.exit_status == 1:
        return error
    return SyncFailed(set=name, reason=str(error).rstrip("."))
