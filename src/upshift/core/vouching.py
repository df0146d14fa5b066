"""Code that the user has named: a run folder that names other code may be a stranger's, and is not followed.

Naming a recipe is to vouch for its code. What was vouched for is kept in the cache folder, as the hash of a file or
the name of an importable function, so that the user's own runs are opened without a question.
"""

from __future__ import annotations

import contextlib
import hashlib

from upshift.core.files import cache_folder
from upshift.core.reference import CodeReference

_FOLDER = "vouched"
_in_this_process: set[str] = set()


def vouch(reference: CodeReference) -> None:
    """Remember that the user has named this code; in a cache that cannot be written, for this process only."""
    if reference.is_own:
        return
    key = _key(reference)
    _in_this_process.add(key)
    with contextlib.suppress(OSError):
        folder = cache_folder() / _FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        (folder / key).touch()


def is_vouched(reference: CodeReference) -> bool:
    """Whether code is upshift's own, or the user has named it before."""
    if reference.is_own:
        return True
    key = _key(reference)
    return key in _in_this_process or (cache_folder() / _FOLDER / key).is_file()


def _key(reference: CodeReference) -> str:
    """A file is known by its content, wherever it lies; what is importable by its name."""
    known_by = f"name {reference.name}" if reference.file is None else f"file {reference.file_sha256}"
    return hashlib.sha256(known_by.encode()).hexdigest()
