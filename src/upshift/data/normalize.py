"""Normalisation of batches by the statistics of the store, in place."""

from __future__ import annotations

from dataclasses import fields

import torch

from upshift.core.normalization import FeatureConstants, feature_constants, image_constants
from upshift.data.dataset import DataInfo


class Normalization:
    """(x - mean) / std of each channel or feature.

    Args:
        info: Kind and statistics.
        device: Where the batches are.
        enabled: Use the statistics; otherwise images are only scaled to 0..1, and features kept.

    Attributes:
        shown_mean: What the mean becomes, (C,): 0, or the mean itself where normalisation is off.
    """

    def __init__(self, info: DataInfo, *, device: torch.device, enabled: bool) -> None:
        mean, std = (info.mean, info.std) if enabled else ((), ())
        constants = image_constants(mean, std)
        self._scale_of_stored = constants.scale.expand(len(info.mean)).to(device)
        self._scale = (1 / torch.tensor(std, dtype=torch.float64)).float().to(device)
        self._shift = None if constants.shift is None else constants.shift.to(device)
        self._features: FeatureConstants | None = None
        if info.kind == "tabular" and enabled:
            given = feature_constants(mean, std)
            self._features = FeatureConstants(*(getattr(given, field.name).to(device) for field in fields(given)))
        self.shown_mean = torch.tensor([0.0] * len(mean) if enabled else info.mean).to(device)

    def stored(self, images: torch.Tensor) -> torch.Tensor:
        """float32 images (N, C, H, W) of stored values from 0 to 255. Changes `images`."""
        return self._apply(images, self._scale_of_stored)

    def features(self, features: torch.Tensor) -> torch.Tensor:
        """float32 features (N, F). Changes `features`."""
        return features if self._features is None else self._features.apply_(features)

    def unit(self, images: torch.Tensor) -> torch.Tensor:
        """float32 images (N, C, H, W) from 0 to 1. Changes `images`."""
        return images if self._shift is None else self._apply(images, self._scale)

    def _apply(self, images: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        shift, view = self._shift, images
        channels, width = images.shape[1], images.shape[3]
        if channels > 1 and images.is_contiguous(memory_format=torch.channels_last):
            # Rows of all pixels' channels side by side: with channels of 3 innermost it takes four times as long.
            view = images.permute(0, 2, 3, 1).flatten(2)
            scale = scale.repeat(width)
            shift = None if shift is None else shift.repeat(width)
        else:
            scale = scale.reshape(-1, 1, 1)
            shift = None if shift is None else shift.reshape(-1, 1, 1)
        view.mul_(scale)
        if shift is not None:
            view.add_(shift)
        return images
