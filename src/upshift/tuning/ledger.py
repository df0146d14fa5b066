"""What tuning knows: the plan so far, what its steps take, what was tried, and seconds spent and saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from upshift.core import clock
from upshift.core.duel import Duel
from upshift.training.conductor import Conducted
from upshift.tuning.candidates import Candidate
from upshift.tuning.config import KnownPlan, TunerConfig
from upshift.tuning.demotion import Adoptions, demoted, earlier_trials_after, trials_after
from upshift.tuning.fidelity import Fidelity
from upshift.tuning.payback import Account, cost_spread, least_gain
from upshift.tuning.plan import Plan
from upshift.tuning.stopwatch import Measured
from upshift.tuning.trials import GAINS_NOTHING, TOO_DEAR, Confirmation, Trial, Verdict
from upshift.tuning.whole_plans import HANDED_OVER, differences


class Ledger:
    """The tuner's books. It makes no steps: those who do tell it what they took.

    Args:
        plan: What training begins with, and what every gain is counted from.
        config: How the tuner goes about it.
        history: Earlier trials on this machine, for what things cost.
        on_adopted: Called with the plan whenever it changes.
        dropped: What to say where the plan fails and is dropped.

    Attributes:
        plan: What training goes on with: the best so far.
        first_plan: What it began with.
        step: A step by `plan`; None until measured.
        first_step: A step by the first plan; None until measured.
        num_operators: Of a step; None where they were not counted.
        speedup: Of the plan's steps with their waits for data beside the first plan's, by the duels that it won.
        account: Seconds spent and saved.
        trials: What became of the candidates.
        on_trial: Called with each trial when it is decided.
        notes: What the user should know.
        was_demoted: Whether a plan that was adopted has failed.
        failed: What was taken back from it, each as fields of the plan.
        untried_seconds: Of training that were left when a candidate was not tried, as it could not pay for itself;
            None where all were tried.
        ran_out: Whether a candidate was not tried, or not to its end, as the budget was used up.
        build_seconds_before: That a run which this one goes on with spent on building the plan that it began with.
        rests_on_record: Whether the speedup is that of an earlier run which found the plan, or less: this run has not
            raced it against the first one.
        seconds_between_steps: That were spent while no step was made: on checks, switches, compiling.
        confirmation: What the race of the plan that was found against the first one came to, at the end; None where
            no other was found, or the end was not reached.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        config: TunerConfig,
        history: Sequence[Mapping[str, Any]] = (),
        on_adopted: Callable[[Plan], None] | None = None,
        dropped: str = "the tuned plan was dropped for the first one",
    ) -> None:
        self.plan = self.first_plan = plan
        self.step: Measured | None = None
        self.first_step: Measured | None = None
        self.num_operators: int | None = None
        self.speedup = 1.0
        self.account = Account(config.allowance_share)
        self.trials: list[Trial] = []
        self.on_trial: Callable[[Trial], None] | None = None
        self.notes: list[str] = []
        self.was_demoted = False
        self.failed: list[Mapping[str, Any]] = []
        self.untried_seconds: float | None = None
        self.ran_out = False
        self.build_seconds_before = 0.0
        self.rests_on_record = False
        self.confirmation: Confirmation | None = None
        self.seconds_between_steps = 0.0
        self._adoptions = Adoptions()
        self._at_any_cost = config.stop_when_done
        self._history, self._on_adopted, self._dropped = history, on_adopted, dropped
        self._started = self._spending_since = clock.now()

    # What a step takes

    def open(self) -> None:
        """Tuning begins now."""
        self._started = clock.now()

    @property
    def elapsed_seconds(self) -> float:
        """Since tuning began."""
        return clock.now() - self._started

    def go_on_with(self, known: KnownPlan, first_plan: Plan) -> None:
        """Begin with what this very training had found when it was stopped, on top of the plan that it began with.

        Its speedup is that of then: what a step by the first plan takes follows from it.
        """
        self.first_plan, self.speedup = first_plan, max(1.0, known.speedup)
        self.build_seconds_before = known.build_seconds

    def set_first_step(self, step: Measured) -> None:
        """What a step by the plan that training begins with takes."""
        self.step = step
        self.first_step = step if self.plan == self.first_plan else step.slower(self.speedup)

    def set_step(self, step: Measured) -> None:
        """What a step takes by what a failure has left of the plan."""
        if self.first_step is None or (self.first_step.is_estimated and self.plan == self.first_plan):
            self.set_first_step(step)
        self.step = step

    @property
    def measured_step(self) -> Measured | None:
        """A step by `plan` as it was timed; None where that is only estimated, as the plan has lost a part since."""
        return None if self.step is None or self.step.is_estimated else self.step

    @property
    def known_step(self) -> Measured:
        """A step by `plan`, once it is measured: after the first steps."""
        assert self.step is not None
        return self.step

    def remaining_seconds(self, loop: Conducted) -> float:
        """Of training, as it goes now."""
        return loop.remaining_steps * self.known_step.seconds

    # What may be spent

    def allowance(self, loop: Conducted) -> float:
        """Seconds that a candidate may lose now; there is no limit where tuning is all that is wanted."""
        if self._at_any_cost:
            return math.inf
        remaining = self.remaining_seconds(loop)
        secured = self._secured(remaining)
        allowance = self.account.allowance(self.elapsed_seconds + remaining, secured_seconds=secured)
        return allowance - max(0.0, -self.account.net - secured)

    def refusal(self, loop: Conducted, candidate: Candidate, cost: float) -> str | None:
        """Why a candidate is not worth a trial; None if it is.

        Args:
            loop: The training.
            candidate: What would be tried.
            cost: Seconds that trying it is expected to cost.
        """
        remaining = self.remaining_seconds(loop)
        spread = cost_spread(candidate.plan(self.plan).compile, self._history)
        self.book_spent()
        return self.account.refusal(
            gain=candidate.gain,
            cost=cost,
            most_cost=cost + (spread - 1.0) * candidate.build_seconds,
            least_gain=least_gain(candidate.changes, candidate.gain, self._history),
            remaining_seconds=remaining,
            elapsed_seconds=self.elapsed_seconds,
            secured_seconds=self._secured(remaining),
        )

    def affords(self, loop: Conducted, candidate: Candidate, seconds: float) -> bool:
        """Whether a candidate that is built may cost so much more, by the rule that it was tried by.

        Args:
            loop: The training.
            candidate: Of an earlier run's plan, what it saves is enough.
            seconds: Beside what it has cost.
        """
        if self._at_any_cost:
            return True
        if candidate.is_proven:
            return candidate.gain * self.remaining_seconds(loop) > seconds
        return self.refusal(loop, replace(candidate, build_seconds=0.0), seconds) is None

    def _secured(self, remaining_seconds: float) -> float:
        """Seconds that the plan will save on the steps that remain, beside the first plan."""
        return remaining_seconds * (self.speedup - 1.0)

    # What was spent and saved

    def start_spending(self) -> None:
        """From now on no steps are made."""
        self._spending_since = clock.now()

    def book_spent(self) -> None:
        """Charge the time since `start_spending`, or since the last call, in which no step was made."""
        now = clock.now()
        self.account.spent += now - self._spending_since
        self.seconds_between_steps += now - self._spending_since
        self._spending_since = now

    def book_steps(self, taken_seconds: float) -> None:
        """What steps by the plan, which took so long, have saved beside the first plan."""
        self.account.add(taken_seconds * (self.speedup - 1.0), by_speedup=True)

    def book_trial(self, num_steps: int, step_seconds: float, taken_seconds: float) -> None:
        """The same for steps of a trial, which would have taken `step_seconds` each by the plan."""
        self.account.add(num_steps * step_seconds * self.speedup - taken_seconds)

    def book_beside_first(self, num_steps: int, step_seconds: float, taken_seconds: float) -> None:
        """The same for steps of a race with the first plan, by which they would have taken `step_seconds` each."""
        self.account.add(num_steps * step_seconds - taken_seconds)

    def book_lost(self, taken_seconds: float) -> None:
        """Book what is left of a trial that ended on its way as lost: it may have been a compilation."""
        self.account.add(-taken_seconds)

    # Which plan training goes on with

    def adopt(self, plan: Plan, step: Measured, speedup: float, taken_seconds: float) -> None:
        """Make a plan the one that training goes on with.

        Args:
            plan: The plan.
            step: A step by it.
            speedup: Of its steps with their waits, beside the plan so far.
            taken_seconds: By steps of the plan so far that are not booked yet.
        """
        self.book_steps(taken_seconds)
        self._adoptions.add(plan, self.plan, speedup)
        self.plan, self.step = plan, step
        self.speedup = 1.0 if plan == self.first_plan else self.speedup * speedup
        if plan == self.first_plan:
            self._adoptions.clear()

    def demote(self, loop: Conducted, error: str, taken_seconds: float, *, of_batches: bool = False) -> None:
        """Take one thing back from the plan, as it fails; whether it was that one shows when the step is made again.

        Args:
            loop: The training.
            error: What was raised, in a line.
            taken_seconds: By steps of the plan so far that are not booked yet.
            of_batches: Whether a batch could not be had.
        """
        self.was_demoted = True
        self.book_steps(taken_seconds)
        demotion = self._adoptions.take_back(self.plan, self.first_plan, self.speedup, of_batches=of_batches)
        reason = f"it failed at step {loop.steps_made + 1}: {error}"
        self.failed.append(demotion.dropped)
        self.trials = trials_after(self.trials, demotion, reason, loop.steps_made)
        if self.confirmation is not None:
            self.confirmation = Confirmation(
                verdict="not confirmed", reason=f"the plan that was raced lost {demotion.what} later: {reason}"
            )
        if not differences(demotion.plan, self.first_plan):
            loop.note(f"{self._dropped}: {reason} ({demotion.what})")
            self.drop_plan(reason, 0.0)
            return
        loop.note(f"{demotion.what} was dropped from the plan: {reason}")
        slower = demotion.adoption.speedup
        self.plan, self.speedup = demotion.plan, max(1.0, self.speedup / slower)
        self.step = self.step.slower(slower) if self.step is not None else None
        self._tell_plan()

    def earlier_trials(self, trials: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Trials that the plan of the beginning was chosen by, as JSON objects, as they are now: some are demoted."""
        if self.plan == self.first_plan:  # whatever dropped it
            return [{**trial, "verdict": "demoted"} if trial.get("verdict") == "adopted" else trial for trial in trials]
        return earlier_trials_after(trials, self.failed, self.plan)

    def has_failed(self, plan: Plan) -> bool:
        """Whether a plan has what was taken back from one that failed."""
        return any(all(getattr(plan, name) == value for name, value in dropped.items()) for dropped in self.failed)

    def drop_plan(self, reason: str, taken_seconds: float) -> None:
        """Go back to the first plan.

        Args:
            reason: Why.
            taken_seconds: By steps of the plan so far that are not booked yet.
        """
        self.book_steps(taken_seconds)
        self.trials = [demoted(trial, reason) for trial in self.trials]
        self.plan, self.step, self.speedup = self.first_plan, self.first_step, 1.0
        self._adoptions.clear()
        self._tell_plan()

    def correct_speedup(self, speedup: float) -> None:
        """The plan is so many times faster than the first one, and all that it saved is counted so."""
        before, self.speedup = self.speedup, max(1.0, speedup)
        if before > 1.0:
            self.account.restate((speedup - 1.0) / (before - 1.0))

    def demote_all_before_last(self, reason: str) -> None:
        """The last trial adopted the first plan: of those before it, none is adopted any more."""
        *before, last = self.trials
        self.trials = [*(demoted(trial, reason) for trial in before), last]

    @property
    def saved_interval(self) -> tuple[float, float] | None:
        """Seconds that were saved at least and at most, by the interval of the confirmed speedup; None without one."""
        found = self.confirmation
        if found is None or found.verdict != "confirmed" or found.speedup is None or found.speedup_interval is None:
            return None
        by_speedup = self.account.saved_by_speedup
        measured = self.account.saved - by_speedup
        low, high = ((speed - 1.0) / (found.speedup - 1.0) * by_speedup for speed in found.speedup_interval)
        return measured + low, measured + high

    # What was tried

    def leave_untried(self, seconds: float) -> None:
        """Something was not tried, as it could not pay for itself in so many seconds of training."""
        self.untried_seconds = max(self.untried_seconds or 0.0, seconds)

    def record(
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
        speedup: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Write down what became of a candidate, and tell those who want to know; see `Trial` for the arguments.

        A duel tells the speedup; `speedup` is what counts without one.
        """
        is_too_dear = reason in TOO_DEAR or (verdict == "not tried" and reason not in GAINS_NOTHING)
        if is_too_dear and self.step is not None and not self._at_any_cost:
            self.leave_untried(loop.remaining_steps * self.step.step_seconds)
        interval = duel.interval if duel is not None and math.isfinite(duel.interval.high) else None
        trial = Trial(
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
            speedup=interval.estimate if interval else speedup,
            speedup_interval=(interval.low, interval.high) if interval else None,
            num_rounds=duel.num_rounds if duel is not None else 0,
            gradient_error=fidelity.error if fidelity else None,
            gradient_noise=fidelity.noise if fidelity else None,
            # A plan that is known may lie compiled in caches on disk: that is no experience of what compiling takes.
            num_operators=self.num_operators if "compile" in candidate.changes and not candidate.is_proven else None,
            details=details or {},
        )
        self.trials.append(trial)
        if candidate.name == HANDED_OVER:
            self.notes.append(
                f"{HANDED_OVER} had to prove itself, as {candidate.reason}; here it was {verdict}: {reason}"
            )
        if verdict == "adopted":
            self._tell_plan()
        if self.on_trial is not None:
            self.on_trial(trial)

    def _tell_plan(self) -> None:
        if self._on_adopted is not None:
            self._on_adopted(self.plan)
