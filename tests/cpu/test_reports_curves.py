"""Curves: thinning loses no extreme and no mass; a resumed run's repeated steps count once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upshift.core.records import RunFolder
from upshift.reports.curves import thin, training_curves
from upshift.reports.records import RunRecords, load_records

FINITE = st.floats(-1e6, 1e6)


@given(st.lists(FINITE, max_size=400), st.integers(1, 50))
def test_thinning_keeps_the_extremes_and_the_length(values: list[float], max_points: int) -> None:
    curve = thin(list(enumerate(values)), max_points)
    assert len(curve.x) <= max_points
    assert bool(curve) == bool(values)
    if values:
        assert max(curve.high) == max(values)
        assert min(curve.low) == min(values)
        assert all(
            low - 1e-6 <= mean <= high + 1e-6 for low, mean, high in zip(curve.low, curve.mean, curve.high, strict=True)
        )
    assert list(curve.x) == sorted(curve.x)


def test_a_short_series_is_drawn_as_it_is() -> None:
    curve = thin([(1.0, 3.0), (2.0, math.nan), (3.0, 1.0)])
    assert (curve.x, curve.mean, curve.points_per_bucket) == ((1.0, 3.0), (3.0, 1.0), 1)


def test_throughput_is_averaged_over_time_not_over_lines() -> None:
    lines = tuple({"step": step, "samples_per_second": rate} for step, rate in enumerate([100.0, 300.0] * 40))
    curve = training_curves(RunRecords(Path(), {}, metrics=lines)).samples_per_second
    assert curve.points_per_bucket == 2
    assert curve.mean == pytest.approx([150.0] * 40)


def test_steps_are_drawn_in_epochs_where_there_are_several() -> None:
    lines = tuple({"step": step, "loss": 1.0} for step in (10, 20, 30))
    curves = training_curves(RunRecords(Path(), {"steps": 30, "epochs": 3, "resumed_from_step": 20}, metrics=lines))
    assert (curves.x_name, curves.loss.x, curves.resumed_at) == ("epoch", (1.0, 2.0, 3.0), 2.0)
    assert training_curves(RunRecords(Path(), {"steps": 30, "epochs": 1}, metrics=lines)).x_name == "step"


def test_the_last_line_of_a_repeated_step_counts(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    (tmp_path / "result.json").write_text('{"version": 1, "recipe": "any", "data": {}, "metrics": {}}')
    lines = [{"step": step, "loss": loss} for step, loss in ((1, 9.0), (2, 8.0), (3, 7.0), (2, 6.0), (3, 5.0))]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert training_curves(load_records(RunFolder(tmp_path))).loss.mean == (9.0, 6.0, 5.0)
