"""Candidates that are wrong, raise, run out of memory or give no finite loss: training goes on as if alone."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from live_trainings import (
    CLASSES,
    CPU,
    STEP_SECONDS,
    Batches,
    Net,
    Trained,
    Trouble,
    assert_same_losses,
    job,
    plainly,
    train,
    tuned,
)
from torch import nn

from simulated_clock import spend
from upshift.training.rng import rng_state
from upshift.tuning.config import KnownPlan, TunerConfig
from upshift.tuning.plan import BASELINE, Plan

pytestmark = pytest.mark.usefixtures("simulated_clock", "one_thread")

CHANNELS_LAST = Plan(memory_format="channels_last")


def from_call(number: int, trouble: Trouble) -> Trouble:
    """Trouble that begins with a call; the first is the check of the gradients, the others are live steps."""
    calls = 0

    def later(logits: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return trouble(logits) if calls >= number else logits

    return later


def panic(logits: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("kernel panic\nand a long trace")


def exhausted(logits: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


def huge(logits: torch.Tensor) -> torch.Tensor:
    return torch.empty(2**50)  # torch's own error


def both(folder: Path, trouble: Trouble) -> tuple[Trained, Trained]:
    """The same training, plain and tuned."""
    model = Net()
    plain = train(folder / "plain", plainly(model), epochs=5)
    model.trouble = trouble
    return plain, tuned(folder / "tuned", model, epochs=5)


# Wrong


def test_a_candidate_with_wrong_gradients_is_refused(tmp_path: Path) -> None:
    plain, found = both(tmp_path, lambda logits: 1.01 * logits)
    trial = found.trials["channels_last"]
    assert trial.verdict == "refused" and "gradients differ" in trial.reason
    assert trial.gradient_error is not None and trial.gradient_error > 1e-3 and trial.num_rounds == 0
    assert found.plan == BASELINE and found.losses == plain.losses


def test_dropout_that_draws_otherwise_in_another_layout_is_refused(tmp_path: Path) -> None:
    # torch draws the mask of an image in the order of its memory.
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Dropout(0.5), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, CLASSES))
    plain = train(tmp_path / "plain", copy.deepcopy(model), epochs=5)
    found = tuned(tmp_path / "tuned", model, epochs=5)
    assert found.trials["channels_last"].verdict == "refused" and found.losses == plain.losses


def test_a_candidate_whose_gradients_are_not_finite_is_refused(tmp_path: Path) -> None:
    plain, found = both(tmp_path, lambda logits: logits * float("nan"))
    assert found.trials["channels_last"].verdict == "refused" and found.losses == plain.losses


# Raising


@pytest.mark.parametrize("trouble", [panic, huge])
def test_a_candidate_that_raises_in_its_check_has_failed(tmp_path: Path, trouble: Trouble) -> None:
    plain, found = both(tmp_path, trouble)
    trial = found.trials["channels_last"]
    assert trial.verdict == "failed" and "\n" not in trial.reason and "Error" in trial.reason
    assert found.plan == BASELINE and found.losses == plain.losses
    assert found.trainer.step.micro_batch_size == 16


@pytest.mark.parametrize(("trouble", "call"), [(panic, 2), (panic, 9), (exhausted, 9), (huge, 2)])
def test_a_candidate_that_raises_in_a_live_step_has_failed(tmp_path: Path, trouble: Trouble, call: int) -> None:
    plain, found = both(tmp_path, from_call(call, trouble))
    trial = found.trials["channels_last"]
    assert trial.verdict == "failed" and "\n" not in trial.reason and "Error" in trial.reason
    assert found.plan == BASELINE and not found.notes
    assert_same_losses(found.losses, plain.losses)
    assert found.trainer.step.micro_batch_size == 16, "the candidate goes, and not the micro-batch"
    counted = {name: int(count) for name, count in found.model.state_dict().items() if name.endswith("tracked")}
    assert counted == {"norm.num_batches_tracked": len(plain.losses)}, "no batch counts twice"


def test_a_failed_step_holds_no_memory_while_it_is_made_again(tmp_path: Path) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    class Watching(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            alive.extend(reference() is not None for reference in held)
            return super().forward(images)

    def exhausted_once(logits: torch.Tensor) -> torch.Tensor:
        held.append(weakref.ref(logits))
        raise MemoryError

    model = Watching()
    model.trouble = from_call(5, exhausted_once)
    found = tuned(tmp_path, model)
    assert found.trials["channels_last"].verdict == "failed"
    assert len(held) == 1 and alive and not any(alive)


def adopted_then(trouble: Trouble, is_adopted: Callable[[], bool]) -> Trouble:
    """Trouble some steps after a candidate was adopted."""
    steps_since = 0

    def later(logits: torch.Tensor) -> torch.Tensor:
        nonlocal steps_since
        steps_since += is_adopted()
        return trouble(logits) if steps_since > 10 else logits

    return later


@pytest.mark.parametrize("trouble", [panic, pytest.param(exhausted, marks=pytest.mark.slow)])
def test_a_plan_that_fails_after_it_was_adopted_is_demoted(tmp_path: Path, trouble: Trouble) -> None:
    model = Net(slow="contiguous", dropout=0.0)
    plain = train(tmp_path / "plain", plainly(model))
    adopted: list[Plan] = []
    model.trouble = adopted_then(trouble, lambda: bool(adopted))
    found = tuned(tmp_path / "tuned", model, arguments={"on_adopted": adopted.append})
    assert [plan.memory_format for plan in adopted] == ["channels_last", "contiguous"]
    trial = found.trials["channels_last"]
    assert trial.verdict == "demoted"
    assert "it failed at step" in trial.reason and "before: a proven gain" in trial.reason
    assert found.plan == BASELINE and found.model.conv.weight.is_contiguous()
    assert any("the tuned plan was dropped" in note for note in found.notes)
    assert found.ledger.step == found.ledger.first_step
    assert found.ledger.speedup == 1.0
    assert_same_losses(found.losses, plain.losses)
    assert found.trainer.step.micro_batch_size == 16


class Picky(Net):
    """Slow in contiguous layout; later it fails in the other one, while it goes by threads."""

    num_steps = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.num_steps += self.training
        spend(0.02 / torch.get_num_threads())
        return super().forward(images)


def test_tuning_goes_on_from_what_is_left_of_a_plan_that_failed(tmp_path: Path) -> None:
    model, adopted = Picky(slow="contiguous", seconds=0.04, dropout=0.0), list[Plan]()
    plain = train(tmp_path / "plain", plainly(model), epochs=40)
    model.trouble = adopted_then(panic, lambda: bool(adopted))
    found = tuned(
        tmp_path / "tuned", model, arguments={"on_adopted": adopted.append}, epochs=40, facts={"num_cores": 2}
    )
    assert adopted[:2] == [CHANNELS_LAST, BASELINE] and found.plan == Plan(num_threads=2)
    verdicts = [(trial.name, trial.verdict) for trial in found.ledger.trials]
    assert verdicts.count(("channels_last", "demoted")) == 1 and ("2 threads", "adopted") in verdicts
    assert ("channels_last", "adopted") not in verdicts
    assert found.tuner is not None and found.tuner.is_complete and found.ledger.confirmation is not None
    assert_same_losses(found.losses[:300], plain.losses[:300])


def test_a_budget_is_that_of_all_of_tuning_whatever_fails_on_the_way(tmp_path: Path) -> None:
    model, adopted = Picky(slow="contiguous", seconds=0.04, dropout=0.0), list[Plan]()

    def hangs(logits: torch.Tensor) -> torch.Tensor:
        spend(10.0)
        return panic(logits)

    model.trouble = adopted_then(hangs, lambda: bool(adopted))
    found = tuned(
        tmp_path,
        model,
        arguments={"on_adopted": adopted.append},
        tuner_config=TunerConfig(stop_when_done=True, budget_seconds=10.0),
        epochs=40,
        facts={"num_cores": 2},
    )
    assert adopted == [CHANNELS_LAST, BASELINE] and found.ledger.ran_out
    assert found.trials["2 threads"].reason == "the budget is used up" and found.plan == BASELINE


def test_an_error_of_the_plain_plan_is_the_users(tmp_path: Path) -> None:
    class Broken(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(self.batches) >= 3:
                raise KeyError("a bug of the user's")
            return super().forward(images)

    with pytest.raises(KeyError, match="a bug of the user's"):
        tuned(tmp_path, Broken())


# Not finite


@pytest.mark.parametrize("call", [2, 7])
def test_a_candidate_whose_loss_becomes_nan_is_refused_and_spoils_nothing(tmp_path: Path, call: int) -> None:
    plain, found = both(tmp_path, from_call(call, lambda logits: logits * float("nan")))
    trial = found.trials["channels_last"]
    assert trial.verdict == "refused" and "not finite" in trial.reason
    assert found.plan == BASELINE and found.trainer.step.num_skipped == 0
    assert_same_losses(found.losses, plain.losses)


class Spoilt(Batches):
    """One batch is full of NaN."""

    def epoch(
        self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index, (inputs, labels) in enumerate(super().epoch(epoch), start=0):
            if index >= start_batch:
                yield inputs * float("nan") if (epoch, index) == (8, 15) else inputs, labels


def test_a_batch_that_is_not_finite_is_skipped_once_and_blamed_on_no_plan(tmp_path: Path) -> None:
    model = Net(slow="contiguous")
    plain = train(tmp_path / "plain", plainly(model), loader=Spoilt(), epochs=12)
    found = tuned(tmp_path / "tuned", model, loader=Spoilt(), epochs=12)
    assert found.trials["channels_last"].verdict == "adopted"
    assert found.trainer.step.num_skipped == plain.trainer.step.num_skipped == 1
    assert_same_losses(found.losses[:175], plain.losses[:175])
    assert all(torch.isfinite(tensor).all() for tensor in found.model.state_dict().values())


# Loading


class Failing(Batches):
    """Fails after some batches."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def epoch(
        self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number, batch in enumerate(super().epoch(epoch, start_batch=start_batch)):
            if number == self.after:
                raise RuntimeError("DataLoader worker (pid 123) is killed by signal: Bus error")
            yield batch


def never(plan: Plan) -> Batches:
    raise OSError(24, "Too many open files")


@pytest.mark.parametrize(
    "make",
    [never, lambda plan: Failing(0), lambda plan: Failing(3)],
    ids=["cannot be made", "fails at once", "fails later"],
)
def test_a_loader_that_fails_is_given_up(tmp_path: Path, make: Callable[[Plan], Batches]) -> None:
    model, slow = Net(), Batches(seconds=0.005)
    plain = train(tmp_path / "plain", copy.deepcopy(model), epochs=5)
    found = tuned(
        tmp_path / "tuned",
        model,
        loader=slow,
        arguments={"loader_for": lambda plan: make(plan) if plan.data_path == "mmap" else slow},
        facts={"data_paths": ("resident", "mmap"), "data_path": "resident", "has_convolutions": False},
        epochs=5,
    )
    trial = found.trials["read-ahead from the store"]
    assert trial.verdict == "failed" and ("Bus error" in trial.reason or "Too many open files" in trial.reason)
    assert found.losses == plain.losses


# Plans that are known


def known(plan: Plan, *, step_seconds: float = STEP_SECONDS) -> KnownPlan:
    return KnownPlan(plan=plan, step_seconds=step_seconds, data_seconds=0.0, speedup=3.0, build_seconds=0.0)


def test_a_known_plan_is_taken_without_a_race(tmp_path: Path) -> None:
    model = Net(slow="contiguous")
    plain = train(tmp_path / "plain", plainly(model), epochs=5)
    found = tuned(tmp_path / "tuned", model, arguments={"known": known(CHANNELS_LAST)}, epochs=5)
    (trial,) = found.ledger.trials
    assert trial.verdict == "adopted" and trial.num_rounds == 0 and trial.changes == {"memory_format": "channels_last"}
    assert found.plan == CHANNELS_LAST and found.tuner.took_known and found.ledger.speedup > 1.0
    assert_same_losses(found.losses, plain.losses)


def test_a_known_plan_that_is_the_plain_one_ends_tuning(tmp_path: Path) -> None:
    found = tuned(tmp_path, Net(), arguments={"known": known(BASELINE)}, epochs=5)
    assert found.ledger.trials == [] and found.tuner.took_known and found.tuner.is_complete


@pytest.mark.parametrize("slow", ["contiguous", "channels_last"])
def test_a_known_plan_that_is_slower_than_recorded_is_raced(tmp_path: Path, slow: str) -> None:
    found = tuned(tmp_path, Net(slow=slow), arguments={"known": known(CHANNELS_LAST, step_seconds=1e-6)})
    assert any("tuned again" in note for note in found.ledger.notes) or slow == "channels_last"
    (trial,) = (trial for trial in found.ledger.trials if trial.verdict != "not tried")
    assert trial.num_rounds > 0 and "known from an earlier run" in trial.name
    assert trial.verdict == ("adopted" if slow == "contiguous" else "refused")
    assert found.plan.memory_format == ("channels_last" if slow == "contiguous" else "contiguous")
    assert not found.tuner.took_known


@pytest.mark.parametrize("trouble", [panic, lambda logits: 1.01 * logits], ids=["raises", "wrong"])
def test_a_known_plan_that_no_longer_works_is_not_taken(tmp_path: Path, trouble: Trouble) -> None:
    model = Net()
    plain = train(tmp_path / "plain", plainly(model), epochs=5)
    model.trouble = trouble
    found = tuned(tmp_path / "tuned", model, arguments={"known": known(CHANNELS_LAST)}, epochs=5)
    assert found.ledger.trials[0].verdict in ("failed", "refused")
    assert found.plan == BASELINE and found.losses == plain.losses and not found.tuner.took_known


class LookedInto(Net):
    """Notes in which layout someone else than training asks for its gradients: after the check of the known plan."""

    def __init__(self) -> None:
        super().__init__()
        self.profiled: set[bool] = set()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if torch._C._autograd._profiler_enabled():
            self.profiled.add(self.conv.weight.is_contiguous())
        return super().forward(images)


def test_a_step_is_looked_into_by_the_first_plan_where_the_known_one_was_not_taken(tmp_path: Path) -> None:
    model = LookedInto()
    model.trouble = lambda logits: 1.01 * logits
    found = tuned(
        tmp_path,
        model,
        arguments={"known": known(CHANNELS_LAST)},
        tuner_config=TunerConfig(allowance_share=10.0, stop_when_done=True, budget_seconds=0.0),
        epochs=6,
    )
    assert found.ledger.trials[0].verdict == "refused" and model.profiled == {True}


class LaidOut(Batches):
    """Gives images in the layout of a plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.layout = torch.channels_last if plan.memory_format == "channels_last" else torch.contiguous_format

    def epoch(
        self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for inputs, labels in super().epoch(epoch, start_batch=start_batch):
            yield inputs.contiguous(memory_format=self.layout), labels


def test_a_known_plan_is_timed_with_batches_in_its_layout_as_its_record_was(tmp_path: Path) -> None:
    loaders: list[str] = []

    def make(plan: Plan) -> LaidOut:
        loaders.append(plan.memory_format)
        return LaidOut(plan)

    slow = known(CHANNELS_LAST, step_seconds=1e-6)  # steps are never as fast: it is not taken, and raced
    found = tuned(
        tmp_path,
        Net(slow="channels_last"),
        arguments={"known": slow, "loader_for": make},
        epochs=5,
    )
    assert not found.tuner.took_known and loaders[:1] == ["channels_last"]


# Plans handed over


@pytest.mark.parametrize("slow", ["contiguous", "channels_last"])
def test_a_plan_from_elsewhere_is_raced_before_all_else_and_noted(tmp_path: Path, slow: str) -> None:
    elsewhere = Plan(memory_format="channels_last", micro_batch_size=16, num_threads=1)
    found = tuned(tmp_path, Net(slow=slow), arguments={"handed_over": elsewhere}, facts={"num_threads": 2})
    trial = next(trial for trial in found.ledger.trials if trial.verdict != "not tried")
    assert trial.name == "the plan handed over"
    verdict = "adopted" if slow == "contiguous" else "refused"
    assert trial.verdict == verdict
    assert any("it was measured elsewhere" in note and f"here it was {verdict}" in note for note in found.ledger.notes)


@pytest.mark.parametrize(
    "elsewhere",
    [
        Plan(compile="regional"),
        Plan(memory_format="channels_last"),
        Plan(micro_batch_size=4096),
        Plan(activation_checkpointing=True),
        Plan(num_threads=64),
        BASELINE,
    ],
    ids=["no blocks", "no images", "a micro-batch above the batch", "nothing to recompute", "many threads", "the same"],
)
def test_a_plan_for_another_model_harms_nothing(tmp_path: Path, elsewhere: Plan) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 16), nn.Dropout(0.3), nn.Linear(16, CLASSES))
    plain = train(tmp_path / "plain", copy.deepcopy(model), epochs=5)
    found = tuned(tmp_path / "tuned", model, arguments={"handed_over": elsewhere}, epochs=5)
    assert_same_losses(found.losses, plain.losses)


def test_random_numbers_are_where_they_would_be_without_tuning(tmp_path: Path) -> None:
    model = Net()
    model.trouble = from_call(6, panic)
    train(tmp_path / "plain", Net(), epochs=5)
    expected = rng_state(CPU)
    tuned(tmp_path / "tuned", model, epochs=5)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in rng_state(CPU).items())


def test_the_job_of_a_model_says_what_may_be_tried() -> None:
    assert job(Net()).has_convolutions and job(Net()).couples_samples
    assert not job(nn.Linear(2, 2)).has_convolutions
