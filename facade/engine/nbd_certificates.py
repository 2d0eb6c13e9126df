"""The engine's certificate for exports, read again when its files change."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from facade.engine.nbd_tls import TlsContext

_log = logging.getLogger(__name__)

# Size, time of change and inode: a file that was replaced or rewritten has another one.
_Stamp = tuple[tuple[int, int, int], ...]


class Certificates:
    """Three PEM files as a TLS server needs them. Safe to call from any thread."""

    def __init__(self, certificate: Path, key: Path, ca: Path) -> None:
        """Take the paths; nothing is read yet."""
        self._files = (certificate, key, ca)
        self._lock = threading.Lock()
        self._stamp: _Stamp | None = None
        self._context: TlsContext | None = None

    def context(self) -> TlsContext:
        """Return what the files say now.

        Files that have become unusable (half replaced, say) leave what they said before in use.
        Raises ValueError, in a sentence, when they never were usable.
        """
        with self._lock:
            try:
                stamp = self._stamp_now()
                if self._context is None or stamp != self._stamp:
                    self._context = self._read()
                    self._stamp = stamp
            except (OSError, ValueError) as error:
                problem = _sentence(error)
                if self._context is None:
                    raise ValueError(problem) from error
                _log.warning("the certificate in use stays: %s", problem)
            return self._context

    def _stamp_now(self) -> _Stamp:
        found = [path.stat() for path in self._files]
        return tuple((one.st_size, one.st_mtime_ns, one.st_ino) for one in found)

    def _read(self) -> TlsContext:
        _, key, _ = self._files
        if key.stat().st_mode & 0o007:
            raise ValueError(f"{key} can be read by every user; take that away (mode 0600)")
        for path in self._files:
            path.open("rb").close()  # says which one is missing, better than OpenSSL does
        return TlsContext(*(str(path) for path in self._files))


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename} cannot be read: {error.strerror or error}"
    return str(error)
