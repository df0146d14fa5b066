"""The random parameters of an epoch's augmentation: one set a sample, by its position in the epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from upshift.data.config import AugmentConfig

AUGMENT_STREAM = 1
"""Tells these random numbers from the epoch's order, which follows from the same seed and epoch."""


@dataclass(frozen=True)
class Draw:
    """Parameters of samples in a row; None where the transform is off.

    Attributes:
        crop: int64 (n, 2), offset of the crop in the padded image, y and x.
        flip: bool (n,), mirror it.
        matrix: float32 (n, 2, 3), output to input coordinates in the units of `affine_grid`.
        brightness: float32 (n,), factor.
        contrast: Likewise.
        saturation: Likewise.
        cutout: int64 (n, 2), centre of the square, y and x.
    """

    crop: torch.Tensor | None
    flip: torch.Tensor | None
    matrix: torch.Tensor | None
    brightness: torch.Tensor | None
    contrast: torch.Tensor | None
    saturation: torch.Tensor | None
    cutout: torch.Tensor | None

    def of(self, start: int, stop: int, device: torch.device) -> Draw:
        """The parameters of the positions from `start` to `stop`, on a device."""
        return Draw(
            **{
                name: None if values is None else values[start:stop].to(device, non_blocking=True)
                for name, values in vars(self).items()
            }
        )


def draw_epoch(config: AugmentConfig, shape: tuple[int, ...], *, seed: int, epoch: int, num_samples: int) -> Draw:
    """Draw the parameters of an epoch on the CPU, so that every device gets the same.

    Each transform has a stream of its own: turning one on leaves the others' values as they were.

    Args:
        config: What is on.
        shape: (C, H, W) of an image.
        seed: The run's seed.
        epoch: Number of the epoch.
        num_samples: Samples in it.
    """
    _, height, width = shape

    def stream(number: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, AUGMENT_STREAM, number])))

    def factors(number: int, spread: float) -> torch.Tensor | None:
        if not spread:
            return None
        return torch.from_numpy((1 + spread * stream(number).uniform(-1, 1, num_samples)).astype(np.float32))

    crop = flip = matrix = center = None
    if config.crop_padding:
        crop = torch.from_numpy(stream(0).integers(0, 2 * config.crop_padding + 1, (num_samples, 2)))
    if config.horizontal_flip:
        flip = torch.from_numpy(stream(1).random(num_samples, dtype=np.float32) < 0.5)
    if config.rotation_degrees or config.translate or config.scale:
        matrix = _affine_matrices(config, height, width, stream(2), num_samples)
    if config.cutout:
        center = torch.from_numpy(stream(3).integers(0, (height, width), (num_samples, 2)))
    return Draw(
        crop=crop,
        flip=flip,
        matrix=matrix,
        brightness=factors(4, config.brightness),
        contrast=factors(5, config.contrast),
        saturation=factors(6, config.saturation),
        cutout=center,
    )


def _affine_matrices(
    config: AugmentConfig, height: int, width: int, generator: np.random.Generator, num_samples: int
) -> torch.Tensor:
    """Inverse maps, as a resampled pixel asks where it comes from; rotated in pixels, not in the -1..1 square."""
    draws = generator.uniform(-1, 1, (num_samples, 4))
    angle = draws[:, 0] * math.radians(config.rotation_degrees)
    zoom = 1 / (1 + draws[:, 1] * config.scale)
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    # A shift by a share of the side is twice that in coordinates from -1 to 1; it is undone before the rotation.
    shift_x, shift_y = 2 * config.translate * draws[:, 2], 2 * config.translate * draws[:, 3]
    rows = np.stack([cos, sin * height / width, -sin * width / height, cos], axis=1).reshape(-1, 2, 2)
    offset = -np.einsum("nij,nj->ni", rows, np.stack([shift_x, shift_y], axis=1))
    return torch.from_numpy(np.concatenate([rows, offset[:, :, None]], axis=2).astype(np.float32))
