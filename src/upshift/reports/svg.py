"""Matplotlib figures as inline SVG that takes its colours from the page and asks for nothing from anywhere.

The one file that imports matplotlib.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from upshift.reports.html import Html, escape

# Colours that matplotlib draws with, and the style sheet's variable that each becomes.
INK, MUTED, RULE = "#a10001", "#a10002", "#a10003"
BLUE, ORANGE, GREEN = "#a10004", "#a10005", "#a10006"
PAPER = "#a10007"
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    PAPER: "var(--paper)",
}

PIXELS_PER_INCH = 72  # an SVG of matplotlib's counts in points; the page shows one as a CSS pixel

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.facecolor": "none",
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11.5,
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 6,
    "ytick.major.pad": 6,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 11.5,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "path.simplify": True,
    "image.interpolation": "none",
}


@contextlib.contextmanager
def plain_style(name: str) -> Iterator[None]:
    """Matplotlib's own defaults and the page's style for a while, whatever a user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**STYLE, "svg.hashsalt": name})
        yield


def draw(
    name: str,
    width: float,
    height: float,
    paint: Callable[[Any], None],
    *,
    description: str,
    margins: tuple[float, float] | None = None,
    texts: Mapping[str, str] | None = None,
) -> Html:
    """An inline SVG of a figure.

    Args:
        name: Unique on the page; letters only. The prefix of the ids inside.
        width: In CSS pixels, where the chart is shown at its natural size.
        height: Likewise.
        paint: Draws on the empty `matplotlib.figure.Figure` that it is given.
        description: What a person who does not see the chart is told.
        margins: Pixels above and below the axes, so that charts side by side align; None leaves it to matplotlib.
        texts: Placeholder words that `paint` wrote, to the text that stands there in the end: matplotlib
            never measures somebody else's names, which may hold any character.
    """
    with plain_style(name):
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width / PIXELS_PER_INCH, height / PIXELS_PER_INCH), layout="constrained")
        figure.patch.set_visible(False)
        paint(figure)
        if margins is not None:
            _set_margins(figure, margins[0] / height, margins[1] / height)
        stream = io.StringIO()
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
    return _inline(stream.getvalue(), name, width, description, texts or {})


def _set_margins(figure: Any, top: float, bottom: float) -> None:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        box = axes.get_position()
        axes.set_position((box.x0, bottom, box.width, 1 - top - bottom))


def _inline(document: str, name: str, width: float, description: str, texts: Mapping[str, str]) -> Html:
    """Turn a standalone SVG document into an element that can share a page with others of its kind."""
    view_box = re.search(r'viewBox="([^"]*)"', document)
    body = document[document.index(">", document.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style\b.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    referenced = set(re.findall(r'(?:url\(#|href="#)([^")]+)', body))
    body = re.sub(
        r' id="([^"]+)"', lambda match: f' id="{name}-{match.group(1)}"' if match.group(1) in referenced else "", body
    )
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r"font: (?:[a-z0-9]+ )*([\d.]+px) [^;\"]*", r"font-size: \1", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r' transform="rotate\(-?0 [^"]*"|<g/>', "", body)
    body = re.sub(r' (?:d|x|y|points)="[^"]*"', _shorter, body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, variable)
    for placeholder, text in texts.items():
        body = body.replace(f">{placeholder}<", f">{escape(text)}<")
    opening = (
        f'<svg class="chart" role="img" aria-label="{escape(description)}" style="max-width: {width * 1.25:.0f}px"'
        f' viewBox="{view_box.group(1) if view_box else ""}">'
    )
    return Html(opening + re.sub(r"\s*\n\s*", "\n", body).strip())


def _shorter(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a pixel, a path's segments on one line."""
    rounded = re.sub(r"\d+\.\d{3,}", lambda match: f"{float(match.group()):.2f}", attribute.group())
    return re.sub(r"\s*\n", " ", rounded)
