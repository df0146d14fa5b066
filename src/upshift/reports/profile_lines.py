"""A profile as lines of text: where the time of a step goes, the operators that take most of it, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upshift.core import units
from upshift.reports.fields import Record, amount, number, record, records, sequence, text
from upshift.reports.lines import EMPTY, Line, columns, wrapped
from upshift.reports.profile_facts import (
    advices,
    brief,
    ceilings,
    memory_sentence,
    parts_of,
    percent,
    prediction,
    share_of_limit,
    verdict,
)

BAR_WIDTH = 24
NUM_OPERATORS = 8


def profile_lines(profile: Mapping[str, Any], *, page: Path | None = None, width: int | None = None) -> list[Line]:
    """A profile for people.

    Args:
        profile: The content of profile.json.
        page: The page that shows it.
        width: Columns to wrap at; None for whole lines.
    """
    variant = text(profile, "variant")
    name = text(profile, "recipe") + (f" ({variant})" if variant else "")
    lines = wrapped(f"{name} · {verdict(profile)}", indent="  ", style="bold", width=width)
    lines += [EMPTY, *_breakdown(record(profile, "breakdown"))]
    rows = [*ceilings(record(profile, "breakdown")), ("memory", memory_sentence(record(profile, "memory")))]
    title = max(len(name) for name, _ in rows)
    for name, said in rows:
        lines += wrapped(f"  {name:<{title}}  {said}", indent=" " * (title + 4), width=width)
    lines += [EMPTY, *_operators(records(profile, "operators"))]
    lines += [EMPTY, *_advice(profile, width)]
    for note in sequence(profile, "notes"):
        if isinstance(note, str):
            lines += wrapped(f"! {note}", indent="  ", style="yellow", width=width)
    if page is not None:
        lines += [EMPTY, Line(units.plain(f"profile  {page}"), "bold")]
    return lines


def _breakdown(breakdown: Record) -> list[Line]:
    rows = []
    for part in parts_of(breakdown):
        bar = "█" * round(BAR_WIDTH * part.share)
        share = percent(part.share)
        rows.append((f"  {part.title}", brief(part.seconds), share, bar))
    return [Line(row) for row in columns(rows, "<>><")]


def _operators(rows: list[Record]) -> list[Line]:
    head = ("  operator", "phase", "calls", "in kernels", "overhead", "share", "of the machine's limit")
    shown = []
    for row in rows[:NUM_OPERATORS]:
        calls = number(row, "calls") or 0.0
        shown.append(
            (
                f"  {text(row, 'name')}",
                text(row, "phase"),
                units.setting(round(calls, 1)),
                brief(amount(row, "seconds")),
                brief(amount(row, "overhead_seconds")),
                percent(amount(row, "share") or 0.0),
                share_of_limit(row),
            )
        )
    lines = columns([head, *shown], "<<>>>><")
    return [Line(lines[0], "dim"), *(Line(line) for line in lines[1:])]


def _advice(profile: Record, width: int | None) -> list[Line]:
    lines = []
    for place, advice in enumerate(advices(profile), start=1):
        where = text(advice, "where")
        title = text(advice, "title") + (f" ({where})" if where else "")
        head = f"{place}. "
        lines += wrapped(f"{head}{title}", indent=" " * len(head), style="bold" if place == 1 else "", width=width)
        said = [text(advice, "action"), prediction(advice)]
        if advice.get("changes_algorithm") is True:
            said.append("changes what is learnt")
        for sentence in said:
            lines += wrapped(f"   {sentence}", indent="   ", width=width)
        if command := text(advice, "command"):
            lines.append(Line(units.plain(f"   {command}"), "green"))
    return lines
