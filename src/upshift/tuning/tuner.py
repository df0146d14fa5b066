"""The tuner: finds the fastest way to make a training's steps while it makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from upshift.core.load import LoadMeter
from upshift.training.batches import Tree
from upshift.training.conductor import Conducted
from upshift.tuning.candidates import Candidate, Job
from upshift.tuning.challenges import Challenges
from upshift.tuning.config import KnownPlan, TunerConfig
from upshift.tuning.confirming import Confirming
from upshift.tuning.duels import Duels
from upshift.tuning.known_plan import Recall
from upshift.tuning.ledger import Ledger
from upshift.tuning.live import Block, LiveSteps, Story, differs_in_data
from upshift.tuning.observer import FIRST_STEPS, StepObserver
from upshift.tuning.plan import Plan
from upshift.tuning.watch import Watch
from upshift.tuning.whole_plans import fitted, handed_over_candidate

MIN_STEPS = 80
TIMED_STEPS = FIRST_STEPS + FIRST_STEPS // 2
"""By which a step is timed once a plan has failed."""
MAX_KNOWN_SECONDS = 0.5
"""What confirming a plan of an earlier run may cost: that run has confirmed it."""


class Tuner:
    """Races candidates on live steps: a conductor (see `Conductor`).

    A step that times a candidate is a training step like any other: candidates of tier A do the same
    mathematics, which their gradients prove beforehand, so that nothing is thrown away.

    Each part knows those that are made before it, and none knows the tuner: the `ledger` knows the plan, and keeps the
    books; `live` makes steps as the story, which the tuner tells, asks for them; on them the others look into a step,
    take a known plan, race candidates and confirm what was found, and all write into the ledger.

    Args:
        plan: What training begins with, and what every gain is counted from.
        job: What is trained.
        loader_for: Makes the loader of a plan; None where batches come from elsewhere.
        config: How to go about it.
        history: Earlier trials on this machine, for what things cost.
        on_adopted: Called with the plan whenever it changes.
        on_pause: Called when the loop is about to do something else than steps: to evaluate, or to save.
        known: What an earlier run found; as long as its steps are about as fast as then, nothing is raced.
        first_plan: The plan that every gain is counted from, where `known` is what this very training had found when
            it was stopped, and `plan` is that of it: it is gone on with. None where that is `plan`.
        handed_over: A plan that has to prove itself here; it is raced before all else.
        origin: Why it has to, as in "was measured on another machine".
        with_limits: Measures what the machine can do, for a job that does not know it, where the training can pay for
            that; None where nobody is to.

    Attributes:
        ledger: The plan so far, what its steps take, what was tried, and seconds spent and saved.
        live: The steps.
        observer: What the first steps showed.
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
        on_pause: Callable[[], None] | None = None,
        known: KnownPlan | None = None,
        handed_over: Plan | None = None,
        origin: str = "was measured elsewhere",
        first_plan: Plan | None = None,
        with_limits: Callable[[Job], Job] | None = None,
    ) -> None:
        config = config or TunerConfig()
        self.ledger = ledger = Ledger(plan, config=config, history=history, on_adopted=on_adopted)
        if known is not None and first_plan is not None:
            ledger.go_on_with(known, first_plan)
        self.live = live = LiveSteps(
            self._tell,
            ledger,
            loader_for=loader_for,
            device=job.device,
            stop_when_done=config.stop_when_done,
            after_demotion=self._tell_after_demotion,
        )
        self.observer = StepObserver(
            live,
            ledger,
            job=job,
            history=history,
            at_any_cost=config.stop_when_done,
            with_limits=with_limits,
        )
        duels = Duels(live, ledger, batch_size=job.batch_size)
        self._recall: Recall | None = None
        if known is not None:
            self._recall = Recall(replace(known, plan=fitted(known.plan, job)), live, ledger, duels)
        self._challenges = Challenges(live, ledger, self.observer, duels, config=config, on_challenge=self._start_meter)
        self._confirming = Confirming(live, ledger, duels, config)
        self._whole_plans = []
        if handed_over is not None:
            self._whole_plans = [handed_over_candidate(fitted(handed_over, job), plan, origin)]
        self._at_any_cost, self._on_pause = config.stop_when_done, on_pause
        self._has_looked = self._has_ended = False
        self._watch: Watch | None = None
        self._image_size: torch.Size | None = None
        self._slower = 1.0
        self._meter = LoadMeter()
        self._has_metered = self._was_busy = False

    # What came of it, beside the ledger

    @property
    def plan(self) -> Plan:
        """The best plan so far."""
        return self.ledger.plan

    @property
    def is_complete(self) -> bool:
        """Whether tuning came to its end, though the plan may be raced once more as it became slow."""
        return self.live.is_complete or self._has_ended

    @property
    def took_known(self) -> bool:
        """Whether training went on with the plan of an earlier run."""
        return self._recall is not None and self._recall.was_taken

    @property
    def recall(self) -> Recall | None:
        """How the plan of an earlier run was gone on with; None where there was none."""
        return self._recall

    @property
    def was_disturbed(self) -> bool:
        """Whether other programs used the machine while candidates were timed, so that gains may have been missed."""
        load = self._meter.read()
        return self._has_timed and (self._was_busy or (load is not None and load.is_busy))

    @property
    def _has_timed(self) -> bool:
        # One whose steps cost too much in its first round already has no round to its name.
        return any(
            trial.num_rounds or (trial.verdict == "refused" and trial.seconds > 0) for trial in self.ledger.trials
        )

    @property
    def decided_before(self) -> tuple[Mapping[str, Any], ...]:
        """The trials of that run: only other candidates are raced here, if any are."""
        return self._recall.decided if self._recall is not None else ()

    # The story

    def _tell(self, loop: Conducted) -> Story:
        """Find the plan: from the first steps to the race that confirms it."""
        ledger, recall = self.ledger, self._recall
        ledger.open()
        if loop.remaining_steps < MIN_STEPS and not self._at_any_cost:
            left = loop.remaining_steps
            few = f"{left} steps are too few" if left != 1 else "1 step is too few"
            for given in self._whole_plans:
                ledger.notes.append(f"{given.name} was ignored: {given.reason}, and {few} to prove it on")
            if not self._whole_plans:
                ledger.notes.append(f"{few} to tune on")
            return
        first = yield from self.observer.first_steps(loop)
        ledger.set_first_step(first)
        whole_plans, refused = self._whole_plans, list[Plan]()
        if recall is not None:
            was_taken = yield from recall.take(loop)
            if was_taken and not recall.leaves_to_race(loop):
                yield from self._confirm(loop, at_most_seconds=MAX_KNOWN_SECONDS)
                return
            whole_plans, refused = [*whole_plans, *recall.to_race], recall.refused
        yield from self._race(loop, whole_plans, refused)

    def _tell_after_demotion(self, loop: Conducted) -> Story:
        """Time a step by what is left of a plan that failed, and go on looking from there where that is not over."""
        ledger = self.ledger
        goes_on = not self._has_ended and (loop.remaining_steps >= MIN_STEPS or self._at_any_cost)
        if not goes_on and (ledger.measured_step is not None or loop.remaining_steps <= TIMED_STEPS):
            return
        ledger.set_step((yield Block(ledger.plan, num_steps=FIRST_STEPS, settle=FIRST_STEPS // 2)))
        if goes_on:
            yield from self._race(loop, self._whole_plans, [])

    def _race(self, loop: Conducted, whole_plans: Sequence[Candidate], refused: Sequence[Plan]) -> Story:
        """Look into a step, race what may be faster, and confirm what is."""
        if not self._has_looked:
            self.observer.find_limits(loop, is_last_chance=False)
            self.observer.look_into_step(loop)
            self._has_looked = True
        yield from self._challenges.race(loop, whole_plans, refused)
        self._note_load()
        yield from self._confirm(loop)

    def _confirm(self, loop: Conducted, *, at_most_seconds: float | None = None) -> Story:
        """Confirm what was found, and keep the loader of what that came to alone: others hold copies of the data."""
        yield from self._confirming.confirm(loop, at_most_seconds=at_most_seconds)
        self.live.drop_other_loaders()

    def _watch_step(self, data_seconds: float) -> None:
        """Once tuned, watch that steps stay as fast as they were: else the first plan is raced once more."""
        ledger, live = self.ledger, self.live
        if not live.is_complete or ledger.plan == ledger.first_plan or ledger.step is None:
            return
        waits = differs_in_data(ledger.plan, ledger.first_plan)
        self._has_ended = True
        if self._watch is None:
            # Batches come several at a time: most waits are nothing, so that a median would not see them.
            self._watch = Watch(self._watched_seconds(waits), of_single_steps=not (live.is_asynchronous or waits))
        slower = self._watch.slowdown(live.live_step_seconds + (data_seconds if waits else 0.0))
        if slower is not None:
            self._slower = slower
            live.tell(self._tell_again)

    def _watched_seconds(self, waits: bool) -> float:
        """What a step is expected to take: with its wait, where the plan has batches from elsewhere."""
        return self.ledger.known_step.seconds if waits else self.ledger.known_step.step_seconds

    def _tell_again(self, loop: Conducted) -> Story:
        """Race the plan that became slow, and expect of the winner what it takes now."""
        ledger = self.ledger
        yield from self._challenges.race_first_plan(loop)
        trial = ledger.trials[-1]
        became = {"adopted": "took its place", "not tried": "was not raced again"}.get(trial.verdict, "is no faster")
        ledger.notes.append(
            f"steps became {self._slower:.1f} times slower than when the plan was chosen: the first plan {became}"
            f" ({trial.reason})"
        )
        if self._watch is not None:
            self._watch.expected_seconds = self._watched_seconds(differs_in_data(ledger.plan, ledger.first_plan))

    def _start_meter(self) -> None:
        """Look at what other programs use from the first candidate on: that reads the times of all processes."""
        if not self._has_metered:
            self._has_metered = True
            self._meter.start()

    def _note_load(self) -> None:
        """Say whether others used the machine while candidates were timed; once."""
        load = self._meter.stop()
        if load is not None and load.is_busy and self._has_timed:
            self._was_busy = True
            self.ledger.notes.append(
                f"other programs used {load.others_share * 100:.0f} % of the cores while candidates were timed: "
                "intervals are wide, and small gains are not found; the next run looks for them again"
            )

    # Conducting

    def before_step(self, loop: Conducted, inputs: Tree, labels: Tree) -> None:
        """Go on with the story where it is to go on; see `LiveSteps`."""
        size = inputs.shape[2:] if isinstance(inputs, torch.Tensor) and inputs.dim() == 4 else None
        if self._watch is not None and size != self._image_size:  # a stage has begun: steps are others, and not slower
            self._watch.expect_anew()
        self._image_size = size
        self.live.before_step(loop, inputs, labels)

    def after_step(self, loop: Conducted, *, step_seconds: float, data_seconds: float) -> None:
        """Note the time of a step, and watch it once tuned."""
        self.live.after_step(loop, step_seconds=step_seconds, data_seconds=data_seconds)
        self._watch_step(data_seconds)

    def before_pause(self, loop: Conducted) -> None:
        """Leave out what the loop does beside steps."""
        self.live.before_pause(loop)
        if self._on_pause is not None:
            self._on_pause()

    def on_error(self, loop: Conducted, error: Exception) -> bool:
        """Go back to a plan that worked, if the error may be the plan's doing; see `LiveSteps`."""
        before = self.plan
        self._has_ended |= self.live.is_complete
        is_mended = self.live.on_error(loop, error)
        if self._watch is not None and self.plan != before:
            self._watch.expect_anew()
        return is_mended

    def on_end(self, loop: Conducted) -> None:
        """End the story wherever it is, and settle the account."""
        self.live.on_end(loop)
        self.ledger.book_steps(self.live.take_seconds())
        self._note_load()
