"""Reading fields of records that may be missing, null, or of another type than expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Record: TypeAlias = Mapping[str, Any]
LARGEST = 1e100


def number(record: Record, key: str) -> float | None:
    """A finite number, or None (also for one so large that it cannot be a measurement)."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST else None  # false for NaN


def amount(record: Record, key: str) -> float | None:
    """A number that cannot be negative (a time, a rate), or None."""
    value = number(record, key)
    return value if value is not None and value >= 0 else None


def count(record: Record, key: str) -> int | None:
    """A whole number of things, or None."""
    value = amount(record, key)
    return int(value) if value is not None else None


def text(record: Record, key: str) -> str:
    """A string; empty where there is none."""
    value = record.get(key)
    return value if isinstance(value, str) else ""


def seed(result: Record) -> str:
    """The seed of a run, exactly; empty where there is none."""
    value = result.get("seed")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64 else ""


def record(parent: Record, key: str) -> Record:
    """A nested object; empty where there is none."""
    value = parent.get(key)
    return value if isinstance(value, Mapping) else {}


def records(parent: Record, key: str) -> list[Record]:
    """The objects of a nested list; empty where there is none."""
    return [item for item in sequence(parent, key) if isinstance(item, Mapping)]


def sequence(parent: Record, key: str) -> list[Any]:
    """A nested list; empty where there is none."""
    value = parent.get(key)
    return list(value) if isinstance(value, list | tuple) else []


def interval(parent: Record, key: str) -> tuple[float, float] | None:
    """A [low, high] pair of finite numbers, or None."""
    pair = dict(enumerate(sequence(parent, key)))
    low, high = number({"": pair.get(0)}, ""), number({"": pair.get(1)}, "")
    return (low, high) if low is not None and high is not None and len(pair) == 2 else None
