"""Lines of text for a terminal or a file: plain, in columns, wrapped only where somebody reads them in a window."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from upshift.core.units import plain

WIDEST = 100
"""Columns beyond which a line of prose is tiring to read."""


@dataclass(frozen=True)
class Line:
    """A line to print: `str(line)` is plain text; rich prints it in its style.

    Attributes:
        text: Without markup.
        style: A style of rich; empty for the terminal's own.
    """

    text: str
    style: str = ""

    def __str__(self) -> str:
        return self.text

    def __rich__(self) -> Any:
        from rich.text import Text

        return Text(self.text, style=self.style)


EMPTY = Line("")


def wrapped(text: str, *, indent: str = "", style: str = "", width: int | None = None) -> list[Line]:
    """A line of prose as one line, or as several that fit a window.

    Args:
        text: Control characters in it, which could move the cursor, become spaces.
        indent: Of the lines after the first.
        style: Of all of them.
        width: Columns of the window; None for a file or a program, which want the line whole.
    """
    text = plain(text).rstrip()
    if width is None:
        return [Line(text, style)]
    pieces = textwrap.wrap(text, max(min(width, WIDEST), len(indent) + 20), subsequent_indent=indent) or [""]
    return [Line(piece, style) for piece in pieces]


def columns(rows: Sequence[Sequence[str]], align: str, *, gap: str = "  ") -> list[str]:
    """Rows of cells with each column as wide as its widest cell.

    Args:
        rows: All of the same length.
        align: "<" or ">" for each column.
        gap: Between columns.
    """
    rows = [[plain(cell) for cell in row] for row in rows]
    widths = [max(len(row[index]) for row in rows) for index in range(len(align))]
    lines = []
    for row in rows:
        cells = (f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True))
        lines.append(gap.join(cells).rstrip())
    return lines
