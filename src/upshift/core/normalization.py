"""The arithmetic of normalisation, the same in training and in inference: it decides the last bit of an input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

LARGEST_PIXEL = 255


@dataclass(frozen=True)
class ImageConstants:
    """x · scale + shift, which is (x / 255 - mean) / std in one multiplication and one addition.

    Attributes:
        scale: float32 (C,), or () for all channels.
        shift: float32 (C,); None where there are no statistics.
    """

    scale: torch.Tensor
    shift: torch.Tensor | None


def image_constants(mean: Sequence[float], std: Sequence[float]) -> ImageConstants:
    """For stored values from 0 to 255; without statistics these become 0 to 1."""
    if not mean:
        return ImageConstants(torch.tensor(1 / LARGEST_PIXEL), None)
    means, deviations = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
    return ImageConstants((1 / (LARGEST_PIXEL * deviations)).float(), (-means / deviations).float())


@dataclass(frozen=True)
class FeatureConstants:
    """(x - mean) · scale with the mean in two parts: in one, float32 cannot hold a mean that is large beside std.

    Attributes:
        mean: float32 (F,), the mean rounded.
        rest: float32 (F,), what rounding took from it.
        scale: float32 (F,), 1 / std.
    """

    mean: torch.Tensor
    rest: torch.Tensor
    scale: torch.Tensor

    def apply_(self, features: torch.Tensor) -> torch.Tensor:
        """Normalise float32 features (N, F, …) in place: subtraction first, which loses no digit near the mean."""
        view = (-1,) + (1,) * (features.ndim - 2)
        mean, rest, scale = (part.view(view) for part in (self.mean, self.rest, self.scale))
        return features.sub_(mean).sub_(rest).mul_(scale)


def feature_constants(mean: Sequence[float], std: Sequence[float]) -> FeatureConstants:
    """For float32 features with these statistics."""
    means, deviations = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
    rounded = means.float()
    return FeatureConstants(rounded, (means - rounded.double()).float(), (1 / deviations).float())
