"""Mean and standard deviation of a split, exact for images, in one pass over the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from upshift.data.dataset import Kind

STRETCH_BYTES = 8 * 2**20


def mean_and_std(inputs: npt.NDArray[Any], kind: Kind) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Statistics for normalisation.

    Args:
        inputs: uint8 (N, C, H, W), float32 (N, F), or uint8 (N, L) for text.
        kind: What an input is.

    Returns:
        Mean and population standard deviation: per channel on the scale of 0..1 for images, per
        feature for tabular data, empty for text. A standard deviation of 0 is given as 1.
    """
    if kind == "text":
        return (), ()
    if kind == "image":
        return _of_images(inputs)
    return _of_features(inputs)


def _of_images(images: npt.NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """From a histogram of the 256 values of each channel: integers, so no rounding builds up."""
    num_channels = images.shape[1]
    counts = np.zeros((num_channels, 256), dtype=np.int64)
    stretch = max(1, STRETCH_BYTES // max(1, int(np.prod(images.shape[1:]))))
    for start in range(0, len(images), stretch):
        for channel in range(num_channels):
            pixels = images[start : start + stretch, channel].ravel()
            counts[channel] += np.bincount(pixels, minlength=256)
    return of_histograms(counts)


def of_histograms(counts: npt.NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, on the scale of 0..1, of channels with these counts (C, 256) of pixel values."""
    values = np.arange(256) / 255
    total = counts.sum(axis=1)
    mean = counts @ values / total
    variance = np.maximum(counts @ values**2 / total - mean**2, 0.0)
    return tuple(mean.tolist()), _usable_std(variance)


def _of_features(features: npt.NDArray[np.float32]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """In two passes in float64: the one-pass formula loses all digits where the mean is large."""
    stretch = max(1, STRETCH_BYTES // (4 * max(1, features.shape[1])))
    starts = range(0, len(features), stretch)
    mean = sum(features[start : start + stretch].sum(axis=0, dtype=np.float64) for start in starts) / len(features)
    squares = sum(((features[start : start + stretch] - mean) ** 2).sum(axis=0) for start in starts)
    return tuple(np.asarray(mean).tolist()), _usable_std(np.asarray(squares) / len(features))


def _usable_std(variance: npt.NDArray[np.float64]) -> tuple[float, ...]:
    std = np.sqrt(variance)
    # Smaller than float32 can tell from a constant: dividing by it would blow rounding up into signal.
    return tuple(np.where(std > 1e-12, std, 1.0).tolist())
