"""What the first live steps show: where their time goes, what they are made of, and what they need of the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from upshift.core.flops import StepCost, step_cost, with_update
from upshift.core.limits import USUAL_SECONDS
from upshift.training.conductor import Conducted
from upshift.training.rng import restore_rng_state, rng_state
from upshift.tuning.breakdown import Breakdown, StepFacts, estimate_breakdown, loader_ceiling
from upshift.tuning.candidates import Candidate, Job, Observed, cheapest_compilation
from upshift.tuning.ledger import Ledger
from upshift.tuning.live import Block, LiveSteps, first_line
from upshift.tuning.memory import step_memory
from upshift.tuning.operators import OperatorMix, operator_mix
from upshift.tuning.stopwatch import Measured

FIRST_STEPS = 12
SPLIT_STEPS, SPLIT_SHARE, SPLIT_SECONDS = 50, 0.05, 2.0
"""Steps that the split of a step's time is taken from at most; the same of those that remain, and in seconds."""
LOOK_STEPS, LOOK_SECONDS = 10, 0.05
"""What counting the operators of a step takes: it is made some times, with a profiler that has to start."""


class StepObserver:
    """Looks into live steps.

    Args:
        live: Makes them.
        ledger: Knows the plan and what its steps take.
        job: What is trained.
        history: Earlier trials on this machine, for what things cost.
        at_any_cost: Look into a step even where the training is too short to profit.
        with_limits: Measures what the machine can do, for a job that does not know it; None where nobody is to.

    Attributes:
        job: What is trained.
        cost: Operations and bytes of a step, its update of the weights included; None where the training is too short
            to look.
        mix: The operators of a step; None where the training is too short to look.
        first_split: Where the time of a step went by the first plan; None where there are too few steps, or none was
            made by it, as training goes on with another.
        first_split_has_mix: Whether the operators of a step by the first plan went into it.
    """

    def __init__(
        self,
        live: LiveSteps,
        ledger: Ledger,
        *,
        job: Job,
        history: Sequence[Mapping[str, Any]],
        at_any_cost: bool,
        with_limits: Callable[[Job], Job] | None = None,
    ) -> None:
        self.job = job
        self.cost: StepCost | None = None
        self.mix: OperatorMix | None = None
        self.first_split: Breakdown | None = None
        self.first_split_has_mix = False
        self._mix_of: str | None = None
        self._live, self._ledger, self._with_limits = live, ledger, with_limits
        self._history, self._at_any_cost = history, at_any_cost
        self._num_first_steps = 0

    def first_steps(self, loop: Conducted) -> Generator[Block, Measured, Measured]:
        """What a step by the plan that is begun with takes: of some fifty, where that many are few of what remain."""
        plan = self._ledger.plan
        first = yield Block(plan, num_steps=FIRST_STEPS, settle=FIRST_STEPS // 2)
        wanted = min(SPLIT_STEPS, int(SPLIT_SHARE * loop.remaining_steps), int(SPLIT_SECONDS / first.seconds))
        self._num_first_steps = FIRST_STEPS
        if wanted > FIRST_STEPS:
            more = yield Block(plan, num_steps=wanted - FIRST_STEPS, settle=0)
            share, self._num_first_steps = FIRST_STEPS / wanted, wanted
            first = Measured(
                share * first.step_seconds + (1.0 - share) * more.step_seconds,
                share * first.data_seconds + (1.0 - share) * more.data_seconds,
                more.page_faults,  # the first steps have memory mapped that later ones use again
            )
        if plan == self._ledger.first_plan:
            self.first_split = self._split(first, None)
        return first

    def find_limits(self, loop: Conducted, *, is_last_chance: bool) -> bool:
        """Measure what the machine can do, where nobody has yet and the training has the time; whether it was.

        Args:
            loop: The training.
            is_last_chance: Whether it may take all of what may be lost; else half, so that candidates have the rest.
        """
        ledger, measure = self._ledger, self._with_limits
        if measure is None or self.job.limits is not None:
            return False
        if ledger.allowance(loop) / (1 if is_last_chance else 2) < USUAL_SECONDS:
            if is_last_chance:  # precisions are then not even proposed
                ledger.leave_untried((loop.steps_made + loop.remaining_steps) * ledger.known_step.step_seconds)
            return False
        self._with_limits = None
        try:
            self.job = measure(self.job)
        except Exception as error:  # of a lack of memory, of a device of another kind: training goes on without
            ledger.notes.append(f"what this machine can do could not be measured: {first_line(error)}")
            return False
        return True

    def look_into_step(self, loop: Conducted) -> None:
        """Split the time of a step by the plan as it is now, with its operators where there is time for them."""
        ledger = self._ledger
        self._measure_mix(loop, ledger.known_step.step_seconds)
        split = self._split(ledger.known_step, self.mix)
        if ledger.plan == ledger.first_plan:
            self.first_split, self.first_split_has_mix = split, self.mix is not None
        if split.bound_by == "synchronization":
            self._ledger.notes.append(
                "a step mostly waits for values that are read back: `upshift profile` names the lines"
            )

    def observed(self, loop: Conducted) -> Observed:
        """What is known of a step by the plan as it is now."""
        largest = loop.step.largest_batch
        memory = step_memory(
            self.job.device,
            num_parts=1 if largest is None else math.ceil(self.job.batch_size / largest),
            saved_bytes=0 if self.cost is None else self.cost.saved_bytes,
        )
        now = self._ledger.known_step
        return Observed(
            split=self._split(now, self.mix),
            mix=self.mix,
            memory=memory,
            page_faults=now.page_faults,
            history=self._history,
        )

    @property
    def looks_into_plan(self) -> bool:
        """Whether the operators that were counted are those of a step by the plan as it is now."""
        return self.mix is not None and self._ledger.plan.compile == self._mix_of

    def split_by_plan(self) -> Breakdown | None:
        """Where the time of a step goes by the plan as it is now; None where none was timed.

        Compiling leaves other operators than those that were counted: what they wait for is then not told apart.
        """
        now = self._ledger.measured_step
        return None if now is None else self._split(now, self.mix if self.looks_into_plan else None)

    def _measure_mix(self, loop: Conducted, step_seconds: float) -> None:
        """Count the operators of a step, where there is time enough to compile it."""
        cheapest = cheapest_compilation(self.job, self._ledger.plan)
        if not self._at_any_cost:
            if cheapest is None:
                return
            refusal = self._not_worth_a_look(loop, cheapest)
            if refusal is not None:
                self._ledger.record(loop, cheapest, "not tried", refusal, cheapest.build_seconds)
                return
        batch = self._live.batch
        try:
            self.cost = self._cost_of_step(loop)
            self._mix_of = self._ledger.plan.compile
            self.mix = operator_mix(lambda: loop.step.gradients(*batch), step_seconds, self.job.device)
        except Exception as error:  # of a profiler that is in use elsewhere, of a model that it cannot see through
            why = first_line(error)
            self._ledger.notes.append(f"nothing was compiled, as the step could not be looked into: {why}")
        else:
            self._ledger.num_operators = self.mix.num_calls

    def _cost_of_step(self, loop: Conducted) -> StepCost:
        batch, generators = self._live.batch, rng_state(loop.device)
        try:
            return with_update(step_cost(loop.model, lambda: loop.step.gradients(*batch)), loop.step.optimizers)
        finally:
            restore_rng_state(generators, loop.device)

    def _not_worth_a_look(self, loop: Conducted, cheapest: Candidate) -> str | None:
        """Why the operators of a step are not counted, which tells what compiling would gain; None if they are.

        Whether compiling can be afforded shows later, when other changes may have won the time for it.
        """
        ledger = self._ledger
        saving, look = cheapest.gain * ledger.remaining_seconds(loop), LOOK_STEPS * ledger.known_step.step_seconds
        if saving > cheapest.build_seconds and look + LOOK_SECONDS <= ledger.allowance(loop):
            return None
        refusal = ledger.refusal(loop, cheapest, cheapest.build_seconds)
        return refusal or "there is no time to look into a step, which tells what it would gain"

    def _split(self, now: Measured, mix: OperatorMix | None) -> Breakdown:
        """Where the time of a step goes, by its times, its operators and what the machine can do."""
        job, plan, limits = self.job, self._ledger.plan, self.job.limits
        works_ahead = plan.num_workers > 0
        facts: StepFacts = {
            "batch_size": job.batch_size,
            "num_steps": self._num_first_steps,
            "loader_samples_per_second": loader_ceiling(
                job.batch_size,
                now.data_seconds,
                now.step_seconds,
                works_ahead=works_ahead,
                at_best=job.stored_samples_per_second,
            ),
        }
        if mix is not None:
            facts["overhead_share"] = mix.overhead_share
            facts["synchronization_share"] = mix.synchronization_share
        if self.cost is not None and limits is not None and plan.precision in limits.matmul_flops:
            facts["flops"], facts["bytes_moved"] = self.cost.flops, self.cost.bytes_min
            facts["peak_flops_per_second"] = limits.peak_flops(plan.precision)
            facts["peak_bytes_per_second"] = limits.memory_bytes_per_second
        return estimate_breakdown(now.data_seconds, now.step_seconds, **facts)
