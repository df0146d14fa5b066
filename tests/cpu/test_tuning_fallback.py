"""A plan that is given and not tuned: where it fails, training goes on by the plain one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from live_trainings import CPU, Batches, Net, assert_same_losses, plainly, train

from upshift.errors import DataError
from upshift.tuning.demotion import LIKELIEST, Adoptions
from upshift.tuning.fallback import Fallback, fallback
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.whole_plans import NOT_EXECUTED, differences

pytestmark = pytest.mark.usefixtures("simulated_clock")

CHANNELS_LAST = Plan(memory_format="channels_last")


def panic(logits: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("kernel panic")


def test_a_given_plan_whose_step_fails_is_dropped_for_the_plain_one(tmp_path: Path) -> None:
    model = Net()
    plain = train(tmp_path / "plain", plainly(model), epochs=1)
    model.trouble = panic
    given = Fallback(CHANNELS_LAST, CPU)
    found = train(tmp_path / "given", model, given, epochs=1, plan=CHANNELS_LAST)
    assert given.was_dropped and not differences(given.plan, BASELINE)
    assert any("the given plan was dropped for the plain one: it failed at step 1" in note for note in found.notes)
    (trial,) = given.plan.trials
    assert trial["verdict"] == "demoted" and trial["changes"] == {"memory_format": "channels_last"}
    assert_same_losses(found.losses, plain.losses)


class OnManyThreads(Net):
    """Fails on as many threads as nobody has by chance."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if torch.get_num_threads() == 3:
            raise RuntimeError("kernel panic")
        return super().forward(images)


@pytest.mark.parametrize(
    ("kind", "lost"),
    [(Net, ["memory_format=channels_last"]), (OnManyThreads, ["memory_format=channels_last", "num_threads=3"])],
    ids=["the likeliest", "the one after it"],
)
def test_a_given_plan_loses_one_thing_at_a_time_and_no_more_than_it_has_to(
    kind: type[Net], lost: list[str], tmp_path: Path
) -> None:
    given_plan = replace(CHANNELS_LAST, num_threads=3, fused_optimizer=False, micro_batch_size=8)
    model = kind()
    if kind is Net:
        model.trouble = panic
    given = Fallback(given_plan, CPU)
    found = train(tmp_path, model, given, epochs=1, plan=given_plan)
    assert given.was_dropped and [trial["name"] for trial in given.plan.trials] == lost
    kept = replace(given_plan, memory_format="contiguous", num_threads=None if len(lost) == 2 else 3)
    assert not differences(given.plan, kept) and found.trainer.step.micro_batch_size == 8
    notes = [note for note in found.notes if "was dropped from the plan: it failed at step 1: RuntimeError" in note]
    assert [note.split(" was")[0] for note in notes] == lost
    assert len(found.losses) == 20


def test_where_batches_come_from_is_nothing_that_a_step_can_fail_by() -> None:
    assert fallback(Plan(data_path="worker", num_workers=2), CPU) is None


def test_every_field_that_execution_depends_on_can_be_taken_back() -> None:
    names = {field.name for field in fields(Plan)} - set(NOT_EXECUTED)
    assert sorted(names) == sorted(name for group in LIKELIEST for name in group)


def test_fields_that_need_each_other_are_taken_back_together() -> None:
    adoptions = Adoptions()
    plan = Plan(compile="whole", compile_mode="reduce-overhead", precision="bf16")
    adoptions.add(plan, BASELINE, 3.0)
    first = adoptions.take_back(plan, BASELINE, 3.0, of_batches=False)
    assert first.plan == Plan(precision="bf16") and first.what == "compile=whole, compile_mode=reduce-overhead"
    assert (first.adoption.speedup, first.is_whole) == (3.0, False)
    second = adoptions.take_back(first.plan, BASELINE, 1.0, of_batches=False)
    assert second.plan == BASELINE and second.is_whole and second.adoption.speedup == 1.0


def test_where_a_batch_cannot_be_had_loading_is_taken_back_first() -> None:
    adoptions = Adoptions()
    loading = Plan(data_path="worker", num_workers=2)
    adoptions.add(loading, BASELINE, 2.0)
    plan = replace(loading, memory_format="channels_last")
    adoptions.add(plan, loading, 1.5)
    taken = adoptions.take_back(plan, BASELINE, 3.0, of_batches=True)
    assert taken.plan == CHANNELS_LAST and taken.adoption.speedup == 2.0


class Torn(Batches):
    """The third batch cannot be read."""

    def epoch(
        self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index, batch in enumerate(super().epoch(epoch, start_batch=start_batch)):
            if index == 2:
                raise DataError("a file must be readable", received="half of it", hint="copy it again")
            yield batch


def test_a_batch_that_cannot_be_read_is_not_the_plans_doing(tmp_path: Path) -> None:
    given = Fallback(CHANNELS_LAST, CPU)
    with pytest.raises(DataError, match="half of it"):
        train(tmp_path, Net(), given, epochs=1, plan=CHANNELS_LAST, loader=Torn())
    assert not given.was_dropped and given.plan == CHANNELS_LAST
