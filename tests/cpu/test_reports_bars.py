"""Bars of steps: widths in proportion, round ticks, and a swatch for every part."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upshift.reports.bars import StepBar, named, round_ticks, step_bars
from upshift.reports.profile_facts import PARTS, parts_of
from upshift.reports.records import RunRecords
from upshift.reports.section_tuning import tuning
from upshift.tuning.breakdown import estimate_breakdown


def split(wait: float, step: float, *, looked_into: bool = True) -> dict[str, Any]:
    found = estimate_breakdown(wait, step, batch_size=64, overhead_share=0.25 if looked_into else None)
    return found.to_json() | {"looked_into": looked_into}


@given(st.floats(min_value=1e-7, max_value=1e4))
def test_ticks_are_round_few_and_within_the_scale(longest: float) -> None:
    times = [seconds for seconds, _ in round_ticks(longest)]
    apart = times[1] - times[0]
    mantissa = apart / 10.0 ** math.floor(math.log10(apart) + 1e-9)
    assert any(mantissa == pytest.approx(factor) for factor in (1, 2, 5))
    assert 3 <= len(times) <= 6 and times[-1] <= longest * (1 + 1e-6) and longest - times[-1] < apart * (1 + 1e-6)


@pytest.mark.parametrize(
    ("longest", "names"),
    [
        (0.044, ["0", "10 ms", "20 ms", "30 ms", "40 ms"]),
        (0.43, ["0", "0.1 s", "0.2 s", "0.3 s", "0.4 s"]),
        (2.3, ["0", "0.5 s", "1 s", "1.5 s", "2 s"]),
        (0.0000042, ["0", "1 µs", "2 µs", "3 µs", "4 µs"]),
    ],
)
def test_ticks_are_named_in_one_unit(longest: float, names: list[str]) -> None:
    assert [name.replace("\u00a0", " ") for _, name in round_ticks(longest)] == names


def test_steps_share_one_scale() -> None:
    long, short = (parts_of(split(0.0, seconds)) for seconds in (0.020, 0.010))
    drawn = step_bars([StepBar("Before", long), StepBar("After", short)])
    assert drawn is not None
    widths = [float(width) for width in re.findall(r"width: ([\d.]+)%", drawn)]
    assert widths == pytest.approx([75, 25, 37.5, 12.5])
    assert "Before: computing 75" in drawn and step_bars([]) is None


def test_every_part_has_a_filling_of_its_own() -> None:
    style = (Path(named.__code__.co_filename).parent / "page.css").read_text(encoding="utf-8")
    fillings = [re.search(rf"\.part\.{field} \{{(.*?)\}}", style, re.DOTALL) for field in [*PARTS, "untold"]]
    assert all(fillings) and len({filling.group(1) for filling in fillings if filling}) == len(PARTS) + 1


def report_of(tmp_path: Path, **account: Any) -> str:
    found = tuning(RunRecords(folder=tmp_path, result={"tuning": account, "plan": {"trials": []}}))
    assert found is not None
    return re.sub(r"<[^>]*>", "|", found).replace("\u00a0", " ")


def test_a_report_draws_the_step_before_and_after_tuning(tmp_path: Path) -> None:
    said = report_of(tmp_path, split=split(0.0, 0.020), last_split=split(0.0, 0.010))
    assert "Before tuning" in said and "After tuning" in said
    assert re.search(r"Computing\|+15 ms, 75 %\|+7\.5 ms, 75 %", said)


def test_a_report_says_whose_step_it_draws(tmp_path: Path) -> None:
    before, after = split(0.0, 0.020), split(0.0, 0.010)
    began, came_to = "the plan that training began with", "the plan that tuning came to"
    assert f"|A step of {began}.|" in report_of(tmp_path, split=before, last_split=None)
    assert f"|A step of {came_to}.|" in report_of(tmp_path, split=None, last_split=after)
    assert f"|A step of {began}, and of {came_to}.|" in report_of(tmp_path, split=before, last_split=after)


def test_a_step_that_nobody_looked_into_is_not_called_bound_by_anything(tmp_path: Path) -> None:
    said = report_of(tmp_path, split=split(0.0001, 0.0067, looked_into=False), last_split=None)
    assert "The step itself (not looked into)" in said and "Bound by" not in said and "After" not in said
    assert "100 µs, 1.5 %" in said


@pytest.mark.parametrize("nonsense", [None, 3, "x", [], {"seconds": "x"}, {"seconds": 1.0, "device_compute": -1}])
def test_a_split_that_makes_no_sense_is_left_out(tmp_path: Path, nonsense: Any) -> None:
    assert "Computing" not in report_of(tmp_path, split=nonsense, last_split=nonsense)
