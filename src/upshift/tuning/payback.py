"""Whether a candidate can pay for itself in the steps that remain."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upshift.core import units
from upshift.tuning.trials import OPEN

PRIOR_COMPILE_SECONDS = {"whole": (5.0, 0.045), "regional": (4.0, 0.03), "step": (5.0, 0.055)}
"""Seconds to compile: (at least, for each operator of the step). From 6 s for a perceptron of 60 operators to 45 s for
a ResNet-50 of 1,500, on 2 cores."""
COST_SPREAD = 2.5
"""Compiling takes at most this many times what is expected, unless earlier trials on this machine show how far they
spread: on a machine that other programs filled, four networks took 1.2 to 2.4 times as long."""
LEAST_SEEN_COSTS = 3
UNSURE_SHARE = 0.1
"""Of candidates, which may gain less than the gain that is counted on: with fewer than nine trials, that is none."""
_IMPOSSIBLE = 1e9


@dataclass
class Account:
    """Seconds that tuning spent, and seconds that it saved.

    Attributes:
        allowance_share: Of the training's whole time, what may be spent on candidates that gain nothing.
        spent: Seconds of checks, switches, compiling, and of steps while they ran slower than the plain plan.
        saved: Seconds that steps were faster than those of the plan that training began with.
        saved_by_speedup: Of these, what was not measured against that plan, but rests on the speedup beside it.
    """

    allowance_share: float
    spent: float = 0.0
    saved: float = 0.0
    saved_by_speedup: float = 0.0

    @property
    def net(self) -> float:
        """Seconds won; negative where tuning cost more than it gained so far."""
        return self.saved - self.spent

    def add(self, seconds: float, *, by_speedup: bool = False) -> None:
        """Book seconds that were won; lost where negative.

        Args:
            seconds: How many.
            by_speedup: Whether they rest on the speedup beside the first plan.
        """
        if seconds > 0.0:
            self.saved += seconds
            self.saved_by_speedup += seconds if by_speedup else 0.0
        else:
            self.spent -= seconds

    def restate(self, share: float) -> None:
        """The speedup was another than was thought: of the seconds that rest on it, this share is true.

        Args:
            share: Below 0 where steps were slower.
        """
        thought, self.saved_by_speedup = self.saved_by_speedup, 0.0
        self.saved = max(0.0, self.saved - thought)
        self.add(share * thought, by_speedup=True)

    def allowance(self, total_seconds: float, *, secured_seconds: float = 0.0) -> float:
        """Seconds that may be lost: a share of the training's time, and half of what is won.

        Args:
            total_seconds: Of the training.
            secured_seconds: That the plan as it is now will save on the steps that remain.
        """
        return self.allowance_share * total_seconds + max(0.0, self.net + secured_seconds) / 2

    def refusal(
        self,
        *,
        gain: float,
        cost: float,
        remaining_seconds: float,
        elapsed_seconds: float,
        most_cost: float | None = None,
        least_gain: float = 0.0,
        secured_seconds: float = 0.0,
    ) -> str | None:
        """Why a candidate is not worth a trial; None if it is.

        It is where the expected saving exceeds the expected cost, and what is at risk, the most that it may cost and
        what was lost before, is either within the allowance, or less than the least that it will save. So whatever
        is gained in truth: where costs and gains are within these bounds, a training never loses more than its
        allowance.

        Args:
            gain: Share of the remaining time that it is expected to save.
            cost: Seconds that building and trying it is expected to cost.
            remaining_seconds: Of training, as it goes now.
            elapsed_seconds: Of training so far.
            most_cost: Seconds that it costs at most; None where that is what is expected.
            least_gain: Share of the remaining time that it saves at least; see `least_gain`.
            secured_seconds: See `allowance`.
        """
        saving = gain * remaining_seconds
        expected = f"expected to save {_told(saving)} of the {_told(remaining_seconds)} that remain"
        if saving <= cost:
            return f"{expected}, and to cost {_told(cost)}"
        allowance = self.allowance(elapsed_seconds + remaining_seconds, secured_seconds=secured_seconds)
        lost = max(0.0, -self.net - secured_seconds)
        at_risk = lost + max(cost, most_cost or 0.0)
        if at_risk > allowance and at_risk > least_gain * remaining_seconds:
            return (
                f"{expected}; but if it gained nothing, tuning would have cost up to {_told(at_risk)} for nothing, "
                f"and no more than {_told(allowance)} may be lost here"
            )
        return None


def _told(seconds: float) -> str:
    return units.plain(units.duration(min(seconds, _IMPOSSIBLE)))


def least_gain(changes: Mapping[str, Any], expected: float, history: Sequence[Mapping[str, Any]]) -> float:
    """The gain that a candidate has at least, by what such candidates came to on this machine.

    Of n trials before, the share of its expected gain that each came to is known. The next one's is no less than the
    k-th smallest of them with probability 1 − k/(n + 1), whatever their law, if it is as good as drawn with them
    (distribution-free prediction bound: Wilks 1941). So nothing is counted on before there are nine.

    Args:
        changes: Fields of the plan that the candidate changes.
        expected: Its expected gain.
        history: Earlier trials, as the cache gives them.
    """
    shares = sorted(share for trial in history if (share := _share_come_true(trial, changes)) is not None)
    k = int(UNSURE_SHARE * (len(shares) + 1))
    return expected * min(1.0, shares[k - 1]) if k else 0.0


def _share_come_true(trial: Mapping[str, Any], changes: Mapping[str, Any]) -> float | None:
    """The share of its expected gain that a trial of the same changes came to; None of another, or an undecided one."""
    if trial.get("changes") != dict(changes) or trial.get("verdict") not in ("adopted", "refused", "failed", "demoted"):
        return None
    expected, speedup = trial.get("expected_gain"), trial.get("speedup", 1.0)
    if not all(isinstance(number, int | float) and 0 < number < _IMPOSSIBLE for number in (expected, speedup)):
        return None
    if trial.get("reason") in OPEN or (trial["verdict"] == "adopted" and not trial.get("num_rounds")):
        return None  # not raced to its end; or known from an earlier race, which is in the history itself
    assert isinstance(expected, int | float) and isinstance(speedup, int | float)
    return max(0.0, 1.0 - 1.0 / speedup) / expected if trial["verdict"] == "adopted" else 0.0


def compile_seconds(scope: str, num_operators: int, history: Sequence[Mapping[str, Any]]) -> float:
    """Expected seconds to compile a step's graph, by earlier trials on this machine, or by the prior.

    Args:
        scope: "whole", "regional" or "step".
        num_operators: Of a step.
        history: Earlier trials, as the cache gives them.
    """
    rates = (_rate(trial) for trial in history if trial.get("compile") == scope)
    seen = [rate for rate in rates if rate is not None]
    at_least, each = PRIOR_COMPILE_SECONDS[scope]
    if seen:
        return max(1.0, statistics.median(seen[-20:]) * num_operators)
    return at_least + each * num_operators


def cost_spread(scope: str, history: Sequence[Mapping[str, Any]]) -> float:
    """How many times the expected seconds compiling takes at most.

    Args:
        scope: "whole", "regional" or "step"; anything else is not compiled.
        history: Earlier trials, as the cache gives them.
    """
    rates = [rate for trial in history if trial.get("compile") == scope and (rate := _rate(trial)) is not None][-20:]
    return COST_SPREAD if len(rates) < LEAST_SEEN_COSTS else max(rates) / statistics.median(rates)


def _rate(trial: Mapping[str, Any]) -> float | None:
    """Seconds an operator that a trial took to compile; None where the record does not tell, or makes no sense."""
    seconds, operators = trial.get("build_seconds"), trial.get("num_operators")
    if not (isinstance(seconds, int | float) and isinstance(operators, int | float)):
        return None
    if not (0 < seconds < _IMPOSSIBLE and 1 <= operators < _IMPOSSIBLE):
        return None
    return float(seconds) / float(operators)
