"""Whether a loss and all its gradients are finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

LARGE = 8192
"""Elements from which on a sum, which only reads, is faster than torch's own look, which writes too."""


class GradientCheck:
    """Looks at the gradients of parameters: a finite loss can have some that are not.

    A number that is not finite makes a sum not finite. A sum that overflowed may have others, so each number decides
    then.

    Args:
        parameters: Those that an optimizer updates.
        device: Where they lie.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
        self._parameters = list(parameters)
        self._large = [parameter for parameter in parameters if parameter.numel() >= LARGE]
        self._small = [parameter for parameter in parameters if parameter.numel() < LARGE]
        self._found = torch.zeros((), device=device)
        self._one = torch.ones((), device=device)

    def is_finite(self, loss: torch.Tensor) -> bool:
        """Whether loss (scalar) and gradients are; waits for the device."""
        looked_at = [loss]
        for parameter in self._small:
            if (gradient := parameter.grad) is not None:
                looked_at.append(gradient)
        for parameter in self._large:
            if (gradient := parameter.grad) is not None:
                looked_at.append(gradient.sum())
        try:
            # What torch's gradient scaler looks with; at a scale of 1 all stays as it is, bit by bit.
            torch._amp_foreach_non_finite_check_and_unscale_(looked_at, self._found, self._one)
        except (RuntimeError, NotImplementedError):  # sparse ones, complex ones, several types at once
            self._found.fill_(1)
        if not self._found.item():
            return True
        self._found.zero_()
        return bool(torch.isfinite(loss)) and not self.nonfinite().item()

    @torch.no_grad()
    def nonfinite(self) -> torch.Tensor:
        """Whether a gradient is not finite: a boolean scalar on the device, which is not waited for."""
        found = torch.zeros((), dtype=torch.bool, device=self._found.device)
        for gradient in self._gradients():
            found |= ~torch.isfinite(gradient.coalesce().values() if gradient.is_sparse else gradient).all()
        return found

    def _gradients(self) -> list[torch.Tensor]:
        return [gradient for parameter in self._parameters if (gradient := parameter.grad) is not None]

    @torch.no_grad()
    def nonfinite_at_once(self) -> torch.Tensor:
        """As `nonfinite`, in one kernel where gradients are dense and of one type: for accelerators."""
        gradients = self._gradients()
        if any(gradient.is_sparse or gradient.dtype != gradients[0].dtype for gradient in gradients):
            return self.nonfinite()
        found = self._found.zero_()
        if gradients:
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, self._one)
        return found > 0
