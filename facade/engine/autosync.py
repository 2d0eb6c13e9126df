"""Brings a set back by itself after its link was lost: forward, with back-off, until it works.

Wanted since a synchronisation ended well, until a command ends the link, as in the predecessor.
Tries make no events but the one that succeeds: nobody is mailed every minute.
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
        self._changed = threading.Condition()
        self._wanted = False
        self._runs = False
        self._losses = 0  # links lost since the last try began

    def begin(self) -> None:
        """Try until it works. Said again while it tries, it tries once more after a success."""
        with self._changed:
            self._wanted = True
            self._losses += 1
            if self._runs:
                return
            self._runs = True
        threading.Thread(target=self._try_on, name=f"autosync:{self.name}", daemon=True).start()

    def end(self) -> None:
        """Try no more; a synchronisation that runs is not touched."""
        with self._changed:
            self._wanted = False
            self._changed.notify_all()

    def _try_on(self) -> None:
        pause_s = FIRST_PAUSE_S
        while self._pause(pause_s):
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            with self._changed:
                self._losses = 0
            if self._try_once():
                with self._changed:
                    # A link lost since is to be brought back too.
                    self._wanted = self._wanted and self._losses > 0
                pause_s = FIRST_PAUSE_S

    def _pause(self, pause_s: float) -> bool:
        """Wait; False, with the thread signed off, when nothing is wanted."""
        with self._changed:
            self._changed.wait_for(lambda: not self._wanted, pause_s)
            self._runs = self._wanted
            return self._wanted

    def _try_once(self) -> bool:
        """Tell whether nothing more is to be tried."""
        try:
            job = self.start_sync()
        except TrellisError as error:
            log.info("%s: not yet: %s", self.name, error)
            return False
        except Exception:
            log.exception("%s: not yet", self.name)
            return False
        job.ended.wait()
        log.info("%s: %s: %s", self.name, job.state, job.error)
        return job.state == DONE or isinstance(job.error, WouldLoseWrites)
