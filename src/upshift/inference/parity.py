"""Layer one of verification: do the outputs agree with eager float32, leaf by leaf?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from upshift.inference.backend import Array

ROUND_OFF = 2.0**-13
"""Largest error that still counts as float32 round-off, as a share of the output's largest value.

A float32 sum is off by its own epsilon of 2^-24, and a network of some hundred layers of sums of thousands
of terms, each done in another order, multiplies that by hundreds: 2^11 epsilons leaves room for it. Results
that passed through float16, TF32 (epsilon 2^-11) or bfloat16 (2^-8) even once are beyond it.
"""


@dataclass(frozen=True)
class Parity:
    """How far a candidate's outputs are from the reference's.

    Attributes:
        max_abs_error: Over all leaves and samples.
        max_rel_error: Likewise, each leaf's error divided by the largest value of that leaf in the reference.
        top1_agreement: Share of samples with the same highest class; None without class scores.
        problem: What makes the outputs unusable (NaN, another shape or dtype); None if nothing does.
    """

    max_abs_error: float = 0.0
    max_rel_error: float = 0.0
    top1_agreement: float | None = None
    problem: str | None = None

    @property
    def is_round_off(self) -> bool:
        """Whether the same mathematics in float32 explains the difference."""
        return self.problem is None and self.max_rel_error <= ROUND_OFF


def compare(
    reference: Sequence[Array], outputs: Sequence[Array], *, paths: Sequence[str], logits: int | None
) -> Parity:
    """Compare a candidate's leaves with the reference's on the same samples.

    Args:
        reference: Leaves of eager float32; finite.
        outputs: The candidate's leaves.
        paths: Where each leaf stands in the model's output, for the messages.
        logits: Index of the leaf with class scores.
    """
    if len(outputs) != len(reference):
        return Parity(problem=f"it returns {len(outputs)} outputs where eager returns {len(reference)}")
    absolute, relative = 0.0, 0.0
    for path, expected, received in zip(paths, reference, outputs, strict=True):
        if problem := _problem(expected, received, path):
            return Parity(problem=problem)
        if expected.size == 0:
            continue
        error = float(np.max(np.abs(_wide(expected) - _wide(received))))
        scale = float(np.max(np.abs(_wide(expected))))
        absolute = max(absolute, error)
        relative = max(relative, error / scale if scale > 0 else (0.0 if error == 0 else float("inf")))
    agreement = None
    if logits is not None:
        agreement = float(np.mean(reference[logits].argmax(1) == outputs[logits].argmax(1)))
    return Parity(absolute, relative, agreement)


def _problem(expected: Array, received: Array, path: str) -> str | None:
    if received.shape != expected.shape:
        return f"{path} has the shape {received.shape} where eager has {expected.shape}"
    if received.dtype != expected.dtype:
        return f"{path} is {received.dtype} where eager has {expected.dtype}"
    if num_bad := num_not_finite(received):
        return f"{path} holds NaN or infinity in {num_bad} of {len(received)} samples"
    return None


def num_not_finite(leaf: Array) -> int:
    """Samples (rows) of a leaf that hold a NaN or an infinity."""
    if leaf.dtype.kind not in "fc":
        return 0
    return int(np.sum(~np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1))) if leaf.ndim else int(~np.isfinite(leaf))


def _wide(leaf: Array) -> Array:
    return leaf.astype(np.complex128 if leaf.dtype.kind == "c" else np.float64)
