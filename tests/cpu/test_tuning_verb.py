"""`upshift tune` and `--plan auto` as processes: plan files, signals, kills.

The processes read a simulated clock, and stop at a step of ours until they are killed or may go on: no test has to
meet a moment.
"""

from __future__ import annotations

import json
import os
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

RECIPE = (
    Path(__file__).with_name("layered_recipe.py").read_text()
    + """

# What a test adds: a simulated clock, a number of cores, no precision that is faster, and a process that waits in a
# training step, the HELD_AT-th, until there is a file "go".

import os, time
from pathlib import Path
import simulated_clock
from upshift.workflows import live_tuning

simulated_clock.install()
live_tuning.num_usable_cores = lambda: int(os.environ["NUM_CORES"])
live_tuning.fast_dtypes = lambda limits: ()
num_steps = 0

@torch.compiler.disable
def hold(module, inputs):
    global num_steps
    num_steps += module.training
    if module.training and num_steps == int(os.environ["HELD_AT"]):
        Path("held").touch()
        while not Path("go").exists():
            time.sleep(0.01)

class Held(Layered):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.register_forward_pre_hook(hold)

RECIPE = Recipe(**{name: getattr(RECIPE, name) for name in RECIPE.__dataclass_fields__} | {"model": Held})
"""
)
BEFORE_ANY_CANDIDATE = 12
WHILE_ONE_IS_RACED = 40
AFTER_ONE_WAS_ADOPTED = 120
AFTER_ALL_WERE_DECIDED = 500


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The recipe as a file of the user's."""
    path = tmp_path / "layered.py"
    path.write_text(RECIPE)
    return path


def start(folder: Path, *arguments: object, held_at: int = 0, num_cores: int = 1) -> subprocess.Popen[str]:
    """Begin a command, with a memory of its own; with one core, the number of threads is nothing to try."""
    environment = {
        "OMP_NUM_THREADS": "1",
        "UPSHIFT_CACHE_DIR": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HELD_AT": str(held_at),
        "NUM_CORES": str(num_cores),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "upshift", *map(str, arguments)],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], *, code: int = 0) -> tuple[str, str]:
    out, err = process.communicate()
    assert process.returncode == code, err
    return out, err


def wait_until_held(folder: Path, process: subprocess.Popen[str]) -> None:
    while not (folder / "held").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def interrupt(folder: Path, process: subprocess.Popen[str]) -> tuple[str, str]:
    """Send Ctrl-C to a process that is held, and let it go on."""
    process.send_signal(signal.SIGINT)
    (folder / "go").touch()
    return finish(process, code=130)


# upshift tune


@pytest.mark.slow
def test_tune_writes_a_plan_that_train_applies(tmp_path: Path, recipe: Path) -> None:
    out, err = finish(start(tmp_path, "tune", recipe, "--out", "found.json", "--json", "--budget", "4"))
    result = json.loads(out)
    assert result["recipe"] == "layered" and result["speedup"] > 1.0
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
    assert {path.name for path in tmp_path.iterdir()} == {"found.json", "run", "layered.py", "cache"}


@pytest.mark.slow
def test_an_interrupted_tune_keeps_the_best_plan_so_far(tmp_path: Path, recipe: Path) -> None:
    options = ["--out", "found.json", "--json"]
    process = start(tmp_path, "tune", recipe, *options, held_at=AFTER_ONE_WAS_ADOPTED, num_cores=2)
    wait_until_held(tmp_path, process)
    out, err = interrupt(tmp_path, process)
    assert "channels_last: adopted" in err
    assert "tuning was stopped by SIGINT; the best plan so far is in found.json" in err and not out
    plan = load_plan(tmp_path / "found.json")
    assert plan.memory_format == "channels_last" and plan.trials


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("held_at", [WHILE_ONE_IS_RACED, AFTER_ONE_WAS_ADOPTED])
def test_a_signal_ends_tune_in_the_middle_of_what_it_does(
    number: signal.Signals, held_at: int, tmp_path: Path, recipe: Path
) -> None:
    process = start(tmp_path, "tune", recipe, "--out", "found.json", held_at=held_at, num_cores=2)
    wait_until_held(tmp_path, process)  # in a step that does not end: nobody makes the file "go"
    process.send_signal(number)
    _, err = finish(process, code=130)
    assert f"tuning was stopped by {number.name}; the best plan so far is in found.json" in err
    assert "Traceback" not in err
    assert (load_plan(tmp_path / "found.json").memory_format == "channels_last") == ("channels_last: adopted" in err)


BAD = {
    "a folder that is not there": ({"out": "nowhere/plan.json"}, "folder that exists"),
    "a folder": ({"out": "."}, "folder that exists"),
    "where no file can be made": ({"out": "/proc/x.json"}, "/proc/x.json must be a file that can be written"),
    "no budget": ({"budget_seconds": 0}, "budget must be above 0 seconds"),
    "a negative budget": ({"budget_seconds": -3.0}, "budget must be above 0 seconds"),
    "a budget that is no number": ({"budget_seconds": float("nan")}, "budget must be above 0 seconds"),
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
    options = ["--seed", 3, "--set", "epochs=30", "--set", "checkpoint_every_steps=7"]
    return ["train", recipe, *options, "--out", "run", "--quiet", *more]


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "each step once"
    return [line["loss"] for line in lines]


@pytest.fixture
def plain(tmp_path: Path, recipe: Path) -> list[float]:
    """Losses of the same training without tuning."""
    options = ["--plan", "baseline", "--out", "plain"]
    finish(start(tmp_path, *train_command(recipe, *options)))
    return losses(tmp_path / "plain")


@pytest.mark.slow
def test_a_run_killed_after_it_was_tuned_goes_on_with_the_plan_found(
    tmp_path: Path, recipe: Path, plain: list[float]
) -> None:
    run = tmp_path / "run"
    process = start(tmp_path, *train_command(recipe), held_at=AFTER_ALL_WERE_DECIDED)
    wait_until_held(tmp_path, process)
    kill(process)
    kept = json.loads((run / "plan.json").read_text())
    assert kept["memory_format"] == "channels_last"
    assert [trial["verdict"] for trial in kept["trials"] if trial["name"] == "channels_last"] == ["adopted"]
    finish(start(tmp_path, *train_command(recipe, "--resume")))
    result = json.loads((run / "result.json").read_text())
    assert result["resumed_from_step"] is not None and result["steps"] == 690
    assert result["plan"] == kept and result["tuning"]["complete"], "what it came to before the kill is told"
    assert_same_losses(losses(run), plain)


@pytest.mark.slow
def test_a_run_killed_before_anything_was_found_tunes_when_it_goes_on(
    tmp_path: Path, recipe: Path, plain: list[float]
) -> None:
    run = tmp_path / "run"
    process = start(tmp_path, *train_command(recipe), held_at=BEFORE_ANY_CANDIDATE)
    wait_until_held(tmp_path, process)
    kill(process)
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
    process = start(tmp_path, *train_command(recipe), held_at=WHILE_ONE_IS_RACED)
    wait_until_held(tmp_path, process)
    interrupt(tmp_path, process)
    finish(start(tmp_path, *train_command(recipe, "--resume")))
    assert_same_losses(losses(run), plain)
