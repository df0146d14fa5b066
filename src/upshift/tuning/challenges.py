"""The race of the candidates: one after another challenges the plan, and takes its place if it is proven faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from upshift.core import clock
from upshift.core.racing import Contender, Race, RaceConfig
from upshift.training.conductor import Conducted
from upshift.tuning.candidates import Candidate, candidates
from upshift.tuning.compiler import CompilerCounts
from upshift.tuning.config import TunerConfig
from upshift.tuning.duels import SETTLE_STEPS, Duels
from upshift.tuning.fidelity import Fidelity
from upshift.tuning.ledger import Ledger
from upshift.tuning.live import Block, CandidateFailed, CandidateRefused, LiveSteps, Story, first_line
from upshift.tuning.observer import FIRST_STEPS, StepObserver
from upshift.tuning.plan import Plan
from upshift.tuning.trials import FAILED_BEFORE, NO_LONGER_PROPOSED, PRESENT, REFUSED_BEFORE, UNDECIDED, Verdict
from upshift.tuning.whole_plans import first_candidate


class Challenges:
    """Races candidates against the ledger's plan.

    Args:
        live: Makes the steps.
        ledger: Knows the plan; gets each candidate that is adopted, and what became of the others.
        observer: Knows the job and its steps, which decide what to try, and what that is expected to gain.
        duels: Check and time a candidate.
        config: How the tuner goes about it.
        on_challenge: Called before a candidate is checked and raced.
    """

    def __init__(
        self,
        live: LiveSteps,
        ledger: Ledger,
        observer: StepObserver,
        duels: Duels,
        *,
        config: TunerConfig,
        on_challenge: Callable[[], object],
    ) -> None:
        self._live, self._ledger, self._observer, self._duels = live, ledger, observer, duels
        self._config, self._on_challenge = config, on_challenge
        self._refused: list[Plan] = []
        self._had_turn: set[str] = set()
        self._compiler = CompilerCounts()

    def race(self, loop: Conducted, whole_plans: Sequence[Candidate], refused_before: Sequence[Plan]) -> Story:
        """Challenge the plan with one candidate after another, the most promising first.

        Args:
            loop: The training.
            whole_plans: Plans from elsewhere, which are raced before all else.
            refused_before: What an earlier run found to be no faster, and is not tried again.
        """
        # The first plan may be the faster one later on, when steps have become slow.
        self._refused += [plan for plan in refused_before if plan != self._ledger.first_plan]
        plans = list(whole_plans) if any(candidate.changes for candidate in whole_plans) else []
        budget = self._config.budget_seconds
        if budget is not None:  # of all of tuning: this race may go on from what is left of a plan that failed
            budget = max(0.0, budget - self._ledger.elapsed_seconds)
        config = RaceConfig(budget_seconds=budget, seed=self._config.seed)
        contest = Race("the plan", config=config, clock=clock.now)
        seen: dict[str, Candidate] = {}
        had_turn = self._had_turn  # kept where a plan that fails has the race begun anew
        while True:
            # What may be faster than the plan as it is now, and by how much: what was adopted changes both.
            found = [candidate for candidate in plans if candidate.name not in had_turn]
            if not found:
                found = candidates(self._observer.job, self._ledger.plan, self._observer.observed(loop))
            seen |= {candidate.name: candidate for candidate in found}
            waiting = [(self._contender(candidate), candidate) for candidate in found if candidate.name not in had_turn]
            if not waiting:
                if self._observer.find_limits(loop, is_last_chance=True):
                    continue  # precisions may be faster
                break
            contender, candidate = max(waiting, key=lambda entry: entry[0].promise)
            had_turn.add(candidate.name)
            contest.enter(contender)
            if contest.next() is None:
                reason = contest.outcomes[-1].reason
                self._ledger.ran_out |= contest.seconds_left() <= contender.expected_cost_seconds
                self._ledger.record(loop, candidate, "not tried", reason, contender.expected_cost_seconds)
            else:
                yield from self._challenge(loop, candidate, contest)
        for name, candidate in seen.items():
            if name not in had_turn:
                cost = self._duels.expected_cost(candidate)
                self._ledger.record(loop, candidate, "not tried", NO_LONGER_PROPOSED, cost)

    def race_first_plan(self, loop: Conducted) -> Story:
        """Race the plan that training began with against the tuned one, which became slow."""
        ledger = self._ledger
        contest = Race("the plan", config=RaceConfig(seed=self._config.seed), clock=clock.now)
        first = first_candidate(ledger.first_plan, ledger.plan)
        ledger.step = yield Block(ledger.plan, num_steps=FIRST_STEPS, settle=SETTLE_STEPS)
        contest.enter(Contender(name=first.name, expected_gain=first.gain, expected_cost_seconds=0.0))
        contest.next()
        yield from self._challenge(loop, first, contest)
        if ledger.plan == ledger.first_plan:
            ledger.demote_all_before_last("its steps became slow")

    def _contender(self, candidate: Candidate) -> Contender:
        cost = self._duels.expected_cost(candidate)
        return Contender(name=candidate.name, expected_gain=candidate.gain, expected_cost_seconds=cost)

    def _challenge(self, loop: Conducted, candidate: Candidate, contest: Race) -> Story:
        """Check a candidate, race it against the plan, and adopt it if it is proven faster."""
        live, ledger, duels = self._live, self._ledger, self._duels
        plan = candidate.plan(ledger.plan)
        cost = duels.expected_cost(candidate)
        refusal = self._refusal(loop, candidate, plan, cost)
        if refusal is not None:
            contest.skip(refusal)
            ledger.record(loop, candidate, "not tried", refusal, cost)
            return
        self._on_challenge()
        ledger.book_spent()
        ledger.book_steps(live.take_seconds())  # those before are none of its own
        spent_before = ledger.account.spent
        fidelity: Fidelity | None = None
        build_seconds = None
        duel, compiled = contest.duel, self._compiler.read()
        try:
            fidelity, build_seconds = yield from duels.checked(loop, candidate, plan)
            build_seconds += candidate.built_seconds
            ledger.book_steps(live.take_seconds())
            if fidelity is not None and fidelity.reason is not None:
                raise CandidateRefused(fidelity.reason)
            challenger = yield from duels.race(loop, plan, contest)
            outcome = contest.outcomes[-1]
            verdict: Verdict = "adopted" if outcome.verdict == "faster" else "refused"
            reason = outcome.reason
            if verdict == "refused" and contest.seconds_left() <= 0.0:
                ledger.ran_out, reason = True, UNDECIDED
        except GeneratorExit:
            self._had_turn.discard(candidate.name)
            ledger.record(
                loop,
                candidate,
                "refused",
                UNDECIDED,
                cost,
                build_seconds=build_seconds,
                seconds=ledger.account.spent - spent_before,
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
        if contest.is_on:
            contest.fail(reason)
        if verdict == "adopted" and duel is not None:
            step, speedup = duels.gained(plan, challenger, duel.interval.estimate)
            ledger.adopt(plan, step, speedup, live.take_seconds())
        else:
            if plan != ledger.first_plan:  # see `race`
                self._refused.append(plan)
            ledger.book_lost(live.take_seconds())
        live.go_back(loop)
        live.drop_other_loaders()
        loop.step.forget_compiled()
        ledger.book_spent()
        graphs = self._compiler.read().since(compiled)
        ledger.record(
            loop,
            candidate,
            verdict,
            reason,
            cost,
            build_seconds=build_seconds,
            seconds=ledger.account.spent - spent_before,
            duel=duel,
            fidelity=fidelity,
            details=graphs.to_json() if plan.compile != "none" else {},
        )

    def _refusal(self, loop: Conducted, candidate: Candidate, plan: Plan, cost: float) -> str | None:
        """Why a candidate is not tried; None if it is."""
        at_any_cost = self._config.stop_when_done or candidate.is_proven
        refusal = None if at_any_cost else self._ledger.refusal(loop, candidate, cost)
        if plan == self._ledger.plan:
            refusal = PRESENT
        if plan in self._refused:
            refusal = REFUSED_BEFORE
        if self._ledger.has_failed(plan) and not self._ledger.has_failed(self._ledger.plan):
            refusal = FAILED_BEFORE
        return refusal
