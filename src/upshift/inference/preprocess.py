"""From data as it is stored to what a model takes, with the same arithmetic as in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from upshift.core.normalization import feature_constants, image_constants
from upshift.errors import ArtifactError, BadInputError

KINDS = ("image", "text", "tabular")
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a stored sample becomes a model's input.

    Attributes:
        kind: "image": uint8 (N, C, H, W) → float32 (x / 255 - mean) / std; "tabular": float32 (N, F) →
            (x - mean) / std; "text": uint8 or int64 bytes (N, L) → int64. The arithmetic, and so every bit, is
            that of `core.normalization`, as in training.
        input_shape: Of one sample, without the batch.
        mean: Per channel or feature; empty for none (and for text).
        std: Likewise.
        feature_names: Of tabular data, in the order of the features; empty where the training data had none.
    """

    kind: str
    input_shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    feature_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInputError(
                "preprocessing.kind must be one of " + ", ".join(KINDS), received=self.kind, hint="see Preprocessing"
            )
        if len(self.mean) != len(self.std) or any(value <= 0 for value in self.std):
            raise BadInputError(
                "preprocessing needs as many standard deviations, all positive, as means",
                received=f"{len(self.mean)} means, std {self.std}",
                hint="use 1 for a channel that never varies",
            )
        if self.feature_names and self.input_shape != (len(self.feature_names),):
            raise BadInputError(
                "preprocessing needs a name for each feature, or none",
                received=f"{len(self.feature_names)} names for inputs of shape {self.input_shape}",
                hint="leave feature_names out",
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Preprocessing:
        try:
            return Preprocessing(
                kind=str(value["kind"]),
                input_shape=tuple(int(size) for size in value["input_shape"]),
                mean=tuple(float(item) for item in value["mean"]),
                std=tuple(float(item) for item in value["std"]),
                feature_names=tuple(str(name) for name in value.get("feature_names", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                "an artifact's preprocessing must name kind, input_shape, mean and std",
                received=f"{type(error).__name__}: {error}",
                hint="make the artifact again with `upshift optimize`",
            ) from error

    @property
    def stored_dtype(self) -> str:
        """The dtype of samples in a packed store; torch datasets may also give text as int64."""
        return "float32" if self.kind == "tabular" else "uint8"

    @property
    def model_dtype(self) -> str:
        """The dtype of a model's input."""
        return "int64" if self.kind == "text" else "float32"

    def apply(self, stored: Array | torch.Tensor) -> torch.Tensor:
        """The model's input for stored samples.

        Args:
            stored: (N, *input_shape), uint8 (images), uint8 or int64 (text), or float32 (tabular).

        Returns:
            A tensor of the same shape: float32, or int64 for text.

        Raises:
            BadInputError: Another shape or dtype.
        """
        tensor = torch.from_numpy(writable(np.ascontiguousarray(stored))) if isinstance(stored, np.ndarray) else stored
        expected = "(N, " + ", ".join(map(str, self.input_shape)) + ")"
        if tuple(tensor.shape[1:]) != tuple(self.input_shape) or tensor.ndim != len(self.input_shape) + 1:
            raise BadInputError(
                f"stored samples must have the shape {expected}",
                received=tuple(tensor.shape),
                hint="resize the samples to what the model was trained on; one sample is a batch of 1",
            )
        dtype = str(tensor.dtype).removeprefix("torch.")
        accepted = (self.stored_dtype, "int64") if self.kind == "text" else (self.stored_dtype,)
        if dtype not in accepted:
            raise BadInputError(
                f"stored {self.kind} samples must be {' or '.join(accepted)}",
                received=dtype,
                hint="hand the values over as they are stored, before normalisation",
            )
        if self.kind == "text":
            return tensor.long()
        values = tensor.to(torch.float32, copy=True)
        if self.kind == "tabular":
            return feature_constants(self.mean, self.std).apply_(values) if self.mean else values
        constants = image_constants(self.mean, self.std)
        if constants.shift is None:
            return values.mul_(constants.scale)
        per_channel = (-1,) + (1,) * (len(self.input_shape) - 1)
        return values.mul_(constants.scale.view(per_channel)).add_(constants.shift.view(per_channel))


def writable(array: Array) -> Array:
    """The array, or a copy of one that is read-only: PyTorch warns of these even where it only reads."""
    return array if array.flags.writeable else array.copy()
