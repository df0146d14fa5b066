"""The loss of a classifier."""

from __future__ import annotations

import torch
from torch.nn import functional as F


class CrossEntropy:
    """Mean cross-entropy of logits (N, C) and labels (N,), with label smoothing (arXiv 1512.00567)."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self._label_smoothing = label_smoothing

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self._label_smoothing)
