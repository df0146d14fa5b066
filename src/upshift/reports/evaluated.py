"""What `evaluate` and `predict` found, as lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from upshift.core import units
from upshift.reports.fields import count, number, record, records, text
from upshift.reports.lines import EMPTY, Line, columns
from upshift.reports.metrics import metric_rows


def evaluation_lines(evaluation: Mapping[str, Any]) -> list[Line]:
    """The metrics with their intervals, and each class.

    Args:
        evaluation: The content of an evaluation.json.
    """
    num_samples, split = count(evaluation, "num_samples"), text(evaluation, "split")
    metrics = metric_rows(record(evaluation, "metrics"), num_samples)
    written = [(f"  {row.title[:1].lower()}{row.title[1:]}", row.value, _interval(row.interval)) for row in metrics]
    lines = [Line(units.plain(f"{units.counted(num_samples or 0, 'sample')} of the {split} split"), "bold")]
    lines += [Line(row) for row in columns(written, "<><")] if written else []
    classes = records(evaluation, "per_class")
    if not classes:
        return lines
    supports = [count(item, "support") or 0 for item in classes]
    largest = max(supports)
    rows = [["  class", "precision", "recall", "F1", "samples"]]
    for item, support in zip(classes, supports, strict=True):
        shares = (number(item, key) for key in ("precision", "recall", "f1"))
        cells = (units.MISSING if share is None else units.percent(share, largest or None) for share in shares)
        rows.append([f"  {text(item, 'label')}", *cells, f"{support:,}"])
    head, *body = columns(rows, "<>>>>")
    return [*lines, EMPTY, Line(head, "dim"), *(Line(row) for row in body)]


def prediction_line(prediction: Mapping[str, Any]) -> Line:
    """What an input was taken for, the likeliest class first.

    Args:
        prediction: One of those that `predict` returns.
    """
    classes = (
        f"{text(item, 'label')} {units.percent(number(item, 'probability') or 0.0)}"
        for item in records(prediction, "top")
    )
    return Line(units.plain(f"{text(prediction, 'input')}: {'  '.join(classes)}"))


def _interval(written: str) -> str:
    return f"({written})" if written else ""
