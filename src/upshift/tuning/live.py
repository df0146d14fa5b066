"""Blocks of live training steps, each made by a plan and timed: what the tuner asks for and gets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import torch

from upshift.core import clock
from upshift.core.malloc import num_page_faults
from upshift.core.units import duration
from upshift.errors import NonFiniteLossError, UpshiftError
from upshift.training.batches import Tree
from upshift.training.conductor import Conducted
from upshift.training.rng import HOST_GENERATORS, restore_rng_state, rng_state
from upshift.tuning.compiler import CompilerCounts
from upshift.tuning.ledger import Ledger
from upshift.tuning.numerics import EXACT, note_of_steps
from upshift.tuning.plan import Plan
from upshift.tuning.stopwatch import Measured, Stopwatch

NONFINITE_STEPS = 3
LEAST_STEP_SHARE = 0.01
"""Of a step with its wait, where the wait seems to take all of it."""
LEAST_PAUSE_SECONDS, PAUSE_FACTOR = 2.0, 50.0
"""A step that takes longer, and this many times what the plan's do, was no slow one: the process had been stopped."""
DRAWING_STEPS = 8
"""Of which none drew from the generators of Python and numpy, for none to be expected to."""
LOADER_FIELDS = ("data_path", "num_workers")


class TuningDone(UpshiftError):
    """Tuning has come to its end, and nothing but the plan was wanted."""


class CandidateFailed(Exception):
    """A live step raised; it goes into the story at the place where the step was asked for."""


class CandidateRefused(Exception):
    """A candidate is not faithful, or not worth having."""


@dataclass(frozen=True)
class Block:
    """Steps to make with one plan; the first `settle` do not count.

    Attributes:
        own_loader: Take batches from the plan's own loader, though it differs from the one in use by its layout alone.
            Else the step itself brings them into the layout, and its time has that too: a loader gathers them so
            in less, so that the plan will cost at most this when it has one of its own.
    """

    plan: Plan
    num_steps: int
    settle: int
    own_loader: bool = False


Story = Generator[Block, Measured, None]


@dataclass
class _Timing:
    """The block under way."""

    block: Block
    watch: Stopwatch
    steps: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    num_made: int = 0
    faults_before: int | None = None


class LiveSteps:
    """A conductor (see `Conductor`) that follows a story.

    A story is a generator: it asks for a block of steps with a plan, and gets their times. The steps are training
    steps that count. Between blocks it may do what it likes with the batch at hand, `batch`. Steps that no block asks
    for are made with the ledger's plan, and with what is left of it once that has failed.

    Args:
        story: Makes the story, when the first batch is there.
        ledger: Knows the plan; gets the seconds that are spent between steps, and is told of a plan that failed.
        loader_for: Makes the loader of a plan; None where batches come from elsewhere.
        device: Where the steps are made.
        stop_when_done: End the training with `TuningDone` at the end of the story.
        after_demotion: Makes the story that is told once the ledger's plan has failed, whether or not another was under
            way; None where there is none.

    Attributes:
        batch: The inputs and labels of the step that comes next.
        live_step_seconds: Of the last step, without its wait for data; on an accelerator, the time from the end of the
            call before to the end of its own, whose mean over many steps is what a step takes.
        is_asynchronous: Whether the device is given steps, and makes them later.
        is_complete: Whether the story came to its end.
        draws_on_host: Whether steps draw random numbers from the generators of Python and numpy; None until that
            is known.
    """

    batch: tuple[Tree, Tree]

    def __init__(
        self,
        story: Callable[[Conducted], Story],
        ledger: Ledger,
        *,
        loader_for: Callable[[Plan], Any] | None,
        device: torch.device,
        stop_when_done: bool = False,
        after_demotion: Callable[[Conducted], Story] | None = None,
    ) -> None:
        self.live_step_seconds = 0.0
        self.is_asynchronous = device.type != "cpu"
        self.is_complete = False
        self.draws_on_host: bool | None = None
        self._ledger = ledger
        self._stop_when_done = stop_when_done
        # The story
        self._teller, self._after_demotion = story, after_demotion
        self._story: Story | None = None
        self._timing: _Timing | None = None
        self._measured: Measured | None = None
        self._failure: CandidateFailed | CandidateRefused | None = None
        # How steps are made
        self._executed = self._loader_plan = ledger.plan
        self._loader_for = loader_for
        self._loaders: dict[tuple[Any, ...], Any] = {}
        self._random: dict[str, torch.Tensor] = {}
        self._num_looked_at = 0
        self._told = {EXACT}
        # What they take
        self._steps = Stopwatch(is_asynchronous=self.is_asynchronous)
        self._wait: Callable[[], object] = lambda: None
        self._last_call: float | None = None
        self._stood_still = 0.0
        self._compiler = CompilerCounts()
        self._compiled = self._compiler.read()

    # Conducting

    def before_step(self, loop: Conducted, inputs: Tree, labels: Tree) -> None:
        """Go on with the story where a block has ended."""
        if self.is_complete and self._stop_when_done:  # a plan that failed after it was adopted has ended it
            raise TuningDone("the plan is found")
        self._wait = loop.step.wait
        if not self.is_complete and self._timing is None:
            self._steps.pause(self._wait)
            self._last_call = None
            self._ledger.start_spending()
            self.batch = inputs, labels
            try:
                self._advance(loop)
            finally:
                self._ledger.book_spent()
                self._compiled = self._compiler.read()
        self._keep_random(loop)
        self._steps.begin()
        if self._timing is not None and self._timing.num_made >= self._timing.block.settle:
            if self._timing.num_made == self._timing.block.settle:
                loop.step.wait()
                self._timing.faults_before = num_page_faults()
            self._timing.watch.begin()

    def _keep_random(self, loop: Conducted) -> None:
        """Keep the generators as they are before a step that may have to be made again, with the first plan.

        Torch's own take some microseconds. Those of Python and numpy take a hundred times as long, and few models draw
        from them: they are kept until the first steps have shown whether this one does. The steps of the plan that a
        trial is compared with come after the same work: it cools the cache, and puts threads to sleep.
        """
        if self._is_on_trial or self._timing is not None or self._executed != self._ledger.first_plan:
            self._random = rng_state(loop.device, with_host=self.draws_on_host is not False)

    def _see_whether_it_draws(self, loop: Conducted) -> None:
        """Look whether the step that was made has drawn from the host's generators, until that is known."""
        if self.draws_on_host is not None or not self._random.keys() >= {*HOST_GENERATORS}:
            return
        state = rng_state(loop.device)
        self._num_looked_at += 1
        if any(not torch.equal(self._random[name], state[name]) for name in HOST_GENERATORS):
            self.draws_on_host = True
        elif self._num_looked_at == DRAWING_STEPS:
            self.draws_on_host = False

    @property
    def _is_on_trial(self) -> bool:
        """Whether the next step, or its batch, is a candidate's; or was the last one, and no other has begun."""
        return not self.is_complete and self._executed != self._ledger.plan

    def after_step(self, loop: Conducted, *, step_seconds: float, data_seconds: float) -> None:
        """Note the time of a step."""
        share = self._share_that_counts(step_seconds + data_seconds)
        self._steps.add(step_seconds=share * step_seconds, data_seconds=share * data_seconds)
        now, self.live_step_seconds = clock.now(), step_seconds
        if self.is_asynchronous and self._last_call is not None:
            self.live_step_seconds = max(0.0, now - self._last_call - data_seconds)
        self._last_call = now
        self._tell_precision(loop)
        self._see_whether_it_draws(loop)
        self._random = {}
        timing = self._timing
        if timing is None:
            return
        timing.num_made += 1
        if timing.num_made > timing.block.settle:
            timing.watch.add(step_seconds=step_seconds, data_seconds=data_seconds)
            timing.steps.append(step_seconds)
            timing.waits.append(data_seconds)
        if timing.num_made == timing.block.settle + timing.block.num_steps:
            self._measured, self._timing = self._result_of(loop, timing), None

    def _tell_precision(self, loop: Conducted) -> None:
        """Note, once, that a step was made in another precision; a checkpoint keeps the notes of before it."""
        precision = self._executed.precision
        if precision not in self._told and not self._stop_when_done:  # else no training follows whose losses differ
            self._told.add(precision)
            loop.note(note_of_steps(precision))

    def _share_that_counts(self, seconds: float) -> float:
        """Of a step's time; the rest of it the process was stopped, or its machine, and no plan saves any of that."""
        step = self._ledger.step
        if self.is_asynchronous or self._is_on_trial or step is None:
            return 1.0  # a step on trial may take long as it compiles
        if seconds <= max(LEAST_PAUSE_SECONDS, PAUSE_FACTOR * step.seconds):
            return 1.0
        before, self._compiled = self._compiled, self._compiler.read()
        if self._compiled.since(before).num_graphs > 0:  # of a plan that is compiled: a stage has thawed parameters
            return 1.0
        self._stood_still += seconds - step.seconds
        return step.seconds / seconds

    def before_pause(self, loop: Conducted) -> None:
        """Stop the watches while the loop evaluates or saves."""
        self._steps.pause(loop.step.wait)
        self._last_call = None
        if self._timing is not None:
            self._timing.watch.pause(loop.step.wait)

    def _result_of(self, loop: Conducted, timing: _Timing) -> Measured:
        # A mean: batches are gathered several at a time, so that most waits are nothing and some are long.
        data_seconds = statistics.fmean(timing.waits)
        if not self.is_asynchronous:
            faults, before = num_page_faults(), timing.faults_before
            of_step = (faults - before) / len(timing.steps) if faults is not None and before is not None else 0.0
            return Measured(statistics.median(timing.steps), data_seconds, page_faults=of_step)
        # Where the device works on while the loop waits for a batch, the wait takes nothing of its own.
        each = timing.watch.take(loop.step.wait) / len(timing.steps)
        return Measured(max(each - data_seconds, LEAST_STEP_SHARE * each), min(data_seconds, each))

    def on_error(self, loop: Conducted, error: Exception) -> bool:
        """Go back to a plan that worked: of a candidate's failure the story hears, the plan's own demotes it."""
        if self._is_on_trial:
            # The error itself is not kept: its traceback holds the tensors of the failed step.
            self._failure, self._timing = _failure(error), None
            self.go_back(loop)
            self._draw_again(loop)
            return True
        if self._executed == self._ledger.first_plan:
            return False
        # One loss that is not finite may be the data's doing; several in a row may be the plan's.
        if (
            isinstance(error, NonFiniteLossError)
            and loop.step.num_skipped_in_a_row < NONFINITE_STEPS
            and not loop.step.gave_up
        ):
            return False
        self._demote(loop, error)
        self._draw_again(loop)
        return True

    def _demote(self, loop: Conducted, error: Exception) -> None:
        """Go on with what is left of the plan, and with another story."""
        self._timing, self.is_complete = None, True
        if self._story is not None:
            self._story.close()
        of_batches = not loop.step.is_underway and not isinstance(error, NonFiniteLossError)
        self._ledger.demote(loop, first_line(error), self.take_seconds(), of_batches=of_batches)
        self.go_back(loop)
        self.drop_other_loaders()
        loop.step.forget_compiled()
        if self._after_demotion is not None:
            self.tell(self._after_demotion)

    def _draw_again(self, loop: Conducted) -> None:
        """Have the step that failed draw the same random numbers when it is made again; a batch draws none."""
        if self._random:
            restore_rng_state(self._random, loop.device)

    def on_end(self, loop: Conducted) -> None:
        """Close the story, and leave the model as the plan wants it."""
        if self._story is not None:
            self._story.close()
        self.execute(loop, self._ledger.plan)
        if self._stood_still > 0.0:
            self._ledger.notes.append(
                f"training stood still for {duration(self._stood_still)}, in steps that took more than "
                f"{PAUSE_FACTOR:.0f} times what they should: left out of the seconds saved"
            )

    # The story

    def tell(self, story: Callable[[Conducted], Story]) -> None:
        """Begin another story, once one has come to its end."""
        self._teller, self._story, self.is_complete = story, None, False
        self._measured = self._failure = None

    def _advance(self, loop: Conducted) -> None:
        try:
            block = self._next_block(loop)
            while not self._begin(loop, block):
                block = self._next_block(loop)
        except StopIteration:
            self.is_complete = True
            self.go_back(loop)
            if self._stop_when_done:
                raise TuningDone("the plan is found") from None

    def _next_block(self, loop: Conducted) -> Block:
        if self._story is None:
            self._story = self._teller(loop)
            return next(self._story)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            return self._story.throw(failure)
        assert self._measured is not None
        return self._story.send(self._measured)

    def _begin(self, loop: Conducted, block: Block) -> bool:
        """Execute a block's steps from now on; False where the candidate fails at that."""
        try:
            self.execute(loop, block.plan)
            if block.own_loader or differs_in_data(block.plan, self._loader_plan):
                self._take_data(loop, block.plan)
        except Exception as error:  # a loader, a layout: training goes on without it
            if block.plan == self._ledger.plan:
                raise
            self._failure = _failure(error)
            self.go_back(loop)
            return False
        self._timing = _Timing(block, Stopwatch(is_asynchronous=self.is_asynchronous))
        return True

    # For the story, between its blocks

    def execute(self, loop: Conducted, plan: Plan) -> None:
        """Make the following steps with a plan; their batches come from where they came before."""
        if plan != self._executed:
            self._executed = plan
            loop.step.execute(plan)

    def go_back(self, loop: Conducted) -> None:
        """Make the following steps as the ledger's plan says, with batches from where it takes them."""
        self.execute(loop, self._ledger.plan)
        self._take_data(loop, self._ledger.plan)

    def take_seconds(self) -> float:
        """What the steps since the last time took, of blocks or not, with their waits for batches."""
        return self._steps.take(self._wait)

    def drop_other_loaders(self) -> None:
        """Keep the loader in use alone: others hold copies of the data, or worker processes."""
        key = _data_of(self._loader_plan)
        if key not in self._loaders:
            return
        others, self._loaders = self._loaders, {key: self._loaders[key]}
        for other in others.values():
            if other is not self._loaders[key] and hasattr(other, "free"):
                other.free()  # the training's first one is held by others too

    def _take_data(self, loop: Conducted, plan: Plan) -> None:
        """Take the following batches as a plan wants them: path, workers, layout."""
        if self._loader_for is None or _data_of(plan) == _data_of(self._loader_plan):
            return
        self._loaders.setdefault(_data_of(self._loader_plan), loop.loader)
        key = _data_of(plan)
        if key not in self._loaders:
            self._loaders[key] = self._loader_for(plan)
        self._loader_plan = plan
        loop.use_loader(self._loaders[key])


def differs_in_data(plan: Plan, other: Plan) -> bool:
    """Whether two plans take their batches from different places, or by different workers."""
    return any(getattr(plan, name) != getattr(other, name) for name in LOADER_FIELDS)


def _data_of(plan: Plan) -> tuple[Any, ...]:
    return plan.memory_format, *(getattr(plan, name) for name in LOADER_FIELDS)


def _failure(error: Exception) -> CandidateFailed | CandidateRefused:
    if isinstance(error, NonFiniteLossError):
        return CandidateRefused("a loss was not finite while it ran")
    return CandidateFailed(first_line(error))


def first_line(error: Exception) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"
