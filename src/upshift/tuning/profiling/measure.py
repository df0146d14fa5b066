"""Everything that a profile measures of a training, stage by stage."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from upshift.core.load import LoadMeter
from upshift.tuning.breakdown import Breakdown
from upshift.tuning.profiling.attribution import AttributedCall, OperatorRow, Roofline
from upshift.tuning.profiling.batch import BatchScaling, measure_scaling
from upshift.tuning.profiling.items import ItemProfile, profile_items
from upshift.tuning.profiling.memory import MemoryProfile, profile_memory
from upshift.tuning.profiling.rehearsal import Batch, Rehearsal, StepTimes
from upshift.tuning.profiling.trace import write_trace
from upshift.tuning.profiling.watch import watch


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """How much to measure.

    Attributes:
        num_steps: Steps that are timed.
        max_seconds: Longest time for them; the stages after them take less each.
        min_seconds: Shortest time for them: loaders make many batches of a few samples at once, and some steps are
            to see the next ones made.
        max_operators: Calls of operators that are timed, over all steps that the profiler watches.
        num_trace_steps: Steps in the trace.
    """

    num_steps: int = 50
    max_seconds: float = 20.0
    min_seconds: float = 0.5
    max_operators: int = 10_000
    num_trace_steps: int = 2


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured.

    Attributes:
        breakdown: Where the time of a step goes.
        times: Of each of the timed steps.
        calls: The operators of a step, in order, with their part of it; empty where the step is compiled.
        rows: The operators by time, those of the loader included.
        memory: Over a step.
        items: Of a dataset whose items are made in Python; None for packed data.
        scaling: What a larger batch would gain; None where the batch is not small.
        num_float64: Parameters and buffers (of floating-point numbers) that are float64, and all of them.
        roofline: Of the machine, if known.
        notes: What a reader must know.
    """

    breakdown: Breakdown
    times: StepTimes
    calls: tuple[AttributedCall, ...]
    rows: tuple[OperatorRow, ...]
    memory: MemoryProfile
    items: ItemProfile | None
    scaling: BatchScaling | None
    num_float64: tuple[int, int]
    roofline: Roofline | None
    notes: tuple[str, ...]


def measure(
    rehearsal: Rehearsal,
    *,
    is_compiled: bool,
    roofline: Roofline | None,
    trace: Path,
    config: ProfileConfig | None = None,
    make_item: Callable[[int], object] | None = None,
    num_items: int = 0,
    on_progress: Callable[[str, int, int], None] = lambda description, done, total: None,
) -> Measurement:
    """Profile a training.

    Args:
        rehearsal: Makes its steps.
        is_compiled: Whether torch.compile made them: operators then have no lines of code.
        roofline: Of the machine, for the precision of the steps.
        trace: Where the trace is written, as .json.gz.
        config: How much to measure.
        make_item: Makes an item of the dataset, where items are made one by one.
        num_items: How many the dataset has.
        on_progress: Called with (description, done, total).

    Raises:
        StorageError: The trace cannot be written.
    """
    config = config or ProfileConfig()
    notes: list[str] = []
    with _load_noted(notes):
        with _batches(rehearsal) as batches:
            on_progress("timing steps", 0, config.num_steps)
            rehearsal.warm_up(batches, num_steps=10, max_seconds=config.max_seconds / 4)
            times = rehearsal.time_steps(
                batches,
                num_steps=config.num_steps,
                max_seconds=config.max_seconds,
                min_seconds=config.min_seconds,
                on_step=lambda done: on_progress("timing steps", done, config.num_steps),
            )
        with _batches(rehearsal) as batches:
            loader_speed = _loader_samples_per_second(batches, config)
            full = (batch for batch in batches if len(batch[1]) == rehearsal.config.batch_size)
            synthetic = _synthetic_step_seconds(rehearsal, next(full), config)
            watched = watch(
                rehearsal,
                full,
                times,
                roofline,
                is_compiled=is_compiled,
                max_seconds=config.max_seconds / 4,
                max_operators=config.max_operators,
            )
            memory = profile_memory(rehearsal, full)
            write_trace(rehearsal, full, trace, num_steps=config.num_trace_steps)
            scaling = measure_scaling(rehearsal, full, max_seconds=config.max_seconds / 4)
    items = None
    if make_item is not None:
        items = profile_items(make_item, range(min(num_items, 4 * rehearsal.config.batch_size)))
    breakdown = Breakdown(
        batch_size=rehearsal.config.batch_size,
        num_steps=len(times.step),
        memory_share=watched.memory_share,
        loader_samples_per_second=loader_speed,
        synthetic_samples_per_second=rehearsal.config.batch_size / synthetic,
        **watched.parts,
    )
    if is_compiled:
        notes.append("the step is compiled: its memory is that of the same step without torch.compile")
    if rehearsal.training_step.num_skipped:
        skipped = rehearsal.training_step.num_skipped
        notes.append(f"{skipped} steps were skipped, as their loss or gradient was not finite")
    weights = [*rehearsal.model.parameters(), *rehearsal.model.buffers()]
    floating = [tensor for tensor in weights if tensor.is_floating_point()]
    return Measurement(
        breakdown=breakdown,
        times=times,
        calls=tuple(watched.calls),
        rows=tuple(watched.rows),
        memory=memory,
        items=items,
        scaling=scaling,
        num_float64=(sum(tensor.dtype == torch.float64 for tensor in floating), len(floating)),
        roofline=roofline,
        notes=tuple(notes),
    )


@contextmanager
def _load_noted(notes: list[str]) -> Iterator[None]:
    meter = LoadMeter()
    meter.start()
    yield
    load = meter.stop()
    if load is not None and load.is_busy:
        notes.append(
            f"other programs used {load.others_share * 100:.0f} % of the cores meanwhile: on a quiet machine"
            " steps are shorter"
        )


@contextmanager
def _batches(rehearsal: Rehearsal) -> Iterator[Iterator[Batch]]:
    """Batches that end here: a loader makes one epoch at a time."""
    with closing(rehearsal.batches()) as batches:
        yield batches


def _loader_samples_per_second(batches: Iterator[Batch], config: ProfileConfig) -> float:
    """The loader's speed when nothing else is done, without the start of an epoch."""
    for _ in range(2):
        next(batches)
    num_samples, start = 0, time.perf_counter()
    for _ in range(config.num_steps):
        num_samples += len(next(batches)[1])
        if time.perf_counter() - start > config.max_seconds / 4:
            break
    return num_samples / (time.perf_counter() - start)


def _synthetic_step_seconds(rehearsal: Rehearsal, batch: Batch, config: ProfileConfig) -> float:
    inputs, labels = batch[0].clone(), batch[1].clone()

    def same() -> Iterator[Batch]:
        while True:
            yield inputs, labels

    batches = same()
    rehearsal.warm_up(batches, num_steps=3, max_seconds=config.max_seconds / 4)
    times = rehearsal.time_steps(batches, num_steps=config.num_steps // 2 + 1, max_seconds=config.max_seconds / 4)
    return statistics.median(times.step)
