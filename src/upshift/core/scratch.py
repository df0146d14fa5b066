"""Scratch folders that do not pile up, not even after `kill -9`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from upshift.core.files import storage_errors

_PREFIX = "upshift-scratch-"
_LOCK = ".lock"
_UNLOCKED = ".unlocked"
_UNLOCKED_FOR_SECONDS = 3600.0


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private temporary folder, removed at the end.

    Its owner holds a lock on a file in it. The lock goes with the process, however that ends, so that a
    folder whose lock is free was left behind by a killed process: each call removes such folders first.
    """
    parent = Path(tempfile.gettempdir())
    _remove_abandoned(parent)
    with storage_errors(parent):
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        with open(folder / _UNLOCKED, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Only now under the name that others look for: an open lock would mean that the owner was killed.
            os.rename(folder / _UNLOCKED, folder / _LOCK)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(_PREFIX + "*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if status.st_uid != os.getuid() or folder.is_symlink() or not folder.is_dir():
                continue
            if not (folder / _LOCK).exists():  # being made just now, unless it is old
                if time.time() - status.st_mtime > _UNLOCKED_FOR_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            with open(folder / _LOCK) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
