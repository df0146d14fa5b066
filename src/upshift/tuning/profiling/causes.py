"""Why a step takes as long as it does: causes with the seconds of a step that each accounts for.

Each function looks at a measurement for one cause and gives what it finds, as a list of `Cause`. Nothing here knows of
commands: `advice` says what to do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from upshift.tuning.profiling.attribution import AttributedCall
from upshift.tuning.profiling.cause import Cause, Kind, by_line, heaviest_line
from upshift.tuning.profiling.fusible import unfused
from upshift.tuning.profiling.measure import Measurement
from upshift.tuning.profiling.operators import Form

OVERHEAD_KINDS: tuple[Kind, ...] = ("synchronization", "unfused", "python")
SMALLEST_SHARE = 0.02
"""Causes of less of a step than this are not worth a reader's time."""
SLOW_PYTHON = 8.0
"""Times the usual gap before an operator that is more than the way to it: Python code of the model's own."""
SMALLEST_PYTHON_SHARE = 0.05
"""Gaps of less of a step than this, all together, are the ordinary unevenness of Python."""

WELL_TRIED = 0.9
"""Share of the time of operators on images that must have been tried in channels_last before it is predicted."""


def find_causes(measured: Measurement) -> list[Cause]:
    """The causes that account for at least a fiftieth of a step, most seconds spared first."""
    finders: tuple[Callable[[Measurement], Iterable[Cause]], ...] = (
        _data,
        _synchronization,
        _float64,
        _small_batch,
        _layout,
        _memory_format,
        lambda measured: unfused(measured.calls),
        _slow_python,
    )
    total = measured.breakdown.seconds
    found = [cause for finder in finders for cause in finder(measured)]
    found = [_beside(cause, found) if cause.kind == "small batch" else cause for cause in found]
    worthy = [cause for cause in found if cause.spared_seconds >= SMALLEST_SHARE * total]
    return sorted(worthy, key=lambda cause: -cause.spared_seconds)


def _data(measured: Measurement) -> Iterable[Cause]:
    """The loop waits for its batches."""
    waiting = measured.breakdown.data_wait
    facts: dict[str, Any] = {"items": measured.items}
    if measured.items is None:
        facts["operators"] = [row.name for row in measured.rows if row.phase == "data"][:3]
    yield Cause(kind="data", seconds=waiting, spared_seconds=waiting, is_bound=True, facts=facts)


def _synchronization(measured: Measurement) -> Iterable[Cause]:
    """A line reads values back to Python: the whole line waits, not only its last operator."""
    lines = by_line(item for item in measured.calls if item.call.site is not None)
    readers = {line: items for line, items in lines.items() if any(item.call.reads_back for item in items)}
    functions: dict[tuple[str, int], list[AttributedCall]] = defaultdict(list)
    for line, items in readers.items():
        functions[line.file, line.first_line] += items
    for items in functions.values():
        seconds = sum(item.seconds for item in items)
        number = sum(item.call.reads_back for item in items)
        site = heaviest_line([item for item in items if item.call.reads_back])
        yield Cause(
            kind="synchronization",
            seconds=seconds,
            spared_seconds=seconds,
            is_bound=True,
            site=site,
            facts={"number": number},
        )


def _float64(measured: Measurement) -> Iterable[Cause]:
    """Operators work on float64; each was tried in float32 too."""
    doubles = [item for item in measured.calls if item.call.is_float64]
    spared = sum(_spared(item, "float32") for item in doubles)
    if spared > 0:
        # Where float64 comes in: the first line that has it.
        site = next((item.call.site for item in doubles if item.call.site is not None), None)
        yield Cause(
            kind="float64",
            seconds=sum(item.seconds for item in doubles),
            spared_seconds=spared,
            is_bound=False,
            site=site,
            facts={"number": len(doubles), "num_float64": measured.num_float64},
        )


def _spared(item: AttributedCall, form: Form) -> float:
    """Seconds of an operator that another form of it spares: all of them where it would not be called."""
    share = item.call.spared.get(form, 0.0)
    return item.seconds if share == 1.0 else item.compute_seconds * share


def _small_batch(measured: Measurement) -> Iterable[Cause]:
    """A step costs almost as much for few samples as for many."""
    scaling, breakdown = measured.scaling, measured.breakdown
    if scaling is not None:
        step = breakdown.seconds - breakdown.data_wait
        yield Cause(
            kind="small batch",
            seconds=step,
            spared_seconds=step * scaling.spared_share,
            is_bound=False,
            facts={
                "batch_size": scaling.batch_size,
                "larger_batch_size": scaling.larger_batch_size,
                "ratio": scaling.ratio,
            },
        )


def _beside(small_batch: Cause, found: Sequence[Cause]) -> Cause:
    """What larger batches spare beside other causes of overhead: these cost the less the fewer steps there are, but to
    mend them changes nothing that is learnt."""
    amortised = 1 - small_batch.facts["batch_size"] / small_batch.facts["larger_batch_size"]
    others = sum(cause.spared_seconds for cause in found if cause.kind in OVERHEAD_KINDS)
    return replace(small_batch, spared_seconds=max(0.0, small_batch.spared_seconds - amortised * others))


def _layout(measured: Measurement) -> Iterable[Cause]:
    """Tensors are copied into another order of memory, or read in an order that kernels are slow with."""
    copies = [item for item in measured.calls if item.call.changes_layout]
    slowed = [
        item for item in measured.calls if not item.call.changes_layout and item.call.spared.get("contiguous", 0.0) > 0
    ]
    spared = sum(item.seconds for item in copies)
    spared += sum(_spared(item, "contiguous") for item in slowed)
    if spared > 0:
        yield Cause(
            kind="layout",
            seconds=sum(item.seconds for item in (*copies, *slowed)),
            spared_seconds=spared,
            is_bound=False,
            site=heaviest_line([*copies, *slowed]),
            facts={"copies": len(copies), "slowed": len(slowed)},
        )


def _memory_format(measured: Measurement) -> Iterable[Cause]:
    """Operators on images would be faster in channels_last; each was tried so, and some may be slower."""
    images = [item for item in measured.calls if item.call.reads_images]
    tried = [item for item in images if "channels_last" in item.call.spared]
    seconds, of_tried = (sum(item.compute_seconds for item in items) for items in (images, tried))
    spared = sum(_spared(item, "channels_last") for item in tried)
    if tried and of_tried >= WELL_TRIED * seconds and spared > 0:
        gainer = max(tried, key=lambda item: _spared(item, "channels_last"))
        yield Cause(
            kind="memory format",
            seconds=seconds,
            spared_seconds=spared,
            is_bound=False,
            site=gainer.call.site,
            facts={"operator": gainer.call.name, "share": gainer.call.spared["channels_last"]},
        )


def _slow_python(measured: Measurement) -> Iterable[Cause]:
    """Python code of the model's own takes time between two operators."""
    gaps = sorted(item.overhead_seconds for item in measured.calls)
    if not gaps:
        return
    usual = gaps[len(gaps) // 2]
    functions: dict[tuple[str, int], list[AttributedCall]] = defaultdict(list)
    for item in measured.calls:
        site = item.call.site
        forward = item.call.phase == "forward" and not item.call.reads_back
        if site is not None and forward and item.overhead_seconds > SLOW_PYTHON * usual:
            functions[site.file, site.first_line].append(item)
    for items in functions.values():
        seconds = sum(item.overhead_seconds - usual for item in items)
        if seconds < SMALLEST_PYTHON_SHARE * measured.breakdown.seconds:
            continue
        yield Cause(kind="python", seconds=seconds, spared_seconds=seconds, is_bound=True, site=heaviest_line(items))
