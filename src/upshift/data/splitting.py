"""Holding out a part of the training rows, by a rule that gives the same rows every time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from upshift.data.dataset import Labels


def held_out_rows(labels: Labels, fraction: float, *, seed: int) -> npt.NDArray[np.bool_]:
    """Choose rows to hold out: of each class the same share, drawn by `seed`.

    Args:
        labels: int64 (N,).
        fraction: Share to hold out. Each class gives the rounded share of its rows, and keeps at
            least one row itself.
        seed: Draws the rows.

    Returns:
        bool (N,): True where a row is held out.
    """
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(round(len(rows) * fraction), len(rows) - 1)
        chosen[generator.permutation(rows)[:count]] = True
    return chosen
