"""The chart of candidates stays readable whatever an interval is."""

from __future__ import annotations

import re

import pytest

from upshift.reports.candidates import Candidate, read_optimization
from upshift.reports.candidates_chart import candidates_chart, reach_beyond


def candidates(*found: tuple[str, float, tuple[float, float]]) -> tuple[Candidate, ...]:
    listed = [
        {"name": name, "verdict": "accepted", "reason": "", "speedup": speedup, "speedup_interval": list(interval)}
        for name, speedup, interval in found
    ]
    read = read_optimization({"optimize": {"backend": "eager", "candidates": listed}})
    assert read is not None
    return tuple(read.candidates)


ORDINARY = (("eager", 1.0, (1.0, 1.0)), ("compile", 1.2, (1.1, 1.3)), ("onnxruntime", 3.0, (2.8, 3.2)))
WIDE = (*ORDINARY, ("openvino", 2.0, (0.5, 12_000.0)))


def ticks(chart: str) -> list[float]:
    return [float(text) for text in re.findall(r">([\d.]+)</text>", chart)]


def test_a_very_wide_interval_does_not_squash_the_others() -> None:
    chart = str(candidates_chart(candidates(*WIDE), None))
    assert max(ticks(chart)) <= 5 and 3 in ticks(chart)


def test_an_interval_that_goes_on_beyond_the_scale_is_said_to() -> None:
    assert reach_beyond(candidates(*WIDE)) and not reach_beyond(candidates(*ORDINARY))
    shapes = [str(candidates_chart(candidates(*found), None)).count("<use") for found in (ORDINARY, WIDE)]
    with_one_more = str(candidates_chart(candidates(*ORDINARY, ("openvino", 2.0, (1.9, 2.1))), None)).count("<use")
    assert shapes[1] == with_one_more + 1, "no arrow at the edge"


@pytest.mark.parametrize("speedup", [0.0003, 1.0])
def test_no_mark_is_cut_at_the_end_of_the_scale(speedup: float) -> None:
    chart = str(candidates_chart(candidates(*ORDINARY, ("slow", speedup, (speedup, speedup))), None))
    marks = re.findall(r"<g clip-path=[^>]*>\s*<use", chart)
    assert not marks
