"""Layer two of verification: is the drop in accuracy proven to be within the budget?

All candidates are judged on the same test samples. With several, one may keep within the budget by luck alone:
each bound is then made wider so that all hold together with 95 % (Bonferroni).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from upshift.core.paired import paired_drop_upper_bound, samples_to_prove
from upshift.core.units import budget, plain, points, rounded_up
from upshift.inference.backend import Array
from upshift.inference.parity import Parity

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Decision:
    """Whether a candidate may be used, and why.

    Attributes:
        accepted: Whether its fidelity is proven.
        reason: In words.
        accuracy: On the test labels; None without labels.
        accuracy_drop: Eager's accuracy minus the candidate's.
        accuracy_drop_upper: One-sided upper bound of the drop, at the confidence that was asked for.
    """

    accepted: bool
    reason: str
    accuracy: float | None = None
    accuracy_drop: float | None = None
    accuracy_drop_upper: float | None = None


def decide(
    parity: Parity,
    *,
    tier: str,
    reference: Array | None,
    outputs: Array | None,
    labels: Array | None,
    max_drop: float,
    num_judged: int = 1,
) -> Decision:
    """Judge a candidate on the test samples.

    Args:
        parity: Of its outputs on the selection samples.
        tier: "A" must be within float round-off of eager; "B" must prove its accuracy.
        reference: Eager's class scores (N, num_classes) on the test samples; None if it has none.
        outputs: The candidate's.
        labels: (N,); None if there are none.
        max_drop: The budget.
        num_judged: Candidates whose accuracy is judged on these samples.
    """
    if parity.problem is not None:
        return Decision(False, parity.problem)
    if tier == "A" and not parity.is_round_off:
        error = f"its outputs differ from eager by {parity.max_rel_error:.2g} of their range"
        return Decision(False, f"{error}, which float32 round-off does not explain")
    if reference is None or outputs is None:
        if tier == "A":
            return Decision(True, "outputs within float32 round-off of eager")
        return Decision(False, "unproven: changed numerics need class scores and test labels to be judged by")
    before, after = reference.argmax(1), outputs.argmax(1)
    num_changed = int(np.sum(before != after))
    if labels is None:
        if tier == "A" and num_changed == 0:
            return Decision(True, f"within float32 round-off, same prediction on all {len(before):,} test samples")
        return Decision(
            False, f"unproven: {num_changed:,} of {len(before):,} predictions change and no test labels are given"
        )
    confidence = 1.0 - (1.0 - CONFIDENCE) / max(1, num_judged)
    return _by_labels(before == labels, after == labels, num_changed, tier, max_drop, confidence)


def _by_labels(
    before: Array, after: Array, num_changed: int, tier: str, max_drop: float, confidence: float
) -> Decision:
    num_samples = len(before)
    lost, gained = int(np.sum(before & ~after)), int(np.sum(~before & after))
    upper = paired_drop_upper_bound(lost, gained, num_samples, confidence=confidence)
    sure = f"{100 * confidence:.3g} %"
    drop = (lost - gained) / num_samples
    evidence = (float(np.mean(after)), drop, upper)
    if tier == "A" and num_changed == 0:
        reason = f"within float32 round-off, same prediction on all {num_samples:,} test samples"
        return Decision(True, reason, *evidence)
    if upper <= max_drop:
        proven = f"accuracy drop {points(drop)}, at most {points(rounded_up(upper))} with {sure} confidence"
        return Decision(True, plain(proven), *evidence)
    best = paired_drop_upper_bound(0, 0, num_samples, confidence=confidence)
    if max_drop == 0.0:
        reason = "unproven: a budget of 0 admits only what float32 round-off explains"
    elif best > max_drop:
        enough = samples_to_prove(max_drop, confidence=confidence)
        reason = (
            f"unproven: {num_samples:,} test samples can prove a drop of at best {points(rounded_up(best))}, the "
            f"budget is {budget(max_drop)}; give at least {enough:,} test samples or --max-drop {_round_up(best)}"
        )
    else:
        reason = (
            f"unproven: accuracy drop {points(drop)}, up to {points(rounded_up(upper))} with {sure} confidence; "
            f"the budget is {budget(max_drop)}"
        )
    return Decision(False, plain(reason), *evidence)


def _round_up(value: float) -> str:
    return f"{np.ceil(value * 1000) / 1000:g}"
