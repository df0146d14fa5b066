"""After tuning: steps that become slow have the first plan raced again, as often as that is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from live_trainings import ANY_PRICE, CLASSES, STEP_SECONDS, Batches, Net, Taking, is_channels_last, job, train, tuned
from torch import nn

from simulated_clock import spend
from upshift.tuning.config import KnownPlan
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.tuner import Tuner
from upshift.tuning.watch import Watch

pytestmark = pytest.mark.usefixtures("simulated_clock")

CHANNELS_LAST = Plan(memory_format="channels_last")
READ_AHEAD = Plan(data_path="mmap")
SLOWER = "slower than when the plan was chosen"


def known(plan: Plan, step_seconds: float = STEP_SECONDS) -> KnownPlan:
    """Steps are as fast as remembered, at first."""
    return KnownPlan(plan=plan, step_seconds=step_seconds, data_seconds=0.0, speedup=3.0, build_seconds=0.0)


class Slowing(Net):
    """At first faster in channels_last; later everything takes four times as long, at last channels_last ten times."""

    def __init__(self) -> None:
        super().__init__(slow="contiguous", seconds=0.1)
        self.num_steps = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.num_steps += self.training
        if self.num_steps > 100:
            spend(0.1)
        if self.num_steps > 600 and is_channels_last(self.conv):
            spend(1.0)
        return super().forward(images)


def test_the_first_plan_takes_its_place_at_the_second_alarm_though_it_lost_after_the_first(tmp_path: Path) -> None:
    found = tuned(tmp_path, Slowing(), arguments={"known": known(CHANNELS_LAST)}, epochs=50)
    first, second = (note for note in found.ledger.notes if SLOWER in note)
    assert "the first plan is no faster" in first and "took its place" in second
    assert found.plan == BASELINE


def test_a_first_plan_that_was_refused_when_the_run_was_stopped_can_still_take_its_place(tmp_path: Path) -> None:
    decided = (
        {"name": "channels_last", "changes": {"memory_format": "channels_last"}, "verdict": "adopted"},
        {"name": "the first plan again", "changes": {"memory_format": "contiguous"}, "verdict": "refused"},
    )
    stopped = replace(known(CHANNELS_LAST), is_complete=False, decided=decided)
    found = tuned(tmp_path, Slowing(), arguments={"known": stopped}, epochs=50)
    assert any(SLOWER in note and "took its place" in note for note in found.ledger.notes)
    assert found.plan == BASELINE


def test_tuning_stays_complete_while_the_first_plan_is_raced_once_more(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Asking(Slowing):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.num_steps > 150:
                seen.append(tuner.is_complete)
            return super().forward(images)

    model = Asking()
    tuner = Tuner(BASELINE, job=job(model), config=ANY_PRICE, known=known(CHANNELS_LAST))
    train(tmp_path, model, tuner, epochs=50)
    assert any(SLOWER in note for note in tuner.ledger.notes)
    assert seen and all(seen)


class Clogging(Batches):
    """After some hundred batches each is waited for."""

    num_given = 0

    def epoch(
        self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in super().epoch(epoch, start_batch=start_batch):
            self.num_given += 1
            if self.num_given > 100:
                spend(0.3)
            yield batch


def test_loading_that_becomes_slow_has_the_first_plan_raced_where_the_plan_loads_otherwise(tmp_path: Path) -> None:
    def make(plan: Plan) -> Batches:
        return Clogging(data_path="mmap") if plan.data_path == "mmap" else Batches(seconds=0.02)

    found = tuned(
        tmp_path,
        nn.Sequential(Taking(0.01), nn.Flatten(), nn.Linear(4 * 36, CLASSES)),
        loader=make(BASELINE),
        arguments={"known": known(READ_AHEAD, 0.01), "loader_for": make},
        facts={"data_paths": ("resident", "mmap"), "data_path": "resident"},
        epochs=30,
    )
    assert any(SLOWER in note and "took its place" in note for note in found.ledger.notes)
    assert found.plan == BASELINE


class OfSizes(Batches):
    """Images that grow after some epochs."""

    def epoch(
        self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for inputs, labels in super().epoch(epoch, start_batch=start_batch):
            yield inputs if epoch < 10 else inputs.repeat(1, 1, 2, 2), labels


class BySize(Net):
    """A step on four times the pixels takes four times as long."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        spend(0.03 * images.shape[-1] ** 2 / 36)
        return super().forward(images)


def test_larger_images_are_no_reason_to_race_the_first_plan_again(tmp_path: Path) -> None:
    model = BySize(slow="contiguous", seconds=0.1)
    found = tuned(tmp_path, model, loader=OfSizes(), arguments={"known": known(CHANNELS_LAST)}, epochs=50)
    assert found.plan == CHANNELS_LAST
    assert not any(SLOWER in note for note in found.ledger.notes)


def test_a_watch_that_expects_anew_still_sees_steps_become_slow() -> None:
    watch = Watch(0.1)
    watch.expect_anew()
    assert all(watch.slowdown(1.0) is None for _ in range(1000))
    assert any(watch.slowdown(2.0) is not None for _ in range(1000))
