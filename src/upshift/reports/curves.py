"""Curves from metrics.jsonl, thinned so that no extreme is lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from upshift.reports.fields import Record, count, number, text
from upshift.reports.records import RunRecords

MAX_POINTS = 160
"""Points of a drawn line: about one for two pixels of its chart."""

MAX_RATES = 40
"""Points of the throughput's line: single steps vary too much to be told apart."""


@dataclass(frozen=True)
class Curve:
    """A line to draw: the mean of each bucket of neighbouring points, and their smallest and largest value."""

    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    points_per_bucket: int = 1

    def __bool__(self) -> bool:
        return bool(self.x)


@dataclass(frozen=True)
class TrainingCurves:
    """All that is drawn of the training; a curve without points is empty.

    Attributes:
        x_name: "epoch", or "step" where the run is too short to count in epochs.
        eval_split: The split that was evaluated while training; empty if none was.
        resumed_at: Where on the x axis the run was resumed from a checkpoint.
    """

    x_name: str
    loss: Curve
    accuracy: Curve
    learning_rate: Curve
    samples_per_second: Curve
    eval_loss: Curve
    eval_accuracy: Curve
    eval_split: str
    resumed_at: float | None

    @property
    def points_per_bucket(self) -> int:
        """Logged lines behind one drawn point."""
        return max(self.loss.points_per_bucket, self.accuracy.points_per_bucket)


def thin(points: Sequence[tuple[float, float]], max_points: int = MAX_POINTS) -> Curve:
    """Thin a series to at most `max_points` buckets of equal count, keeping the mean and the range of each."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    per_bucket = max(1, math.ceil(len(finite) / max_points))
    buckets = [finite[start : start + per_bucket] for start in range(0, len(finite), per_bucket)]
    return Curve(
        x=tuple(math.fsum(x for x, _ in bucket) / len(bucket) for bucket in buckets),
        mean=tuple(math.fsum(y for _, y in bucket) / len(bucket) for bucket in buckets),
        low=tuple(min(y for _, y in bucket) for bucket in buckets),
        high=tuple(max(y for _, y in bucket) for bucket in buckets),
        points_per_bucket=per_bucket,
    )


def training_curves(run: RunRecords) -> TrainingCurves:
    """The curves of a run."""
    steps, epochs = count(run.result, "steps"), count(run.result, "epochs")
    in_epochs = bool(steps and epochs and epochs > 1)
    scale = steps / epochs if in_epochs and steps and epochs else 1.0
    resumed = count(run.result, "resumed_from_step")

    def series_points(key: str) -> list[tuple[float, float]]:
        return [
            (float(line["step"]) / scale, value) for line in run.metrics if (value := number(line, key)) is not None
        ]

    def series(key: str) -> Curve:
        return thin(series_points(key))

    return TrainingCurves(
        x_name="epoch" if in_epochs else "step",
        loss=series("loss"),
        accuracy=series("accuracy"),
        learning_rate=series("learning_rate"),
        samples_per_second=_rates(series_points("samples_per_second")),
        eval_loss=series("eval_loss"),
        eval_accuracy=series("eval_accuracy"),
        eval_split=_eval_split(run.metrics),
        resumed_at=resumed / scale if resumed else None,
    )


def _rates(points: Sequence[tuple[float, float]]) -> Curve:
    """Thin a series of rates, each over equally many samples: their mean is the harmonic one."""
    spans = thin([(x, 1 / rate) for x, rate in points if rate > 0], MAX_RATES)
    mean, low, high = (tuple(1 / span for span in line) for line in (spans.mean, spans.high, spans.low))
    return Curve(spans.x, mean, low, high, spans.points_per_bucket)


def _eval_split(metrics: Sequence[Record]) -> str:
    return next((split for line in reversed(metrics) if (split := text(line, "eval_split"))), "")
