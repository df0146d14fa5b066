"""The options that all benchmarks share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

SHARED_DATA = Path("../shared/data")
"""Where the datasets lie beside a checkout; named by `--data-dir` or UPSHIFT_DATA_DIR elsewhere."""


def parser(description: str, *, rounds: int, needs_data: bool = True) -> argparse.ArgumentParser:
    """A parser with the common options.

    Args:
        description: What is claimed and measured.
        rounds: The default of `--rounds`.
        needs_data: Whether datasets are read.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--rounds", type=_positive, default=rounds, help="rounds, each with every contender once")
    made.add_argument("--quick", action="store_true", help="seconds instead of minutes: shows that it works, no more")
    made.add_argument(
        "--results",
        type=Path,
        help="folder for the result file [default: benchmarks/results; none is written with --quick]",
    )
    if needs_data:
        made.add_argument("--data-dir", type=Path, default=default_data_dir(), help="where mnist/ and cifar10/ lie")
    return made


def default_data_dir() -> Path | None:
    """UPSHIFT_DATA_DIR, else the shared data if they are there, else what upshift itself finds or downloads."""
    named = os.environ.get("UPSHIFT_DATA_DIR")
    if named:
        return Path(named)
    return SHARED_DATA if SHARED_DATA.is_dir() else None


def numbers(text: str) -> list[int]:
    """The value of an option such as "0,1,2"."""
    return [int(part) for part in text.split(",") if part.strip()]


def names(text: str) -> list[str]:
    """The value of an option such as "a,b"."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
