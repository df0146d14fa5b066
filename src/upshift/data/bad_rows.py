"""Rows that cannot be used: collected by kind, then refused together or left out and reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from upshift.errors import DataError

MAX_NAMED_ROWS = 10


@dataclass
class _Kind:
    count: int = 0
    named: list[str] = field(default_factory=list)
    hint: str = ""


class BadRows:
    """The bad rows of one split."""

    def __init__(self, split: str, row_name: Callable[[int], str]) -> None:
        self.split = split
        self._row_name = row_name
        self._kinds: dict[str, _Kind] = {}
        self._rows: set[int] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, row: int) -> bool:
        return row in self._rows

    def add(self, row: int, kind: str, *, detail: str = "", hint: str = "") -> None:
        """Note that a row cannot be used. A row counts once, under the first kind found."""
        if row in self._rows:
            return
        self._rows.add(row)
        entry = self._kinds.setdefault(kind, _Kind())
        entry.count += 1
        entry.hint = entry.hint or hint
        if len(entry.named) < MAX_NAMED_ROWS:
            entry.named.append(f"{self._row_name(row)} ({detail})" if detail else self._row_name(row))

    def __str__(self) -> str:
        parts = []
        for kind, entry in self._kinds.items():
            more = ", …" if entry.count > len(entry.named) else ""
            parts.append(f"{entry.count} × {kind}: {', '.join(entry.named)}{more}")
        return f"{self.split}: " + "; ".join(parts)

    def hints(self) -> list[str]:
        """What would make the rows usable, where that is known."""
        return [entry.hint for entry in self._kinds.values() if entry.hint]


def refuse(bad_rows: list[BadRows], source: str) -> None:
    """Refuse a dataset with bad rows.

    Raises:
        DataError: There is a bad row; all kinds are counted and the first rows of each named.
    """
    found = [bad for bad in bad_rows if len(bad)]
    if not found:
        return
    hints = list(dict.fromkeys(hint for bad in found for hint in bad.hints()))
    total = sum(len(bad) for bad in found)
    raise DataError(
        f"every row of {source} must be usable",
        received=f"{total} bad row{'s' if total > 1 else ''} in " + " | ".join(map(str, found)),
        hint="; or ".join([*hints, "--skip-bad leaves such rows out"]),
    )
