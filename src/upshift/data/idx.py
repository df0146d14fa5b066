"""The IDX files of MNIST, plain or gzipped (format: yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from upshift.data.source import Source, SourceSplit, array_split
from upshift.errors import DataError

_NAME = re.compile(r"(train|t10k|test)[-_](images|labels)[-_.]idx[13][-_]ubyte(\.gz)?$")
UNSIGNED_BYTE = 0x08
MAX_EXPANSION = 100
"""A gzip file may hold this many times its size, or `FREE_EXPANSION_BYTES` if that is more. MNIST holds 5 times."""
FREE_EXPANSION_BYTES = 16 * 2**20


def idx_files(path: Path) -> dict[str, dict[str, Path]]:
    """The IDX files of a folder, or of its `raw/`, by split and then "images" and "labels"."""
    splits: dict[str, dict[str, Path]] = {}
    for file in sorted([*path.glob("*ubyte*"), *path.glob("raw/*ubyte*")], reverse=True):
        match = _NAME.search(file.name)
        if match:
            split = "train" if match[1] == "train" else "test"
            # Reversed, so that a plain file beside its gzipped one comes last and stays.
            splits.setdefault(split, {})[match[2]] = file
    return splits


def idx_source(path: Path, *, name: str, description: str) -> Source:
    """A folder of IDX files.

    Raises:
        DataError: A file is missing or malformed, or images and labels differ in number.
    """
    found = idx_files(path)
    for split, files in {"train": {}, **found}.items():
        missing = {"images", "labels"} - set(files)
        if missing:
            raise DataError(
                "IDX files must come in pairs of images and labels",
                received=f"{path} without the {split} {' and '.join(sorted(missing))}",
                hint="for example train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz",
            )
    return Source(
        name=name,
        description=description,
        kind="image",
        splits={split: _split(files["images"], files["labels"]) for split, files in found.items()},
        label_names=None,
        files=tuple(file for files in found.values() for file in files.values()),
    )


def _split(images_file: Path, labels_file: Path) -> SourceSplit:
    images_shape, labels_shape = read_idx_shape(images_file), read_idx_shape(labels_file)
    if len(images_shape) != 3 or len(labels_shape) != 1:
        raise DataError(
            "IDX files must hold images of 3 dimensions and labels of 1",
            received=f"{images_file.name} of {images_shape}, {labels_file.name} of {labels_shape}",
            hint="check that the files are not swapped",
        )
    if images_shape[0] != labels_shape[0]:
        raise DataError(
            "IDX files must have as many labels as images",
            received=f"{labels_shape[0]} labels in {labels_file}, {images_shape[0]} images",
            hint="fetch both files again",
        )
    return SourceSplit(
        num_rows=labels_shape[0],
        labels=lambda: read_idx(labels_file),
        inputs=lambda: array_split(read_idx(images_file)[:, None], np.zeros(0)).inputs(),
    )


def read_idx_shape(file: Path) -> tuple[int, ...]:
    """The shape that a file's header says.

    Raises:
        DataError: It is no IDX file of unsigned bytes, or cannot hold what its header says.
    """
    try:
        with _open(file) as stream:
            start = stream.read(4)
            if len(start) < 4 or start[:2] != b"\0\0" or start[2] != UNSIGNED_BYTE or not 1 <= start[3] <= 3:
                raise _malformed(file, f"a header of {start!r}")
            dimensions = stream.read(4 * start[3])
    except (OSError, EOFError, zlib.error) as error:
        raise _malformed(file, str(error)) from error
    if len(dimensions) < 4 * start[3]:
        raise _malformed(file, "the file ends within its header")
    shape = struct.unpack(f">{start[3]}I", dimensions)
    _check_size(file, 4 + len(dimensions) + math.prod(shape))
    return shape


def _check_size(file: Path, expected: int) -> None:
    """Before anything of that size is allocated."""
    size = file.stat().st_size
    if _is_gzip(file):
        if expected > max(MAX_EXPANSION * size, FREE_EXPANSION_BYTES):
            raise _malformed(file, f"a header that claims {expected} bytes of a gzip file of {size}")
    elif expected != size:
        raise _malformed(file, f"a header that claims {expected} bytes of a file of {size}")


def read_idx(file: Path) -> npt.NDArray[np.uint8]:
    """The array of an IDX file: memory-mapped, or unpacked if it is gzipped.

    Raises:
        DataError: The file is malformed or ends early.
    """
    shape = read_idx_shape(file)
    offset = 4 + 4 * len(shape)
    if not _is_gzip(file):
        if math.prod(shape) == 0:
            return np.zeros(shape, dtype=np.uint8)
        return np.memmap(file, dtype=np.uint8, mode="r", offset=offset, shape=shape)
    expected = math.prod(shape)
    try:
        with _open(file) as stream:
            stream.read(offset)
            content = stream.read(expected)
            has_more = bool(stream.read(1))
    except (OSError, EOFError, zlib.error) as error:
        raise _malformed(file, str(error)) from error
    if len(content) != expected or has_more:
        raise _malformed(file, f"{'more' if has_more else 'less'} content than the {expected} bytes its header says")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _is_gzip(file: Path) -> bool:
    return file.suffix == ".gz"


def _open(file: Path) -> Any:
    return gzip.open(file, "rb") if _is_gzip(file) else open(file, "rb")


def _malformed(file: Path, received: str) -> DataError:
    return DataError(
        "an IDX file must be whole, of unsigned bytes", received=f"{file}: {received}", hint="fetch the file again"
    )
