"""The metrics of an evaluation as rows for people: their names, values and intervals."""

from __future__ import annotations

from dataclasses import dataclass

from upshift.core import units
from upshift.core.stats import wilson_interval
from upshift.reports.fields import Record, number

ORDER = ("accuracy", "top5_accuracy", "loss", "calibration_error")
TITLES = {"top5_accuracy": "Accuracy, top 5", "calibration_error": "Calibration error (ECE)"}


@dataclass(frozen=True)
class MetricRow:
    """One metric, written out; `interval` (95 %) is empty where none is known."""

    title: str
    value: str
    interval: str = ""


def metric_rows(metrics: Record, num_samples: int | None) -> list[MetricRow]:
    """Each metric that is a number, accuracy first.

    Args:
        metrics: Of a result or an evaluation.
        num_samples: That they were measured on; None if not known.
    """
    known = [name for name in ORDER if name in metrics] + sorted(set(metrics) - set(ORDER))
    return [_row(name, value, num_samples) for name in known if (value := number(metrics, name)) is not None]


def _row(name: str, value: float, num_samples: int | None) -> MetricRow:
    title = TITLES.get(name) or name.replace("_", " ").capitalize()
    if name.endswith("accuracy") and 0 <= value <= 1:
        return MetricRow(title, units.percent(value, num_samples), _interval(value, num_samples))
    return MetricRow(title, units.points(value) if name == "calibration_error" else units.significant(value))


def _interval(share: float, num_samples: int | None) -> str:
    if not num_samples:
        return ""
    interval = wilson_interval(share * num_samples, num_samples)
    return units.percent_range(interval.low, interval.high, num_samples)
