"""Labels of any type to classes 0..K-1, the same way in every split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from upshift.data.bad_rows import BadRows
from upshift.data.dataset import Labels
from upshift.data.source import RawLabel
from upshift.errors import DataError

TWO_SIGNS = {-1, 1}
"""What labels of two classes are where they are signs."""

RawLabels = Sequence[RawLabel] | npt.NDArray[Any]


@dataclass(frozen=True)
class Classes:
    """The classes of a dataset.

    Attributes:
        names: Name of each class.
        index: Class of each raw label.
        are_given: True where the source named the classes, False where they are the
            distinct labels of the training split.
    """

    names: tuple[str, ...]
    index: Mapping[int | str, int]
    are_given: bool


def _plain(label: Any) -> int | str | None:
    """A label as an integer or a text; None where it is missing or neither."""
    if label is None:
        return None
    if isinstance(label, str):
        return label
    if isinstance(label, bytes | np.bytes_):
        return bytes(label).decode("utf-8", errors="replace")
    if isinstance(label, bool | np.bool_ | int | np.integer):
        return int(label)
    if isinstance(label, float | np.floating):
        return int(label) if math.isfinite(label) and float(label).is_integer() else None
    return None


def find_classes(train_labels: RawLabels, *, given_names: tuple[str, ...] | None) -> Classes:
    """Decide what the classes are.

    Given names count from 0. Otherwise the classes are the distinct labels of the training split in
    sorted order, except that negative integers, which datasets use for "no label", are none: unless the labels are
    -1 and 1, as those of two classes often are.

    Raises:
        DataError: The training split has no label at all, or fewer than two classes, or labels that
            are partly texts and partly numbers.
    """
    if given_names is not None:
        numbers = range(len(given_names))
        classes = Classes(given_names, dict(zip(given_names, numbers, strict=True)) | {i: i for i in numbers}, True)
    else:
        classes = _distinct(train_labels)
    if len(classes.names) < 2:
        raise DataError(
            "a dataset must have at least two classes to tell apart",
            received=f"only {', '.join(map(repr, classes.names))}",
            hint="check the label column, or add rows of another class; a negative number is no label",
        )
    return classes


def _distinct(labels: RawLabels) -> Classes:
    known: set[Any]
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iub":
        known = set(np.unique(labels).tolist())
    else:
        known = {plain for plain in map(_plain, labels) if plain is not None}
    if known != TWO_SIGNS:
        known = {label for label in known if isinstance(label, str) or int(label) >= 0}
    if not known:
        raise DataError(
            "the training split must have labels",
            received="none that is a class",
            hint="check data.label_column",
        )
    if len({type(label) is str for label in known}) > 1:
        raise DataError(
            "labels must be all texts or all whole numbers",
            received=", ".join(repr(label) for label in list(known)[:5]),
            hint="check data.label_column",
        )
    ordered = sorted(known)
    return Classes(tuple(map(str, ordered)), {label: i for i, label in enumerate(ordered)}, False)


def to_classes(labels: RawLabels, classes: Classes, bad: BadRows) -> Labels:
    """Map raw labels to classes; rows whose label is missing or no class are noted as bad.

    Returns:
        int64 (N,), -1 where the row is bad.
    """
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iub":
        distinct, inverse = np.unique(labels, return_inverse=True)
        mapped = np.array([classes.index.get(int(label), -1) for label in distinct], dtype=np.int64)
        result = mapped[inverse.reshape(-1)] if len(distinct) else np.zeros(0, dtype=np.int64)
    else:
        result = np.array([_class_of(label, classes) for label in labels], dtype=np.int64)
    for row in np.flatnonzero(result < 0).tolist():
        _note(row, labels[row], classes, bad)
    return result


def _class_of(label: Any, classes: Classes) -> int:
    plain = _plain(label)
    return -1 if plain is None else classes.index.get(plain, -1)


def _note(row: int, label: Any, classes: Classes, bad: BadRows) -> None:
    plain = _plain(label)
    if plain is None and isinstance(label, float | np.floating) and not math.isnan(label):
        bad.add(row, "label that is no class", detail=repr(float(label)), hint="labels are whole numbers or texts")
    elif plain is None:
        bad.add(row, "missing label")
    elif plain == -1:
        bad.add(row, "missing label", hint="if -1 is a class, number the classes from 0, or name them")
    elif classes.are_given:
        bad.add(row, "label out of range", detail=repr(plain), hint=f"labels go from 0 to {len(classes.names) - 1}")
    else:
        bad.add(row, "label that the training split lacks", detail=repr(plain))
