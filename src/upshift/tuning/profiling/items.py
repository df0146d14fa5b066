"""Which functions of a dataset's Python code its items take their time in."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from upshift.tuning.profiling.sites import shown_path, whose

MAX_SECONDS = 1.0
NUM_FUNCTIONS = 5


@dataclass(frozen=True, kw_only=True)
class ItemFunction:
    """A Python function that makes items of a dataset.

    Attributes:
        place: "file:line" of its definition.
        name: Of the function.
        own_seconds: An item spends in it and in what it calls of other people's code, functions of the user's own
            left out.
        share: Of the item's time.
    """

    place: str
    name: str
    own_seconds: float
    share: float


@dataclass(frozen=True, kw_only=True)
class ItemProfile:
    """How long an item of a dataset takes.

    Attributes:
        num_items: How many were made.
        seconds: For one, without a profiler.
        functions: The user's functions that most of it is spent in, largest first; empty where none of the user's
            own are called.
    """

    num_items: int
    seconds: float
    functions: tuple[ItemFunction, ...]

    def to_json(self) -> dict[str, Any]:
        """The profile as a JSON object."""
        return asdict(self)


def profile_items(make: Callable[[int], object], rows: Sequence[int]) -> ItemProfile:
    """Make items of a dataset in this process, and tell where their time goes.

    Args:
        make: Makes the item of a row.
        rows: Rows to make; as many of them as a second allows, and at least one.
    """
    start, num_items = time.perf_counter(), 0
    for row in rows:
        make(row)
        num_items += 1
        if time.perf_counter() - start > MAX_SECONDS:
            break
    seconds = (time.perf_counter() - start) / num_items
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        for row in rows[:num_items]:
            make(row)
    finally:
        profiler.disable()
    return ItemProfile(num_items=num_items, seconds=seconds, functions=_own_functions(profiler, seconds))


def _own_functions(profiler: cProfile.Profile, seconds: float) -> tuple[ItemFunction, ...]:
    """The user's functions by the time in them and in library code that they call."""
    stats: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined] # public in all but its stub
    own: dict[Any, float] = {}
    for place, (_, _, inside, _, callers) in stats.items():
        if _is_own(place):
            own[place] = own.get(place, 0.0) + inside
            continue
        for caller, (_, _, _, under_caller) in callers.items():
            if _is_own(caller):
                own[caller] = own.get(caller, 0.0) + under_caller
    whole = sum(own.values())
    largest = sorted(own.items(), key=lambda item: -item[1])[:NUM_FUNCTIONS]
    return tuple(
        ItemFunction(
            place=f"{shown_path(file)}:{line}", name=name, own_seconds=seconds * spent / whole, share=spent / whole
        )
        for (file, line, name), spent in largest
        if spent > 0.01 * whole
    )


def _is_own(place: tuple[str, int, str]) -> bool:
    file, _, name = place
    return not file.startswith(("<", "~")) and not name.startswith("<built-in") and whose(file) == "own"
