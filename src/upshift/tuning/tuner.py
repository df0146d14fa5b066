"""The tuner: finds the fastest way to make a training's steps while it makes them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from upshift.core import clock
from upshift.core.load import LoadMeter
from upshift.core.racing import Contender, Race, RaceConfig
from upshift.training.conductor import Conducted
from upshift.tuning.candidates import Candidate, Job, candidates
from upshift.tuning.config import KnownPlan, TunerConfig
from upshift.tuning.confirming import MAX_KNOWN_SECONDS, Confirming
from upshift.tuning.duels import SETTLE_STEPS
from upshift.tuning.fidelity import Fidelity
from upshift.tuning.live import Block, CandidateFailed, CandidateRefused, Measured, Story, first_line
from upshift.tuning.observer import FIRST_STEPS
from upshift.tuning.plan import Plan
from upshift.tuning.trials import PRESENT, REFUSED_BEFORE, UNDECIDED, Verdict
from upshift.tuning.watch import Watch
from upshift.tuning.whole_plans import first_candidate, handed_over_candidate, known_candidate, refused_plans

MIN_STEPS = 80
SLOWER_THAN_RECORDED = 1.25


class Tuner(Confirming):
    """Races candidates on live steps.

    A step that times a candidate is a training step like any other: candidates of tier A do the same
    mathematics, which their gradients prove beforehand, so that nothing is thrown away.

    Args:
        plan: What training begins with, and what every gain is counted from.
        job: What is trained.
        loader_for: Makes the loader of a plan; None where batches come from elsewhere.
        config: How to go about it.
        history: Earlier trials on this machine, for what things cost.
        on_adopted: Called with the plan whenever it changes.
        known: What an earlier run found; as long as its steps are about as fast as then, nothing is raced.
        handed_over: A plan that was measured elsewhere; it is raced before all else.

    Attributes:
        took_known: Whether training went on with the plan of an earlier run.
        decided_before: The trials of that run, where it was stopped on its way: only the others are raced here.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        job: Job,
        loader_for: Callable[[Plan], Any] | None = None,
        config: TunerConfig | None = None,
        history: Sequence[Mapping[str, Any]] = (),
        on_adopted: Callable[[Plan], None] | None = None,
        known: KnownPlan | None = None,
        handed_over: Plan | None = None,
    ) -> None:
        super().__init__(plan, job=job, loader_for=loader_for, config=config, history=history, on_adopted=on_adopted)
        self.took_known = False
        self.decided_before: tuple[Mapping[str, Any], ...] = ()
        self._known = known
        self._whole_plans = [] if handed_over is None else [handed_over_candidate(self._fit(handed_over), plan)]
        self._refused: list[Plan] = []
        self._watch: Watch | None = None
        self._meter = LoadMeter()

    def after_step(self, loop: Conducted, *, step_seconds: float, data_seconds: float) -> None:
        """Note the time of a step; see `LiveSteps`. Once tuned, watch that it stays as it was."""
        super().after_step(loop, step_seconds=step_seconds, data_seconds=data_seconds)
        if not self.is_complete or self.plan == self.first_plan or self.step_seconds is None:
            return
        if self._watch is None:
            self._watch = Watch(self.step_seconds, of_single_steps=not self._is_asynchronous)
        slower = self._watch.slowdown(self.live_step_seconds)
        if slower is not None:
            self.notes.append(
                f"steps became {slower:.1f} times slower than when the plan was chosen: it was raced again"
            )
            self.tell(self._challenge_with_first)

    def on_end(self, loop: Conducted) -> None:
        """Settle the account; see `LiveSteps`."""
        super().on_end(loop)
        self._settle()
        self._note_load()

    def _tell(self, loop: Conducted) -> Story:
        self._started = clock.now()
        self._meter.start()
        if loop.remaining_steps < MIN_STEPS and not self._stop_when_done:
            left = loop.remaining_steps
            self.notes.append(f"{left} steps are too few to tune on" if left != 1 else "1 step is too few to tune on")
            return
        first = yield from self._first_steps(loop)
        self.step_seconds = self.first_step_seconds = first.step_seconds
        self.data_seconds = self.first_data_seconds = first.data_seconds
        if self._known is not None and not self._known.is_complete:
            self.decided_before = self._known.decided
        if self._known is not None and (yield from self._take_known(loop, self._known)):
            self.untried_seconds = self._known.untried_seconds
            if self._known.is_complete and not self._pays_to_look_again(loop, self._known):
                yield from self._confirm(loop, at_most_seconds=MAX_KNOWN_SECONDS)
                return
            self._refused += refused_plans(self.decided_before, self.first_plan)
        else:
            self.decided_before = ()
        yield from self._race(loop, first)
        yield from self._confirm(loop)

    def _take_known(self, loop: Conducted, known: KnownPlan) -> Generator[Block, Measured, bool]:
        """Take the plan of an earlier run if it is still right and fast; True if nothing is left to be raced."""
        assert self.step_seconds is not None and self.data_seconds is not None
        candidate = known_candidate(replace(known, plan=self._fit(known.plan)), self.plan)
        plan = candidate.plan(self.plan)
        if not candidate.changes:
            self.took_known = self._is_as_fast(known, Measured(self.step_seconds, self.data_seconds))
            return self.took_known
        cost = self._expected_cost(candidate)
        refusal = self._refusal(loop, candidate, cost)
        if refusal is not None:
            self._record(loop, candidate, "not tried", refusal, cost)
            return False
        fidelity: Fidelity | None = None
        try:
            yield from self._full_batch()
            self._settle()
            fidelity, build_seconds = self._check(loop, candidate, plan)
            if fidelity is None or fidelity.reason is None:
                now = yield Block(plan, num_steps=FIRST_STEPS, settle=SETTLE_STEPS)
        except Exception as error:  # whatever a backend raises: training goes on without it
            self._record(loop, candidate, "failed", first_line(error), cost)
            return False
        if fidelity is not None and fidelity.reason is not None:
            self._record(loop, candidate, "refused", fidelity.reason, cost, fidelity=fidelity)
            return False
        of_data = self._is_of_data(plan)
        speedup = self.step_seconds / now.step_seconds
        if of_data:
            speedup = (self.step_seconds + self.data_seconds) / now.seconds
        if speedup <= 1.0 or not self._is_as_fast(known, now, of_data=of_data):
            self._book(FIRST_STEPS + SETTLE_STEPS, self.step_seconds + self.data_seconds)
            self._whole_plans.append(candidate)
            return False
        self.took_known = True
        self._adopt(loop, plan, now, speedup)
        self._record(
            loop,
            candidate,
            "adopted",
            f"steps of {now.step_seconds * 1e3:.3g} ms, {known.step_seconds * 1e3:.3g} ms when it was found",
            cost,
            build_seconds=build_seconds,
            fidelity=fidelity,
        )
        return True

    def _fit(self, plan: Plan) -> Plan:
        """A whole plan without what this job rules out: each size of images would be compiled anew."""
        return replace(plan, compile="none", compile_mode=None) if self._job.changes_size else plan

    def _pays_to_look_again(self, loop: Conducted, known: KnownPlan) -> bool:
        """Whether this training has far more time than the one before, which could not afford every candidate."""
        assert self.step_seconds is not None
        return (
            known.untried_seconds is not None and loop.remaining_steps * self.step_seconds > 2 * known.untried_seconds
        )

    def _is_as_fast(self, known: KnownPlan, now: Measured, *, of_data: bool = False) -> bool:
        """Whether steps are as fast as recorded; waits count for a plan of loading, and are mere noise else."""
        slower = now.step_seconds / known.step_seconds
        if of_data:
            slower = now.seconds / (known.step_seconds + known.data_seconds)
        if slower > SLOWER_THAN_RECORDED:
            self.notes.append(f"steps are {slower:.2f} times slower than when the plan was found: it is tuned again")
        return slower <= SLOWER_THAN_RECORDED

    def _race(self, loop: Conducted, first: Measured) -> Story:
        """Challenge the plan with one candidate after another, the most promising first."""
        self._look_into_step(loop, first)
        config = RaceConfig(budget_seconds=self.config.budget_seconds, seed=self.config.seed)
        self._contest = Race("the plan", config=config, clock=clock.now)
        entered: dict[str, Candidate] = {}
        while True:
            num_entered = len(entered)
            for candidate in self._candidates(loop):
                if candidate.name not in entered:
                    entered[candidate.name] = candidate
                    cost = self._expected_cost(candidate)
                    contender = Contender(name=candidate.name, expected_gain=candidate.gain, expected_cost_seconds=cost)
                    self._contest.enter(contender)
            num_seen = len(self._contest.outcomes)
            chosen = self._contest.next()
            for outcome in self._contest.outcomes[num_seen:]:
                skipped = entered[outcome.name]
                self._record(loop, skipped, "not tried", outcome.reason, self._expected_cost(skipped))
            if chosen is not None:
                yield from self._challenge(loop, entered[chosen.name])
            elif len(entered) == num_entered:
                break
        self._note_load()

    def _note_load(self) -> None:
        """Say whether others used the machine while candidates were timed; once."""
        load = self._meter.stop()
        if load is not None and load.is_busy and any(trial.num_rounds for trial in self.trials):
            self.notes.append(
                f"other programs used {load.others_share * 100:.0f} % of the cores while candidates were timed: "
                "intervals are wide, and small gains are not found"
            )

    def _challenge_with_first(self, loop: Conducted) -> Story:
        """Race the plan that training began with against the tuned one."""
        self._contest = Race("the plan", config=RaceConfig(seed=self.config.seed), clock=clock.now)
        first = first_candidate(self.first_plan, self.plan)
        now = yield Block(self.plan, num_steps=FIRST_STEPS, settle=SETTLE_STEPS)
        self.step_seconds, self.data_seconds = now.step_seconds, now.data_seconds
        self._contest.enter(Contender(name=first.name, expected_gain=first.gain, expected_cost_seconds=0.0))
        self._contest.next()
        yield from self._challenge(loop, first)
        if self.plan == self.first_plan:
            again = self.trials.pop()
            self._mark_demoted("its steps became slow")
            self.trials.append(again)
        if self._watch is not None:
            self._watch.expected_seconds = self.step_seconds

    def _candidates(self, loop: Conducted) -> list[Candidate]:
        """What may be faster than the plan as it is now; whole plans before all else."""
        assert self.step_seconds is not None and self.data_seconds is not None
        if any(candidate.changes for candidate in self._whole_plans):
            found, self._whole_plans = self._whole_plans, []
            return found
        return candidates(self._job, self.plan, self._observed(loop))

    def _challenge(self, loop: Conducted, candidate: Candidate) -> Story:
        """Check a candidate, race it against the plan, and adopt it if it is proven faster."""
        plan = candidate.plan(self.plan)
        cost = self._expected_cost(candidate)
        refusal = None if self.config.stop_when_done else self._refusal(loop, candidate, cost)
        if plan == self.plan:
            refusal = PRESENT
        if plan in self._refused:
            refusal = REFUSED_BEFORE
        if refusal is not None:
            self._contest.skip(refusal)
            self._record(loop, candidate, "not tried", refusal, cost)
            return
        self.book_spent()
        spent_before = self.account.spent
        fidelity: Fidelity | None = None
        build_seconds = None
        duel, compiled = self._contest.duel, self._compiler.read()
        try:
            yield from self._full_batch()
            fidelity, build_seconds = self._check(loop, candidate, plan)
            if fidelity is not None and fidelity.reason is not None:
                raise CandidateRefused(fidelity.reason)
            yield from self._duel(loop, plan)
            outcome = self._contest.outcomes[-1]
            verdict: Verdict = "adopted" if outcome.verdict == "faster" else "refused"
            reason = outcome.reason
        except GeneratorExit:
            self._record(
                loop,
                candidate,
                "refused",
                UNDECIDED,
                cost,
                build_seconds=build_seconds,
                seconds=self.account.spent - spent_before,
                duel=duel,
                fidelity=fidelity,
            )
            raise
        except CandidateRefused as refused:
            verdict, reason = "refused", str(refused)
        except CandidateFailed as failed:
            verdict, reason = "failed", str(failed)
        except Exception as error:  # whatever a backend raises: training goes on without it
            verdict, reason = "failed", first_line(error)
        if self._contest.is_on:
            self._contest.fail(reason)
        if verdict == "adopted" and duel is not None:
            self._adopt(loop, plan, *self._gained(plan, duel.interval.estimate))
        else:
            self._refused.append(plan)
            self._charge()
            self._go_back(loop)
        self.drop_other_loaders()
        loop.step.forget_compiled()
        self.book_spent()
        graphs = self._compiler.read().since(compiled)
        self._record(
            loop,
            candidate,
            verdict,
            reason,
            cost,
            build_seconds=build_seconds,
            seconds=self.account.spent - spent_before,
            duel=duel,
            fidelity=fidelity,
            details=graphs.to_json() if plan.compile != "none" else {},
        )
