"""torch map-style datasets handed over in Python: their facts, and their rows as arrays."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from upshift.data.class_names import class_names, unused_note
from upshift.data.dataset import DataInfo, Kind, Labels
from upshift.data.statistics import of_histograms
from upshift.errors import DataError

INPUT_KEYS = ("input", "inputs", "image", "images", "img", "pixel_values", "x", "features", "text")
LABEL_KEYS = ("label", "labels", "target", "targets", "y")

NUM_FINGERPRINT_ROWS = 64
"""Rows of each split whose inputs count in the fingerprint. They are read again until 128 inputs have been compared: a
random flip of every second image passes for none with a chance of 2⁻¹²⁸."""


class RowView:
    """The inputs of a dataset, indexed like an array; each access asks the dataset for its items."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return num_items(self.dataset)

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        if isinstance(rows, int | np.integer):
            return input_and_label(self.dataset, int(rows))[0].numpy()
        wanted = np.arange(len(self))[rows].tolist()
        return np.stack([input_and_label(self.dataset, row)[0].numpy() for row in wanted])


@dataclass(frozen=True)
class DatasetSplit:
    """One split that is a torch dataset; takes the place of a `Split` of arrays.

    Attributes:
        inputs: Its rows, indexed like an array.
        labels: int64 (N,).
    """

    inputs: RowView
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TorchDataset:
    """Torch datasets in the place of a `PackedDataset`.

    Attributes:
        splits: "train", "test" and, where there is one, "validation".
        info: The facts about them.
        notes: What the user should know.
    """

    splits: Mapping[str, DatasetSplit]
    info: DataInfo
    notes: tuple[str, ...] = ()


def dataset_from_torch(
    train: Dataset[Any],
    test: Dataset[Any],
    validation: Dataset[Any] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    name: str = "torch dataset",
) -> TorchDataset:
    """Take over map-style datasets whose items are (input, label) or a mapping with both.

    Inputs are uint8 images (C, H, W), (H, W, C) or Pillow images, which upshift normalises by the
    training split's statistics; float images, which are given to the model as they are; features
    (F,), likewise as they are; or text as uint8 or int64 (L,). All items are read once, for the
    labels and the statistics.

    Raises:
        DataError: A dataset is empty or has no length, an item has another form or shape than the
            first, or a label is no class.
    """
    given = {"train": train, "test": test, **({"validation": validation} if validation is not None else {})}
    summaries = {split: _summarise(dataset, split, name) for split, dataset in given.items()}
    shapes = {summary.shape for summary in summaries.values()}
    if len(shapes) > 1:
        raise DataError(
            "all splits must have inputs of the same shape",
            received=", ".join(f"{split} {summary.shape}" for split, summary in summaries.items()),
            hint="give every split the same transform",
        )
    first = summaries["train"]
    classes = class_names(label_names, train, {split: summary.labels for split, summary in summaries.items()})
    if len(classes.names) < 2 or len(np.unique(first.labels)) < 2:
        raise DataError(
            "the training split must have rows of at least two classes",
            received=f"labels {sorted(set(first.labels.tolist()))}",
            hint="check the labels",
        )
    mean, std = first.mean_and_std()
    digest = hashlib.sha256(repr((first.kind, first.shape, classes.names)).encode())
    for split, summary in summaries.items():
        digest.update(split.encode() + summary.labels.tobytes() + _steady_inputs(given[split]))
    info = DataInfo(
        kind=first.kind,
        input_shape=first.shape,
        num_classes=len(classes.names),
        label_names=classes.names,
        mean=mean,
        std=std,
        num_bad_rows=0,
        source=name,
        fingerprint=digest.hexdigest()[:16],
    )
    splits = {split: DatasetSplit(RowView(dataset), summaries[split].labels) for split, dataset in given.items()}
    return TorchDataset(splits=splits, info=info, notes=unused_note(classes, first.labels))


def _steady_inputs(dataset: Dataset[Any]) -> bytes:
    """A digest of the first inputs; nothing if they differ between readings, as where a dataset augments.

    All of them must be the same in every reading: one that happens to be left as it is (a flip of one half)
    must not make the fingerprint a matter of luck.
    """
    num_rows = min(NUM_FINGERPRINT_ROWS, num_items(dataset))
    digests = {_digest_of_inputs(dataset, num_rows) for _ in range(1 + math.ceil(2 * NUM_FINGERPRINT_ROWS / num_rows))}
    return digests.pop() if len(digests) == 1 else b""


def _digest_of_inputs(dataset: Dataset[Any], num_rows: int) -> bytes:
    digest = hashlib.sha256()
    for row in range(num_rows):
        value = input_and_label(dataset, row)[0]
        digest.update(str(value.dtype).encode() + value.contiguous().numpy().tobytes())
    return digest.digest()


@dataclass
class _Summary:
    kind: Kind
    shape: tuple[int, ...]
    is_uint8: bool
    labels: Labels
    counts: npt.NDArray[np.int64]

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Of uint8 images; other inputs come as the model takes them."""
        if self.kind == "text":
            return (), ()
        if not self.is_uint8:
            return (0.0,) * self.shape[0], (1.0,) * self.shape[0]
        return of_histograms(self.counts)


def _summarise(dataset: Dataset[Any], split: str, name: str) -> _Summary:
    count = num_items(dataset)
    if count == 0:
        raise DataError(f"the {split} split of {name} must have rows", received="none", hint="check the dataset")
    first, _ = input_and_label(dataset, 0)
    kind = _kind_of(first)
    is_uint8_image = kind == "image" and first.dtype == torch.uint8
    counts = np.zeros((first.shape[0], 256), dtype=np.int64) if is_uint8_image else np.zeros((0, 256), dtype=np.int64)
    labels = np.empty(count, dtype=np.int64)
    for row in range(count):
        value, labels[row] = input_and_label(dataset, row)
        if value.shape != first.shape or value.dtype != first.dtype:
            raise DataError(
                "all inputs of a dataset must have the same shape and type",
                received=f"{split} row {row}: {value.dtype} {tuple(value.shape)}, row 0: {first.dtype} "
                f"{tuple(first.shape)}",
                hint="resize in the dataset's transform",
            )
        array = value.contiguous().numpy()
        for channel in range(len(counts)):
            counts[channel] += np.bincount(array[channel].ravel(), minlength=256)
    return _Summary(kind, tuple(first.shape), is_uint8_image, labels, counts)


def _kind_of(value: torch.Tensor) -> Kind:
    if value.ndim == 3:
        return "image"
    if value.ndim == 1:
        return "tabular" if value.dtype.is_floating_point else "text"
    raise DataError(
        "an input must be an image of 3 dimensions, or features or text of 1",
        received=f"shape {tuple(value.shape)}",
        hint="reshape it in the dataset",
    )


def num_items(dataset: Dataset[Any]) -> int:
    """Length of a map-style dataset.

    Raises:
        DataError: It has none, as iterable datasets do.
    """
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise DataError(
            "a dataset must be map-style, with __len__ and __getitem__",
            received=type(dataset).__name__,
            hint="collect an iterable dataset into a list first",
        ) from error


def input_and_label(dataset: Dataset[Any], row: int) -> tuple[torch.Tensor, int]:
    """One item: the input as uint8, float32 or int64 tensor, images as (C, H, W), and its label.

    Raises:
        DataError: The item has another form.
    """
    item = dataset[row]
    if isinstance(item, Mapping):
        value, label = _first_of(item, INPUT_KEYS), _first_of(item, LABEL_KEYS)
    elif isinstance(item, tuple | list) and len(item) == 2:
        value, label = item
    else:
        value = label = None
    if value is None or label is None:
        raise DataError(
            "an item must be (input, label), or a mapping with input and label",
            received=f"row {row}: {type(item).__name__} {_outline(item)}",
            hint="change the dataset's __getitem__",
        )
    return _as_tensor(value, row), _as_label(label, row)


def _first_of(item: Mapping[Any, Any], keys: tuple[str, ...]) -> Any:
    return next((item[key] for key in keys if key in item), None)


def _outline(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"with {', '.join(map(str, item))}"
    return f"of {len(item)}" if isinstance(item, tuple | list) else ""


def _as_tensor(value: Any, row: int) -> torch.Tensor:
    is_tensor = isinstance(value, torch.Tensor)
    # A Pillow image becomes an array by its own protocol; palettes and alpha are the dataset's to convert.
    array = value.detach().cpu().numpy() if is_tensor else np.asarray(value)
    if array.ndim == 2 and array.dtype == np.uint8:
        array = array[None]
    elif array.ndim == 3 and not is_tensor and array.shape[0] not in (1, 3) and array.shape[2] in (1, 3):
        array = array.transpose(2, 0, 1)
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    elif array.dtype != np.uint8:
        if array.dtype.kind not in "iub":
            raise DataError(
                "an input must be a tensor, an array or a Pillow image",
                received=f"row {row}: {type(value).__name__}",
                hint="convert it in the dataset",
            )
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array))


def _as_label(label: Any, row: int) -> int:
    try:
        number = float(label)
        if number.is_integer():
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise DataError("a label must be a whole number", received=f"row {row}: {label!r}", hint="map labels to 0, 1, 2, …")
