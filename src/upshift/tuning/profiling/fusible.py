"""Operators of which there could be fewer: runs of element-wise ones, and loops."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from upshift.tuning.profiling.attribution import AttributedCall
from upshift.tuning.profiling.cause import Cause, by_line, heaviest_line

LOOP_LENGTH = 8
"""Calls of one operator on one line by one module, within one call of a function, that are taken for a loop."""
CHAIN_LENGTH = 3
"""Element-wise operators in a row that are worth fusing."""


def unfused(calls: Sequence[AttributedCall]) -> Iterable[Cause]:
    """A function of the user's makes many small operators of what could be few."""
    functions: dict[tuple[str, int], list[AttributedCall]] = defaultdict(list)
    lines = by_line(calls)
    for item in calls:
        site = item.call.site
        if site is None or any(other.call.reads_back for other in lines[site]):
            continue  # a line that reads values back has a cause of its own
        functions[site.file, site.first_line].append(item)
    for items in functions.values():
        chains, loops = _Fusible.of_chains(items), _Fusible.of_loops(items)
        spared = chains.compute_seconds + max(chains.overhead_seconds, loops.overhead_seconds)
        if spared > 0:
            yield Cause(
                kind="unfused",
                seconds=sum(item.seconds for item in items),
                spared_seconds=spared,
                is_bound=True,
                site=heaviest_line(items),
                facts={"number": len(items), "chained": chains.number, "looped": loops.number},
            )


@dataclass(frozen=True)
class _Fusible:
    """Operators that could be fewer.

    Attributes:
        number: How many they are.
        compute_seconds: Spared within kernels.
        overhead_seconds: Spared on the way to them.
    """

    number: int
    compute_seconds: float
    overhead_seconds: float

    @classmethod
    def of_chains(cls, items: Sequence[AttributedCall]) -> _Fusible:
        """Each run of element-wise operators as one, which passes over memory once: as long as the slowest of them."""
        runs = [run for run in _pointwise_runs(items) if len(run) >= CHAIN_LENGTH]
        computing = [[item.compute_seconds for item in run] for run in runs]
        return cls(
            number=sum(len(run) for run in runs),
            compute_seconds=sum(sum(seconds) - max(seconds) for seconds in computing),
            overhead_seconds=sum(sum(item.overhead_seconds for item in run) * (1 - 1 / len(run)) for run in runs),
        )

    @classmethod
    def of_loops(cls, items: Sequence[AttributedCall]) -> _Fusible:
        """Each operator of a loop called once: of one line, by one module, in one call of the function."""

        def line(item: AttributedCall) -> tuple[Any, ...]:
            return item.call.invocation, item.call.site, item.call.module

        # Views are repeated all over: torch's own layers make many.
        items = [item for item in items if not item.call.is_view]
        times = Counter((line(item), item.call.phase, item.call.name) for item in items)
        # One line can have many operators of a name in its backward pass: where it has a forward pass, that decides.
        homes = {line(item): "forward" for item in items if item.call.phase == "forward"}
        loops = {
            where
            for (where, phase, _), number in times.items()
            if number >= LOOP_LENGTH and phase == homes.get(where, phase)
        }
        looped = [item for item in items if line(item) in loops]
        overhead = sum(
            item.overhead_seconds * (1 - 1 / times[line(item), item.call.phase, item.call.name]) for item in looped
        )
        return cls(number=len(looped), compute_seconds=0.0, overhead_seconds=overhead)


def _pointwise_runs(items: Sequence[AttributedCall]) -> Iterable[list[AttributedCall]]:
    """Element-wise operators of one call of a function that follow each other; views between them do not count."""
    groups: dict[tuple[str, int], list[AttributedCall]] = defaultdict(list)
    for item in items:
        if not item.call.is_view:
            groups[item.call.phase, item.call.invocation].append(item)
    for group in groups.values():
        run: list[AttributedCall] = []
        for item in group:
            if item.call.is_pointwise and not item.call.changes_layout:
                run.append(item)
                continue
            yield run
            run = []
        yield run
