"""The check of a candidate's gradients: what it may cost, and where there is nothing to compare them with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from live_trainings import ANY_PRICE, STEP_SECONDS, Net, tuned

from simulated_clock import spend
from upshift.training.execution import Execution
from upshift.training.step import TrainingStep
from upshift.tuning.config import KnownPlan, TunerConfig
from upshift.tuning.fidelity import HonestDeviation, Reference
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.trials import SWITCHING, UNEXPLAINED
from upshift.workflows.tuning_memory import to_document

pytestmark = pytest.mark.usefixtures("simulated_clock", "one_thread")

CHANNELS_LAST = Plan(memory_format="channels_last")


# Without the memory for plain gradients


class Large(Net):
    """Faster on two threads; in contiguous layout, as plain steps have it, no more than some samples fit in memory."""

    def __init__(self, most: int, *, takes_parts: bool = True) -> None:
        super().__init__()
        self.most, self.takes_parts = most, takes_parts

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        spend(0.02 / torch.get_num_threads())
        if self.training and self.conv.weight.is_contiguous():
            if len(images) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
            if not self.takes_parts:
                raise ValueError(f"no {len(images)} of 16 samples\nmake a batch")
        return super().forward(images)


@pytest.mark.parametrize("most", [8, 2, 0])
def test_plain_gradients_that_do_not_fit_in_memory_are_no_candidates_fault(most: int, tmp_path: Path) -> None:
    found = tuned(tmp_path, Large(most), plan=CHANNELS_LAST, facts={"num_cores": 2}, epochs=10)
    trial = found.trials["2 threads"]
    if most > 0:
        assert trial.verdict == "adopted" and trial.gradient_error is not None and trial.gradient_error < 1e-4
        assert trial.gradient_noise is not None
    else:
        assert trial.verdict == "refused" and "could not be checked: plain ones" in trial.reason
        assert trial.gradient_error is None
    assert found.trainer.step.micro_batch_size == 16 and not found.notes


def test_a_part_of_a_batch_that_raises_is_told_of_by_its_error(tmp_path: Path) -> None:
    found = tuned(tmp_path, Large(8, takes_parts=False), plan=CHANNELS_LAST, facts={"num_cores": 2}, epochs=10)
    trial = found.trials["2 threads"]
    assert trial.verdict == "refused" and "could not be checked: plain ones" in trial.reason
    assert trial.reason.endswith("a part of the batch raised ValueError: no 8 of 16 samples")


def test_a_part_of_a_batch_is_judged_by_the_noise_of_the_whole() -> None:
    assert HonestDeviation(noise=0.4, round_off=1e-6).of_whole(0.25) == HonestDeviation(noise=0.2, round_off=1e-6)
    assert HonestDeviation(noise=None, round_off=1e-6).of_whole(0.25).noise is None


# A closer look


def off_on_one_batch(factor: float = 1.0005) -> Net:
    """Faster in channels_last; there its gradients are off, on the batch on which it is checked first."""
    model, seen = Net(slow="contiguous", dropout=0.0), list[float]()

    def off(logits: torch.Tensor) -> torch.Tensor:
        batch = float(logits.detach().sum())
        seen.extend([] if seen else [batch])
        return logits * factor if batch == seen[0] else logits

    model.trouble = off
    return model


@pytest.mark.parametrize("config", [TunerConfig(), ANY_PRICE], ids=["too short", "with time"])
def test_a_training_too_short_for_a_closer_look_leaves_the_candidate_undecided_for_longer_ones(
    config: TunerConfig, tmp_path: Path
) -> None:
    found = tuned(tmp_path, off_on_one_batch(), tuner_config=config, epochs=30)
    trial, ledger = found.trials["channels_last"], found.ledger
    assert found.tuner is not None
    document = to_document(found.tuner, found.plan)
    assert document is not None
    if config is ANY_PRICE:
        assert trial.verdict == "adopted"
        return
    assert (trial.verdict, trial.reason) == ("refused", UNEXPLAINED) and trial.num_rounds == 0
    assert ledger.account.spent < 0.02 * 600 * (0.01 + STEP_SECONDS)
    assert document["decided"] == [] and document["untried_seconds"] > 0.0


def test_a_known_plan_is_looked_at_closer_where_what_it_saves_is_worth_it(tmp_path: Path) -> None:
    known = KnownPlan(plan=CHANNELS_LAST, step_seconds=STEP_SECONDS, data_seconds=0.0, speedup=3.0, build_seconds=0.0)
    arguments = {"known": known}
    found = tuned(tmp_path, off_on_one_batch(), tuner_config=TunerConfig(), arguments=arguments, epochs=8)
    assert found.tuner is not None and found.tuner.took_known and found.plan == CHANNELS_LAST


def test_what_no_closer_look_could_explain_is_spared_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr(Reference, "look_closer", lambda *_: looks.append(True))
    found = tuned(tmp_path, off_on_one_batch(factor=2.0))
    assert found.trials["channels_last"].verdict == "refused" and found.plan == BASELINE
    assert "more than round-off" in found.trials["channels_last"].reason and not looks


# What switching costs


@pytest.mark.parametrize("slow", [None, "contiguous"], ids=["no faster", "faster"])
def test_a_candidate_that_is_dear_to_switch_to_is_raced_on_only_where_its_steps_promise_to_pay_for_that(
    slow: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = TrainingStep.execute

    def execute_slowly(step: TrainingStep, execution: Execution) -> None:
        spend(0.01)
        execute(step, execution)

    monkeypatch.setattr(TrainingStep, "execute", execute_slowly)
    ledger = tuned(tmp_path, Net(slow), epochs=200, tuner_config=TunerConfig()).ledger
    trial = next(trial for trial in ledger.trials if trial.name == "channels_last")
    if slow:
        assert trial.verdict == "adopted" and ledger.account.net > 0.0
    else:
        assert trial.verdict == "refused" and trial.reason == SWITCHING and not trial.is_decided
        assert ledger.untried_seconds is not None
        assert ledger.account.net > -0.02 * 200 * 20 * STEP_SECONDS
