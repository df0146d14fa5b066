"""Tuning by the real clock, on a machine as busy as it may be: only what holds on any is asserted."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from layered_recipe import RECIPE
from live_trainings import CLASSES, Net, Trained, assert_same_losses, is_channels_last, train, tuned
from torch import nn

import upshift
from simulated_clock import simulated_clock
from upshift.core.environment import num_usable_cores
from upshift.core.load import LoadMeter
from upshift.tuning.candidates import Candidate
from upshift.tuning.plan import BASELINE, load_plan
from upshift.tuning.tuner import TunerConfig

NUM_EQUAL = 8


class Sleeping(Net):
    """Slower in channels_last, beyond what any load of the machine could hide."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if is_channels_last(self.conv):
            time.sleep(0.05)
        return super().forward(images)


def can_tell_load() -> bool:
    meter = LoadMeter()
    meter.start()
    return meter.stop() is not None and os.getpid() != 1  # the first process adopts orphans


def has_begun(pid: int) -> bool:
    """Whether a program is past its start, by the processor time that it has used."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11])
    return ticks / os.sysconf("SC_CLK_TCK") > 0.2


@pytest.fixture
def full_load() -> Iterator[None]:
    """A program on each core that is nobody's child here: the shell that starts it ends at once."""
    command = ["sh", "-c", "\"$0\" -c 'while True: pass' >/dev/null 2>&1 & echo $!", sys.executable]
    pids = [int(subprocess.check_output(command)) for _ in range(num_usable_cores())]
    try:
        while not all(has_begun(pid) for pid in pids):
            time.sleep(0.01)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(not can_tell_load(), reason="this system does not tell what other programs use")
@pytest.mark.usefixtures("full_load")
def test_a_machine_under_full_load_is_told_and_nothing_slower_is_taken(tmp_path: Path) -> None:
    found = tuned(tmp_path, Sleeping(), epochs=100)  # so long that a trial is worth its price on any machine
    assert found.trials["channels_last"].verdict == "refused"
    assert found.plan == BASELINE
    assert any("other programs used" in note for note in found.ledger.notes)


def equally_fast(*_: object) -> list[Candidate]:
    """Candidates that change nothing: a batch of 16 samples fits whole into each of these parts."""
    return [
        Candidate(name=f"parts of {size}", changes={"micro_batch_size": size}, gain=0.5, reason="looks promising")
        for size in range(17, 17 + NUM_EQUAL)
    ]


def race_of_equals(folder: Path) -> Trained:
    return tuned(folder, Net(), epochs=5000, tuner_config=TunerConfig(stop_when_done=True))


def median_width(found: Trained) -> float:
    """Of the intervals of all candidates, as a factor's logarithm."""
    intervals = [trial.speedup_interval for trial in found.ledger.trials]
    return statistics.median(
        math.log(interval[1] / interval[0]) if interval is not None and interval[0] > 0 else math.inf
        for interval in intervals
    )


@pytest.mark.slow
@pytest.mark.skipif(not can_tell_load(), reason="this system does not tell what other programs use")
def test_of_equally_fast_candidates_none_is_chosen_for_what_other_programs_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("upshift.tuning.challenges.candidates", equally_fast)
    with simulated_clock():
        calm = race_of_equals(tmp_path / "calm")
    request.getfixturevalue("full_load")
    loaded = race_of_equals(tmp_path / "loaded")
    for found in (calm, loaded):
        assert len(found.trials) == NUM_EQUAL and all(trial.num_rounds > 0 for trial in found.ledger.trials)
        # In one race of twenty there may be one; for two by chance it would take hundreds.
        assert sum(trial.verdict == "adopted" for trial in found.ledger.trials) <= 1
    assert median_width(loaded) > median_width(calm)
    assert any("other programs used" in note for note in loaded.ledger.notes)


def test_a_run_that_tunes_itself_learns_what_a_plain_one_learns_and_its_records_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSHIFT_CACHE_DIR", str(tmp_path / "cache"))
    results = {}
    for plan in ("baseline", "auto"):
        results[plan] = upshift.train(RECIPE, plan=plan, out=tmp_path / plan).result
    losses = {
        plan: [json.loads(line)["loss"] for line in (tmp_path / plan / "metrics.jsonl").read_text().splitlines()]
        for plan in results
    }
    assert_same_losses(losses["auto"], losses["baseline"])
    result, run = results["auto"], tmp_path / "auto"
    tuning, trials = result["tuning"], result["plan"]["trials"]
    assert result == json.loads((run / "result.json").read_text())
    assert result["plan"] == json.loads((run / "plan.json").read_text()) == load_plan(run / "plan.json").to_json()
    assert [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()] == [
        {"of": "training"} | trial for trial in trials
    ]
    assert tuning["net_seconds"] == pytest.approx(tuning["saved_seconds"] - tuning["seconds"])
    assert all(trial["num_rounds"] > 0 for trial in trials if trial["verdict"] == "adopted")
    assert results["baseline"]["tuning"] is None and results["baseline"]["steps"] == result["steps"]


class Residual(nn.Module):
    """Blocks that repeat, with batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout2d(0.1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.dropout(torch.relu(self.norm(self.conv(features))))


@pytest.mark.slow
def test_compiling_while_training_changes_nothing_in_what_is_learnt(tmp_path: Path) -> None:
    model = Residual()
    untouched = copy.deepcopy(model)
    found = tuned(
        tmp_path / "tuned",
        model,
        epochs=1000,
        tuner_config=TunerConfig(stop_when_done=True),
        facts={"can_compile_step": False},  # once the step is one graph, neither of these two is proposed
    )
    plain = train(tmp_path / "plain", untouched, epochs=1000, max_steps=len(found.losses))
    for name in ("compiled blocks", "compiled"):
        trial = found.trials[name]
        assert trial.verdict in ("adopted", "refused") and trial.num_rounds > 0, trial
        assert trial.details["num_graphs"] > 0 and trial.num_operators
        assert trial.gradient_error is not None and trial.gradient_error > 0
    assert_same_losses(found.losses[:150], plain.losses[:150])
    assert list(found.model.state_dict()) == list(plain.model.state_dict())
