"""Names of classes: those of torch datasets, and whether a dataset has those of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from upshift.data.dataset import Labels
from upshift.errors import DataError, shown

MAX_SHOWN = 8


@dataclass(frozen=True)
class ClassNames:
    """Class names, in the order of the labels.

    Attributes:
        names: One for each label from 0.
        origin: Where they come from, for messages; "" where they are the labels themselves.
    """

    names: tuple[str, ...]
    origin: str = ""


def class_names(given: Sequence[str] | None, dataset: Any, labels: Mapping[str, Labels]) -> ClassNames:
    """The classes of labels: those that are named, else as many as the training labels count.

    Args:
        given: What the caller named; None, or nothing, for the dataset's own `classes`, as those of torchvision.
        dataset: The training dataset.
        labels: int64 (N,), of each split.

    Raises:
        DataError: Names that are no list of different texts, or fewer names than labels, or a label that is no class.
    """
    own = getattr(dataset, "classes", None)
    if given is not None:
        named = ClassNames(_checked(given), "label_names")
    elif isinstance(own, list | tuple) and own:
        named = ClassNames(tuple(map(str, own)), "the dataset's `classes`")
    else:
        named = ClassNames(())
    for split, of_split in labels.items():
        _refuse_negative(of_split, split)
    num_labels = int(labels["train"].max()) + 1
    if not named.names:
        named = ClassNames(tuple(map(str, range(num_labels))))
    for split, of_split in labels.items():
        _refuse_beyond(of_split, split, named)
    return named


def unused_note(classes: ClassNames, train_labels: Labels) -> tuple[str, ...]:
    """A note on named classes without a training row: the names may be those of other data."""
    counts = np.bincount(train_labels, minlength=len(classes.names))
    unused = [classes.names[index] for index in np.flatnonzero(counts == 0)]
    if not unused:
        return ()
    what = f"class {unused[0]!r} has" if len(unused) == 1 else f"{len(unused)} classes ({outline(unused)}) have"
    counted = f"{len(classes.names)} are named, {len(classes.names) - len(unused)} occur"
    return (f"{what} no rows in the training split: {counted}",)


def require_classes(received: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """Refuse data whose classes are not those of a model: their numbers would mean other things.

    Raises:
        DataError: They differ in number, names or order.
    """
    if received == expected:
        return
    if not expected:
        raise DataError(
            "a model must have named classes to be evaluated on labels",
            received="a model without any",
            hint="compare its outputs yourself: upshift.load(path)(inputs)",
        )
    others = [name for name in received if name not in set(expected)]
    hint = "name the data that the model is for"
    if len(received) != len(expected):
        what = f"{len(received)} instead of {len(expected)} classes: {outline(received)}"
    elif not others:
        what = f"the same classes in another order: {outline(received)}"
        hint = "give every class the number that it has in the model"
    else:
        what = f"other classes: {outline(received)}"
        if received == tuple(map(str, range(len(received)))):
            what, hint = f"classes without names, 0 to {len(received) - 1}", "name the classes, in the model's order"
    raise DataError(
        f"the data must have the model's {len(expected)} classes, in their order: {outline(expected)}",
        received=what,
        hint=hint,
    )


def outline(names: Sequence[str]) -> str:
    """Names in a line, the first ones of many."""
    return ", ".join(names[:MAX_SHOWN]) + (f", … ({len(names)})" if len(names) > MAX_SHOWN else "")


def _checked(given: Any) -> tuple[str, ...]:
    if isinstance(given, str | bytes) or not isinstance(given, Sequence | np.ndarray):
        raise DataError(
            "label_names must be a list of class names", received=shown(given), hint='for example ["cat", "dog"]'
        )
    names = tuple(map(str, given))
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(
            "label_names must be different from each other",
            received=f"{outline(names)}, with {repeated[0]!r} more than once",
            hint="name every class once, in the order of the labels",
        )
    return names


def _refuse_negative(labels: Labels, split: str) -> None:
    wrong = np.flatnonzero(labels < 0)
    if len(wrong):
        raise DataError(
            "labels must be whole numbers from 0",
            received=f"{split}: {len(wrong)} below 0, the first {labels[wrong[0]]} at row {wrong[0]}",
            hint="map labels to 0, 1, 2, …, and leave out rows without a label",
        )


def _refuse_beyond(labels: Labels, split: str, classes: ClassNames) -> None:
    num_classes = len(classes.names)
    wrong = np.flatnonzero(labels >= num_classes)
    if not len(wrong):
        return
    found = f"{split}: label {labels[wrong[0]]} at row {wrong[0]}"
    if not classes.origin:
        raise DataError(
            f"labels must go from 0 to {num_classes - 1}, as in the training split",
            received=found,
            hint="hand over training rows of every class, or name all classes with label_names",
        )
    needed = int(labels.max()) + 1
    hint = f"name {needed} classes in label_names, or map the labels to 0 … {num_classes - 1}"
    if labels.min() > 0 and needed == num_classes + 1:
        hint = "the labels seem to count from 1: subtract 1 in the dataset"
    raise DataError(
        f"{classes.origin} must name every class, the first for label 0",
        received=f"{num_classes} {'name' if num_classes == 1 else 'names'} ({outline(classes.names)}); {found}",
        hint=hint,
    )
