"""The packed store: a folder of arrays that is whole or absent, and is checked before it is used."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from upshift.core.files import atomic_folder, read_json, sha256_file, storage_errors, write_json
from upshift.data.dataset import DataInfo, PackedDataset, Split
from upshift.data.packing import Packed, inputs_file, labels_file
from upshift.errors import ArtifactError, StorageError

FORMAT_VERSION = 3
INDEX = "index.json"

ALWAYS_HASHED_BYTES = 2**30
"""Files up to this size are hashed at the first opening in a process (CIFAR-10: 184 MB in 0.1 s). Larger ones only
when their size or time of change is another than when they were packed, as any ordinary write makes it."""

_verified: set[tuple[str, int, int, int]] = set()
"""Files that this process has hashed: path, size, time of change, inode."""


class DamagedStoreError(Exception):
    """A store that is not as it was packed. Never leaves this room: the store is made anew."""


def write_store(folder: Path, packed: Packed, made_from: dict[str, Any]) -> None:
    """Add the index to a folder of packed arrays.

    Args:
        folder: With the arrays.
        packed: What they are.
        made_from: Of which source and under which settings, as JSON.
    """
    files = {}
    for name, digest in packed.sha256.items():
        status = (folder / name).stat()
        files[name] = {"sha256": digest, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    index = {
        "version": FORMAT_VERSION,
        "info": packed.info.to_json(),
        "splits": list(packed.split_names),
        "notes": list(packed.notes),
        "made_from": made_from,
        "files": files,
    }
    write_json(folder / INDEX, {**index, "sha256": _index_digest(index)})


def open_store(folder: Path) -> PackedDataset:
    """Open a packed store, its arrays memory-mapped.

    Raises:
        DamagedStoreError: A file is missing, or is not what was packed.
    """
    try:
        index = read_json(folder / INDEX, kind="a packed dataset's index")
        recorded = index.pop("sha256", None)
        if index.get("version") != FORMAT_VERSION or recorded != _index_digest(index):
            raise DamagedStoreError(f"{INDEX} is not as it was written")
        _verify(folder, index["files"])
        splits = {name: _open_split(folder, name) for name in index["splits"]}
        return PackedDataset(splits=splits, info=DataInfo.from_json(index["info"]), notes=tuple(index["notes"]))
    except (ArtifactError, OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedStoreError(str(error)) from error


def _index_digest(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _verify(folder: Path, files: dict[str, Any]) -> None:
    to_hash = []
    for name, record in files.items():
        path = folder / name
        status = path.stat()
        if status.st_size != record["size"]:
            raise DamagedStoreError(f"{name} has {status.st_size} bytes, not {record['size']}")
        seen = (str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino)
        is_untouched = status.st_mtime_ns == record["mtime_ns"]
        if seen not in _verified and not (is_untouched and status.st_size > ALWAYS_HASHED_BYTES):
            to_hash.append((path, record["sha256"], seen))
    with ThreadPoolExecutor(max(1, len(to_hash))) as pool:
        digests = list(pool.map(sha256_file, [path for path, _, _ in to_hash]))
    for (path, expected, seen), digest in zip(to_hash, digests, strict=True):
        if digest != expected:
            raise DamagedStoreError(f"{path.name} does not have the content that was packed")
        _verified.add(seen)


def _open_split(folder: Path, name: str) -> Split:
    # Mode "c" is copy-on-write: the file cannot change, yet torch may share the memory without a warning.
    inputs = np.load(folder / inputs_file(name), mmap_mode="c", allow_pickle=False)
    labels = np.load(folder / labels_file(name), allow_pickle=False)
    if len(inputs) != len(labels) or labels.dtype != np.int64:
        raise DamagedStoreError(f"{name} has {len(inputs)} inputs and {len(labels)} labels")
    return Split(inputs=inputs, labels=labels)


@contextlib.contextmanager
def new_store(folder: Path) -> Iterator[Path]:
    """A folder to pack into, which becomes `folder` when it is complete."""
    _remove_abandoned(folder)
    with atomic_folder(folder) as temporary:
        yield temporary


@contextlib.contextmanager
def packing_lock(folder: Path) -> Iterator[None]:
    """Hold the right to pack `folder`; another process waits and then finds it packed."""
    lock = folder.with_name(f".{folder.name}.lock")
    try:
        with storage_errors(folder.parent):
            lock.parent.mkdir(parents=True, exist_ok=True)
            stream = open(lock, "w")  # noqa: SIM115 - held over the yield
    except StorageError as error:
        raise StorageError(
            "a dataset that is not packed in the cache folder yet needs one that can be written",
            received=f"{folder.parent}: {error.received}",
            hint=error.hint,
        ) from error
    try:
        # Without file locks (Windows) two processes may pack at once: each in a folder of its own, the last one stays.
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
    finally:
        stream.close()


def _remove_abandoned(folder: Path) -> None:
    """Remove what a killed process left of the same store. Only the holder of the lock may call this."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder.parent):
            if entry.name.startswith(f".{folder.name}.") and entry.name.endswith((".tmp", ".old")):
                shutil.rmtree(entry.path, ignore_errors=True)
