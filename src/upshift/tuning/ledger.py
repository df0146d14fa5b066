"""The tuner's books: what was tried and came of it, what a step takes, and seconds spent and saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from upshift.core import clock
from upshift.core.duel import Duel
from upshift.training.conductor import Conducted
from upshift.tuning.candidates import Candidate, Job
from upshift.tuning.config import TunerConfig
from upshift.tuning.fidelity import Fidelity, Reference
from upshift.tuning.live import LiveSteps, Measured
from upshift.tuning.operators import OperatorMix
from upshift.tuning.payback import Account, cost_spread, least_gain
from upshift.tuning.plan import Plan
from upshift.tuning.trials import PRESENT, REFUSED_BEFORE, Confirmation, Trial, Verdict
from upshift.tuning.whole_plans import HANDED_OVER

LOOK_STEPS, LOOK_SECONDS = 10, 0.05
"""What counting the operators of a step takes: it is made some times, with a profiler that has to start."""


class Ledger(LiveSteps):
    """Live steps with books kept on them.

    Args:
        plan: What training begins with, and what every gain is counted from.
        job: What is trained.
        loader_for: Makes the loader of a plan; None where batches come from elsewhere.
        config: How to go about it.
        on_adopted: Called with the plan whenever it changes.

    Attributes:
        trials: What became of the candidates.
        on_trial: Called with each trial when it is decided.
        notes: What the user should know.
        step_seconds: Of a step by `plan`; None until measured.
        first_step_seconds: Of a step by the first plan.
        data_seconds: Of the wait for a batch, by `plan`.
        first_data_seconds: Of the wait for a batch, by the first plan.
        was_demoted: Whether a plan that was adopted has failed.
        untried_seconds: Of training that were left when a candidate was not tried, as it could not pay for itself;
            None where all were tried.
        confirmation: What the race of the plan that was found against the first one came to, at the end; None where
            no other was found, or the end was not reached.
        mix: The operators of a step; None where the training is too short to look.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        job: Job,
        loader_for: Callable[[Plan], Any] | None,
        config: TunerConfig | None,
        on_adopted: Callable[[Plan], None] | None,
    ) -> None:
        self.config = config or TunerConfig()
        account = Account(self.config.allowance_share)
        super().__init__(
            plan,
            loader_for=loader_for,
            device=job.device,
            account=account,
            stop_when_done=self.config.stop_when_done,
        )
        self.trials: list[Trial] = []
        self.on_trial: Callable[[Trial], None] | None = None
        self.notes: list[str] = []
        self.step_seconds: float | None = None
        self.first_step_seconds: float | None = None
        self.data_seconds: float | None = None
        self.first_data_seconds: float | None = None
        self.was_demoted = False
        self.untried_seconds: float | None = None
        self.confirmation: Confirmation | None = None
        self.mix: OperatorMix | None = None
        self._job, self._on_adopted = job, on_adopted
        self._history: Sequence[Mapping[str, Any]] = ()
        self._measures: Reference | None = None
        self._started = clock.now()
        self._speed = 1.0  # of the plan, beside the first plan

    @property
    def speedup(self) -> float:
        """Of the plan's steps with their waits for data beside the first plan's, by the duels that it won."""
        return self._speed

    @property
    def saved_interval(self) -> tuple[float, float] | None:
        """Seconds that were saved at least and at most, by the interval of the confirmed speedup; None without one."""
        found = self.confirmation
        if found is None or found.verdict != "confirmed" or found.speedup is None or found.speedup_interval is None:
            return None
        low, high = ((speed - 1.0) / (found.speedup - 1.0) for speed in found.speedup_interval)
        return low * self.account.saved, high * self.account.saved

    def _allowance(self, loop: Conducted) -> float:
        """Seconds that a candidate may lose now; there is no limit where tuning is all that is wanted."""
        if self.config.stop_when_done:
            return math.inf
        remaining = self._remaining_seconds(loop)
        secured = self._secured(remaining)
        allowance = self.account.allowance(clock.now() - self._started + remaining, secured_seconds=secured)
        return allowance - max(0.0, -self.account.net - secured)

    def _remaining_seconds(self, loop: Conducted) -> float:
        assert self.step_seconds is not None and self.data_seconds is not None
        return loop.remaining_steps * (self.step_seconds + self.data_seconds)

    def _secured(self, remaining_seconds: float) -> float:
        """Seconds that the plan will save on the steps that remain, beside the first plan."""
        return remaining_seconds * (self._speed - 1.0)

    def _expected_cost(self, candidate: Candidate) -> float:
        assert self.step_seconds is not None
        checks = 3 if self._measures is not None else 6
        return candidate.build_seconds + checks * self.step_seconds

    def _refusal(self, loop: Conducted, candidate: Candidate, cost: float) -> str | None:
        remaining = self._remaining_seconds(loop)
        spread = cost_spread(candidate.plan(self.plan).compile, self._history)
        self.book_spent()
        return self.account.refusal(
            gain=candidate.gain,
            cost=cost,
            most_cost=cost + (spread - 1.0) * candidate.build_seconds,
            least_gain=least_gain(candidate.changes, candidate.gain, self._history),
            remaining_seconds=remaining,
            elapsed_seconds=clock.now() - self._started,
            secured_seconds=self._secured(remaining),
        )

    def _not_worth_a_look(self, loop: Conducted, cheapest: Candidate) -> str | None:
        """Why the operators of a step are not counted, which tells what compiling would gain; None if they are.

        Whether compiling can be afforded shows later, when other changes may have won the time for it.
        """
        assert self.step_seconds is not None
        saving = cheapest.gain * self._remaining_seconds(loop)
        if saving > cheapest.build_seconds and LOOK_STEPS * self.step_seconds + LOOK_SECONDS <= self._allowance(loop):
            return None
        refusal = self._refusal(loop, cheapest, cheapest.build_seconds)
        return refusal or "there is no time to look into a step, which tells what it would gain"

    def _settle(self) -> None:
        """What steps at the plan's speed have saved since the last time, beside the first plan."""
        self.account.add(self._steps.take(self._wait) * (self._speed - 1.0))

    def _book(self, num_steps: int, seconds: float) -> None:
        """The same for steps of a trial, which would have taken `seconds` each by the plan."""
        self.account.add(num_steps * seconds * self._speed - self._steps.take(self._wait))

    def _charge(self) -> None:
        """Book what is left of a trial that ended on its way as lost: it may have been a compilation."""
        self.account.add(-self._steps.take(self._wait))

    def _adopt(self, loop: Conducted, plan: Plan, now: Measured, speedup: float) -> None:
        """Make a plan the one that training goes on with.

        Args:
            loop: The training.
            plan: The plan.
            now: A step by it.
            speedup: Of its steps with their waits, beside the plan so far.
        """
        self._settle()
        self.plan = plan
        self._speed = 1.0 if plan == self.first_plan else self._speed * speedup
        self.step_seconds, self.data_seconds = now.step_seconds, now.data_seconds
        self._go_back(loop)

    def _demote(self, loop: Conducted, reason: str) -> None:
        """Drop what was adopted, all of it: which change it was that failed, nobody knows."""
        self._settle()
        self.was_demoted = True
        loop.note(f"the tuned plan was dropped for the first one: {reason}")
        self._mark_demoted(reason)
        self.plan, self._speed = self.first_plan, 1.0
        self.step_seconds, self.data_seconds = self.first_step_seconds, self.first_data_seconds
        if self._on_adopted is not None:
            self._on_adopted(self.plan)

    def _mark_demoted(self, reason: str) -> None:
        self.trials = [
            replace(trial, verdict="demoted", reason=f"{reason}; before: {trial.reason}")
            if trial.verdict == "adopted"
            else trial
            for trial in self.trials
        ]

    def _record(
        self,
        loop: Conducted,
        candidate: Candidate,
        verdict: Verdict,
        reason: str,
        expected_seconds: float,
        *,
        build_seconds: float | None = None,
        seconds: float = 0.0,
        duel: Duel | None = None,
        fidelity: Fidelity | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        if verdict == "not tried" and self.step_seconds is not None and reason not in (PRESENT, REFUSED_BEFORE):
            self.untried_seconds = max(self.untried_seconds or 0.0, loop.remaining_steps * self.step_seconds)
        interval = duel.interval if duel is not None and math.isfinite(duel.interval.high) else None
        self.trials.append(
            Trial(
                name=candidate.name,
                changes=dict(candidate.changes),
                tier=candidate.tier,
                verdict=verdict,
                reason=reason,
                expected_gain=candidate.gain,
                expected_seconds=expected_seconds,
                step=loop.steps_made,
                build_seconds=build_seconds,
                seconds=seconds,
                speedup=interval.estimate if interval else None,
                speedup_interval=(interval.low, interval.high) if interval else None,
                num_rounds=duel.num_rounds if duel is not None else 0,
                gradient_error=fidelity.error if fidelity else None,
                gradient_noise=fidelity.noise if fidelity else None,
                num_operators=self.mix.num_calls if self.mix is not None and "compile" in candidate.changes else None,
                details=details or {},
            )
        )
        if candidate.name == HANDED_OVER:
            self.notes.append(f"the plan handed over was measured elsewhere; here it was {verdict}: {reason}")
        if verdict == "adopted" and self._on_adopted is not None:
            self._on_adopted(self.plan)
        if self.on_trial is not None:
            self.on_trial(self.trials[-1])
