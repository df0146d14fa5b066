"""The end of tuning: the plan that was found meets the first one again, and what was saved rests on that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from live_trainings import Net, assert_same_losses, is_channels_last, plainly, train, tuned
from torch import Tensor

from simulated_clock import spend
from upshift.tuning.ledger import Ledger
from upshift.tuning.plan import BASELINE
from upshift.tuning.tuner import Tuner
from upshift.workflows.tuning_memory import to_document

pytestmark = pytest.mark.usefixtures("simulated_clock", "one_thread")


def found_by(tuner: Tuner | None) -> Ledger:
    assert tuner is not None and tuner.is_complete
    return tuner.ledger


def test_a_plan_is_confirmed_on_fresh_rounds_and_the_seconds_saved_are_theirs(tmp_path: Path) -> None:
    model = Net(slow="contiguous")
    plain = train(tmp_path / "plain", plainly(model), epochs=30)
    found = tuned(tmp_path / "tuned", model, epochs=30)
    ledger = found_by(found.tuner)
    confirmed = ledger.confirmation
    assert confirmed is not None and confirmed.verdict == "confirmed" and "fresh rounds" in confirmed.reason
    assert confirmed.speedup == ledger.speedup and confirmed.speedup_interval is not None
    low, high = confirmed.speedup_interval
    assert 1.0 < low <= confirmed.speedup <= high and low <= 6.0 <= high, "12 ms to 2 ms"
    least, most = ledger.saved_interval or (0.0, 0.0)
    assert 0.0 < least <= ledger.account.saved <= most
    # It saves 10 ms a step from its adoption on, and that was well before the middle.
    assert 0.5 * 600 * 0.01 < ledger.account.saved < 600 * 0.01
    assert_same_losses(found.losses[:300], plain.losses[:300])


def test_a_plan_that_was_confirmed_and_fails_later_is_not_told_of_as_confirmed(tmp_path: Path) -> None:
    model = Net(slow="contiguous")

    def fails_at_last(logits: Tensor) -> Tensor:
        if len(model.batches) > 450:
            raise RuntimeError("no memory left")
        return logits

    model.trouble = fails_at_last
    ledger = tuned(tmp_path, model, epochs=30).ledger
    assert ledger.plan == BASELINE and ledger.first_step is not None
    confirmed = ledger.confirmation
    assert confirmed is not None and confirmed.verdict == "not confirmed" and confirmed.speedup is None
    assert "lost memory_format=channels_last later: it failed at step" in confirmed.reason
    assert ledger.saved_interval is None


class FasterAtFirst(Net):
    """In channels_last it is faster until another candidate comes, two threads, which are slower; then it is slower."""

    is_later = False

    def forward(self, images: Tensor) -> Tensor:
        self.is_later |= torch.get_num_threads() == 2
        if self.is_later and is_channels_last(self.conv):
            spend(0.02 * torch.get_num_threads())
        return super().forward(images)


def test_a_plan_that_is_no_faster_on_fresh_rounds_is_dropped_with_its_reason(tmp_path: Path) -> None:
    model = FasterAtFirst(slow="contiguous", seconds=0.004)
    plain = train(tmp_path / "plain", plainly(model), epochs=30)
    found = tuned(tmp_path / "tuned", model, epochs=30, facts={"num_cores": 2})
    assert found.trials["2 threads"].verdict == "refused"
    ledger = found_by(found.tuner)
    assert ledger.confirmation is not None and ledger.confirmation.verdict == "refuted"
    assert "no faster than the first plan on fresh rounds" in ledger.confirmation.reason
    assert found.plan == BASELINE and found.model.conv.weight.is_contiguous()
    assert found.trials["channels_last"].verdict == "demoted"
    assert found.tuner is not None
    document = to_document(found.tuner, found.plan)
    assert document is not None and (document["complete"], document["decided"]) == (False, []), "it is tuned again"
    assert any("dropped for the first one" in note for note in ledger.notes)
    assert ledger.speedup == 1.0 and ledger.saved_interval is None
    assert_same_losses(found.losses[:300], plain.losses[:300])


def test_without_the_time_for_it_nothing_is_confirmed_and_the_reason_is_told(tmp_path: Path) -> None:
    found = tuned(tmp_path, Net(slow="contiguous"), epochs=10)
    ledger = found_by(found.tuner)
    assert found.trials["channels_last"].verdict == "adopted"
    assert ledger.confirmation is not None and ledger.confirmation.verdict == "not confirmed"
    assert "too few for" in ledger.confirmation.reason and ledger.confirmation.speedup is None
    assert ledger.saved_interval is None and ledger.account.saved > 0.0


def test_the_plain_plan_needs_no_confirmation(tmp_path: Path) -> None:
    found = tuned(tmp_path, Net(slow="channels_last"), epochs=30)
    assert found.plan == BASELINE and found_by(found.tuner).confirmation is None


class Stopped(Net):
    """The process is stopped for an hour in a step well after tuning."""

    num_steps = 0

    def forward(self, images: Tensor) -> Tensor:
        self.num_steps += self.training
        if self.num_steps == 590:
            spend(3600.0)
        return super().forward(images)


def test_an_hour_in_which_the_process_was_stopped_was_saved_by_no_plan(tmp_path: Path) -> None:
    found = tuned(tmp_path, Stopped(slow="contiguous"), epochs=30)
    ledger = found_by(found.tuner)
    assert found.trials["channels_last"].verdict == "adopted" and ledger.speedup > 3.0
    assert 0.0 < ledger.account.saved < 600 * 0.01 and ledger.account.spent < 5.0
    assert any("stood still for" in note for note in ledger.notes)
