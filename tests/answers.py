"""What a command of the command line came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What a command came to."""

    code: int
    out: str
    err: str
