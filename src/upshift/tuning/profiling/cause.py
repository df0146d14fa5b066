"""A cause of a slow step, and the line of code that it is on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from upshift.tuning.profiling.attribution import AttributedCall
from upshift.tuning.profiling.sites import Site

Kind: TypeAlias = Literal[
    "data", "synchronization", "float64", "small batch", "layout", "memory format", "unfused", "python"
]


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Something that a step spends time on and need not.

    Attributes:
        kind: What it is.
        seconds: Of a step that it takes.
        spared_seconds: Of a step that would be spared without it, at most if `is_bound`.
        is_bound: Whether that is an upper bound; otherwise it was measured or follows from what was measured.
        site: The line of code to look at first; None where there is none.
        facts: What the advice tells: numbers and names, by kind.
    """

    kind: Kind
    seconds: float
    spared_seconds: float
    is_bound: bool
    site: Site | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def by_line(items: Iterable[AttributedCall]) -> dict[Site, list[AttributedCall]]:
    """Operators by the line that they belong to; those of no line are left out."""
    lines: dict[Site, list[AttributedCall]] = defaultdict(list)
    for item in items:
        if item.call.site is not None:
            lines[item.call.site].append(item)
    return lines


def heaviest_line(items: Iterable[AttributedCall]) -> Site | None:
    """The line that most of their time belongs to."""
    lines = by_line(items)
    return max(lines, key=lambda line: sum(item.seconds for item in lines[line]), default=None)
