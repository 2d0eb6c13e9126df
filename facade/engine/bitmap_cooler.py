"""Keeps the bitmaps' hot extents few: those that nobody writes any more are closed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final

from facade.engine.replica import Replica

log = logging.getLogger("trellis.bitmap")

COOL_INTERVAL_S: Final = 2.0  # an extent stays hot for one to two of these after its last write


class BitmapCooler:
    """One thread for all sides of an engine; it does nothing while nothing is written."""

    def __init__(self, replicas: Callable[[], Sequence[Replica]]) -> None:
        """`replicas` returns the sides that are enabled now; begins with `start`."""
        self._replicas = replicas
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; doing it again does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="bitmap-cooler", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End; no bitmap is written by it afterwards."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(COOL_INTERVAL_S):
            for replica in self._replicas():
                try:
                    replica.cool_bitmap()
                except Exception:
                    log.exception("%s: closing its idle extents", replica.spec.name)
