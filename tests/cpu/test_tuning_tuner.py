"""Tuning on live steps: what is learnt stays the same, and what is proven faster is taken."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from live_trainings import (
    ANY_PRICE,
    CLASSES,
    Batches,
    Net,
    Taking,
    assert_same_losses,
    is_channels_last,
    plainly,
    train,
    tuned,
)
from torch import nn

from simulated_clock import spend
from upshift.training.config import OptimizerConfig
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.trials import NO_LONGER_PROPOSED
from upshift.tuning.tuner import TunerConfig

pytestmark = pytest.mark.usefixtures("simulated_clock")

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
    """Nothing that draws random numbers or couples samples; a batch may be split.

    It is faster in channels_last, and slower with threads beside the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        spend((0.005 if is_channels_last(self.first) else 0.01) * torch.get_num_threads())
        return self.head(torch.relu(self.second(torch.relu(self.first(images)))).mean((2, 3)))


def slow_from_memory(plan: Plan, *, batch_size: int = 16) -> Batches:
    """Takes a while to give a batch where it reads from memory."""
    path = "resident" if plan.data_path == "auto" else plan.data_path
    return Batches(batch_size=batch_size, data_path=path, seconds=0.005 if path == "resident" else 0.0)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_trying_every_candidate_changes_nothing_in_what_is_learnt(tmp_path: Path, seed: int) -> None:
    def make(plan: Plan) -> Batches:
        return slow_from_memory(plan, batch_size=256)

    plan = Plan(fused_optimizer=False)
    slowly: dict[str, Any] = {"epochs": 80, "optimizer": OptimizerConfig(lr=0.0005, momentum=0.9)}
    torch.manual_seed(seed)
    model = Wide()
    plain = train(tmp_path / "plain", copy.deepcopy(model), plan=plan, loader=make(plan), seed=seed, **slowly)
    found = tuned(
        tmp_path / "tuned",
        model,
        plan=plan,
        loader=make(plan),
        arguments={"loader_for": make},
        facts={"num_cores": 2, "data_paths": ("resident", "mmap"), "data_path": "resident"},
        seed=seed,
        **slowly,  # at a higher rate so many steps amplify round-off beyond what tells it from an error
    )
    verdicts = {
        "read-ahead from the store": "adopted",
        "channels_last": "adopted",
        "2 threads": "refused",
        "fused optimizer": "refused",
    }
    assert {name: found.trials[name].verdict for name in verdicts} == verdicts
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
    assert 1.0 < found.ledger.speedup <= trial.speedup, "waits for data do not become shorter"
    assert found.ledger.account.net > 0
    assert not found.model.conv.weight.is_contiguous()


def test_a_slower_candidate_is_refused_with_its_evidence(tmp_path: Path) -> None:
    model = Net(slow="channels_last")
    found = tuned(tmp_path, model, epochs=30)
    trial = found.trials["channels_last"]
    assert trial.verdict == "refused" and "slower" in trial.reason
    assert trial.speedup_interval is not None and trial.speedup_interval[1] < 1.0
    assert trial.seconds > 0
    assert found.plan == BASELINE and model.conv.weight.is_contiguous()
    assert found.ledger.speedup == 1.0 and found.ledger.account.net < 0


def test_batches_come_from_where_the_loop_waits_less(tmp_path: Path) -> None:
    model = nn.Sequential(Taking(), nn.Flatten(), nn.Linear(4 * 36, 16), nn.Dropout(0.3), nn.Linear(16, CLASSES))
    plain = train(tmp_path / "plain", copy.deepcopy(model), epochs=20)
    found = tuned(
        tmp_path / "tuned",
        model,
        loader=slow_from_memory(BASELINE),
        arguments={"loader_for": slow_from_memory},
        facts={"data_paths": ("resident", "mmap"), "data_path": "resident"},
        epochs=20,
    )
    assert found.trials["read-ahead from the store"].verdict == "adopted" and found.plan.data_path == "mmap"
    assert found.losses == plain.losses, "the same batches, and dropout as ever"
    step, first = found.ledger.step, found.ledger.first_step
    assert step is not None and first is not None and step.data_seconds < first.data_seconds
    assert step.step_seconds == pytest.approx(first.step_seconds, rel=0.1), "a shorter wait is no faster step"
    assert found.ledger.account.net > 0


# What is tried at all


def test_too_few_steps_are_not_tuned_on(tmp_path: Path) -> None:
    model = Net(slow="contiguous")
    plain = train(tmp_path / "plain", plainly(model), epochs=3)
    found = tuned(tmp_path / "tuned", model, epochs=3)
    assert found.ledger.trials == []
    assert found.ledger.notes == ["60 steps are too few to tune on"]
    assert found.losses == plain.losses


def test_a_short_job_is_not_compiled_and_says_why(tmp_path: Path) -> None:
    found = tuned(tmp_path, Net(), tuner_config=TunerConfig())
    trial = found.trials["compiled"]
    assert trial.verdict == "not tried" and trial.changes == {"compile": "whole"}
    assert "expected to save" in trial.reason and trial.reason.endswith("to cost 5.0 s")
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


def test_what_is_no_longer_proposed_for_the_plan_as_it_became_is_not_raced(tmp_path: Path) -> None:
    model = nn.Sequential(Taking(), nn.Flatten(), nn.Linear(4 * 36, CLASSES))
    found = tuned(
        tmp_path,
        model,
        loader=slow_from_memory(BASELINE),
        arguments={"loader_for": slow_from_memory},
        facts={"data_paths": ("resident", "mmap", "worker"), "data_path": "resident"},
        epochs=30,
    )
    assert found.trials["read-ahead from the store"].verdict == "adopted"
    trial = found.trials["1 data worker"]
    assert trial.verdict == "not tried" and trial.num_rounds == 0, "no step waits any more"
    assert trial.reason == NO_LONGER_PROPOSED
    assert list(found.trials)[-1] == "1 data worker", "told at the end: until then it might have been proposed again"


def test_what_is_tried_after_an_adoption_is_expected_to_gain_what_is_left_to_gain(tmp_path: Path) -> None:
    found = tuned(
        tmp_path,
        Wide(),
        loader=slow_from_memory(BASELINE),
        arguments={"loader_for": slow_from_memory},
        facts={"data_paths": ("resident", "mmap"), "data_path": "resident"},
        epochs=20,
    )
    data, layout = found.trials["read-ahead from the store"], found.trials["channels_last"]
    assert data.verdict == "adopted" and data.step < layout.step
    assert layout.expected_gain > 0.085, "a tenth of a step that hardly waits any more, as it did for a third of it"


def test_a_step_that_is_held_against_the_machines_limit_has_its_update(tmp_path: Path) -> None:
    found = tuned(tmp_path, Net(), tuner_config=replace(ANY_PRICE, stop_when_done=True), epochs=30)
    assert found.tuner is not None
    cost = found.tuner.observer.cost
    assert cost is not None and cost.has_optimizer
    assert cost.optimizer_state_bytes == cost.trained_bytes > 0, "the momentum"
