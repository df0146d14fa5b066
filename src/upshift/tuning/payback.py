"""Whether a candidate can pay for itself in the steps that remain."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PRIOR_COMPILE_SECONDS = {"whole": (5.0, 0.045), "regional": (4.0, 0.03)}
"""Seconds to compile: (at least, for each operator of the step). From 6 s for a perceptron of 60 operators to 45 s for
a ResNet-50 of 1,500, on 2 cores."""
SURE_GAIN = 3.0
"""A saving this many times what is at risk is worth going beyond the allowance."""
_IMPOSSIBLE = 1e9


@dataclass
class Account:
    """Seconds that tuning spent, and seconds that it saved.

    Attributes:
        allowance_share: Of the training's whole time, what may be spent on candidates that gain nothing.
        spent: Seconds of checks, switches, compiling, and of steps while they ran slower than the plain plan.
        saved: Seconds that steps were faster than those of the plan that training began with.
    """

    allowance_share: float
    spent: float = 0.0
    saved: float = 0.0

    @property
    def net(self) -> float:
        """Seconds won; negative where tuning cost more than it gained so far."""
        return self.saved - self.spent

    def add(self, seconds: float) -> None:
        """Book seconds that were won; lost where negative."""
        if seconds > 0.0:
            self.saved += seconds
        else:
            self.spent -= seconds

    def allowance(self, total_seconds: float) -> float:
        """Seconds that may be lost: a share of the training's time, and half of what was won so far."""
        return self.allowance_share * total_seconds + max(0.0, self.net) / 2

    def refusal(self, *, gain: float, cost: float, remaining_seconds: float, elapsed_seconds: float) -> str | None:
        """Why a candidate is not worth a trial; None if it is.

        It is where the expected saving exceeds the expected cost, and what is at risk, the cost and what was lost
        before, is either within the allowance or a fraction of the saving.

        Args:
            gain: Share of the remaining time that it is expected to save.
            cost: Seconds that building and trying it is expected to cost.
            remaining_seconds: Of training, as it goes now.
            elapsed_seconds: Of training so far.
        """
        saving = gain * remaining_seconds
        if saving <= cost:
            remain = f"{remaining_seconds:.3g} s that remain"
            return f"expected to save {saving:.2g} s of the {remain}, and to cost {cost:.2g} s"
        allowance = self.allowance(elapsed_seconds + remaining_seconds)
        at_risk = max(0.0, -self.net) + cost
        if at_risk > allowance and saving < SURE_GAIN * at_risk:
            return (
                f"{at_risk:.2g} s would be at risk, and {allowance:.2g} s may be lost "
                f"(expected to save {saving:.2g} s of the {remaining_seconds:.3g} s that remain)"
            )
        return None


def compile_seconds(scope: str, num_operators: int, history: Sequence[Mapping[str, Any]]) -> float:
    """Expected seconds to compile a step's graph, by earlier trials on this machine, or by the prior.

    Args:
        scope: "whole" or "regional".
        num_operators: Of a step.
        history: Earlier trials, as the cache gives them.
    """
    rates = (_rate(trial) for trial in history if trial.get("compile") == scope)
    seen = [rate for rate in rates if rate is not None]
    at_least, each = PRIOR_COMPILE_SECONDS[scope]
    if seen:
        return max(1.0, statistics.median(seen[-20:]) * num_operators)
    return at_least + each * num_operators


def _rate(trial: Mapping[str, Any]) -> float | None:
    """Seconds an operator that a trial took to compile; None where the record does not tell, or makes no sense."""
    seconds, operators = trial.get("build_seconds"), trial.get("num_operators")
    if not (isinstance(seconds, int | float) and isinstance(operators, int | float)):
        return None
    if not (0 < seconds < _IMPOSSIBLE and 1 <= operators < _IMPOSSIBLE):
        return None
    return float(seconds) / float(operators)
