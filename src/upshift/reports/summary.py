"""The result of a run as lines of text, legible without colour, with the numbers as the page has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upshift.core import units
from upshift.reports.candidates import Candidate, Optimization, read_optimization
from upshift.reports.fields import Record, amount, count, number, record, seed, sequence, text
from upshift.reports.headline import sample_noun, target_reached
from upshift.reports.lines import EMPTY, Line, columns, wrapped
from upshift.reports.tuned import algorithm_fact, step_fact, tuning_fact

VERDICT_STYLES = {"chosen": "bold green", "refused": "yellow", "failed": "dim"}
LONGEST_NAME = 21

Fact = tuple[str, str, str]
"""A name, a value, and what there is to say about it."""


def summary_lines(result: Mapping[str, Any], *, report: Path | None = None, width: int | None = None) -> list[Line]:
    """What was trained, what came of it, every inference candidate with its reason, and where the records lie.

    Args:
        result: A run's result.json.
        report: The run's page, if it was written.
        width: Columns to wrap at; None for whole lines. The path of the report is never broken.
    """
    found = read_optimization(result)
    lines = [*_title(result, width), *_facts([*_training(result), *_inference(found)], width)]
    if found is not None:
        lines += [EMPTY, *_candidates(found, width)]
    lines += _notes([*sequence(result, "notes"), *sequence(record(result, "optimize"), "notes")], width)
    where = f"report  {report}" if report else f"run  {text(result, 'run_dir')}"
    return [*lines, EMPTY, Line(units.plain(where), "bold")]


def optimize_lines(found: Mapping[str, Any], *, width: int | None = None) -> list[Line]:
    """What an optimization came to, with every candidate.

    Args:
        found: The "optimize" object of a result.json.
        width: Columns to wrap at; None for whole lines.
    """
    read = read_optimization({"optimize": found})
    if read is None:
        return []
    where = text(found, "artifact")
    saved = [EMPTY, Line(units.plain(f"artifact  {where}"), "bold")] if where else []
    facts = _facts(_inference(read), width)
    return [*facts, EMPTY, *_candidates(read, width), *_notes(sequence(found, "notes"), width), *saved]


def _notes(notes: Sequence[object], width: int | None) -> list[Line]:
    said = [note for note in notes if isinstance(note, str)]
    lines = [line for note in said for line in wrapped(f"! {note}", indent="  ", style="yellow", width=width)]
    return [EMPTY, *lines] if lines else []


def _title(result: Record, width: int | None) -> list[Line]:
    variant = text(result, "variant")
    name = text(result, "recipe") + (f" ({variant})" if variant else "")
    parameters = count(result, "num_parameters")
    facts = [units.counted(parameters, "parameter")] if parameters is not None else []
    facts += [f"seed {chosen}"] if (chosen := seed(result)) else []
    facts += [f"on {device}"] if (device := text(result, "device")) else []
    return wrapped(" · ".join([name or "run", *facts]), indent="  ", style="bold", width=width)


def _facts(rows: Sequence[Fact], width: int | None) -> list[Line]:
    return [line for row in rows for line in _fact(*row, width)]


def _fact(name: str, value: str, details: str, width: int | None) -> list[Line]:
    head = f"  {name:<11}{units.plain(value):<12}"
    head += "" if head.endswith(" ") else "  "
    return wrapped(head + details, indent=" " * len(head), width=width)


def _training(result: Record) -> list[Fact]:
    metrics, num_test = record(result, "metrics"), count(record(result, "data"), "num_test")
    seconds, epochs = amount(result, "train_seconds"), count(result, "epochs")
    accuracy, loss = number(metrics, "accuracy"), number(metrics, "loss")
    where = f"on {units.counted(num_test, 'test ' + sample_noun(result))}" if num_test else "on the test split"
    rows: list[Fact] = []
    if accuracy is not None:
        rows.append(("accuracy", units.percent(accuracy, num_test), where))
    if loss is not None:
        rows.append(("loss", units.significant(loss), where if accuracy is None else ""))
    if seconds is not None:
        speed, target = amount(result, "samples_per_second"), target_reached(result)
        details = [units.counted(epochs, "epoch")] if epochs is not None else []
        details += [units.rate(speed)] if speed is not None else []
        rows.append(("training", units.duration(seconds), ", ".join([*details, *([target] if target else [])])))
    rows += [fact for fact in (algorithm_fact(result), step_fact(result), tuning_fact(result)) if fact is not None]
    return rows


def _inference(found: Optimization | None) -> list[Fact]:
    if found is None:
        return []
    if found.kept_eager or found.speedup is None:
        return [("inference", "eager", "no backend was proven faster: plain PyTorch is kept")]
    value = units.factor(found.speedup, found.speedup_interval)
    interval = f" ({units.factor_range(*found.speedup_interval)})" if found.speedup_interval else ""
    if found.unsteady_range:
        value, interval = "unsteady", f" by {units.factor_range(*found.unsteady_range)} in single rounds"
    details = f"faster{interval} with {found.chosen}"
    if found.latency_ms_p50 is not None and found.eager_latency_ms_p50 is not None:
        latencies = (units.milliseconds(value) for value in (found.eager_latency_ms_p50, found.latency_ms_p50))
        details += f": {' → '.join(latencies)} ms"
        details += f", batch {found.batch_size:,.0f}" if found.batch_size else ""
    rows = [("inference", value, details)]
    if found.drop is not None:
        allowed = f" (at most {units.budget(found.max_drop)} allowed)" if found.max_drop is not None else ""
        rows.append(("", units.points(found.drop), f"accuracy drop{allowed}"))
    return rows


def _candidates(found: Optimization, width: int | None) -> list[Line]:
    """The table of candidates; where the window is too narrow for the intervals, without them."""
    head = ("  candidate", "ms p50", "speedup", "drop, points", "verdict")
    for with_interval in (True, False):
        rows = columns([head, *(_row(candidate, with_interval) for candidate in found.candidates)], "<><><")
        if width is None or max(map(len, rows)) <= width:
            break
    lines = [Line(rows[0], "dim")]
    for candidate, row in zip(found.candidates, rows[1:], strict=True):
        lines.append(Line(row, VERDICT_STYLES.get(candidate.verdict, "")))
        if candidate.reason and candidate.verdict != "chosen":
            lines += wrapped(f"    {candidate.reason}", indent="    ", style="dim", width=width)
    return lines


def _row(candidate: Candidate, with_interval: bool) -> tuple[str, ...]:
    name = candidate.name if len(candidate.name) <= LONGEST_NAME else candidate.name[: LONGEST_NAME - 1] + "…"
    latency = units.MISSING if candidate.latency_ms_p50 is None else units.milliseconds(candidate.latency_ms_p50)
    interval = None if candidate.name == "eager" else candidate.speedup_interval
    speedup = units.MISSING if candidate.speedup is None else units.factor(candidate.speedup, interval)
    if candidate.unsteady_range:
        speedup = "unsteady"
    elif interval and with_interval:
        speedup += f" ({units.factor_range(*interval).removesuffix('×')})"
    drop = units.MISSING if candidate.drop is None else units.bare_points(candidate.drop)
    return f"  {name}", latency, speedup, drop, candidate.verdict
