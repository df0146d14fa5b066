"""The charts of the report: small, plainly labelled, readable without colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from upshift.core.stats import wilson_interval
from upshift.core.units import significant
from upshift.reports.curves import Curve, TrainingCurves
from upshift.reports.fields import Record, count, number
from upshift.reports.html import Html
from upshift.reports.svg import BLUE, MUTED, ORANGE, PAPER, draw

WIDTH, HEIGHT, LOW = 330, 232, 180
MARGINS = (30, 38)


def loss_chart(curves: TrainingCurves) -> Html:
    """Loss on the training split while training, and on the split that was evaluated."""
    values = [value for curve in (curves.loss, curves.eval_loss) for value in (*curve.low, *curve.high)]
    logarithmic = min(values) > 0 and max(values) > 20 * min(values)

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: significant(value, 1))
            axes.yaxis.set_minor_formatter("")
        _pair(axes, curves, curves.loss, curves.eval_loss)
        _finish(axes, curves, "loss (log scale)" if logarithmic else "loss")

    return draw(
        "loss", WIDTH, HEIGHT, paint, margins=MARGINS, description=_told("Loss", curves.loss, curves.eval_loss, curves)
    )


def accuracy_chart(curves: TrainingCurves) -> Html:
    """Accuracy on the training split while training, and on the split that was evaluated, in percent."""

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        _pair(axes, curves, _scaled(curves.accuracy, 100), _scaled(curves.eval_accuracy, 100))
        _finish(axes, curves, "accuracy, %")

    described = _told("Accuracy", curves.accuracy, curves.eval_accuracy, curves)
    return draw("accuracy", WIDTH, HEIGHT, paint, margins=MARGINS, description=described)


def learning_rate_chart(curves: TrainingCurves) -> Html:
    """The learning rate over the steps."""
    return _single("rate", curves, curves.learning_rate, "learning rate")


def throughput_chart(curves: TrainingCurves) -> Html:
    """Samples per second while training."""
    return _single("throughput", curves, curves.samples_per_second, "samples/s", height=LOW)


def calibration_chart(bins: Sequence[Record]) -> Html:
    """Accuracy against confidence, with the 95 % interval of each bin; the diagonal is perfect calibration."""
    points = []
    for item in bins:
        confidence, accuracy, amount = number(item, "confidence"), number(item, "accuracy"), count(item, "count")
        if confidence is not None and accuracy is not None and amount:
            sure = wilson_interval(accuracy * amount, amount)
            points.append((confidence * 100, accuracy * 100, sure.low * 100, sure.high * 100, amount))
    largest = max((point[4] for point in points), default=1)

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for confidence, accuracy, low, high, amount in points:
            axes.plot([confidence] * 2, [low, high], color=BLUE, linewidth=1.2, alpha=0.7)
            side = 4 + 7 * math.sqrt(amount / largest)
            axes.plot([confidence], [accuracy], "o", color=BLUE, markersize=side, markeredgecolor=PAPER)
        axes.set(xlim=(-2, 102), ylim=(-2, 102), xlabel="confidence, %", aspect="equal")
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.set_yticks([0, 25, 50, 75, 100])
        _y_name(axes, "accuracy, %")

    described = "Calibration. " + "; ".join(
        f"confidence {confidence:.0f} %: accuracy {accuracy:.0f} % of {amount}"
        for confidence, accuracy, _, _, amount in points
    )
    return draw("calibration", 310, 338, paint, margins=MARGINS, description=described)


def confusion_chart(matrix: Sequence[Sequence[int]]) -> Html:
    """A heat map for many classes: each row is a true class, each cell its share; mistakes are orange."""
    size = len(matrix)

    def paint(figure: Any) -> None:
        import numpy as np

        counts = np.asarray(matrix, dtype=np.float64)
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        pixels = np.zeros((size, size, 4))
        pixels[..., :3] = (0.86, 0.42, 0.08)
        pixels[np.eye(size, dtype=bool), :3] = (0.18, 0.52, 0.80)
        pixels[..., 3] = np.where(share > 0, 0.1 + 0.9 * share**0.4, 0)
        axes = figure.add_subplot()
        axes.grid(False)
        axes.imshow(pixels, extent=(-0.5, size - 0.5, size - 0.5, -0.5))
        axes.set_xlabel("predicted class number")
        axes.spines[["top", "right"]].set_visible(True)
        _y_name(axes, "true class number")

    described = f"Confusion matrix of {size} classes; the most frequent confusions are in the table beside it."
    return draw("confusion", 440, 440, paint, description=described)


def _single(name: str, curves: TrainingCurves, curve: Curve, what: str, *, height: float = HEIGHT) -> Html:
    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        _line(axes, curve, BLUE, band=False)
        axes.set_ylim(0, max(curve.mean) * 1.08 or 1)
        if max(curve.mean) >= 1000:
            axes.yaxis.set_major_formatter("{x:,.0f}")
        _finish(axes, curves, what)

    described = _told(what.capitalize(), curve, None, curves)
    return draw(name, WIDTH, height, paint, margins=MARGINS, description=described)


def _pair(axes: Any, curves: TrainingCurves, training: Curve, evaluated: Curve) -> None:
    if training:
        _line(axes, training, BLUE, label="training")
    if evaluated:
        axes.plot(
            evaluated.x,
            evaluated.mean,
            color=ORANGE,
            marker="o",
            markersize=5,
            markeredgecolor=PAPER,
            markevery=max(1, len(evaluated.x) // 10),
            label=curves.eval_split or "evaluated",
        )
    legend = axes.legend(loc="lower right", bbox_to_anchor=(1.02, 0.99), ncols=2, handlelength=1.3, columnspacing=1.2)
    legend.set_in_layout(False)


def _line(axes: Any, curve: Curve, colour: str, *, label: str | None = None, band: bool = True) -> None:
    if band and curve.points_per_bucket > 1:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    alone = len(curve.x) == 1
    axes.plot(curve.x, curve.mean, color=colour, marker="o" if alone else None, markersize=4.5, label=label)


def _finish(axes: Any, curves: TrainingCurves, what: str) -> None:
    if curves.resumed_at is not None:
        axes.axvline(curves.resumed_at, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    axes.set_xlabel(curves.x_name)
    axes.set_xlim(left=0)
    axes.xaxis.get_major_locator().set_params(nbins=6, integer=True)
    axes.spines["left"].set_visible(False)
    _y_name(axes, what)


def _y_name(axes: Any, what: str) -> None:
    """Name the y axis above it, where it is read without turning one's head."""
    name = axes.annotate(
        what, (0, 1), (-4, 9), xycoords="axes fraction", textcoords="offset points", color=MUTED, annotation_clip=False
    )
    name.set_in_layout(False)


def _scaled(curve: Curve, scale: float) -> Curve:
    low, mean, high = (tuple(scale * value for value in line) for line in (curve.low, curve.mean, curve.high))
    return Curve(curve.x, mean, low, high, curve.points_per_bucket)


def _told(what: str, curve: Curve, evaluated: Curve | None, curves: TrainingCurves) -> str:
    """The chart in words: where each line begins and ends."""
    parts = [f"{what} by {curves.x_name}"]
    for name, line in (("training", curve), (curves.eval_split or "evaluated", evaluated)):
        if line:
            parts.append(f"{name} from {significant(line.mean[0])} to {significant(line.mean[-1])}")
    return ": ".join([parts[0], "; ".join(parts[1:])]) + "."
