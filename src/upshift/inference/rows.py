"""Samples of any number, handed to the processes of the candidates as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

STRETCH = 1024
"""Rows that are in memory at once."""


class Rows(Protocol):
    """Samples that are read a stretch at a time: an array, one in a file, or a dataset that is indexed like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> NDArray[Any]: ...


def write_rows(path: Path, rows: Rows) -> None:
    """Make the `.npy` file of rows; rows that are one already are linked to, and take neither memory nor disk."""
    if (file := _file_of(rows)) is not None:
        path.symlink_to(file)
        return
    first = rows[:1]
    written = np.lib.format.open_memmap(path, mode="w+", dtype=first.dtype, shape=(len(rows), *first.shape[1:]))
    for start in range(0, len(rows), STRETCH):
        written[start : start + STRETCH] = rows[start : start + STRETCH]
    written.flush()


def _file_of(rows: Rows) -> Path | None:
    """The `.npy` file that these rows are all of; None if there is none."""
    if not isinstance(rows, np.memmap) or rows.filename is None or not rows.flags.c_contiguous:
        return None
    path = Path(rows.filename).resolve()
    try:
        whole = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):  # of another format
        return None
    # A part of the file would be smaller, and with another type or order of axes of another shape or type.
    return path if (whole.shape, whole.dtype) == (rows.shape, rows.dtype) else None
