"""Tuning on live steps: what is learnt stays the same, and what is proven faster is taken."""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from live_trainings import CLASSES, Batches, Net, assert_same_losses, plainly, train, tuned
from torch import nn

from upshift.core.environment import num_usable_cores
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.tuner import TunerConfig

# What is learnt


def test_what_is_learnt_is_what_plain_training_learns(tmp_path: Path) -> None:
    model = Net(slow="contiguous")
    plain = train(tmp_path / "plain", plainly(model))
    found = tuned(tmp_path / "tuned", model)
    assert found.plan.memory_format == "channels_last"
    assert_same_losses(found.losses, plain.losses)
    assert list(found.model.state_dict()) == list(plain.model.state_dict())
    assert found.trainer.progress.step == plain.trainer.progress.step
    assert found.trainer.progress.num_samples == plain.trainer.progress.num_samples


class Wide(nn.Module):
    """Nothing that couples samples, so that batches may be split; dropout none, as each part would draw its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(images)))).mean((2, 3)))


class Waiting(Batches):
    """Takes a while to give a batch where it reads from memory."""

    def __init__(self, data_path: str = "resident", *, seconds: float = 0.004, **shape: Any) -> None:
        super().__init__(**shape)
        self.data_path, self.seconds = data_path, seconds if data_path == "resident" else 0.0

    def epoch(
        self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in super().epoch(epoch, start_batch=start_batch, image_size=image_size):
            time.sleep(self.seconds)
            yield batch


def loader_for(plan: Plan) -> Waiting:
    return Waiting("resident" if plan.data_path == "auto" else plan.data_path, batch_size=256, seconds=0.01)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_trying_every_candidate_changes_nothing_in_what_is_learnt(tmp_path: Path, seed: int) -> None:
    plan = Plan(fused_optimizer=False)
    torch.manual_seed(seed)
    model = Wide()
    plain = train(
        tmp_path / "plain", copy.deepcopy(model), plan=plan, loader=Batches(batch_size=256), seed=seed, epochs=8
    )
    found = tuned(
        tmp_path / "tuned",
        model,
        plan=plan,
        loader=loader_for(plan),
        arguments={"loader_for": loader_for},
        facts={"num_cores": 2, "data_paths": ("resident", "mmap"), "data_path": "resident"},
        seed=seed,
        epochs=40,
        max_steps=160,
    )
    tried = {name for name, trial in found.trials.items() if trial.verdict != "not tried"}
    assert {"read-ahead from the store"} <= tried <= {
        "read-ahead from the store", "channels_last", "2 threads", "fused optimizer", "micro-batches of 128",
    }  # fmt: skip
    assert_same_losses(found.losses, plain.losses)


def test_the_weights_of_a_tuned_training_are_those_of_a_plain_one(tmp_path: Path) -> None:
    model = Net(slow="contiguous")
    plain = train(tmp_path / "plain", plainly(model), epochs=6)
    found = tuned(tmp_path / "tuned", model, epochs=6)
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], tensor, rtol=2e-2, atol=2e-4)


# What is taken


def test_a_faster_candidate_is_adopted_with_its_evidence(tmp_path: Path) -> None:
    found = tuned(tmp_path, Net(slow="contiguous"))
    trial = found.trials["channels_last"]
    assert trial.verdict == "adopted" and found.plan.memory_format == "channels_last"
    assert trial.speedup is not None and trial.speedup_interval is not None
    low, high = trial.speedup_interval
    assert 1.0 < low <= trial.speedup <= high
    assert trial.num_rounds >= 6
    assert trial.gradient_error is not None and trial.gradient_error < 1e-3
    assert found.tuner is not None and found.tuner.is_complete
    assert 1.0 < found.tuner.speedup <= trial.speedup, "waits for data do not become shorter"
    assert found.tuner.account.net > 0
    assert not found.model.conv.weight.is_contiguous()


def test_a_slower_candidate_is_refused_with_its_evidence(tmp_path: Path) -> None:
    model = Net(slow="channels_last")
    found = tuned(tmp_path, model, epochs=30)
    trial = found.trials["channels_last"]
    assert trial.verdict == "refused" and "slower" in trial.reason
    assert trial.speedup_interval is not None and trial.speedup_interval[1] < 1.0
    assert trial.seconds > 0
    assert found.plan == BASELINE and model.conv.weight.is_contiguous()
    assert found.tuner is not None and found.tuner.speedup == 1.0 and found.tuner.account.net < 0


def test_batches_come_from_where_the_loop_waits_less(tmp_path: Path) -> None:
    def make(plan: Plan) -> Waiting:
        return Waiting("resident" if plan.data_path == "auto" else plan.data_path, seconds=0.01)

    model = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 16), nn.Dropout(0.3), nn.Linear(16, CLASSES))
    plain = train(tmp_path / "plain", copy.deepcopy(model), epochs=20)
    found = tuned(
        tmp_path / "tuned",
        model,
        loader=make(BASELINE),
        arguments={"loader_for": make},
        facts={"data_paths": ("resident", "mmap"), "data_path": "resident"},
        epochs=20,
    )
    tuner = found.tuner
    assert found.trials["read-ahead from the store"].verdict == "adopted" and found.plan.data_path == "mmap"
    assert found.losses == plain.losses, "the same batches, and dropout as ever"
    assert tuner is not None and tuner.data_seconds < tuner.first_data_seconds
    assert tuner.step_seconds < 5 * tuner.first_step_seconds, "a shorter wait is no faster step, and none is claimed"
    assert tuner.account.net > 0


# What is tried at all


def test_too_few_steps_are_not_tuned_on(tmp_path: Path) -> None:
    model = Net(slow="contiguous")
    plain = train(tmp_path / "plain", plainly(model), epochs=3)
    found = tuned(tmp_path / "tuned", model, epochs=3)
    assert found.tuner is not None and found.tuner.trials == []
    assert found.tuner.notes == ["60 steps are too few to tune on"]
    assert found.losses == plain.losses


def test_a_short_job_is_not_compiled_and_says_why(tmp_path: Path) -> None:
    found = tuned(tmp_path, Net(), tuner_config=TunerConfig())
    trial = found.trials["compiled"]
    assert trial.verdict == "not tried" and trial.changes == {"compile": "whole"}
    assert "expected to save" in trial.reason and trial.reason.endswith("to cost 5 s")
    assert trial.expected_seconds == 5.0


def test_a_check_is_made_on_a_batch_of_the_usual_size(tmp_path: Path) -> None:
    # The 19th batch, the first after those that are timed, is the smaller one at the end of an epoch.
    model = Net()
    found = tuned(tmp_path, model, loader=Batches(19))
    assert found.trials["channels_last"].verdict != "not tried"
    assert model.batches[0] == 16


def test_a_candidate_that_costs_too_much_is_given_up_early(tmp_path: Path) -> None:
    found = tuned(
        tmp_path, Net(slow="channels_last", seconds=0.05), tuner_config=TunerConfig(allowance_share=0.1), epochs=25
    )
    trial = found.trials["channels_last"]
    assert trial.verdict == "refused" and "more than may be lost" in trial.reason
    assert trial.num_rounds == 3


def test_a_machine_under_full_load_is_told_and_nothing_slower_is_taken(tmp_path: Path) -> None:
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_usable_cores())]
    try:
        time.sleep(1)  # until they are at work
        found = tuned(tmp_path, Net(slow="channels_last"), epochs=20)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert found.trials["channels_last"].verdict == "refused"
    assert found.tuner is not None
    assert any("other programs used" in note for note in found.tuner.notes)


# Compiled


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
    found = tuned(tmp_path / "tuned", model, epochs=1000, tuner_config=TunerConfig(stop_when_done=True))
    plain = train(tmp_path / "plain", untouched, epochs=1000, max_steps=len(found.losses))
    for name in ("compiled blocks", "compiled"):
        trial = found.trials[name]
        assert trial.verdict in ("adopted", "refused") and trial.num_rounds > 0, trial
        assert trial.details["num_graphs"] > 0 and trial.num_operators
        assert trial.gradient_error is not None and trial.gradient_error > 0
    assert_same_losses(found.losses[:150], plain.losses[:150])
    assert list(found.model.state_dict()) == list(plain.model.state_dict())
