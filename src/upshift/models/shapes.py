"""Checks of the data's shape against what a model can take."""

from __future__ import annotations

from collections.abc import Sequence

from upshift.errors import ConfigError


def image_shape(input_shape: Sequence[int], model: str, min_side: int) -> tuple[int, int, int]:
    """(channels, height, width) of images that are large enough for a model's poolings."""
    if len(input_shape) != 3:
        raise ConfigError(
            f"{model} takes images, of shape (C, H, W)",
            received=f"samples of shape {tuple(input_shape)}",
            hint="choose a model for this kind of data, or another dataset",
        )
    channels, height, width = input_shape
    if min(height, width) < min_side:
        raise ConfigError(
            f"{model} needs images of at least {min_side}×{min_side} pixels",
            received=f"{height}×{width}",
            hint=f"--set data.image_size={min_side},{min_side}",
        )
    return channels, height, width
