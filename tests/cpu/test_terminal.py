"""Progress on the terminal: the essentials fit, and what cannot redraw gets plain lines."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upshift.terminal import Terminal, progress_line, training_figures

RECORD: dict[str, Any] = {
    "step": 276,
    "epoch": 11,
    "loss": 0.32391,
    "accuracy": 0.99831,
    "eval_split": "test",
    "eval_accuracy": 0.98611,
    "samples_per_second": 13_303.0,
}
FIGURES = training_figures(RECORD)

TRAINING = """
import json, sys, time
from upshift.terminal import Terminal
terminal = Terminal(quiet="quiet" in sys.argv)
terminal.on_start(steps_per_epoch=23, epochs=12, total_steps=276, step=0)
for step in (1, 2, 250, 260, 276):
    terminal.on_progress(step=step, epoch=(step - 1) // 23, batch=0)
    time.sleep(0.45)
    if step == 250:
        terminal.on_record({record} | {"step": 250, "epoch": 10})
        terminal.on_note("rows were left out " + "and more " * 30 + "END")
terminal.on_record({record})
terminal.on_end()
""".replace("{record}", repr(RECORD))


def on_terminal(columns: int, *arguments: str, term: str = "xterm-256color") -> str:
    """What a terminal of so many columns receives from the training above."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-c", TRAINING, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment | {"TERM": term, "PYTHONIOENCODING": "utf-8"},
    ):
        os.close(theirs)
        received = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other side has closed
                break
            if not piece:
                break
            received += piece
    os.close(ours)
    return received.decode()


def frames(received: str) -> list[str]:
    """Each state of the redrawn line, without colours."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", received)
    return [line for line in re.split(r"[\r\n]+", plain) if re.match(r"epoch \d", line)]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_line_on_a_terminal_has_the_essentials_and_is_never_cut(columns: int) -> None:
    received = on_terminal(columns)
    assert "\x1b[" in received
    drawn = frames(received)
    assert all(len(line) <= columns for line in drawn)
    middle = next(line for line in drawn if "260/276" in line)
    for essential in (r"epoch 12/12", r"\d:\d\d left", r"loss 0\.324", r"test 98\.6 %"):
        assert re.search(essential, middle), middle
    if columns >= 80:
        assert re.search(r"━+╌*  260/276", middle) and "13,300/s" in middle.replace(" samples", "")


def test_a_terminal_that_cannot_redraw_gets_plain_lines() -> None:
    received = on_terminal(80, term="dumb")
    assert "\x1b" not in received and "╌" not in received
    lines = received.replace("\r\n", "\n").splitlines()
    assert lines[0] == "training: 12 epochs of 23 steps"
    assert lines[-1].startswith("epoch 12/12  step 276/276  loss 0.324  accuracy 99.8 %  test 98.6 %  13,300 samples/s")


@pytest.mark.parametrize("colour", [{}, {"FORCE_COLOR": "1"}])
def test_in_a_file_each_note_is_one_line_and_nothing_moves_the_cursor(tmp_path: Path, colour: dict[str, str]) -> None:
    with (tmp_path / "log").open("wb") as log:
        subprocess.run([sys.executable, "-c", TRAINING], stderr=log, env=os.environ | colour, check=True)
    text = re.sub(r"\x1b\[[0-9;]*m", "", (tmp_path / "log").read_text())
    assert "\x1b" not in text and "\r" not in text
    assert len([line for line in text.splitlines() if line.startswith("warning: ") and line.endswith("END")]) == 1
    assert len(text.splitlines()) == 3


def test_quiet_says_nothing() -> None:
    assert on_terminal(80, "quiet") == ""


@given(
    what=st.sampled_from(["epoch 3/20", "epoch 12,765/1,000,000", "packing " + "long-name" * 9]),
    total=st.integers(1, 10**12),
    share=st.floats(0, 1),
    width=st.integers(20, 240),
    left=st.none() | st.floats(0, 1e7),
    figures=st.sampled_from([{}, FIGURES, {"loss": "loss not finite"}]),
)
def test_no_line_is_wider_than_asked_and_wider_ones_say_no_less(
    what: str, total: int, share: float, width: int, left: float | None, figures: dict[str, str]
) -> None:
    done = int(total * share)
    line = progress_line(what, done, total, width, left=left, figures=figures)
    wider = progress_line(what, done, total, width + 40, left=left, figures=figures)
    assert len(line) <= width
    assert len(wider) >= len(line)


def test_a_step_whose_loss_was_not_finite_says_so() -> None:
    assert training_figures({"loss": None, "accuracy": 0.1})["loss"] == "loss not finite"


def test_what_is_shown_grows_with_the_width() -> None:
    drawn = [progress_line("epoch 3/20", 69, 460, width, left=7.2, figures=FIGURES) for width in (40, 60, 80, 120)]
    assert drawn == [
        "epoch 3/20  69/460  0:07 left  13,300/s",
        "epoch 3/20  69/460  0:07 left  loss 0.324  test 98.6 %",
        "epoch 3/20  ━╌╌╌╌╌╌╌╌╌╌╌  69/460  0:07 left  loss 0.324  test 98.6 %  13,300/s",
        f"epoch 3/20  ━━━{17 * '╌'}  69/460  0:07 left  loss 0.324  accuracy 99.8 %  test 98.6 %  13,300 samples/s",
    ]


def test_a_training_of_at_most_so_many_steps_is_shown_to_its_own_end(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(quiet=False)
    terminal.on_start(steps_per_epoch=23, epochs=10, total_steps=30, step=0)
    terminal.on_record(RECORD | {"step": 30, "epoch": 1})
    terminal.on_end()
    first, last = capsys.readouterr().err.splitlines()
    assert first == "training: 2 epochs of 23 steps, 30 in all"
    assert last.startswith("epoch 2/2  step 30/30") and "left" not in last
