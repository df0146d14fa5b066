"""The terminal summary: everything that counts in the window, whole lines elsewhere, safe to print."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from upshift.core.units import plain
from upshift.reports.headline import sentence
from upshift.reports.summary import summary_lines

RESULT: dict[str, Any] = {
    "version": 1,
    "recipe": "digits",
    "variant": "fast",
    "seed": 0,
    "num_parameters": 94_186,
    "epochs": 20,
    "train_seconds": 6.1,
    "time_to_target_seconds": 5.0,
    "target": {"accuracy": 0.98},
    "samples_per_second": 4210.0,
    "metrics": {"accuracy": 0.9861, "loss": 0.0512},
    "data": {"kind": "image", "num_test": 360},
    "notes": ["out of memory once: micro-batches of 32 instead of 64, the effective batch stayed " + "as it was " * 9],
    "run_dir": "runs/digits",
    "optimize": {
        "backend": "openvino",
        "latency_ms_p50": 0.2113,
        "eager_latency_ms_p50": 0.8874,
        "speedup": 4.2,
        "speedup_interval": [3.91, 4.48],
        "accuracy_drop": 0.0,
        "max_drop": 0.005,
        "batch_size": 1,
        "candidates": [
            {"name": "eager", "verdict": "accepted", "reason": "the reference", "speedup": 1.0, "latency_ms_p50": 0.9},
            {"name": "openvino-int8", "verdict": "refused", "reason": "drop not proven: " + "why " * 60},
            {
                "name": "openvino",
                "verdict": "chosen",
                "reason": "the fastest proven",
                "speedup": 4.2,
                "speedup_interval": [3.91, 4.48],
            },
        ],
    },
}


def printed(result: dict[str, Any], *, width: int | None = None) -> str:
    return "\n".join(str(line) for line in summary_lines(result, width=width))


def test_the_summary_says_what_was_trained_and_what_came_of_it() -> None:
    text = printed(RESULT)
    words = " ".join(text.split())
    for said in ("digits (fast)", "94,186 parameters", "98.6 %", "6.1 s", "accuracy 0.98 reached after 5.0 s", "4.2×"):
        assert said in words
    assert "3.9–4.5×" in text
    assert "0.887 → 0.211 ms" in text
    assert text.endswith("run  runs/digits")
    with_page = summary_lines(RESULT, report=Path("runs/digits/report.html"))
    assert str(with_page[-1]) == "report  runs/digits/report.html"


def test_the_chosen_candidate_comes_first_and_refusals_have_their_reason() -> None:
    lines = printed(RESULT).splitlines()
    table = [line.split()[0] for line in lines if line.endswith(("chosen", "accepted", "refused", "failed"))]
    assert table == ["openvino", "eager", "openvino-int8"]
    assert any("drop not proven" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80, 132])
def test_no_line_is_wider_than_the_window(width: int) -> None:
    assert max(len(str(line)) for line in summary_lines(RESULT, width=width)) <= width
    assert max(len(str(line)) for line in summary_lines({**RESULT, "recipe": "name" * 40}, width=width)) <= width


def test_a_narrow_window_loses_intervals_and_no_verdict() -> None:
    narrow, wide = (printed(RESULT, width=width) for width in (60, 80))
    row = next(line for line in narrow.splitlines() if line.startswith("  openvino "))
    assert row.split()[-1] == "chosen" and "4.2×" in row
    assert wide.count("(3.9–4.5") == narrow.count("(3.9–4.5") + 1


def test_where_no_window_is_each_note_and_reason_is_one_line() -> None:
    lines = printed(RESULT).splitlines()
    assert f"! {RESULT['notes'][0]}".rstrip() in lines
    assert any(line.strip() == RESULT["optimize"]["candidates"][1]["reason"].strip() for line in lines)


def test_a_run_that_was_not_optimized_has_no_table() -> None:
    text = printed({**RESULT, "optimize": None})
    assert "candidate" not in text
    assert "inference" not in text


def test_names_cannot_move_the_cursor_or_set_colours() -> None:
    text = printed({**RESULT, "recipe": "a\x1b[31mred\r\nb", "notes": ["\x1b]0;title\x07"]})
    assert "\x1b" not in text
    assert "\r" not in text
    assert "\x07" not in text


def test_rich_prints_the_same_words_and_reads_no_markup_in_names() -> None:
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=False)
    lines = summary_lines({**RESULT, "recipe": "[red]digits[/red]"}, width=80)
    for line in lines:
        console.print(line)
    assert stream.getvalue().rstrip("\n").splitlines() == [str(line) for line in lines]


@pytest.mark.parametrize("value", [None, True, "text", [], {}, [1], -1, 10**400])
def test_values_of_unexpected_type_are_left_out(value: object) -> None:
    assert summary_lines(dict.fromkeys(RESULT, value))


def test_a_speedup_of_rounds_that_disagree_is_no_headline() -> None:
    optimize = RESULT["optimize"]
    chosen = optimize["candidates"][-1] | {"speedup": 460.0, "speedup_interval": [330.0, 12000.0]}
    figures = {"speedup": 460.0, "speedup_interval": [330.0, 12000.0], "unsteady_range": [8.1, 12000.0]}
    found = optimize | figures | {"candidates": [optimize["candidates"][0], chosen | {"unsteady_range": [8.1, 12000]}]}
    text = " ".join(printed(RESULT | {"optimize": found}).split())
    assert "inference unsteady faster by 8.1–12,000× in single rounds with openvino" in text
    said = plain(sentence(RESULT | {"optimize": found}))
    assert "inference faster by an unknown factor (timing was unsteady: 8.1–12,000× in single rounds)" in said
    assert "460" not in text + said
