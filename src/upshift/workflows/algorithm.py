"""What `--allow algorithm` changes of a training, before its first step: the batch size, and what follows it."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from upshift.core import clock
from upshift.core.files import read_json, write_json
from upshift.core.stats import Interval
from upshift.errors import ArtifactError
from upshift.recipes.overrides import with_overrides
from upshift.training.loss import CrossEntropy
from upshift.training.optimizers import build_optimizer
from upshift.training.rng import restore_rng_state, rng_state
from upshift.training.step import TrainingStep, is_out_of_memory
from upshift.tuning.batch_size import ChangedAlgorithm, batch_sizes, changed_algorithm, checked_allowed
from upshift.workflows.datasets import make_loaders
from upshift.workflows.preparation import Prepared

NUM_ROUNDS = 12
"""With 8, five larger sizes can be proven faster at 95 % together only if every round agrees; 12 forgive some."""
BLOCK_SECONDS, BLOCK_STEPS = 0.025, 2
"""A turn of a batch size lasts at least so long and so many steps, after one that settles it."""
LEAST_SECONDS, MOST_SECONDS, SECONDS_SHARE = 2.0, 60.0, 0.03
"""What measuring may take: a share of the training's expected time, within these bounds."""


def with_allowed(
    prepared: Prepared, allow: Sequence[str], *, kept: Path | None = None
) -> tuple[Prepared, ChangedAlgorithm | None]:
    """A training with the batch size at the knee of its throughput; as it is where that is not allowed.

    Steps of a copy of the model are timed, on samples of the training split; the model, its data and its random numbers
    stay as they are.

    Args:
        prepared: The training.
        allow: What the user allows.
        kept: The document of what was chosen when the run began that is resumed: it is taken again, not measured.

    Raises:
        UnknownNameError: What is allowed is nothing that upshift knows.
    """
    if not checked_allowed(allow):
        return prepared, None
    known = _read(kept) if kept is not None else None
    changed = known if known is not None else _measured(prepared)
    if not changed.adopted:
        return prepared, changed
    recipe = with_overrides(prepared.recipe, None, changed.settings)
    loaders = make_loaders(prepared.dataset, recipe, prepared.plan, prepared.device, prepared.seed)
    return replace(prepared, record=replace(prepared.record, recipe=recipe), loaders=loaders), changed


def keep(changed: ChangedAlgorithm | None, path: Path) -> None:
    """Write what was chosen, for a run that is resumed."""
    if changed is not None:
        write_json(path, changed.to_json())


def _read(path: Path) -> ChangedAlgorithm | None:
    if not path.is_file():
        return None
    document = read_json(path, kind="the batch size that a run began with")
    try:
        return ChangedAlgorithm(
            rates={int(size): float(rate) for size, rate in document["rates"].items()},
            speedups={int(size): _interval(*found) for size, found in document["speedups"].items()},
            settings=tuple(str(setting) for setting in document["settings"]),
            **{
                name: document[name]
                for name in (
                    *("batch_size", "new_batch_size", "learning_rate", "new_learning_rate"),
                    *("rule", "warmup_fraction", "num_rounds", "seconds", "reason"),
                )
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            "the batch size that a run began with must be as upshift has written it",
            received=f"{path}: {type(error).__name__}: {error}",
            hint="start a new run with another --out",
        ) from error


def _interval(estimate: float, low: float, high: float | None) -> Interval:
    return Interval(estimate, low, math.inf if high is None else high)


def _measured(prepared: Prepared) -> ChangedAlgorithm:
    start, generators = clock.now(), rng_state(prepared.device)
    rounds = _Rounds(prepared)
    try:
        rounds.run()
    finally:
        restore_rng_state(generators, prepared.device)
    return changed_algorithm(prepared.recipe, rounds.times, clock.now() - start, note=rounds.note)


class _Rounds:
    """Interleaved rounds of all batch sizes that time and memory allow.

    Attributes:
        times: Seconds a sample by batch size, one value a round; of sizes that never ran out of memory.
        note: What did not fit into memory.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._prepared, self._bench = prepared, _Bench(prepared)
        self._first: dict[int, float] = {}
        self.times: dict[int, list[float]] = {}
        self.note = ""

    def run(self) -> None:
        """Make the rounds."""
        batch_size, start = self._prepared.recipe.batch_size, clock.now()
        first = self._turn(batch_size)
        if first is None:
            return
        self._first[batch_size] = first
        self.times[batch_size] = []
        whole = self._prepared.recipe.epochs * self._prepared.loaders.train.num_samples * first
        budget = min(MOST_SECONDS, max(LEAST_SECONDS, SECONDS_SHARE * whole))
        self._enter(budget)
        order = random.Random(self._prepared.seed)
        for _ in range(NUM_ROUNDS):
            # Fewer rounds than planned, as on a machine that became busy, widen the intervals.
            if len(self.times) < 2 or clock.now() - start > budget:
                break
            self._round(order)
        if not self.times.get(batch_size):
            self.times = {batch_size: [first]}

    def _enter(self, budget: float) -> None:
        """Begin with all larger sizes that fit into memory, as long as rounds of all fit into the budget."""
        sizes = batch_sizes(self._prepared.recipe.batch_size, self._prepared.loaders.train.num_samples)
        last = self._first[sizes[0]]
        for size in sizes[1:]:
            turns = sum(
                max(BLOCK_SECONDS, BLOCK_STEPS * each * seconds) + each * seconds
                for each, seconds in (*self._first.items(), (size, last))
            )
            if (NUM_ROUNDS + 1) * turns > budget:
                return
            seconds = self._turn(size)
            if seconds is None:
                return
            self._first[size] = last = seconds
            self.times[size] = []

    def _round(self, order: random.Random) -> None:
        """A turn of each size; one that runs out of memory is out of all rounds, with those that are larger."""
        found: dict[int, float] = {}
        for size in order.sample(list(self.times), len(self.times)):
            if size not in self.times:
                continue
            seconds = self._turn(size)
            if seconds is not None:
                found[size] = seconds
                continue
            for each in [each for each in self.times if each >= size]:
                del self.times[each]
            if not self.times:  # not even the recipe's own batch fits any more
                return
        for size in self.times:
            self.times[size].append(found[size])

    def _turn(self, size: int) -> float | None:
        """Seconds a sample; None where memory does not suffice."""
        try:
            return self._bench.turn(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self.note = f"{size} samples did not fit into memory"
        return None


class _Bench:
    """Makes steps of any batch size with a copy of a model, whose weights stay as they are."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared, self._model = prepared, copy.deepcopy(prepared.model)
        self._model.train()
        # Compiled for each size it would take longer than it is worth; the knee is where it is without.
        self._plan = replace(prepared.plan, compile="none", compile_mode=None)
        self._optimizer = build_optimizer(self._model, prepared.recipe.optimizer, fused=prepared.plan.fused_optimizer)
        self._optimizer.set_learning_rate(0.0)
        self._samples = prepared.loaders.train.epoch(0)
        self._inputs: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []

    def turn(self, size: int) -> float:
        """Seconds a sample, of some steps."""
        prepared = self._prepared
        recipe = replace(prepared.recipe, batch_size=size)
        loss = recipe.loss or CrossEntropy(recipe.label_smoothing)
        step = TrainingStep(self._model, loss, self._optimizer, recipe, self._plan, prepared.device)
        inputs, labels = self._batch(size)
        try:
            step(step.prepare(inputs), labels)  # settles caches, and whatever a first step of this size allocates
            step.wait()
            num_steps, start = 0, clock.now()
            while num_steps < BLOCK_STEPS or clock.now() - start < BLOCK_SECONDS:
                step(step.prepare(inputs), labels)
                step.wait()
                num_steps += 1
            return (clock.now() - start) / (num_steps * size)
        finally:
            step.release()

    def _batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        while sum(len(labels) for labels in self._labels) < size:
            inputs, labels = next(self._samples)
            # Copies: batches of some loaders are views of a memory that they use again.
            self._inputs.append(inputs.clone())
            self._labels.append(labels.clone())
        self._inputs, self._labels = [torch.cat(self._inputs)], [torch.cat(self._labels)]
        return self._inputs[0][:size], self._labels[0][:size]
