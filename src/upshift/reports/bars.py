"""Steps as stacked bars of their parts, on one scale of time; a swatch of a part looks as the part in the bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from upshift.core import units
from upshift.reports.html import Html, tag
from upshift.reports.profile_facts import Part, percent

MAX_TICKS = 5
LEAST_SHARE = 0.001
"""Of the scale: less is no line that anybody sees."""
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


@dataclass(frozen=True)
class StepBar:
    """A step to be drawn.

    Attributes:
        title: Stands above the bar; "" for none.
        parts: What it is made of, in order.
    """

    title: str
    parts: Sequence[Part]

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return sum(part.seconds for part in self.parts)


def step_bars(bars: Sequence[StepBar]) -> Html | None:
    """Steps one below the other on one scale of time; None where no step took any.

    They are boxes of the page, and no picture: they are as wide as there is room, and their letters stay as they are.
    """
    longest = max((bar.seconds for bar in bars), default=0.0)
    if not (0.0 < longest < math.inf):
        return None
    rows = [
        [
            tag("p", bar.title, class_="bar-title") if bar.title else None,
            tag(
                "div",
                [
                    tag("span", class_=f"part {part.field}", style=f"width: {100 * part.seconds / longest:.3f}%")
                    for part in bar.parts
                    if part.seconds > LEAST_SHARE * longest
                ],
                class_="bar",
            ),
        ]
        for bar in bars
    ]
    ticks = [tag("span", name, style=f"left: {100 * seconds / longest:.3f}%") for seconds, name in round_ticks(longest)]
    said = "; ".join(_described(bar) for bar in bars)
    return tag("div", rows, tag("div", ticks, class_="ticks"), class_="bars", role="img", aria_label=f"{said}.")


def _described(bar: StepBar) -> str:
    parts = ", ".join(f"{part.title} {percent(part.share)}" for part in bar.parts if part.share > LEAST_SHARE)
    return f"{bar.title or 'A step of training'}: {parts}"


def named(part: Part) -> Html:
    """The name of a part beside its swatch."""
    swatch = tag("span", class_=f"swatch part {part.field}", aria_hidden="true")
    return tag("span", swatch, tag("span", part.title[0].upper() + part.title[1:]), class_="named")


def round_ticks(longest: float) -> list[tuple[float, str]]:
    """Round times (1, 2 or 5 times a power of ten apart) from 0 to the longest that is drawn, each with its name."""
    power = 10.0 ** math.floor(math.log10(longest / MAX_TICKS))
    apart = next(factor * power for factor in (1, 2, 5, 10) if factor * power * MAX_TICKS >= longest * (1 - 1e-9))
    times = [number * apart for number in range(int(longest / apart * (1 + 1e-9)) + 1)]
    unit, name = next(((unit, name) for unit, name in UNITS if times[-1] >= 0.0995 * unit), UNITS[-1])
    return [
        (time, f"{units.setting(float(f'{time / unit:.6g}'))}{units.SPACE}{name}" if time else "0") for time in times
    ]
