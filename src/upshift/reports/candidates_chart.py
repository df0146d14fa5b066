"""The chart of the inference candidates: speed and accuracy on two scales, a row each, with intervals."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from upshift.reports.candidates import Candidate
from upshift.reports.html import Html
from upshift.reports.svg import BLUE, GREEN, INK, MUTED, ORANGE, PAPER, RULE, draw

# In CSS pixels: names stand in a gutter of their own, where no line of a scale crosses them.
WIDTH, GUTTER, GAP, MARGIN = 400, 122, 22, 8
ROW, TOP, BOTTOM = 38, 18, 40
LONGEST_NAME = 17
DASHED = (0, (4, 3))
LONGEST_REACH = 1.6
"""Of an interval beyond the fastest candidate, as a multiple of its speedup: a longer one would squash all others."""


@dataclass(frozen=True)
class Look:
    """How a verdict is drawn: it differs in shape and fill, not by its colour alone."""

    colour: str
    face: str
    marker: str
    size: float


LOOKS = {
    "chosen": Look(GREEN, GREEN, "D", 8.5),
    "accepted": Look(BLUE, PAPER, "o", 7.5),
    "refused": Look(ORANGE, ORANGE, "X", 8.5),
}
OTHER_LOOK = Look(MUTED, MUTED, "s", 6.0)


def candidates_chart(candidates: Sequence[Candidate], max_drop: float | None) -> Html:
    """Speed and accuracy of the candidates that were timed.

    Args:
        candidates: At least one has a speedup.
        max_drop: The budget, a share.
    """
    shown = [candidate for candidate in candidates if candidate.speedup is not None]
    with_drop = any(candidate.drop is not None for candidate in shown)
    height = TOP + ROW * len(shown) + BOTTOM
    texts = {f"@{row}@": shortened(candidate.title, LONGEST_NAME) for row, candidate in enumerate(shown)}
    texts |= {f"@{row}v@": shortened(candidate.verdict, LONGEST_NAME) for row, candidate in enumerate(shown)}

    def paint(figure: Any) -> None:
        figure.set_layout_engine("none")  # rows must stand beside their names, whatever their labels measure
        _gutter(figure, shown, height)
        room = WIDTH - GUTTER - MARGIN
        width = (room - GAP) * 0.57 if with_drop else room
        _speedups(_panel(figure, shown, GUTTER, width, height), shown)
        if with_drop:
            panel = _panel(figure, shown, GUTTER + width + GAP, room - GAP - width, height)
            _drops(panel, shown, max_drop)

    description = "Speedup and accuracy drop of each candidate, as in the table below."
    return draw("candidates", WIDTH, height, paint, description=description, texts=texts)


def reach_beyond(candidates: Sequence[Candidate]) -> bool:
    """Whether the interval of a speedup goes on beyond the right edge of its scale."""
    shown = [candidate for candidate in candidates if candidate.speedup is not None]
    right = _right_edge(shown) if shown else 0.0
    return any(candidate.speedup_interval and candidate.speedup_interval[1] > right for candidate in shown)


def _right_edge(shown: Sequence[Candidate]) -> float:
    """Of the scale of speedups: all of them and their intervals, but those that reach far beyond the fastest."""
    fastest = max(candidate.speedup or 1.0 for candidate in shown)
    highest = max(high for c in shown for high in (c.speedup or 1.0, *(c.speedup_interval or ())))
    return float(max(1.25, min(highest * 1.08, fastest * LONGEST_REACH)))


def shortened(name: str, longest: int) -> str:
    """A name that takes at most so many columns, wide characters counted as two."""
    widths = [2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in name]
    if sum(widths) <= longest:
        return name
    kept = 0
    while sum(widths[: kept + 1]) < longest:
        kept += 1
    return name[:kept] + "…"


def _gutter(figure: Any, shown: Sequence[Candidate], height: float) -> None:
    """Names and verdicts, and a rule between rows that leads the eye to the marks."""
    from matplotlib.lines import Line2D

    for row, candidate in enumerate(shown):
        middle = 1 - (TOP + ROW * (row + 0.5)) / height
        figure.text(0, middle + 1 / height, f"@{row}@", color=INK, va="bottom")
        figure.text(0, middle - 1 / height, f"@{row}v@", color=_look(candidate).colour, va="top", fontsize=10.5)
        if row:
            edge = 1 - (TOP + ROW * row) / height
            figure.add_artist(Line2D([0, 1], [edge, edge], color=RULE, linewidth=0.7, transform=figure.transFigure))


def _panel(figure: Any, shown: Sequence[Candidate], left: float, width: float, height: float) -> Any:
    axes = figure.add_axes((left / WIDTH, BOTTOM / height, width / WIDTH, ROW * len(shown) / height))
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_yticks([])
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    return axes


def _speedups(axes: Any, shown: Sequence[Candidate]) -> None:
    axes.axvline(1, color=MUTED, linewidth=1, linestyle=DASHED)
    right = _right_edge(shown)
    for row, candidate in enumerate(shown):
        speedup = candidate.speedup or 1.0
        low, high = candidate.speedup_interval or (speedup, speedup)
        _mark(axes, row, speedup, (min(low, right), min(high, right)), _look(candidate))
        if high > right:
            axes.plot([right], [row], ">", color=_look(candidate).colour, markersize=6.5, clip_on=False)
    axes.set(xlim=(0, right), xlabel="speedup, ×")
    axes.locator_params(axis="x", nbins=5)


def _drops(axes: Any, shown: Sequence[Candidate], max_drop: float | None) -> None:
    axes.axvline(0, color=MUTED, linewidth=1, linestyle=DASHED)
    if max_drop is not None:
        axes.axvline(max_drop * 100, color=ORANGE, linewidth=1.4)
        axes.annotate(
            "budget", (max_drop * 100, 1), (0, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
            color=ORANGE, ha="center", va="bottom", annotation_clip=False,
        )  # fmt: skip
    for row, candidate in enumerate(shown):
        if candidate.drop is None:
            continue
        upper = candidate.drop if candidate.drop_upper is None else candidate.drop_upper
        faint = candidate.proven_by_round_off(max_drop)
        _mark(axes, row, candidate.drop * 100, (candidate.drop * 100, upper * 100), _look(candidate), faint=faint)
    axes.set_xlabel("drop, points")
    axes.locator_params(axis="x", nbins=4)
    axes.margins(x=0.12)


def _mark(axes: Any, row: int, value: float, span: tuple[float, float], look: Look, *, faint: bool = False) -> None:
    alpha = 0.3 if faint else 1.0
    axes.plot(span, [row, row], color=look.colour, linewidth=2, alpha=alpha)
    # Not cut where it stands at the end of a scale, as that of a speedup near 0 does.
    axes.plot(
        [value], [row], look.marker, color=look.colour, markersize=look.size, markerfacecolor=look.face, clip_on=False
    )


def _look(candidate: Candidate) -> Look:
    return LOOKS.get(candidate.verdict, OTHER_LOOK)
