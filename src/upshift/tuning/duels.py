"""Duels on live steps: a candidate's gradients are checked, then plan and candidate take turns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Generator, Sequence
from dataclasses import replace

from upshift.core import clock
from upshift.core.racing import Race
from upshift.training.batches import num_samples, take
from upshift.training.conductor import Conducted
from upshift.training.step import is_out_of_memory
from upshift.tuning.candidates import Candidate
from upshift.tuning.compiler import CompilerCounts
from upshift.tuning.fidelity import NUM_CHANGES, Fidelity, HonestDeviation, Reference, unchecked
from upshift.tuning.ledger import Ledger
from upshift.tuning.live import Block, CandidateRefused, LiveSteps, Story, differs_in_data, first_line
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.stopwatch import Measured
from upshift.tuning.trials import SWITCHING, UNEXPLAINED

SETTLE_STEPS = 2
BLOCK_SECONDS = 0.01
MAX_BLOCK_STEPS = 16
DATA_BLOCK_STEPS = 8
PREFETCHED_BATCHES = 2
MIN_LOSSES = 3
RECOMPILES_ALLOWED = 3
FIRST_CHECK_STEPS, CHECK_STEPS = 6, 3
"""What the first check of gradients takes, which measures their noise too; and each later one. A closer look comes
beside that, and only where it can be afforded."""

BOOKKEEPING_SECONDS = 0.015
"""What the first candidate takes beside its steps: what other programs use is read, and what was found is written."""


class Duels:
    """Compares the ledger's plan with another on live steps.

    Args:
        live: Makes the steps.
        ledger: Knows the plan, what its steps take and what may be lost; gets what steps of a duel take.
        batch_size: Samples of a usual step.
    """

    def __init__(self, live: LiveSteps, ledger: Ledger, *, batch_size: int) -> None:
        self._live, self._ledger, self._batch_size = live, ledger, batch_size
        self._honest: HonestDeviation | None = None
        self._compiler = CompilerCounts()

    def expected_cost(self, candidate: Candidate) -> float:
        """Seconds that building a candidate and checking it is expected to cost."""
        is_first = self._honest is None
        steps = (FIRST_CHECK_STEPS if is_first else CHECK_STEPS) * self._ledger.known_step.step_seconds
        return candidate.build_seconds + steps + (BOOKKEEPING_SECONDS if is_first else 0.0)

    def full_batch(self) -> Story:
        """Go on to a batch of the usual size: on a smaller one nothing is compiled, and nothing proven."""
        for _ in range(2):
            if num_samples(self._live.batch[0]) >= self._batch_size:
                return
            yield Block(self._ledger.plan, num_steps=1, settle=0)

    def checked(
        self, loop: Conducted, candidate: Candidate, plan: Plan
    ) -> Generator[Block, Measured, tuple[Fidelity | None, float]]:
        """Compare the candidate's gradients with plain ones; see `check`.

        A tie that round-off breaks is chance, and not always explained: such a difference must be there on another
        batch too, where there is the time for that. A fault is.
        """
        yield from self.full_batch()
        fidelity, build_seconds = self.check(loop, candidate, plan)
        if fidelity is not None and fidelity.may_be_chance:
            if not self._affords(loop, candidate, CHECK_STEPS + NUM_CHANGES):
                return replace(fidelity, reason=UNEXPLAINED), build_seconds
            yield Block(self._ledger.plan, num_steps=1, settle=0)
            yield from self.full_batch()
            fidelity, _ = self.check(loop, candidate, plan)
        return fidelity, build_seconds

    def check(self, loop: Conducted, candidate: Candidate, plan: Plan) -> tuple[Fidelity | None, float]:
        """Compare the candidate's gradients with plain ones on this very batch.

        Args:
            loop: The training.
            candidate: What is checked.
            plan: With the candidate's changes.

        Returns:
            The comparison, None where it computes alike; and the seconds that its first gradients took beyond
            those of a step: compiling, mostly.
        """
        if set(candidate.changes) <= {"data_path", "num_workers"}:
            return None, 0.0
        now = self._ledger.plan
        # Of the optimizer's kernels no gradient depends: they stay, also where the plan leaves them to the user.
        plain = replace(BASELINE, device=now.device, num_threads=now.num_threads, fused_optimizer=now.fused_optimizer)
        self._live.execute(loop, plain)
        reference = self._reference(loop)
        if isinstance(reference, Fidelity):
            return reference, 0.0
        inputs, labels = reference.inputs, reference.labels
        beside = None
        if candidate.tier == "A" and now.precision == plan.precision != "fp32":
            self._execute_for(loop, now, num_samples(inputs))
            beside = loop.step.gradients(inputs, labels)
        start = clock.now()
        self._execute_for(loop, plan, num_samples(inputs))
        gradients = loop.step.gradients(inputs, labels)
        build_seconds = max(0.0, clock.now() - start - self._ledger.known_step.step_seconds)
        # Beside plain fp32, the same mathematics in another precision differs as that precision does.
        is_exact = candidate.tier == "A" and plan.precision == "fp32"
        fidelity = reference.judge(gradients, same_mathematics=is_exact, beside=beside)
        if is_exact and fidelity.may_be_explained:
            if not self._affords(loop, candidate, NUM_CHANGES):
                return replace(fidelity, reason=UNEXPLAINED), build_seconds
            self._execute_for(loop, plain, num_samples(inputs))
            reference.look_closer(loop.model, loop.step.gradients)
            fidelity = reference.judge(gradients, same_mathematics=is_exact)
        return fidelity, build_seconds

    def _affords(self, loop: Conducted, candidate: Candidate, num_passes: int) -> bool:
        """Whether a candidate may cost so many more passes, which are plain ones."""
        steps = [step.step_seconds for step in (self._ledger.known_step, self._ledger.first_step) if step is not None]
        return self._ledger.affords(loop, candidate, num_passes * max(steps))

    def _execute_for(self, loop: Conducted, plan: Plan, size: int) -> None:
        """Execute a plan on so many samples, all at once where it does not split a batch further."""
        if size < num_samples(self._live.batch[0]):  # else nothing would be compiled for a part
            plan = replace(plan, micro_batch_size=min(size, plan.micro_batch_size or size))
        self._live.execute(loop, plan)

    def _reference(self, loop: Conducted) -> Reference | Fidelity:
        """Plain gradients of the batch, or of as many of its samples as fit in memory; else why there are none.

        The plan that training goes on with may need less memory than plain steps, and training keeps no gradients: that
        these run out of it is no candidate's fault.
        """
        whole = size = num_samples(self._live.batch[0])
        while size > 0:
            inputs, labels = self._live.batch if size == whole else (take(tree, 0, size) for tree in self._live.batch)
            try:
                reference = Reference(loop.model, loop.step.gradients, inputs, labels, like=self._honest)
            except Exception as error:
                if not is_out_of_memory(error):
                    if size == whole:
                        raise
                    return unchecked(f"do not fit in memory, and a part of the batch raised {first_line(error)}")
                # Not from here: the error's traceback holds the tensors of what failed.
            else:
                if size < whole and self._honest is None:
                    reference.honest = reference.honest.of_whole(size / whole)
                elif math.isfinite(reference.honest.round_off):
                    self._honest = reference.honest  # taken over by the later ones; nothing else is kept
                return reference
            size //= 2
        return unchecked("do not fit in memory")

    def race(self, loop: Conducted, plan: Plan, contest: Race) -> Generator[Block, Measured, Measured]:
        """Rounds of a block of each, in an order drawn anew, until one is proven faster.

        Args:
            loop: The training.
            plan: The challenger, whose turn in the contest it is.
            contest: Gets the times of each round.

        Returns:
            A step by the challenger; one by the plan so far is in the ledger.

        Raises:
            CandidateRefused: The challenger cost too much, was compiled too often, or had a loss that was not finite.
        """
        ledger, incumbent, counts_waits = self._ledger, self._ledger.plan, self.counts_waits(plan)
        num_steps, settle = self.block_steps(self.is_of_data(plan), plan, incumbent)
        # A layout that is new is brought about within the step, which counts; the first plan's own has a loader.
        of_first = plan.memory_format == ledger.first_plan.memory_format != incumbent.memory_format
        ledger.book_steps(self._live.take_seconds())
        yield Block(plan, num_steps=1, settle=settle, own_loader=of_first)
        ledger.book_trial(1 + settle, ledger.known_step.seconds, self._live.take_seconds())
        compiled, allowance = self._compiler.read(), ledger.allowance(loop)
        before = ledger.seconds_between_steps
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
            ledger.book_trial(2 * (num_steps + settle), best.seconds, self._live.take_seconds())
            if counts_waits:
                contest.add(best.seconds, challenger.seconds)
            else:
                contest.add(best.step_seconds, challenger.step_seconds)
            if contest.is_on and len(rounds) >= MIN_LOSSES:
                slower = statistics.median(other.seconds - best.seconds for best, other in rounds)
                lost, switching = (num_steps + settle) * len(rounds) * slower, ledger.seconds_between_steps - before
                if lost > allowance:
                    raise CandidateRefused(
                        f"its steps are slower, and cost more than may be lost after {len(rounds)} rounds"
                    )
                if lost + switching > allowance and -slower * loop.remaining_steps < switching:
                    raise CandidateRefused(SWITCHING)
            if (again := self._compiler.read().since(compiled).num_graphs) > RECOMPILES_ALLOWED:
                raise CandidateRefused(
                    f"it was compiled again {again} times in as many steps as one compilation is for"
                )
        ledger.step = typical([best for best, _ in rounds])
        return typical([other for _, other in rounds])

    def is_of_data(self, plan: Plan) -> bool:
        """Whether a plan takes its batches from elsewhere than the plan so far."""
        return differs_in_data(plan, self._ledger.plan)

    def counts_waits(self, plan: Plan) -> bool:
        """Whether whole steps are compared: of loading that differs, and where the device works on during the wait."""
        return self._live.is_asynchronous or self.is_of_data(plan)

    def block_steps(self, of_data: bool, *plans: Plan) -> tuple[int, int]:
        """Steps of a block of a duel that count, and those before them.

        Args:
            of_data: Whether waits for batches count.
            plans: Those that take turns.
        """
        step_seconds = self._ledger.known_step.step_seconds
        num_steps = max(1, min(MAX_BLOCK_STEPS, round(BLOCK_SECONDS / step_seconds)))
        settle = SETTLE_STEPS if step_seconds < 0.1 else 1
        if of_data:
            # Batches that workers have made ahead cost nothing to wait for: they are used up before what counts.
            queued = PREFETCHED_BATCHES * max(plan.num_workers for plan in plans)
            num_steps = max(DATA_BLOCK_STEPS, num_steps, queued)
            settle = max(DATA_BLOCK_STEPS // 2, queued)
        return num_steps, settle

    def gained(self, plan: Plan, challenger: Measured, ratio: float) -> tuple[Measured, float]:
        """A step by a plan that won its duel, and how many times faster it is with its wait for data.

        Args:
            plan: The winner.
            challenger: A step by it, as its blocks took.
            ratio: By the duel: of whole steps where waits count, else without them.
        """
        before = self._ledger.known_step
        if self.counts_waits(plan):
            seconds = before.seconds / ratio
            step_seconds = min(challenger.step_seconds, seconds)
            now = Measured(step_seconds, seconds - step_seconds, challenger.page_faults)
        else:
            now = Measured(before.step_seconds / ratio, before.data_seconds, challenger.page_faults)
        return now, before.seconds / now.seconds


def typical(blocks: Sequence[Measured]) -> Measured:
    """A step of several blocks."""
    return Measured(
        statistics.median(block.step_seconds for block in blocks),
        statistics.fmean(block.data_seconds for block in blocks),
        statistics.median(block.page_faults for block in blocks),
    )
