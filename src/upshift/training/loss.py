"""The loss of a classifier, and the check of one that a recipe brings."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from upshift.errors import ConfigError, shown


class CrossEntropy:
    """Mean cross-entropy of logits (N, C) and labels (N,), with label smoothing (arXiv 1512.00567)."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self._label_smoothing = label_smoothing

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self._label_smoothing)


def check_loss(loss: Any, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Refuse a loss that gives no number to descend on, by logits (N, C) and labels (N,) that it may have to take.

    Raises:
        ConfigError: It fails, gives anything but one number, or one that does not tell how to change the logits.
    """
    rule = "a recipe's loss must take logits (N, C) and labels (N,) and return their mean loss, a scalar tensor"
    hint = "for example torch.nn.functional:cross_entropy; none is cross-entropy"
    outputs = logits.detach().clone().requires_grad_()
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        try:
            value = loss(outputs, labels)
        except Exception as error:  # the user's code, which may raise anything
            first_line = (str(error).splitlines() or [""])[0]
            raise ConfigError(rule, received=f"{type(error).__name__}: {first_line}", hint=hint) from error
    if not isinstance(value, torch.Tensor):
        raise ConfigError(rule, received=shown(value), hint=hint)
    if value.numel() != 1:
        raise ConfigError(rule, received=f"a tensor of shape {tuple(value.shape)}", hint=hint)
    if not value.requires_grad:
        raise ConfigError(
            "a recipe's loss must be differentiable",
            received=f"a tensor that has no gradient with respect to the logits ({value.dtype})",
            hint="compute it from the logits by torch's functions, without detach, argmax or item",
        )
