"""Folders of a federation: private ones, and the one that holds everything."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from console.supervisor_errors import FolderUnusable

PRIVATE_DIR_MODE: Final = 0o700


def private_dir(path: Path) -> None:
    """Make a folder that only we may enter; raises FolderUnusable when it is somebody else's."""
    try:
        path.mkdir(mode=PRIVATE_DIR_MODE, parents=True, exist_ok=True)
        facts = path.lstat()
        if not stat.S_ISDIR(facts.st_mode):
            raise FolderUnusable(path=str(path), reason="it is no folder")
        if facts.st_uid != os.getuid():
            raise FolderUnusable(path=str(path), reason=f"it belongs to user {facts.st_uid}")
        if stat.S_IMODE(facts.st_mode) & 0o077:
            path.chmod(PRIVATE_DIR_MODE)
    except OSError as error:
        raise FolderUnusable(path=str(path), reason=error.strerror or str(error)) from error


def make_directory(path: Path) -> None:
    """Make the federation's folder; one that exists keeps its mode. Raises FolderUnusable."""
    try:
        path.mkdir(mode=PRIVATE_DIR_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise FolderUnusable(path=str(path), reason=error.strerror or str(error)) from error
