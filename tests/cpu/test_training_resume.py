"""Exact resume, with real processes that are really killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Dropout, augmentation, an average of the weights, a frozen stage and the optimizer's state all have to come back.
# The plain plan: what tuning finds depends on the clock, and another plan rounds otherwise.
OPTIONS = [
    "mnist-keras-dense",
    "--plan",
    "baseline",
    "--seed",
    "3",
    "--set",
    "data.source=digits",
    "--set",
    "epochs=6",
    "--set",
    "max_steps=250",
    "--set",
    'stages=[{"epochs": 2, "freeze": ["layers.fc1.*"]}, {"epochs": 4}]',
    "--set",
    "log_every=1",
    "--set",
    "checkpoint_every_steps=7",
    "--set",
    "augment.crop_padding=1",
    "--set",
    "augment.rotation_degrees=10",
    "--set",
    "ema_decay=0.9",
    "--set",
    "optimizer.name=adamw",
]


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "upshift", "train", *OPTIONS, "--out", str(out), *more, "--quiet"]


def losses(out: Path) -> dict[int, float]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [record["step"] for record in records]
    assert steps == sorted(set(steps)), "each step is logged once"
    return {record["step"]: record["loss"] for record in records}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(out), check=True, env=environment())
    return out


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


# The command line in a process that waits, at the step WAITS_AT, until there is the file GO: however late it is killed
# or interrupted, it has not come to its end.
WAITING = """
import os, time
from upshift.cli import main
from upshift.core.records import JsonlWriter

write = JsonlWriter.write

def write_and_wait(self, *records):
    write(self, *records)
    while records[-1]["step"] >= int(os.environ["WAITS_AT"]) and not os.path.exists(os.environ["GO"]):
        time.sleep(0.01)

JsonlWriter.write = write_and_wait
main()
"""


def run_until_step(out: Path, step: int, *more: str, by: signal.Signals) -> int:
    """Send a training a signal, one to six steps after a step, and give its exit code."""
    go = out.with_name(f"{out.name}-go")
    go.unlink(missing_ok=True)
    arguments = [sys.executable, "-c", WAITING, *command(out, *more)[3:]]
    process = subprocess.Popen(arguments, env=environment() | {"WAITS_AT": str(step + 6), "GO": str(go)})
    metrics = out / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") >= step):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(by)
    go.touch()
    return process.wait()


@pytest.mark.parametrize("attempt", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2))])
def test_resume_after_kill_repeats_the_same_losses(uninterrupted: Path, tmp_path: Path, attempt: int) -> None:
    out = tmp_path / "run"
    expected = losses(uninterrupted)
    generator = random.Random(attempt)
    more: list[str] = []
    for _ in range(2):
        step = generator.randint(8, max(expected) - 8)
        code = run_until_step(out, step, *more, by=signal.SIGKILL)
        assert code == -signal.SIGKILL
        more = ["--resume"]
    subprocess.run(command(out, "--resume"), check=True, env=environment())
    assert losses(out) == expected
    assert (out / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    result = json.loads((out / "result.json").read_text())
    assert result["resumed_from_step"] is not None and result["resumed_from_step"] % 7 == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_the_run_goes_on(
    uninterrupted: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    assert run_until_step(out, 20, by=number) == 130
    assert not (out / "result.json").exists()
    assert list((out / "checkpoints").glob("step-*"))
    subprocess.run(command(out, "--resume"), check=True, env=environment())
    assert losses(out) == losses(uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    uninterrupted: Path, tmp_path: Path, file: str, damage: str
) -> None:
    out = tmp_path / "run"
    run_until_step(out, 30, by=signal.SIGKILL)
    newest = max((out / "checkpoints").glob("step-*"), key=lambda path: int(path.name.split("-")[1]))
    content = bytearray((newest / file).read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    (newest / file).write_bytes(content)
    done = subprocess.run(
        [*command(out, "--resume")[:-1]], check=True, env=environment(), capture_output=True, text=True
    )
    assert newest.name in done.stderr and "damaged" in done.stderr
    assert losses(out) == losses(uninterrupted)
    assert any(newest.name in note for note in json.loads((out / "result.json").read_text())["notes"])


@pytest.mark.slow
def test_a_run_is_not_resumed_with_another_recipe_seed_or_nothing_to_resume(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_until_step(out, 10, by=signal.SIGKILL)
    before = (out / "metrics.jsonl").read_bytes()
    for more, named in (
        (["--resume", "--set", "optimizer.lr=0.5"], "optimizer"),
        (["--resume", "--seed", "4"], "seed"),
        ([], "--resume"),
    ):
        done = subprocess.run(command(out, *more), env=environment(), capture_output=True, text=True)
        assert done.returncode == 2 and named in done.stderr and "Traceback" not in done.stderr
    assert (out / "metrics.jsonl").read_bytes() == before
    done = subprocess.run(command(tmp_path / "none", "--resume"), env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "none").exists()
