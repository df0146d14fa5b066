"""Whether training still learns the same: gradients against a reference, judged by the noise that SGD has anyway."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from upshift.training.batches import Tree, map_tensors, num_samples, take
from upshift.training.step import is_out_of_memory

Gradients = Callable[[Tree, Tree], list[torch.Tensor]]

NOISE_SHARE = 0.01
"""Of the variance that the batch's gradient has as a sample: independent errors add in squares."""
ERROR_GROWTH = 1.5
"""The same mathematics in a precision that was adopted rounds otherwise: its error is about as large, not the same."""
MOST_NOISE_SHARE = 2 * NOISE_SHARE
"""However large the error of the precision is on this batch."""
ROUND_OFF_FACTOR = 10.0
"""channels_last, compiled and single-threaded variants of four networks came to at most 2 times the round-off."""
NUM_CHANGES = 6
"""Of the smallest kind, where a first one does not explain a deviation. Each breaks a tie by half a chance."""
TIES_FACTOR = 3.0
"""Jumps are alike, and nothing amplifies them: what is farther off is something else."""
LEAST_ROUND_OFF = 2.0**-19
"""Reordering sums of thousands of terms makes some 2⁻¹⁹ even where a model amplifies nothing; times the factor."""


@dataclass(frozen=True)
class Fidelity:
    """How far a candidate's gradients are from the reference's.

    Attributes:
        error: ‖candidate − reference‖ / ‖reference‖, over all parameters together; None where there is no reference.
        noise: The same measure of the batch's own sampling noise; None where no half of a batch can be taken.
        round_off: The error that changing each weight by one unit in its last place makes.
        reason: Why it was refused; None if it passed.
    """

    error: float | None
    noise: float | None
    round_off: float
    reason: str | None

    @property
    def may_be_explained(self) -> bool:
        """Whether it was refused for more than round-off, and adds, as far as known, no more than numerics may."""
        if self.reason is None or self.error is None or not math.isfinite(self.error + self.round_off):
            return False
        return self.noise is None or self.error**2 <= NOISE_SHARE * self.noise**2

    @property
    def may_be_chance(self) -> bool:
        """Whether it was refused for more than round-off, and yet is within what changed numerics may add."""
        return self.may_be_explained and self.noise is not None


@dataclass(frozen=True)
class HonestDeviation:
    """How far gradients of one batch may be from plain ones for honest reasons; both change slowly while training.

    Attributes:
        noise: Of the batch as a sample; None where no half of a batch can be taken.
        round_off: That changing each weight by one unit in its last place makes.
    """

    noise: float | None
    round_off: float

    def of_whole(self, share: float) -> HonestDeviation:
        """Of a whole batch, where these are of a share of its samples: their mean has the less noise, the more."""
        return replace(self, noise=None if self.noise is None else self.noise * math.sqrt(share))


def unchecked(why: str) -> Fidelity:
    """Of a candidate for which there are no plain gradients to compare its own with.

    Args:
        why: What became of them, after "plain ones to compare them with".
    """
    reason = f"its gradients could not be checked: plain ones to compare them with {why}"
    return Fidelity(error=None, noise=None, round_off=0.0, reason=reason)


class Reference:
    """The gradients of one batch as plain fp32 has them, with what an honest deviation from them may be.

    Two measures are taken on the batch itself. The sampling noise of its gradient, from its two halves
    g₁ and g₂: the mean (g₁ + g₂) / 2 has the standard error ‖g₁ − g₂‖ / 2. And the round-off that the model makes of
    the smallest change there is: gradients with each weight multiplied by 1 ± 2⁻²³. A deep network with ReLU and batch
    norm amplifies such a change by orders of magnitude, so that no fixed tolerance tells a fault from
    reordered sums; its own amplification does (backward error, Higham 2002, ch. 1).

    Args:
        model: Whose weights are changed by round-off, and put back.
        gradients: Of (inputs, labels), by the reference execution; they must not change the model.
        inputs: Model-ready batch (N, …).
        labels: Class indices (N,).
        like: Of an earlier reference of the same training, which is taken over: measuring it takes three more passes.

    Attributes:
        honest: How far gradients may be from these for honest reasons.
    """

    def __init__(
        self,
        model: nn.Module,
        gradients: Gradients,
        inputs: Tree,
        labels: Tree,
        *,
        like: HonestDeviation | None = None,
    ) -> None:
        self.inputs, self.labels = inputs, labels
        self._gradients = gradients(inputs, labels)
        self._norm = _norm(self._gradients)
        self.honest = like or HonestDeviation(
            self._sampling_noise(gradients),
            max(LEAST_ROUND_OFF, self._relative(_with_round_off(model, lambda: gradients(inputs, labels)))),
        )

    def look_closer(self, model: nn.Module, gradients: Gradients) -> None:
        """Measure round-off anew on this very batch, by several changes of weights and of inputs.

        Where two values under a pooling window or a ReLU's zero are equal but for round-off, which of them passes the
        gradient on is chance, and the gradient then jumps. Equal patches of an image tie exactly: changed weights alone
        leave these as they are, another order of sums does not.

        Args:
            model: As of the reference.
            gradients: As of the reference, by the reference execution again.
        """
        found = []
        for seed in range(1, NUM_CHANGES + 1):
            inputs = map_tensors(partial(_nudged, seed=seed), self.inputs)
            found.append(self._relative(_with_round_off(model, partial(gradients, inputs, self.labels), seed)))
        jumps = max(found) * TIES_FACTOR / ROUND_OFF_FACTOR
        self.honest = replace(self.honest, round_off=max(self.honest.round_off, jumps))

    def _sampling_noise(self, gradients: Gradients) -> float | None:
        half = num_samples(self.inputs) // 2
        if half == 0:
            return None
        try:
            first = gradients(take(self.inputs, 0, half), take(self.labels, 0, half))
            second = gradients(take(self.inputs, half, 2 * half), take(self.labels, half, 2 * half))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return None  # of a model for one batch size, of batches whose first axis is time: no half can be taken
        if len(first) != len(second):
            return None
        return _norm_of_difference(first, second) / 2.0 / max(self._norm, 1e-30)

    def _relative(self, gradients: Sequence[torch.Tensor]) -> float:
        if len(gradients) != len(self._gradients):
            return math.inf
        return _norm_of_difference(gradients, self._gradients) / max(self._norm, 1e-30)

    def judge(
        self,
        gradients: Sequence[torch.Tensor],
        *,
        same_mathematics: bool,
        beside: Sequence[torch.Tensor] | None = None,
    ) -> Fidelity:
        """Whether gradients of the same batch are near enough.

        Args:
            gradients: The candidate's.
            same_mathematics: Whether they may differ by round-off alone (tier A), as long as that is no more than a
                hundredth of the variance that the batch's gradient has anyway; else that is allowed (tier B).
            beside: Those of a plan in use, whose precision was found good enough on another batch, and which the
                candidate only executes otherwise. Where they are as far off on this one, it is the precision's doing.
        """
        error = self._relative(gradients)
        noise, round_off = self.honest.noise, self.honest.round_off
        share = NOISE_SHARE
        if beside is not None and noise:
            in_use = (ERROR_GROWTH * self._relative(beside) / noise) ** 2
            share = min(MOST_NOISE_SHARE, max(NOISE_SHARE, in_use))
        return Fidelity(error, noise, round_off, self._fault(error, same_mathematics, share))

    def _fault(self, error: float, same_mathematics: bool, noise_share: float) -> str | None:
        noise, round_off = self.honest.noise, self.honest.round_off
        if not math.isfinite(error):
            return "its gradients are not finite, or not of the same parameters"
        if not (math.isfinite(round_off) and math.isfinite(noise or 0.0)):
            return "the plain gradients become infinite by the smallest change of weights or batch: nothing is proven"
        if same_mathematics and error > ROUND_OFF_FACTOR * round_off:
            return (
                f"its gradients differ from the reference by {error:.1e}, which is more than round-off "
                f"({round_off:.1e} here) explains"
            )
        if same_mathematics and (noise is None or error <= ROUND_OFF_FACTOR * LEAST_ROUND_OFF):
            return None  # what any order of sums makes
        if noise is None:
            return "the noise between samples cannot be measured, as no half of a batch can be taken: nothing is proven"
        # Round-off too: a model that makes much of the smallest change would else hide a fault behind it.
        if error**2 > noise_share * noise**2:
            share = f"{error**2 / noise**2 * 100:.1f} %" if noise > 0.0 else "more than all"
            return (
                f"its gradients differ from the reference by {error:.1e}: {share} of "
                f"the variance between batches, where {noise_share * 100:.2g} % is allowed"
            )
        return None


@torch.no_grad()
def _with_round_off(model: nn.Module, gradients: Callable[[], list[torch.Tensor]], seed: int = 0) -> list[torch.Tensor]:
    """Gradients with each weight changed by a unit in its last place, up or down."""
    kept = [parameter.clone() for parameter in model.parameters()]
    try:
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(_nudged(parameter, seed * len(kept) + index))
        with torch.enable_grad():
            return gradients()
    finally:
        for parameter, value in zip(model.parameters(), kept, strict=True):
            parameter.copy_(value)


def _nudged(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    """A tensor with each number changed by a unit in its last place, up or down; one of integers as it is."""
    if not tensor.is_floating_point():
        return tensor
    # Drawn on the host, so that every device gets the same signs.
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8)
    signs = signs.to(tensor.device, tensor.dtype).mul_(2).sub_(1)
    return torch.addcmul(tensor, tensor, signs, value=torch.finfo(tensor.dtype).eps)


def _norm(tensors: Sequence[torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def _norm_of_difference(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    return _norm([a - b for a, b in zip(first, second, strict=True)])
