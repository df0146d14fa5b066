"""Layer two of verification: is the drop in accuracy proven to be within the budget?

All candidates are judged on the same test samples. With several, one may keep within the budget by luck alone:
each bound is then made wider so that all hold together with 95 % (Bonferroni, with weights).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from upshift.core.paired import paired_drop_upper_bound, samples_to_prove
from upshift.core.units import budget, plain, points, rounded_up
from upshift.inference.backend import Array
from upshift.inference.parity import Parity

CONFIDENCE = 0.95
ERROR_SHARES = {"A": 0.2, "B": 0.8}
"""Of the error that is allowed to all bounds together, the part of the candidates of each tier. Those of the same
mathematics are judged by a bound only where round-off flips a prediction, and then they need no narrow one."""


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


def confidences(num_candidates: Mapping[str, int]) -> dict[str, float]:
    """The confidence that the bound of a candidate of each tier needs, so that all hold together with 95 %.

    It counts every candidate that can be judged by its bound, whether it comes to that or not: which of the same
    mathematics have a prediction flipped is only seen on the samples that they are judged on.

    Args:
        num_candidates: By tier, before any of them is judged.
    """
    there = {tier: count for tier, count in num_candidates.items() if count}
    of_all = sum(ERROR_SHARES[tier] for tier in there)
    return {tier: 1.0 - (1.0 - CONFIDENCE) * ERROR_SHARES[tier] / of_all / count for tier, count in there.items()}


def decide(
    parity: Parity,
    *,
    tier: str,
    reference: Array | None,
    outputs: Array | None,
    labels: Array | None,
    max_drop: float,
    confidence: float = CONFIDENCE,
) -> Decision:
    """Judge a candidate on the test samples.

    Args:
        parity: Of its outputs on the selection samples.
        tier: "A" must be within float round-off of eager; "B" must prove its accuracy.
        reference: Eager's class scores (N, num_classes) on the test samples; None if it has none.
        outputs: The candidate's.
        labels: (N,); None if there are none.
        max_drop: The budget.
        confidence: Of the bound of its drop; see `confidences`.
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
    return _by_labels(before == labels, after == labels, num_changed, tier, max_drop, confidence)


def _by_labels(
    before: Array, after: Array, num_changed: int, tier: str, max_drop: float, confidence: float
) -> Decision:
    num_samples = len(before)
    lost, gained = int(np.sum(before & ~after)), int(np.sum(~before & after))
    upper = paired_drop_upper_bound(lost, gained, num_samples, confidence=confidence)
    bound = rounded_up(upper)
    sure = f"{100 * confidence:.3g} %"
    drop = (lost - gained) / num_samples
    evidence = (float(np.mean(after)), drop, upper)
    if tier == "A" and num_changed == 0:
        reason = f"within float32 round-off, same prediction on all {num_samples:,} test samples"
        return Decision(True, reason, *evidence)
    if upper <= max_drop:
        proven = f"accuracy drop {points(drop)}, at most {points(bound)} with {sure} confidence"
        return Decision(True, plain(proven), *evidence)
    reason = (
        f"unproven: accuracy drop {points(drop)}, up to {points(bound)} with {sure} confidence on {num_samples:,} test "
        f"samples; the budget is {budget(max_drop)}"
    )
    if max_drop == 0.0:
        reason = "unproven: a budget of 0 admits only what float32 round-off explains"
    return Decision(
        False, plain(f"{reason}; {_way_out(lost, gained, num_samples, max_drop, bound, confidence)}"), *evidence
    )


def _way_out(lost: int, gained: int, num_samples: int, max_drop: float, bound: float, confidence: float) -> str:
    """What would let a refused candidate pass, if it goes on as it did on these samples."""
    ways = [f"--max-drop {bound:.4g}"] if bound < 1.0 else []
    if max_drop > 0.0:
        shares = {"lost_share": lost / num_samples, "gained_share": gained / num_samples}
        enough = samples_to_prove(max_drop, **shares, confidence=confidence)
        if enough is not None and lost == gained == 0:
            ways.append(f"at least {enough:,} test samples of which none is lost")
        elif enough is not None:
            ways.append(f"about {enough:,} test samples of which it loses no larger share")
    if not ways:
        return "no number of test samples like these would prove it"
    return f"it would pass with {' or '.join(ways)}"
