"""What the first live steps show: where their time goes, what they are made of, and what they need of the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from upshift.core.flops import StepCost, step_cost
from upshift.training.conductor import Conducted
from upshift.tuning.breakdown import Breakdown, StepFacts, estimate_breakdown, loader_ceiling
from upshift.tuning.candidates import Job, Observed, cheapest_compilation
from upshift.tuning.config import TunerConfig
from upshift.tuning.ledger import Ledger
from upshift.tuning.live import Block, Measured, first_line
from upshift.tuning.memory import step_memory
from upshift.tuning.operators import operator_mix
from upshift.tuning.plan import Plan

FIRST_STEPS = 12
SPLIT_STEPS, SPLIT_SHARE, SPLIT_SECONDS = 50, 0.05, 2.0
"""Steps that the split of a step's time is taken from at most; the same of those that remain, and in seconds."""


class Observer(Ledger):
    """Live steps that are looked into.

    Args:
        plan: What training begins with, and what every gain is counted from.
        job: What is trained.
        loader_for: Makes the loader of a plan; None where batches come from elsewhere.
        config: How to go about it.
        history: Earlier trials on this machine, for what things cost.
        on_adopted: Called with the plan whenever it changes.

    Attributes:
        cost: Operations and bytes of a step's forward and backward pass; None where the training is too short to look.
        first_split: Where the time of a step went by the first plan; None where there are too few steps.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        job: Job,
        loader_for: Callable[[Plan], Any] | None,
        config: TunerConfig | None,
        history: Sequence[Mapping[str, Any]],
        on_adopted: Callable[[Plan], None] | None,
    ) -> None:
        super().__init__(plan, job=job, loader_for=loader_for, config=config, on_adopted=on_adopted)
        self.cost: StepCost | None = None
        self.first_split: Breakdown | None = None
        self._history = history
        self._num_first_steps = 0

    def _first_steps(self, loop: Conducted) -> Generator[Block, Measured, Measured]:
        """What a step by the first plan takes: of some fifty, where that many are few of those that remain."""
        first = yield Block(self.plan, num_steps=FIRST_STEPS, settle=FIRST_STEPS // 2)
        wanted = min(SPLIT_STEPS, int(SPLIT_SHARE * loop.remaining_steps), int(SPLIT_SECONDS / first.seconds))
        self._num_first_steps = FIRST_STEPS
        if wanted > FIRST_STEPS:
            more = yield Block(self.plan, num_steps=wanted - FIRST_STEPS, settle=0)
            share, self._num_first_steps = FIRST_STEPS / wanted, wanted
            first = Measured(
                share * first.step_seconds + (1.0 - share) * more.step_seconds,
                share * first.data_seconds + (1.0 - share) * more.data_seconds,
            )
        self.first_split = self._split(first)
        return first

    def _look_into_step(self, loop: Conducted, first: Measured) -> None:
        """Split the time of a step, with its operators where there is time enough to look at them."""
        self._measure_mix(loop, first.step_seconds)
        self.first_split = self._split(first)
        if self.first_split.bound_by == "synchronization":
            self.notes.append("a step mostly waits for values that are read back: `upshift profile` names the lines")

    def _measure_mix(self, loop: Conducted, step_seconds: float) -> None:
        """Count the operators of a step, where there is time enough to compile it."""
        cheapest = cheapest_compilation(self._job, self.plan)
        if not self.config.stop_when_done:
            if cheapest is None:
                return
            refusal = self._not_worth_a_look(loop, cheapest)
            if refusal is not None:
                self._record(loop, cheapest, "not tried", refusal, cheapest.build_seconds)
                return
        try:
            self.cost = step_cost(loop.model, lambda: loop.step.gradients(*self.batch))
            self.mix = operator_mix(lambda: loop.step.gradients(*self.batch), step_seconds, self._job.device)
        except Exception as error:  # of a profiler that is in use elsewhere, of a model that it cannot see through
            self.notes.append(f"nothing was compiled, as the step could not be looked into: {first_line(error)}")

    def _split(self, now: Measured) -> Breakdown:
        """Where the time of a step goes, by its times, its operators and what the machine can do."""
        job, plan, limits = self._job, self.plan, self._job.limits
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
        if self.mix is not None:
            facts["overhead_share"] = self.mix.overhead_share
            facts["synchronization_share"] = self.mix.synchronization_share
        if self.cost is not None and limits is not None and plan.precision in limits.matmul_flops:
            facts["flops"], facts["bytes_moved"] = self.cost.flops, self.cost.bytes_min
            facts["peak_flops_per_second"] = limits.peak_flops(plan.precision)
            facts["peak_bytes_per_second"] = limits.memory_bytes_per_second
        return estimate_breakdown(now.data_seconds, now.step_seconds, **facts)

    def _observed(self, loop: Conducted) -> Observed:
        """What is known of a step by the plan as it is now."""
        assert self.step_seconds is not None and self.data_seconds is not None
        largest = loop.step.largest_batch
        memory = step_memory(
            self._job.device,
            num_parts=1 if largest is None else math.ceil(self._job.batch_size / largest),
            saved_bytes=0 if self.cost is None else self.cost.saved_bytes,
        )
        split = self._split(Measured(self.step_seconds, self.data_seconds))
        return Observed(split=split, mix=self.mix, memory=memory, history=self._history)
