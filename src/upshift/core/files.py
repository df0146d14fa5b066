"""Files that are either whole or absent: atomic writes, hashes, bounded JSON."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from upshift.errors import ArtifactError, StorageError

MAX_JSON_BYTES = 64 * 2**20
MAX_JSON_DIGITS = 4300
"""Of a whole number: more than these Python itself refuses, unless it is set otherwise."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNUSABLE = (
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.EISDIR,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EOPNOTSUPP, errno.EIO, errno.EBUSY,
)  # fmt: skip

# Of <fcntl.h> and <linux/fs.h>.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def storage_errors(path: Path, *, is_file: bool = False) -> Iterator[None]:
    """Turn "disk full", "read-only", "no permission" and the like at or below `path` into a `StorageError`.

    Args:
        path: What is written.
        is_file: Whether that is a file, not a folder.
    """
    try:
        yield
    except OSError as error:
        if not _concerns(error, path):
            raise
        name = "UPSHIFT_CACHE_DIR" if path.absolute().is_relative_to(cache_folder().absolute()) else "--out"
        if error.errno in _FULL:
            raise StorageError(
                f"writing {path} needs free disk space",
                received=error.strerror,
                hint=f"free some space, or name another folder with {name}",
            ) from error
        if error.errno in _UNUSABLE:
            raise StorageError(
                f"{path} must be a {'file' if is_file else 'folder'} that can be written",
                received=error.strerror,
                hint=f"name another {'place' if is_file else 'folder'} with {name}",
            ) from error
        raise


def refuse_unwritable(path: Path, *, named: Path | None = None) -> None:
    """Refuse a file that cannot be written, before there is work that would be lost; it need not be there yet.

    An empty file is made under another name and removed: permissions alone do not tell.

    Args:
        path: The file.
        named: The folder of it that the user has named, where it is that and not the file.

    Raises:
        StorageError: No file can be made in its folder, or in the nearest folder above it that is there.
    """
    path = path.absolute()
    folder = next(parent for parent in path.parents if os.path.lexists(parent))
    probe = folder / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(probe, "xb"):
            pass
        probe.unlink()
    except OSError as error:
        with storage_errors(named or path, is_file=named is None):
            raise OSError(error.errno, error.strerror) from error


def _concerns(error: OSError, path: Path) -> bool:
    """Whether an error is of a path, of a folder above it, or of a file beside or below it."""
    if not isinstance(error.filename, str):
        return True  # an open file names none
    wanted, named = os.path.abspath(path), os.path.abspath(error.filename)
    folder = os.path.join(os.path.dirname(wanted), "")
    return named == wanted or wanted.startswith(os.path.join(named, "")) or named.startswith(folder)


def fsync_folder(path: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes, *, survives_power_cuts: bool = True) -> None:
    """Write a file under a temporary name, flush it and rename it into place.

    Args:
        path: The file.
        content: All of it.
        survives_power_cuts: Wait until the disk has it, which takes milliseconds. Of a file that was not waited for,
            a power cut can leave an empty one.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with storage_errors(path, is_file=True):
        try:
            with open(temporary, "wb") as stream:
                stream.write(content)
                stream.flush()
                if survives_power_cuts:
                    os.fsync(stream.fileno())
            os.replace(temporary, path)
            if survives_power_cuts:
                fsync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document atomically; non-finite numbers are written as null."""
    plain = finite(value)
    try:
        content = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # the name of a file whose bytes are no text
        content = json.dumps(plain, indent=2, allow_nan=False).encode()
    write_bytes(path, content + b"\n")


def finite(value: Any) -> Any:
    """A copy of a JSON value in which NaN and infinities are None, as JSON has no such numbers."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def read_json(path: Path, *, kind: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        kind: What the file is, for the error ("a run's recipe").

    Raises:
        ArtifactError: The file is missing, too large, or not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object, parse_int=_whole_number)
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{kind} must be a readable JSON file",
            received=f"{path}: {error}",
            hint="check the path, or make it again",
        ) from error
    if not isinstance(value, dict):
        raise ArtifactError(
            f"{kind} must hold a JSON object",
            received=f"{path}: {type(value).__name__}",
            hint="check the path, or make it again",
        )
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are there once: of one that is there twice, nobody knows which value was meant."""
    whole: dict[str, Any] = {}
    for key, value in pairs:
        if key in whole:
            raise ValueError(f"the key {key!r} is there twice")
        whole[key] = value
    return whole


def _whole_number(text: str) -> int:
    """A whole number of JSON; Python would tell of a setting of its own where one is too long."""
    if len(text) > MAX_JSON_DIGITS:
        raise ValueError(f"a whole number of {len(text):,} digits, where at most {MAX_JSON_DIGITS:,} are read")
    return int(text)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder that appears whole or not at all.

    Yields a temporary sibling to write into. On success its files are flushed and it is renamed to
    `path`; on any error it is removed. A folder that was there is exchanged for it in one step and then
    removed. Where the system cannot exchange (Linux can, on its usual file systems), it is moved aside
    first: killed in that instant, a process leaves it as `.<name>.<random>.old`.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with storage_errors(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            _flush_tree(temporary)
            if not path.exists():
                os.rename(temporary, path)
            elif not _exchange(temporary, path):
                replaced = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
                os.rename(path, replaced)
                os.rename(temporary, path)
                shutil.rmtree(replaced, ignore_errors=True)
            fsync_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two paths in one step, by Linux's renameat2; False where that is not to be had."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.ENOSYS, errno.EINVAL):  # of an old kernel, or a file system without it
        return False
    raise OSError(error, os.strerror(error), str(second))


def _flush_tree(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    fsync_folder(folder)


def cache_folder() -> Path:
    """Where packed datasets and downloads are kept: `UPSHIFT_CACHE_DIR`, else `~/.cache/upshift`."""
    named = os.environ.get("UPSHIFT_CACHE_DIR")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "upshift"
