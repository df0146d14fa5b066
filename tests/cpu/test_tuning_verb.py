"""`upshift tune` and `--plan auto` as processes: plan files, signals, kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_trainings import assert_same_losses

from upshift import BadInputError, tune
from upshift.tuning.plan import load_plan

RECIPE = Path(__file__).with_name("sleeping_recipe.py")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The recipe as a file of the user's."""
    return Path(shutil.copy(RECIPE, tmp_path / "sleeping.py"))


def environment(cache: Path) -> dict[str, str]:
    """A memory of its own, and one thread, so that no number of threads is a plan's."""
    return os.environ | {"OMP_NUM_THREADS": "1", "UPSHIFT_CACHE_DIR": str(cache)}


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "upshift", *map(str, arguments)],
        cwd=folder,
        env=environment(folder / "cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], *, code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out, err


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


# upshift tune


@pytest.mark.slow
def test_tune_writes_a_plan_that_train_applies(tmp_path: Path, recipe: Path) -> None:
    out, err = finish(start(tmp_path, "tune", recipe, "--out", "found.json", "--json", "--budget", "20"))
    result = json.loads(out)
    assert result["recipe"] == "sleeping" and result["speedup"] > 1.0
    assert Path(result["path"]).name == "found.json"
    assert result["tuning"]["from_cache"] is False
    plan = load_plan(tmp_path / "found.json")
    assert plan.memory_format == "channels_last" and plan.environment
    assert json.loads((tmp_path / "found.json").read_text()) == result["plan"]
    assert "channels_last: adopted" in err, "each candidate is told of when it is decided"
    trained = json.loads(finish(start(
        tmp_path, "train", recipe, "--plan", "found.json", "--set", "epochs=1", "--out", "run", "--json", "--quiet"
    ))[0])  # fmt: skip
    assert trained["plan"]["memory_format"] == "channels_last" and trained["tuning"] is None
    assert {path.name for path in tmp_path.iterdir()} == {"found.json", "run", "sleeping.py", "cache"}


@pytest.mark.slow
def test_an_interrupted_tune_keeps_the_best_plan_so_far(tmp_path: Path, recipe: Path) -> None:
    process = start(tmp_path, "tune", recipe, "--out", "found.json", "--json")
    assert process.stderr is not None
    told = ""
    while "channels_last: adopted" not in told:
        line = process.stderr.readline()
        assert line, told
        told += line
    process.send_signal(signal.SIGINT)
    out, err = finish(process, code=130)
    assert "tuning was stopped by SIGINT; the best plan so far is in found.json" in err and not out
    plan = load_plan(tmp_path / "found.json")
    assert plan.memory_format == "channels_last" and plan.trials


BAD = {
    "a folder that is not there": ({"out": "nowhere/plan.json"}, "folder that exists"),
    "a folder": ({"out": "."}, "folder that exists"),
    "no budget": ({"budget_seconds": 0}, "budget must be above 0 seconds"),
    "a negative budget": ({"budget_seconds": -3.0}, "budget must be above 0 seconds"),
    "nothing to tune": ({"recipe": None}, "a recipe or a model"),
    "no recipe of that name": ({"recipe": "digitz"}, "digits"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_tuned_is_refused_before_anything_is_written(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, words = BAD[what]
    with pytest.raises(BadInputError) as caught:
        tune(**({"recipe": "digits"} | arguments))
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_refuses_the_same(upshift_cli: Callable[..., Any], tmp_path: Path) -> None:
    for options in (("--out", "nowhere/plan.json"), ("--budget", "0"), ("--budget", "soon")):
        answer = upshift_cli("tune", "digits", *options)
        assert answer.code == 2 and answer.out == "" and answer.err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


# upshift train --plan auto


def train_command(recipe: Path, *more: object) -> list[object]:
    options = [
        "--seed",
        3,
        "--set",
        "epochs=12",
        "--set",
        "checkpoint_every_steps=7",
        "--set",
        "model_args.seconds=0.02",
    ]
    return ["train", recipe, *options, "--out", "run", "--quiet", *more]


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "each step once"
    return [line["loss"] for line in lines]


@pytest.fixture
def plain(tmp_path: Path, recipe: Path) -> list[float]:
    """Losses of the same training without tuning."""
    options = ["--plan", "baseline", "--set", "model_args.seconds=0.0", "--out", "plain"]
    finish(start(tmp_path, *train_command(recipe, *options)))
    return losses(tmp_path / "plain")


@pytest.mark.slow
def test_a_run_killed_after_it_was_tuned_goes_on_with_the_plan_found(
    tmp_path: Path, recipe: Path, plain: list[float]
) -> None:
    run = tmp_path / "run"
    process = start(tmp_path, *train_command(recipe))
    wait_until(lambda: "channels_last" in _text(run / "plan.json"), process)
    at = len(_text(run / "metrics.jsonl").splitlines())
    wait_until(lambda: len(_text(run / "metrics.jsonl").splitlines()) > at + 15, process)
    process.kill()
    process.communicate()
    kept = json.loads((run / "plan.json").read_text())
    assert kept["memory_format"] == "channels_last"
    assert [trial["verdict"] for trial in kept["trials"] if trial["name"] == "channels_last"] == ["adopted"]
    finish(start(tmp_path, *train_command(recipe, "--resume")))
    result = json.loads((run / "result.json").read_text())
    assert result["resumed_from_step"] is not None and result["steps"] == 276
    assert result["plan"] == kept and result["tuning"] is None
    assert_same_losses(losses(run), plain)


@pytest.mark.slow
def test_a_run_killed_before_anything_was_found_tunes_when_it_goes_on(
    tmp_path: Path, recipe: Path, plain: list[float]
) -> None:
    run = tmp_path / "run"
    process = start(tmp_path, *train_command(recipe))
    wait_until(lambda: len(_text(run / "metrics.jsonl").splitlines()) > 10, process)
    process.kill()
    process.communicate()
    assert json.loads((run / "plan.json").read_text())["trials"] == []
    finish(start(tmp_path, *train_command(recipe, "--resume")))
    result = json.loads((run / "result.json").read_text())
    assert result["plan"]["memory_format"] == "channels_last" and result["tuning"] is not None
    assert_same_losses(losses(run), plain)


@pytest.mark.slow
def test_a_run_interrupted_while_it_tunes_goes_on_with_the_same_losses(
    tmp_path: Path, recipe: Path, plain: list[float]
) -> None:
    run = tmp_path / "run"
    process = start(tmp_path, *train_command(recipe))
    wait_until(lambda: len(_text(run / "metrics.jsonl").splitlines()) > 40, process)
    process.send_signal(signal.SIGINT)
    finish(process, code=130)
    finish(start(tmp_path, *train_command(recipe, "--resume")))
    assert_same_losses(losses(run), plain)


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
