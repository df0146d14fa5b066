"""Colour jitter of a batch, each image with its own factors."""

from __future__ import annotations

import torch

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def jitter(
    images: torch.Tensor,
    *,
    brightness: torch.Tensor | None = None,
    contrast: torch.Tensor | None = None,
    saturation: torch.Tensor | None = None,
) -> torch.Tensor:
    """Vary brightness, then contrast, then saturation, each clamped to 0..1. May change `images`.

    Args:
        images: float32 (N, C, H, W) on the scale of 0..1; grey images have no saturation to vary.
        brightness: float32 (N,), 1 keeps an image; None leaves all as they are.
        contrast: Likewise, towards the mean of the image.
        saturation: Likewise, towards the grey of each pixel.
    """
    if brightness is not None:
        images = images.mul_(brightness.reshape(-1, 1, 1, 1)).clamp_(0, 1)
    if contrast is not None:
        mean = _grey(images).mean(dim=(2, 3), keepdim=True)
        images = torch.lerp(mean, images, contrast.reshape(-1, 1, 1, 1)).clamp_(0, 1)
    if saturation is not None and images.shape[1] == 3:
        images = torch.lerp(_grey(images), images, saturation.reshape(-1, 1, 1, 1)).clamp_(0, 1)
    return images


def _grey(images: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) to (N, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
