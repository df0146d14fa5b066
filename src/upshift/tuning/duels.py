"""Duels on live steps: a candidate's gradients are checked, then plan and candidate take turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from upshift.core import clock
from upshift.core.racing import Race
from upshift.training.batches import num_samples
from upshift.training.conductor import Conducted
from upshift.tuning.candidates import Candidate, Job
from upshift.tuning.compiler import CompilerCounts
from upshift.tuning.config import TunerConfig
from upshift.tuning.fidelity import Fidelity, Reference
from upshift.tuning.live import LOADER_FIELDS, Block, CandidateRefused, Measured, Story
from upshift.tuning.observer import Observer
from upshift.tuning.plan import BASELINE, Plan

SETTLE_STEPS = 2
BLOCK_SECONDS = 0.01
MAX_BLOCK_STEPS = 16
DATA_BLOCK_STEPS = 8
PREFETCHED_BATCHES = 2
MIN_LOSSES = 3
RECOMPILES_ALLOWED = 3


class Duels(Observer):
    """Live steps on which two plans are compared; see `Observer` for the arguments."""

    _contest: Race

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
        super().__init__(plan, job=job, loader_for=loader_for, config=config, history=history, on_adopted=on_adopted)
        self._of_challenger: Measured | None = None
        self._compiler = CompilerCounts()

    def _check(self, loop: Conducted, candidate: Candidate, plan: Plan) -> tuple[Fidelity | None, float]:
        """Compare the candidate's gradients with plain ones on this very batch.

        Returns:
            The comparison, None where it computes alike; and the seconds that its first gradients took beyond
            those of a step: compiling, mostly.
        """
        if set(candidate.changes) <= {"data_path", "num_workers"}:
            return None, 0.0
        inputs, labels = self.batch
        step = loop.step
        plain = replace(BASELINE, device=self.plan.device, num_threads=self.plan.num_threads)
        self.execute(loop, plain)
        reference = Reference(loop.model, step.gradients, inputs, labels, like=self._measures)
        self._measures = reference
        start = clock.now()
        self.execute(loop, plan)
        gradients = step.gradients(inputs, labels)
        build_seconds = max(0.0, clock.now() - start - (self.step_seconds or 0.0))
        # Beside plain fp32, the same mathematics in another precision differs as that precision does.
        is_exact = candidate.tier == "A" and plan.precision == "fp32"
        return reference.judge(gradients, same_mathematics=is_exact), build_seconds

    def _full_batch(self) -> Story:
        """Go on to a batch of the usual size: on a smaller one nothing is compiled, and nothing proven."""
        for _ in range(2):
            if num_samples(self.batch[0]) >= self._job.batch_size:
                return
            yield Block(self.plan, num_steps=1, settle=0)

    def _duel(self, loop: Conducted, plan: Plan) -> Story:
        """Rounds of a block of each, in an order drawn anew, until one is proven faster."""
        incumbent, contest, counts_waits = self.plan, self._contest, self._counts_waits(plan)
        assert self.step_seconds is not None and self.data_seconds is not None
        num_steps, settle = self._block_steps(self._is_of_data(plan), plan, incumbent)
        # A layout that is new is brought about within the step, which counts; the first plan's own has a loader.
        of_first = plan.memory_format == self.first_plan.memory_format != incumbent.memory_format
        self._settle()
        yield Block(plan, num_steps=1, settle=settle, own_loader=of_first)
        self._book(1 + settle, self.step_seconds + self.data_seconds)
        compiled, allowance = self._compiler.read(), self._allowance(loop)
        rounds: list[tuple[Measured, Measured]] = []
        while contest.is_on:
            blocks: dict[bool, Measured] = {}
            for name in contest.order():
                is_best = name == contest.best
                loop.step.synchronize()
                skipped = loop.step.num_skipped
                of_round = incumbent if is_best else plan
                blocks[is_best] = yield Block(of_round, num_steps=num_steps, settle=settle, own_loader=of_first)
                loop.step.synchronize()
                if loop.step.num_skipped > skipped and not is_best:
                    raise CandidateRefused("a loss was not finite while it ran")
            best, challenger = blocks[True], blocks[False]
            rounds.append((best, challenger))
            self._book(2 * (num_steps + settle), best.seconds)
            if counts_waits:
                contest.add(best.seconds, challenger.seconds)
            else:
                contest.add(best.step_seconds, challenger.step_seconds)
            lost = [(num_steps + settle) * (other.seconds - best.seconds) for best, other in rounds]
            if contest.is_on and len(lost) >= MIN_LOSSES and statistics.median(lost) * len(lost) > allowance:
                raise CandidateRefused(f"its steps are slower, and cost more than may be lost after {len(lost)} rounds")
            if (again := self._compiler.read().since(compiled).num_graphs) > RECOMPILES_ALLOWED:
                raise CandidateRefused(
                    f"it was compiled again {again} times in as many steps as one compilation is for"
                )
        now, self._of_challenger = typical([best for best, _ in rounds]), typical([other for _, other in rounds])
        self.step_seconds, self.data_seconds = now.step_seconds, now.data_seconds

    def _is_of_data(self, plan: Plan) -> bool:
        """Whether a plan takes its batches from elsewhere than the plan so far."""
        return any(getattr(plan, name) != getattr(self.plan, name) for name in LOADER_FIELDS)

    def _counts_waits(self, plan: Plan) -> bool:
        """Whether whole steps are compared: of loading that differs, and where the device works on during the wait."""
        return self._is_asynchronous or self._is_of_data(plan)

    def _block_steps(self, of_data: bool, *plans: Plan) -> tuple[int, int]:
        """Steps of a block of a duel that count, and those before them."""
        assert self.step_seconds is not None
        num_steps = max(1, min(MAX_BLOCK_STEPS, round(BLOCK_SECONDS / self.step_seconds)))
        settle = SETTLE_STEPS if self.step_seconds < 0.1 else 1
        if of_data:
            # Batches that workers have made ahead cost nothing to wait for: they are used up before what counts.
            queued = PREFETCHED_BATCHES * max(plan.num_workers for plan in plans)
            num_steps = max(DATA_BLOCK_STEPS, num_steps, queued)
            settle = max(DATA_BLOCK_STEPS // 2, queued)
        return num_steps, settle

    def _gained(self, plan: Plan, ratio: float) -> tuple[Measured, float]:
        """A step by a plan that won its duel, and how many times faster it is with its wait for data.

        Args:
            plan: The winner.
            ratio: By the duel: of whole steps where waits count, else without them.
        """
        assert self.step_seconds is not None and self.data_seconds is not None and self._of_challenger is not None
        before = self.step_seconds + self.data_seconds
        if self._counts_waits(plan):
            step = min(self._of_challenger.step_seconds, before / ratio)
            now = Measured(step, before / ratio - step)
        else:
            now = Measured(self.step_seconds / ratio, self.data_seconds)
        return now, before / now.seconds


def typical(blocks: Sequence[Measured]) -> Measured:
    """A step of several blocks."""
    return Measured(
        statistics.median(block.step_seconds for block in blocks),
        statistics.fmean(block.data_seconds for block in blocks),
    )
