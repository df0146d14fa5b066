"""How a tuner goes about it, and what it knows beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upshift.core.typed_fields import check_fields
from upshift.errors import ConfigError
from upshift.tuning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class TunerConfig:
    """How a tuner goes about it.

    Attributes:
        allowance_share: Of the training's time, what may be lost on candidates that gain nothing.
        stop_when_done: End the training with `TuningDone` once the plan is found: nothing but it is wanted, so
            that every candidate is tried, whatever it costs.
        budget_seconds: Of wall time, for that; None takes as long as it needs.
        seed: Of the order of rounds.
    """

    allowance_share: float = 0.015
    stop_when_done: bool = False
    budget_seconds: float | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class KnownPlan:
    """What an earlier run of the same job on the same machine found.

    Attributes:
        plan: The plan.
        step_seconds: Of its steps then.
        data_seconds: Of their waits for data then.
        speedup: Of its steps with their waits, beside those of the plan that the run began with.
        build_seconds: That building it took: compiling.
        untried_seconds: Of training that were left then when a candidate was not tried, as it could not pay for
            itself; None where all were tried.
        is_complete: Whether that run decided every candidate; else it was stopped on its way.
        decided: The trials, as JSON objects, of the candidates that it did decide.
    """

    plan: Plan
    step_seconds: float
    data_seconds: float
    speedup: float
    build_seconds: float
    untried_seconds: float | None = None
    is_complete: bool = True
    decided: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, "plans.")
        if min(self.step_seconds, self.speedup) <= 0.0 or min(self.data_seconds, self.build_seconds) < 0.0:
            raise ConfigError(
                "seconds and speedup of a known plan must be above 0",
                received=(self.step_seconds, self.data_seconds, self.speedup, self.build_seconds),
                hint="remove it from the cache",
            )
