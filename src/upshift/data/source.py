"""What a data source hands to the packer, whatever it was read from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from upshift.data.dataset import Kind

SPLIT_NAMES = ("train", "validation", "test")

RawLabel: TypeAlias = "int | float | str | bool | None"
RawInputs: TypeAlias = "Sequence[bytes | None] | Sequence[Path] | Sequence[str | None] | npt.NDArray[Any]"
"""A stretch of rows as read: encoded images, image files, texts, or an array with a row each."""


def _row_number(row: int) -> str:
    return f"row {row}"


@dataclass(frozen=True)
class SourceSplit:
    """One split of a source. Both callables may be called again and read from the start.

    Attributes:
        num_rows: Number of rows.
        labels: The label of each row as the source has it; None where it is missing.
        inputs: All inputs in order, in stretches of any length.
        row_name: What to call a row in a message.
    """

    num_rows: int
    labels: Callable[[], Sequence[RawLabel] | npt.NDArray[Any]]
    inputs: Callable[[], Iterator[RawInputs]]
    row_name: Callable[[int], str] = _row_number


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from and how its rows are read.

    Attributes:
        name: Short name, usable in a file name.
        description: What it is, for records and messages.
        kind: What an input is.
        splits: "train" and, where the source has them, "validation" and "test".
        label_names: Class names in the order of the integer labels; None where classes are the
            distinct labels of the training split.
        files: The files it is read from: their names, sizes and times tell a changed source.
        notes: What the user should know of what was found.
        feature_names: Of tabular inputs, in their order; empty where they have none.
        title: What the user calls it; empty where that is its name.
    """

    name: str
    description: str
    kind: Kind
    splits: Mapping[str, SourceSplit]
    label_names: tuple[str, ...] | None
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    title: str = ""


def array_split(inputs: npt.NDArray[Any], labels: npt.NDArray[Any], *, stretch_bytes: int = 16 * 2**20) -> SourceSplit:
    """A split whose rows are in arrays already."""
    row_bytes = max(1, inputs.nbytes // max(1, len(inputs)))
    stretch = max(1, stretch_bytes // row_bytes)

    def stretches() -> Iterator[RawInputs]:
        for start in range(0, len(inputs), stretch):
            yield inputs[start : start + stretch]

    return SourceSplit(num_rows=len(inputs), labels=lambda: np.asarray(labels), inputs=stretches)
