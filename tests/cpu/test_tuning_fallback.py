"""A plan that is given and not tuned: where it fails, training goes on by the plain one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from live_trainings import CPU, Batches, Net, assert_same_losses, plainly, train

from upshift.errors import DataError
from upshift.tuning.fallback import Fallback
from upshift.tuning.plan import BASELINE, Plan

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
    assert given.was_dropped and given.plan == BASELINE
    assert any("the given plan was dropped for the plain one: it failed at step 1" in note for note in found.notes)
    assert_same_losses(found.losses, plain.losses)


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
