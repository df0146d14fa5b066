"""Ctrl-C says what is kept and how to go on, wherever it comes; exit code 130."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import upshift
from upshift.errors import OptimizeInterrupted

UPSHIFT = [sys.executable, "-m", "upshift"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, cache_of_the_tests: Path) -> Path:
    out = tmp_path_factory.mktemp("trained") / "a run"
    upshift.train("digits", plan="baseline", overrides=["epochs=1"], out=out)
    return out


def interrupted(arguments: list[str], *, after: str, folder: Path, times: int = 1) -> tuple[int, str]:
    """The exit code and what stderr says of a command that gets Ctrl-C after a line of stderr with a word."""
    process = subprocess.Popen([*UPSHIFT, *arguments], cwd=folder, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if after in line:
            break
    for number in range(times):
        if number:
            time.sleep(3.0)  # else two signals may be delivered as one
        process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert "Traceback" not in err
    return process.returncode, err


@pytest.mark.slow
def test_an_interrupted_search_names_the_command_that_makes_it_again(trained: Path) -> None:
    before = {path.name: path.read_bytes() for path in trained.iterdir() if path.suffix == ".json"}
    options = ["--max-drop", "0.01", "--candidate", "compile", "--batch-size", "2"]
    code, err = interrupted(["optimize", str(trained), *options], after="building", folder=trained.parent)
    assert code == 130
    (line,) = [line for line in err.splitlines() if "interrupted" in line]
    assert f"the run in {trained} is whole, as it was before the search" in line
    command = shlex.split(line.partition("go on with ")[2])
    assert command[:3] == ["upshift", "optimize", str(trained)] and set(options) <= set(command)
    assert {path.name: path.read_bytes() for path in trained.iterdir() if path.suffix == ".json"} == before
    done = subprocess.run([*UPSHIFT, *command[1:3], "--candidate", "eager", "--budget", "1", "--json", "--quiet"],
                          capture_output=True, check=True)  # fmt: skip
    assert json.loads(done.stdout)["backend"] == "eager"


def test_an_interruption_before_anything_was_written_is_said_and_leaves_nothing(
    upshift_cli: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "stopped.py").write_text("raise KeyboardInterrupt")
    answer = upshift_cli("train", "stopped.py", "--out", "run")
    assert answer.code == 130 and answer.err == "interrupted\n" and not (tmp_path / "run").exists()


class Dropping:
    """Python drops what a signal raises while an object is destroyed."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_whose_exception_python_drops_ends_a_search_all_the_same(
    trained: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    dropped, lines = list[Any](), list[str]()
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)

    def on_event(line: str) -> None:
        lines.append(line)
        Dropping(number)

    before = {path.name for path in trained.iterdir()}
    with pytest.raises(OptimizeInterrupted, match="is whole, as it was before the search"):
        upshift.optimize(trained, candidates=["onnxruntime"], on_event=on_event)
    assert len(dropped) == len(lines) == 1
    assert {path.name for path in trained.iterdir()} - before <= {"trials.jsonl", ".lock"}


@pytest.mark.slow
def test_a_run_interrupted_in_its_search_is_trained_and_says_how_to_finish(tmp_path: Path, trained: Path) -> None:
    arguments = ["run", "digits", "--plan", "baseline", "--set", "epochs=1", "--out", "run"]
    code, err = interrupted(arguments, after="building", folder=tmp_path)
    assert code == 130
    run = tmp_path / "run"
    assert f"go on with upshift optimize {run}, and write the page with upshift report {run}" in err
    assert json.loads((run / "result.json").read_text())["optimize"] is None
    assert upshift.evaluate(run)["num_samples"] == 359


@pytest.mark.slow
def test_a_second_ctrl_c_while_training_says_how_to_go_on(tmp_path: Path, trained: Path) -> None:
    recipe = tmp_path / "slow.py"
    recipe.write_text(
        "import os, sys, time\nfrom torch import nn\nfrom upshift import Recipe\n"
        "class Slow(nn.Sequential):\n"
        "    def __init__(self, num_classes: int = 10) -> None:\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))\n"
        "    def forward(self, inputs):\n"
        "        if self.training and os.path.exists('slow'):\n"
        "            print('in a step', file=sys.stderr, flush=True)\n"
        "            time.sleep(1e6)\n"
        "        return super().forward(inputs)\n"
        "RECIPE = Recipe(name='slow', model=Slow, max_steps=1)\n"
    )
    (tmp_path / "slow").touch()
    arguments = ["train", "slow.py", "--plan", "baseline", "--out", "run"]
    code, err = interrupted(arguments, after="in a step", folder=tmp_path, times=2)
    assert code == 130
    assert f"interrupted; what was saved lies in {tmp_path / 'run'}: go on with --resume --out" in err
    (tmp_path / "slow").unlink()
    done = subprocess.run([*UPSHIFT, *arguments, "--resume", "--quiet"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
