"""What evaluate and predict print: the numbers as the page has them, in columns."""

from __future__ import annotations

from typing import Any

import pytest

from upshift.reports.evaluated import evaluation_lines, prediction_line

EVALUATION: dict[str, Any] = {
    "split": "test",
    "num_samples": 1797,
    "metrics": {"loss": 0.09221, "accuracy": 0.98611, "top5_accuracy": 1.0, "calibration_error": 0.0519},
    "per_class": [
        {"label": "zero", "precision": 1.0, "recall": 0.9444, "f1": 0.9714, "support": 1000},
        {"label": "one\x1b[31m", "precision": None, "recall": 0.0, "f1": None, "support": 797},
    ],
}


def test_each_metric_has_its_unit_and_shares_their_interval() -> None:
    lines = [str(line) for line in evaluation_lines(EVALUATION)]
    assert lines[0] == "1,797 samples of the test split"
    assert [line.split() for line in lines[1:5]] == [
        ["accuracy", "98.6", "%", "(98.0–99.1", "%)"],
        ["accuracy,", "top", "5", "100", "%", "(99.8–100", "%)"],
        ["loss", "0.0922"],
        ["calibration", "error", "(ECE)", "5.19", "points"],
    ]


def test_classes_stand_in_columns_and_cannot_move_the_cursor() -> None:
    head, *rows = (str(line) for line in evaluation_lines(EVALUATION)[-3:])
    assert rows[0].split() == ["zero", "100", "%", "94.4", "%", "97.1", "%", "1,000"]
    assert rows[1].split() == ["one", "[31m", "–", "0", "%", "–", "797"]
    assert len(head) == len(rows[0]) == len(rows[1])


def test_a_prediction_is_one_line_with_the_likeliest_class_first() -> None:
    top = [{"label": "cat", "probability": 0.98319}, {"label": "dog\n", "probability": 0.0101}]
    assert str(prediction_line({"input": "a.png", "top": top})) == "a.png: cat 98.3 %  dog  1.0 %"


@pytest.mark.parametrize("value", [None, True, "text", [], {}, [1], -1, 10**400])
def test_values_of_unexpected_type_are_left_out(value: object) -> None:
    assert evaluation_lines(dict.fromkeys(EVALUATION, value))
    assert prediction_line({"input": value, "top": [{"label": value, "probability": value}]})
