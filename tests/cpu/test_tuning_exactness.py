"""What steps of a tuned training count and draw: the whole of what a plan will cost, and the same random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from live_trainings import CPU, STEP_SECONDS, Net, assert_same_losses, is_channels_last, plainly, train, tuned
from torch import nn
from torch.overrides import TorchFunctionMode

from simulated_clock import spend
from upshift.training.conductor import Conducted
from upshift.training.rng import HOST_GENERATORS, restore_rng_state, rng_state
from upshift.tuning.config import KnownPlan, TunerConfig
from upshift.tuning.duels import Duels
from upshift.tuning.fallback import Fallback
from upshift.tuning.fidelity import Fidelity, Reference
from upshift.tuning.ledger import Ledger
from upshift.tuning.live import LiveSteps, Story
from upshift.tuning.numerics import note_of_steps
from upshift.tuning.plan import BASELINE, Plan

pytestmark = pytest.mark.usefixtures("simulated_clock")

CHANNELS_LAST = Plan(memory_format="channels_last")


class SlowToLayOut(TorchFunctionMode):
    """Bringing a batch into channels_last takes a while."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        wanted = kwargs.get("memory_format")
        is_to_lay_out = func is torch.Tensor.contiguous and wanted is torch.channels_last
        if is_to_lay_out and not args[0].is_contiguous(memory_format=wanted):
            spend(0.02)
        return func(*args, **kwargs)


@pytest.mark.parametrize(("is_slow_to_lay_out", "verdict"), [(False, "adopted"), (True, "refused")])
def test_laying_out_a_batch_counts_as_part_of_the_step(is_slow_to_lay_out: bool, verdict: str, tmp_path: Path) -> None:
    model = Net(slow="contiguous", seconds=0.01)
    if is_slow_to_lay_out:
        with SlowToLayOut():
            found = tuned(tmp_path, model, epochs=20)
    else:
        found = tuned(tmp_path, model, epochs=20)
    trial = found.trials["channels_last"]
    assert trial.verdict == verdict, "10 ms of a step saved, and 20 ms spent on its batch"
    if is_slow_to_lay_out:
        assert trial.speedup == pytest.approx(12 / 22, rel=0.1)


# Random numbers


def failing_after_adoption(model: Net, adopted: list[Plan]) -> None:
    """Have a step of the adopted plan fail, once its dropout and its random depth are drawn."""
    steps_since = 0

    def fail(logits: torch.Tensor) -> torch.Tensor:
        nonlocal steps_since
        steps_since += bool(adopted)
        if steps_since > 10:
            raise RuntimeError("kernel panic")
        return logits

    model.trouble = fail


class RandomDepth(Net):
    """Leaves half of its scaling out, by Python's generator."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        return 2.0 * logits if random.random() < 0.5 else logits


@pytest.mark.parametrize("kind", [Net, RandomDepth])
def test_a_step_of_an_adopted_plan_that_fails_draws_the_same_numbers_when_made_again(
    kind: type[Net], tmp_path: Path
) -> None:
    model, adopted = kind(slow="contiguous", dropout=0.5), list[Plan]()
    plain = train(tmp_path / "plain", plainly(model), epochs=12)
    after = rng_state(CPU)
    failing_after_adoption(model, adopted)
    found = tuned(tmp_path / "tuned", model, arguments={"on_adopted": adopted.append}, epochs=12)
    assert found.trials["channels_last"].verdict == "demoted" and found.plan == BASELINE
    assert_same_losses(found.losses, plain.losses)
    now = rng_state(CPU)
    assert all(torch.equal(now[name], tensor) for name, tensor in after.items())


def test_torchs_generators_alone_are_kept_where_a_step_draws_from_no_other(tmp_path: Path) -> None:
    def draws_on_host(kind: type[Net]) -> bool | None:
        found = tuned(tmp_path / kind.__name__, kind(slow="contiguous"), epochs=12)
        assert found.tuner is not None
        return found.tuner.live.draws_on_host

    assert draws_on_host(Net) is False and draws_on_host(RandomDepth) is True


def test_the_hosts_generators_are_kept_for_one_step_of_a_given_plan_and_for_more_only_if_it_draws_from_them(
    tmp_path: Path,
) -> None:
    given, drawing = Fallback(CHANNELS_LAST, CPU), Fallback(CHANNELS_LAST, CPU)
    train(tmp_path / "given", Net(), given, epochs=1, plan=CHANNELS_LAST)
    train(tmp_path / "drawing", RandomDepth(), drawing, epochs=1, plan=CHANNELS_LAST)
    assert given.draws_on_host is False and drawing.draws_on_host is True
    known = KnownPlan(
        plan=CHANNELS_LAST,
        step_seconds=STEP_SECONDS,
        data_seconds=0.0,
        speedup=2.0,
        build_seconds=0.0,
        is_complete=False,
    )
    arguments = {"known": known, "first_plan": BASELINE}
    resumed = tuned(tmp_path / "resumed", Net(), plan=CHANNELS_LAST, arguments=arguments, epochs=3)
    assert resumed.tuner is not None and not resumed.ledger.trials, "there were too few steps to tune on"
    assert resumed.tuner.live.draws_on_host is False


def test_a_step_of_a_given_plan_that_fails_draws_the_same_numbers_when_made_again(tmp_path: Path) -> None:
    model = RandomDepth(dropout=0.5)
    plain = train(tmp_path / "plain", plainly(model), epochs=1)
    after = rng_state(CPU)
    failing_after_adoption(model, [CHANNELS_LAST])
    given = Fallback(CHANNELS_LAST, CPU)
    found = train(tmp_path / "given", model, given, epochs=1, plan=CHANNELS_LAST)
    assert given.was_dropped
    assert_same_losses(found.losses, plain.losses)
    now = rng_state(CPU)
    assert all(torch.equal(now[name], tensor) for name, tensor in after.items())


def test_a_state_without_the_hosts_generators_leaves_them_alone() -> None:
    state = rng_state(CPU, with_host=False)
    assert not set(state) & set(HOST_GENERATORS)
    expected = torch.rand(3)
    random.seed(1)
    before = random.getstate()
    restore_rng_state(state, CPU)
    assert torch.equal(torch.rand(3), expected) and random.getstate() == before


# The same mathematics beside another precision


class FastInBf16(nn.Module):
    """Faster in bf16, and in channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(4, 8, 3), nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        is_bf16 = torch.is_autocast_enabled("cpu")
        spend((0.005 if is_bf16 else 0.02) * (0.5 if is_channels_last(self.conv) else 1.0))
        return self.head(torch.relu(self.conv(images)).mean((2, 3)))


def test_what_is_exact_in_itself_is_raced_in_another_precision_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = tuned(tmp_path, FastInBf16(), facts={"fast_dtypes": ("bf16",)}, epochs=40)
    verdicts = {name: found.trials[name].verdict for name in ("bf16", "channels_last")}
    assert verdicts == {"bf16": "adopted", "channels_last": "adopted"}


class SlowInBf16(Net):
    """Slower in bf16."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        spend(0.01 if torch.is_autocast_enabled("cpu") else 0.0)
        return super().forward(images)


def test_a_precision_that_was_tried_on_live_steps_and_refused_is_told_as_losses_are_not_the_same(
    tmp_path: Path,
) -> None:
    found = tuned(tmp_path, SlowInBf16(dropout=0.0), facts={"fast_dtypes": ("bf16",), "has_convolutions": False})
    trial = found.trials["bf16"]
    assert trial.verdict == "refused" and trial.num_rounds > 0
    assert note_of_steps("bf16") in found.notes


def test_of_a_training_that_waits_on_an_accelerator_whole_steps_are_compared() -> None:
    def no_story(loop: Conducted) -> Story:
        yield from ()

    def counts_waits(device: str) -> bool:
        ledger = Ledger(BASELINE, config=TunerConfig())
        live = LiveSteps(no_story, ledger, loader_for=None, device=torch.device(device))
        return Duels(live, ledger, batch_size=16).counts_waits(Plan(memory_format="channels_last"))

    assert counts_waits("meta") and not counts_waits("cpu")


@pytest.mark.parametrize("batches, verdict", [(1, "adopted"), (10_000, "refused")])
def test_a_difference_that_is_not_explained_is_a_fault_where_another_batch_shows_it_too(
    tmp_path: Path, batches: int, verdict: str
) -> None:
    model = Net(slow="contiguous", dropout=0.0)
    seen: list[float] = []

    def off(logits: torch.Tensor) -> torch.Tensor:
        batch = float(logits.detach().sum())
        seen.extend([batch] if batch not in seen else [])
        return logits * 1.0005 if seen.index(batch) < batches else logits

    model.trouble = off
    found = tuned(tmp_path, model)
    trial = found.trials["channels_last"]
    assert trial.verdict == verdict, trial
    assert verdict == "adopted" or "round-off" in trial.reason


def test_another_execution_of_a_changed_precision_is_compared_with_the_plan_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, judge = [], Reference.judge

    def watched(reference: Reference, gradients: list[torch.Tensor], **settings: Any) -> Fidelity:
        fidelity, beside = judge(reference, gradients, **settings), settings["beside"]
        seen.append(None if beside is None else judge(reference, beside, same_mathematics=False).error)
        return fidelity

    monkeypatch.setattr(Reference, "judge", watched)
    found = tuned(tmp_path / "bf16", Net(slow="contiguous"), plan=Plan(precision="bf16"))
    assert found.plan.memory_format == "channels_last" and found.plan.precision == "bf16"
    assert seen and all(error is not None and 1e-5 < error < 0.1 for error in seen)
    seen.clear()
    tuned(tmp_path / "fp32", Net(slow="contiguous"))
    assert seen and set(seen) == {None}
