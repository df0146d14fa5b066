"""The tuning of a training as lines of text: what was gained, what it cost, and every candidate with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from upshift.core import units
from upshift.reports.fields import Record, number, record, records, sequence, text
from upshift.reports.lines import EMPTY, Line, columns, wrapped

FIRST_AGAIN = "the first plan again"
STYLES = {"adopted": "bold green", "refused": "", "failed": "yellow", "demoted": "yellow", "not tried": "dim"}


def tuning_lines(result: Mapping[str, Any], *, width: int | None = None) -> list[Line]:
    """What `tune` found.

    Args:
        result: Its result.
        width: Columns to wrap at; None for whole lines.
    """
    speedup = number(result, "speedup")
    lines = wrapped(f"  {text(result, 'recipe')}: {_gain(speedup)}", indent="  ", style="bold", width=width)
    lines += [EMPTY, *trial_lines(records(record(result, "plan"), "trials"), width=width)]
    lines += _limit(record(record(result, "tuning"), "limit"), width)
    notes = [note for note in sequence(result, "notes") if isinstance(note, str)]
    lines += [line for note in notes for line in wrapped(f"! {note}", indent="  ", style="yellow", width=width)]
    if path := text(result, "path"):
        lines += [EMPTY, Line(units.plain(f"plan  {path}"), "bold")]
    return lines


def _limit(limit: Record, width: int | None) -> list[Line]:
    share, by = number(limit, "share"), text(limit, "limited_by")
    if share is None:
        return []
    said = f"a step comes to {units.percent(min(share, 1.0))} of what {by} on this machine allows"
    return [EMPTY, *wrapped(f"  {said}", indent="  ", width=width)]


def _gain(speedup: float | None) -> str:
    if speedup is None or speedup <= 1.0:
        return "the plain plan is the fastest here"
    return f"steps are {units.factor(speedup)} faster than by the plain plan"


def tuning_fact(result: Record) -> tuple[str, str, str] | None:
    """What tuning came to in a training: a name, a value, and what there is to say about it; None without tuning."""
    tuning = record(result, "tuning")
    net, seconds = number(tuning, "net_seconds"), number(tuning, "seconds")
    if net is None or seconds is None:
        return None
    trials = records(record(result, "plan"), "trials")
    adopted = adopted_names(trials)
    if not adopted:
        return "plan", "plain", why_plain(tuning, trials)
    saved = f"{units.duration(seconds)} spent on tuning, about {units.duration(net + seconds)} saved"
    return "plan", "tuned", f"{', '.join(adopted)}: {saved}"


def adopted_names(trials: Sequence[Record]) -> list[str]:
    """What the plan has beyond the plain one; nothing where that was taken again in the end."""
    names = [text(trial, "name") for trial in trials if text(trial, "verdict") == "adopted"]
    return [] if names and names[-1] == FIRST_AGAIN else names


def why_plain(tuning: Record, trials: Sequence[Record]) -> str:
    """Why the plain plan was kept, or taken again."""
    verdicts = [text(trial, "verdict") for trial in trials]
    if "demoted" in verdicts:
        return "what was adopted before was dropped again"
    if tuning.get("from_cache") is True:
        return "an earlier run of the same job found nothing faster"
    tried = sum(verdict != "not tried" for verdict in verdicts)
    if tried:
        return f"{units.counted(tried, 'candidate')} tried, none proven faster"
    if trials:
        return "nothing else could have paid for itself"
    return "nothing else was tried"


def trial_lines(trials: Sequence[Record], *, width: int | None) -> list[Line]:
    """A table of candidates, each with its reason."""
    if not trials:
        return []
    head = ("  candidate", "speedup", "cost", "verdict")
    rows = columns([head, *(_row(trial) for trial in trials)], "<>><")
    lines = [Line(rows[0], "dim")]
    for trial, row in zip(trials, rows[1:], strict=True):
        lines.append(Line(row, STYLES.get(text(trial, "verdict"), "")))
        if reason := text(trial, "reason"):
            lines += wrapped(f"    {units.plain(reason)}", indent="    ", style="dim", width=width)
    return lines


def _row(trial: Record) -> tuple[str, ...]:
    speedup, seconds = number(trial, "speedup"), number(trial, "seconds")
    return (
        f"  {units.plain(text(trial, 'name'))}",
        units.MISSING if speedup is None else units.factor(speedup),
        units.MISSING if not seconds else units.duration(seconds),
        text(trial, "verdict"),
    )
