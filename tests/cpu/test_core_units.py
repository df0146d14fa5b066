"""Numbers for people: no digit more than was measured, and never a rounder claim than the truth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upshift.core import units


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0.0312, "31 ms"),
        (0.42, "0.42 s"),
        (6.13, "6.1 s"),
        (42.4, "42 s"),
        (59.7, "1 min"),
        (200, "3 min 20 s"),
        (4320, "1 h 12 min"),
        (3600, "1 h"),
    ],
)
def test_durations(seconds: float, written: str) -> None:
    assert units.duration(seconds).replace(units.SPACE, " ") == written


@pytest.mark.parametrize(
    ("share", "num_samples", "written"),
    [
        (0.9861, 360, "98.6 %"),
        (0.9861, 100, "99 %"),
        (0.98614, 10_000, "98.61 %"),
        (1.0, 360, "100 %"),
        (0.99999, 100, "99.999 %"),
        (0.0, 10, "0 %"),
        (0.00001, 10, "0.001 %"),
    ],
)
def test_percentages_have_the_decimals_that_the_samples_support(share: float, num_samples: int, written: str) -> None:
    assert units.percent(share, num_samples).replace(units.SPACE, " ") == written


@given(st.floats(0, 1, exclude_max=True))
def test_only_all_is_a_hundred_percent(share: float) -> None:
    assert share > 0.999999 or not units.percent(share).startswith("100")


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.000123, "0.000123"), (12.345, "12.3"), (4210.4, "4,210"), (0.0, "0"), (-0.5, "−0.500"), (1.25e-7, "1.25e-7")],
)
def test_significant_digits(value: float, written: str) -> None:
    assert units.significant(value) == written


def test_a_narrow_interval_of_speedups_is_told_apart() -> None:
    assert units.factor_range(3.91, 4.48) == "3.9–4.5×"
    assert units.factor_range(1.003, 1.021) == "1.00–1.02×"


def test_sizes() -> None:
    assert [units.size(value).replace(units.SPACE, " ") for value in (12, 1_400_000, 25_276_510_208)] == [
        "12 B",
        "1.3 MiB",
        "23.5 GiB",
    ]


def test_a_speedup_has_the_digits_of_its_interval() -> None:
    assert units.factor(4.21, (3.91, 4.48)) == "4.2×"
    assert units.factor(2.471, (2.45, 2.50)) == "2.47×"
    assert units.factor(1.0) == "1.0×"
    assert units.factor_range(0.9, float("inf")) == "0.90–∞×"


@given(st.floats(0, 1))
def test_a_bound_is_never_written_below_what_it_is(bound: float) -> None:
    written = float(units.bare_points(units.rounded_up(bound)))
    assert bound * 100 - 1e-6 <= written <= bound * 100 + 0.011


def test_a_budget_is_written_as_it_was_given() -> None:
    assert [units.plain(units.budget(share)) for share in (0.005, 0.007, 0.00125)] == [
        "0.5 points",
        "0.7 points",
        "0.125 points",
    ]


@given(st.text())
def test_plain_text_holds_nothing_that_a_terminal_obeys(text: str) -> None:
    assert units.plain(text).isprintable()
    assert len(units.plain(text)) == len(text)
