"""The charts of a profile: the memory of a step, and what the loop waited for."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from upshift.core import units
from upshift.reports.fields import Record, amount, sequence
from upshift.reports.html import Html
from upshift.reports.svg import BLUE, GREEN, INK, MUTED, ORANGE, PAPER, draw

MAX_STEPS = 16
WIDTH = 400
PHASE_COLOURS = {"forward": BLUE, "backward": ORANGE, "optimizer": GREEN}


def memory_chart(memory: Record) -> Html | None:
    """Bytes that live over a step, operator by operator; None without a timeline."""
    points = [
        (str(point[0]), size / 2**20)
        for point in sequence(memory, "timeline")
        if isinstance(point, list | tuple) and len(point) == 2 and str(point[0]) in PHASE_COLOURS
        if (size := amount({"size": point[1]}, "size")) is not None
    ]
    if len(points) < 2:
        return None
    peak = max(size for _, size in points)

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        start = 0
        for phase, group in groupby(points, key=lambda point: point[0]):
            sizes = [size for _, size in group]
            # Each stretch reaches to the first point of the next, so that no gap is between them.
            after = points[start + len(sizes)][1] if start + len(sizes) < len(points) else sizes[-1]
            x, y = list(range(start, start + len(sizes) + 1)), [*sizes, after]
            colour = PHASE_COLOURS[phase]
            axes.fill_between(x, y, step="post", color=colour, alpha=0.25, linewidth=0)
            axes.step(x, y, where="post", color=colour)
            if len(sizes) > 0.12 * len(points):
                place = (start + len(sizes) / 2, 1.0)
                axes.annotate(
                    phase, place, (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                    ha="center", color=INK, annotation_clip=False,
                )  # fmt: skip
            start += len(sizes)
        axes.set(xlim=(0, len(points)), ylim=(0, peak * 1.08), xlabel="operators of a step, in order")
        axes.set_xticks([])
        axes.spines["left"].set_visible(False)
        axes.yaxis.set_major_formatter(lambda value, _: units.significant(value, 2))
        axes.annotate(
            "MiB", (0, 1), (-4, 9), xycoords="axes fraction", textcoords="offset points", color=MUTED,
            ha="right", annotation_clip=False,
        ).set_in_layout(False)  # fmt: skip

    described = f"Memory over a step, at most {units.size(int(peak * 2**20))}."
    return draw("memory", WIDTH, 210, paint, margins=(30, 30), description=described)


def _times(timeline: Record, key: str) -> list[float]:
    known = (amount({"seconds": value}, "seconds") for value in sequence(timeline, key))
    return [seconds for seconds in known if seconds is not None]


def timeline_chart(timeline: Record) -> Html | None:
    """The first steps on a scale of time: when the loop waited for data, and when it trained; None without times."""
    data, steps, starts = (_times(timeline, key) for key in ("data", "step", "starts"))
    number = min(len(data), len(steps), len(starts), MAX_STEPS)
    if number < 2:
        return None
    unit, name = (1e3, "ms") if starts[number - 1] < 10 else (1.0, "s")

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        waits = [(starts[index] * unit, data[index] * unit) for index in range(number)]
        works = [((starts[index] + data[index]) * unit, steps[index] * unit) for index in range(number)]
        axes.broken_barh(waits, (1.1, 0.7), color=GREEN, linewidth=0)
        axes.broken_barh(works, (0.1, 0.7), color=BLUE, edgecolor=PAPER, linewidth=0.8)
        axes.set_yticks([1.45, 0.45])
        axes.set_yticklabels(["waiting for data", "training"])
        axes.set(xlim=(0, works[-1][0] + works[-1][1]), ylim=(0, 1.9), xlabel=f"{name} since the first of them")
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)

    waited, worked = sum(data[:number]), sum(steps[:number])
    described = (
        f"{number} steps: {units.duration(waited)} of waiting for data and {units.duration(worked)} of training."
    )
    return draw("timeline", WIDTH, 120, paint, description=described)
