"""Live steps by themselves: a story asks for blocks of them, and gets their times, or hears that a plan failed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from live_trainings import CPU, STEP_SECONDS, Batches, Net, assert_same_losses, plainly, train

from simulated_clock import spend
from upshift.training.conductor import Conducted
from upshift.tuning.config import TunerConfig
from upshift.tuning.ledger import Ledger
from upshift.tuning.live import Block, CandidateFailed, LiveSteps, Story
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.stopwatch import Measured

pytestmark = pytest.mark.usefixtures("simulated_clock")

CHANNELS_LAST = Plan(memory_format="channels_last")


def a_ledger() -> Ledger:
    return Ledger(BASELINE, config=TunerConfig())


def panic(logits: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("kernel panic")


def test_a_story_gets_the_times_of_the_blocks_it_asks_for(tmp_path: Path) -> None:
    times: list[Measured] = []

    def story(loop: Conducted) -> Story:
        for plan in (BASELINE, CHANNELS_LAST):
            times.append((yield Block(plan, num_steps=5, settle=2)))
            steps_made.append(loop.steps_made)

    steps_made: list[int] = []
    model = Net(slow="channels_last", seconds=0.01)
    live = LiveSteps(story, a_ledger(), loader_for=None, device=CPU)
    train(tmp_path, model, live, epochs=1)
    plain, other = (of_block.step_seconds for of_block in times)
    assert plain == pytest.approx(STEP_SECONDS, rel=0.2) and other == pytest.approx(STEP_SECONDS + 0.01, rel=0.2)
    assert steps_made == [7, 14] and len(model.batches) == 7
    assert live.is_complete
    assert model.conv.weight.is_contiguous(), "the rest is made by the ledger's plan"


@pytest.mark.parametrize("compiles", [True, False])
def test_a_long_step_that_compiled_did_not_stand_still(
    compiles: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setitem(counters, "stats", counters["stats"].copy())
    ledger = a_ledger()

    def story(loop: Conducted) -> Story:
        ledger.set_first_step((yield Block(BASELINE, num_steps=2, settle=0)))

    class Long(Net):
        num_steps = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.num_steps += self.training
            if self.num_steps == 10:
                counters["stats"]["unique_graphs"] += compiles
                spend(30.0)
            return super().forward(images)

    live = LiveSteps(story, ledger, loader_for=None, device=CPU)
    train(tmp_path, Long(), live, epochs=1)
    assert any("stood still" in note for note in ledger.notes) is not compiles
    assert (live.take_seconds() > 10.0) is compiles


def test_a_story_hears_that_a_step_it_asked_for_failed_and_the_step_is_made_again(tmp_path: Path) -> None:
    heard: list[str] = []

    def story(loop: Conducted) -> Story:
        try:
            yield Block(CHANNELS_LAST, num_steps=5, settle=0)
        except CandidateFailed as failed:
            heard.append(str(failed))
        yield Block(BASELINE, num_steps=1, settle=0)

    model = Net()
    plain = train(tmp_path / "plain", plainly(model), epochs=1)
    model.trouble = panic
    ledger = a_ledger()
    live = LiveSteps(story, ledger, loader_for=None, device=CPU)
    found = train(tmp_path / "live", model, live, epochs=1)
    assert heard == ["RuntimeError: kernel panic"] and live.is_complete
    assert not ledger.was_demoted and found.losses == plain.losses


def test_a_plan_that_fails_once_it_is_the_ledgers_ends_the_story_and_is_demoted(tmp_path: Path) -> None:
    ended: list[bool] = []
    ledger, model = a_ledger(), Net()

    def story(loop: Conducted) -> Story:
        first = yield Block(BASELINE, num_steps=2, settle=0)
        ledger.set_first_step(first)
        found = yield Block(CHANNELS_LAST, num_steps=2, settle=0)
        ledger.adopt(CHANNELS_LAST, found, 2.0, live.take_seconds())
        live.go_back(loop)
        model.trouble = panic
        try:
            yield Block(CHANNELS_LAST, num_steps=5, settle=0)
        finally:
            ended.append(True)

    plain = train(tmp_path / "plain", plainly(model), epochs=1)
    live = LiveSteps(story, ledger, loader_for=None, device=CPU)
    found = train(tmp_path / "live", model, live, epochs=1)
    assert ended == [True] and live.is_complete and ledger.was_demoted
    assert ledger.plan == BASELINE and ledger.step == ledger.first_step and ledger.speedup == 1.0
    assert any("dropped for the first one: it failed at step 5" in note for note in found.notes)
    assert model.conv.weight.is_contiguous()
    assert_same_losses(found.losses, plain.losses)


def test_a_plan_that_fails_loses_what_was_adopted_last_and_goes_on_with_another_story(tmp_path: Path) -> None:
    ledger, model, told = a_ledger(), Net(), list[Plan]()
    both = Plan(memory_format="channels_last", fused_optimizer=False)

    def story(loop: Conducted) -> Story:
        ledger.set_first_step((yield Block(BASELINE, num_steps=2, settle=0)))
        for plan, speedup in ((Plan(fused_optimizer=False), 1.5), (both, 2.0)):
            found = yield Block(plan, num_steps=2, settle=0)
            ledger.adopt(plan, replace(found, step_seconds=1.0, data_seconds=0.5), speedup, live.take_seconds())
            live.go_back(loop)
        model.trouble = panic
        yield Block(both, num_steps=5, settle=0)

    def go_on(loop: Conducted) -> Story:
        told.append(ledger.plan)
        yield Block(ledger.plan, num_steps=2, settle=0)

    plain = train(tmp_path / "plain", plainly(model), epochs=1)
    live = LiveSteps(story, ledger, loader_for=None, device=CPU, after_demotion=go_on)
    found = train(tmp_path / "live", model, live, epochs=1)
    assert told == [Plan(fused_optimizer=False)] and live.is_complete and ledger.was_demoted
    assert ledger.plan == Plan(fused_optimizer=False) and ledger.speedup == 1.5
    assert ledger.step is not None and (ledger.step.step_seconds, ledger.step.data_seconds) == (2.0, 1.0)
    assert ledger.has_failed(CHANNELS_LAST) and not ledger.has_failed(ledger.plan)
    assert [note for note in found.notes if note.startswith("memory_format=channels_last was dropped from the plan")]
    assert model.conv.weight.is_contiguous()
    assert_same_losses(found.losses, plain.losses)


class Copied(Batches):
    """Notes that its copy of the data was given back."""

    is_freed = False

    def free(self) -> None:
        self.is_freed = True


def test_copies_of_the_data_that_no_plan_uses_are_freed_the_first_one_too(tmp_path: Path) -> None:
    ledger, first, found = a_ledger(), Copied(), Copied()

    def story(loop: Conducted) -> Story:
        ledger.set_first_step((yield Block(BASELINE, num_steps=2, settle=0)))
        seen = yield Block(CHANNELS_LAST, num_steps=2, settle=0, own_loader=True)
        ledger.adopt(CHANNELS_LAST, seen, 2.0, live.take_seconds())
        live.go_back(loop)
        live.drop_other_loaders()

    live = LiveSteps(story, ledger, loader_for=lambda plan: found, device=CPU)
    trained = train(tmp_path, Net(), live, epochs=1, loader=first)
    assert trained.trainer.loader is found
    assert (first.is_freed, found.is_freed) == (True, False)
