"""Brings a set back by itself after its link was lost: forward, with back-off, until it works.

Armed by a synchronisation that ended well, disarmed by a command that ends the link, as in the
predecessor. Tries make no events but the one that succeeds: nobody is mailed every minute.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from facade.contract.errors import TrellisError
from facade.engine.job import DONE, Job
from facade.engine.link_errors import WouldLoseWrites

log = logging.getLogger("trellis.autosync")

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0


class Autosync:
    """The tries of one primary. `start_sync` starts a quiet update and returns its job."""

    def __init__(self, name: str, start_sync: Callable[[], Job]) -> None:
        """Nothing is tried until `begin`."""
        self.name = name
        self.start_sync = start_sync
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Try until it works; once at a time."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._stop.clear()
        self._thread = threading.Thread(
            target=self._try_on, name=f"autosync:{self.name}", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        """Try no more; a synchronisation that runs is not touched."""
        self._stop.set()

    def _try_on(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stop.wait(pause_s):
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            try:
                job = self.start_sync()
            except TrellisError as error:
                log.info("%s: not yet: %s", self.name, error)
                continue
            job.ended.wait()
            if job.state == DONE:
                return
            log.info("%s: not yet: %s", self.name, job.error)
            if isinstance(job.error, WouldLoseWrites):
                log.warning("%s: a person has to decide; autosync gives up", self.name)
                return
