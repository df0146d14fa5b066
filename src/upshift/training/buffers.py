"""The buffers of a model as they were: for steps that are taken back."""

from __future__ import annotations

import torch
from torch import nn


class Buffers:
    """A copy of a model's buffers, taken when it is made and by `keep`, and put back by `restore`."""

    def __init__(self, model: nn.Module) -> None:
        of_modules = [(module._buffers, name) for module in model.modules() for name in module._buffers]
        # Those of a dtype together: copying many at once is then one kernel.
        self._places = sorted(
            ((owner, name) for owner, name in of_modules if owner[name] is not None),
            key=lambda place: str(self._at(place).dtype),
        )
        self._current = [self._at(place) for place in self._places]
        self._kept = [buffer.clone() for buffer in self._current]
        dtypes = [buffer.dtype for buffer in self._kept]
        starts = [index for index, dtype in enumerate(dtypes) if index == 0 or dtype != dtypes[index - 1]]
        self._runs = [slice(start, stop) for start, stop in zip(starts, [*starts, len(dtypes)][1:], strict=True)]

    @staticmethod
    def _at(place: tuple[dict[str, torch.Tensor | None], str]) -> torch.Tensor:
        owner, name = place
        buffer = owner[name]
        assert buffer is not None
        return buffer

    @torch.no_grad()
    def keep(self) -> None:
        """Copy them as they are now."""
        # Models may put another tensor in a buffer's place, as `self.mean = 0.9 * self.mean + …` does.
        self._current = [self._at(place) for place in self._places]
        for run in self._runs:
            torch._foreach_copy_(self._kept[run], self._current[run])

    @torch.no_grad()
    def restore(self) -> None:
        """Make them what they were."""
        for (owner, name), buffer in zip(self._places, self._current, strict=True):
            owner[name] = buffer
        for run in self._runs:
            torch._foreach_copy_(self._current[run], self._kept[run])

    @torch.no_grad()
    def restore_nonfinite(self) -> None:
        """Make those what they were in which a number is not finite."""
        for place, before in zip(self._places, self._kept, strict=True):
            buffer = self._at(place)
            if not torch.isfinite(buffer).all():
                buffer.copy_(before)
