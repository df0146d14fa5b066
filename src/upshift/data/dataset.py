"""What the rest of upshift sees of a dataset: splits of arrays, and the facts about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Kind: TypeAlias = Literal["image", "text", "tabular"]
Labels: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """One split, in memory or memory-mapped.

    Attributes:
        inputs: uint8 (N, C, H, W) for images, uint8 (N, L) for text as UTF-8 bytes padded with 0,
            float32 (N, F) for tabular data.
        labels: int64 (N,), classes from 0.
    """

    inputs: npt.NDArray[Any]
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataInfo:
    """The facts about a dataset that models, artifacts and reports need.

    Attributes:
        kind: What an input is.
        input_shape: Shape of one sample as stored: (C, H, W), (L,) or (F,).
        num_classes: Number of classes.
        label_names: Name of each class, in the order of the labels.
        mean: Of the training split; per channel on the scale of 0..1 for images, per feature for
            tabular data, empty for text.
        std: Likewise; 1 where a channel or feature does not vary, so that it can be divided by.
        num_bad_rows: Rows of all splits that were left out.
        source: What the data came from, in words.
        fingerprint: Hash of the packed content: equal where the data are equal.
        feature_names: Of tabular data, in the order of the features; empty where the source has none.
    """

    kind: Kind
    input_shape: tuple[int, ...]
    num_classes: int
    label_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_bad_rows: int
    source: str
    fingerprint: str
    feature_names: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The facts as a JSON object."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataInfo:
        """The facts from a JSON object made by `to_json`.

        Raises:
            KeyError: A field is missing.
            TypeError: A field is of another type.
            ValueError: A field has a value that cannot be.
        """
        kind = value["kind"]
        if kind not in ("image", "text", "tabular"):
            raise ValueError(f"kind {kind!r}")
        return cls(
            kind=kind,
            input_shape=tuple(int(size) for size in value["input_shape"]),
            num_classes=int(value["num_classes"]),
            label_names=tuple(str(name) for name in value["label_names"]),
            mean=tuple(float(number) for number in value["mean"]),
            std=tuple(float(number) for number in value["std"]),
            num_bad_rows=int(value["num_bad_rows"]),
            source=str(value["source"]),
            fingerprint=str(value["fingerprint"]),
            feature_names=tuple(str(name) for name in value.get("feature_names", ())),
        )


@dataclass(frozen=True)
class PackedDataset:
    """A dataset ready to be loaded.

    Attributes:
        splits: "train", "test" and, where there is one, "validation".
        info: The facts about it.
        notes: What the user should know: rows left out, splits held out, a store that was made anew.
    """

    splits: Mapping[str, Split]
    info: DataInfo
    notes: tuple[str, ...] = ()
