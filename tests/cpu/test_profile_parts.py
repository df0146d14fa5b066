"""The parts of a profile: what operators are, whose they are, how a step's time is divided, and what follows."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

import upshift
from upshift.core.records import RunFolder, read_jsonl
from upshift.recipes.recipe import Recipe
from upshift.training.loss import CrossEntropy
from upshift.training.metrics import RunningMetrics
from upshift.training.rng import seed_everything
from upshift.tuning.breakdown import Breakdown
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.profiling.advice import advise
from upshift.tuning.profiling.attribution import (
    AttributedCall,
    Roofline,
    attribute,
    memory_share,
    operator_rows,
    timed_rows,
)
from upshift.tuning.profiling.batch import BatchScaling
from upshift.tuning.profiling.cause import Cause
from upshift.tuning.profiling.causes import find_causes
from upshift.tuning.profiling.events import CallCost, TimedOperator, WatchedStep, record, watched_steps
from upshift.tuning.profiling.items import profile_items
from upshift.tuning.profiling.job import Job
from upshift.tuning.profiling.measure import Measurement
from upshift.tuning.profiling.memory import MemoryProfile
from upshift.tuning.profiling.operators import OperatorCall, OperatorLog, is_image, is_permuted, log_step
from upshift.tuning.profiling.rehearsal import Rehearsal, StepTimes
from upshift.tuning.profiling.sites import Site, shown_path, whose
from upshift.tuning.profiling.trials import AlternativeTrials
from upshift.workflows.preparation import prepare_training

CPU = torch.device("cpu")
COST = CallCost(own_seconds=1e-6, gap_seconds=1e-6, unwatched_seconds=2e-6)


def logged(run: Callable[[], object], trial: Any = None) -> list[OperatorCall]:
    log = OperatorLog(trial)
    with log:
        run()
    return log.take()


def only(run: Callable[[], object]) -> OperatorCall:
    (call,) = logged(run)
    return call


# --- what an operator is ------------------------------------------------------------------------------


def test_arithmetic_and_bytes_of_a_product() -> None:
    a, b = torch.ones(4, 8), torch.ones(8, 16)
    call = only(lambda: a @ b)
    assert (call.name, call.flops, call.num_bytes) == ("aten::mm", 2 * 4 * 8 * 16, 4 * (32 + 128 + 64))
    assert not (call.is_pointwise or call.is_view or call.reads_back or call.is_float64)


def test_views_move_nothing_and_expanded_tensors_little() -> None:
    row = torch.ones(1, 64)
    view = only(lambda: row.view(64))
    assert view.is_view and view.num_bytes == 0
    added = logged(lambda: row.expand(100, 64) + 1)[-1]
    assert added.num_bytes == 4 * 64 + 4 * 6400


def test_reading_a_value_back_is_seen() -> None:
    assert [call.name for call in logged(lambda: bool(torch.ones(()) > 0)) if call.reads_back] == [
        "aten::_local_scalar_dense"
    ]


def test_float64_numbers_are_no_float64_tensors() -> None:
    x = torch.ones(4)
    assert not only(lambda: x * 2.5).is_float64
    assert not logged(lambda: x * torch.tensor(2.5, dtype=torch.float64))[-1].is_float64
    assert logged(lambda: x * torch.ones(4, dtype=torch.float64))[-1].is_float64


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (lambda: torch.ones(3, 4).t().contiguous(), True),
        (lambda: torch.ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), True),
        (lambda: torch.ones(3, 4).clone(), False),
        (lambda: torch.ones(3, 8)[:, :4].contiguous(), False),
        (lambda: torch.ones(1, 4).expand(3, 4).contiguous(), False),
        (lambda: torch.ones(3, 4).t().to(torch.float64, memory_format=torch.contiguous_format), False),
        (lambda: torch.ones(1, 4).t().contiguous(), False),
    ],
)
def test_copies_that_only_change_the_order_of_memory_are_told_from_others(
    make: Callable[[], object], changes: bool
) -> None:
    assert any(call.changes_layout for call in logged(make)) is changes


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_only_what_lies_in_no_usual_layout_is_permuted(shape: list[int], draw: Any) -> None:
    tensor = torch.zeros(shape)
    assert not is_permuted(tensor)
    order = list(range(len(shape)))
    draw.shuffle(order)
    turned = tensor.permute(order)
    assert not is_permuted(turned.contiguous())
    if is_permuted(turned):
        assert not turned.is_contiguous()
    if tensor.dim() == 4:
        assert not is_permuted(tensor.contiguous(memory_format=torch.channels_last))
        assert not is_image(tensor.contiguous(memory_format=torch.channels_last))


def test_tensors_without_strides_are_logged_too() -> None:
    sparse = torch.eye(3).to_sparse()
    calls = logged(lambda: torch.sparse.mm(sparse, torch.ones(3, 2)))
    assert calls and not any(call.reads_permuted or call.is_float64 for call in calls)


# --- whose it is --------------------------------------------------------------------------------------


class Squashes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        squashed = torch.tanh(self.classify(images.flatten(1)))
        return squashed * 2


def rehearsal_of(recipe: str | Recipe, *, overrides: Sequence[str] = (), seed: int = 0) -> Rehearsal:
    prepared = prepare_training(
        recipe,
        variant=None,
        overrides=overrides,
        plan=BASELINE,
        seed=seed,
        data=None,
        data_dir=None,
        skip_bad=False,
        on_data_progress=None,
    )
    seed_everything(seed)
    config = prepared.recipe
    loss = config.loss or CrossEntropy(config.label_smoothing)
    return Rehearsal(
        prepared.model, loss, prepared.loaders.train, config=config, execution=BASELINE, device=prepared.device
    )


def test_operators_belong_to_the_line_that_called_them_forward_and_backward() -> None:
    rehearsal = rehearsal_of(Recipe(name="squashes", model=Squashes))
    calls = log_step(rehearsal, next(rehearsal.batches()), lambda func, args, kwargs, call: call)
    lines, start = inspect.getsourcelines(Squashes.forward)
    (line,) = [start + index for index, text in enumerate(lines) if "tanh" in text]
    for name, phase in (("aten::tanh", "forward"), ("aten::tanh_backward", "backward"), ("aten::mm", "backward")):
        (call,) = [call for call in calls if (call.name, call.phase) == (name, phase)]
        assert call.site == Site(__file__, line, "Squashes.forward", start), name
    assert {call.phase for call in calls} == {"forward", "backward", "optimizer"}
    assert all(call.site is None for call in calls if call.phase == "optimizer")


def test_modules_of_torch_belong_to_the_line_that_called_them() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.ones(2, 4)
    calls = [call for call in logged(lambda: model(x)) if not call.is_view]
    assert {call.site.file for call in calls if call.site} == {__file__}
    assert len({call.module for call in calls}) == 3


def test_calls_of_a_function_are_told_apart() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    x = torch.ones(2)
    calls = logged(lambda: [function(x) for _ in range(20)])
    assert len({call.invocation for call in calls}) == 20


def test_code_is_the_users_a_librarys_or_machinery() -> None:
    import numpy

    from upshift.models import cnn

    assert whose(__file__) == "own"
    assert whose(inspect.getfile(nn.Linear)) == "machinery"
    assert whose(inspect.getfile(Rehearsal)) == "machinery"
    assert whose(cnn.__file__) == "own"
    assert whose(str(numpy.__file__)) == "library"
    assert whose("<string>") == "machinery"


def test_paths_are_short_where_they_still_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown_path(str(tmp_path / "a" / "b.py")) == "a/b.py"
    assert shown_path("/elsewhere/b.py") == "/elsewhere/b.py"


def test_paths_of_packages_begin_with_the_package() -> None:
    import numpy

    from upshift.models import cnn

    assert shown_path(str(cnn.__file__)) == "upshift/models/cnn.py"
    assert shown_path(str(numpy.__file__)) == "numpy/__init__.py"


# --- trials -------------------------------------------------------------------------------------------


def test_trials_change_no_tensor_and_draw_no_random_number() -> None:
    x, y = torch.ones(64, 64, dtype=torch.float64), torch.full((64, 64), 2.0, dtype=torch.float64)
    state = torch.get_rng_state()
    calls = logged(lambda: (x.add_(y), x @ y), AlternativeTrials(CPU, budget_seconds=5))
    assert torch.equal(x, torch.full((64, 64), 3.0, dtype=torch.float64))
    assert torch.equal(state, torch.get_rng_state())
    assert all("float32" in call.spared for call in calls)


def test_random_operators_are_not_tried() -> None:
    x = torch.ones(64, dtype=torch.float64)
    calls = logged(lambda: torch.bernoulli(x * 0.5), AlternativeTrials(CPU, budget_seconds=5))
    (drawn,) = [call for call in calls if call.name == "aten::bernoulli"]
    assert drawn.spared == {}


def test_a_conversion_is_spared_whole_and_nothing_is_tried_without_a_budget() -> None:
    x = torch.ones(64)
    (call,) = logged(lambda: x.double(), AlternativeTrials(CPU, budget_seconds=0))
    assert call.spared == {"float32": 1.0}
    y = x.double()
    (call,) = logged(lambda: y + y, AlternativeTrials(CPU, budget_seconds=0))
    assert call.spared == {}


def test_images_are_tried_in_channels_last_and_permuted_tensors_contiguous() -> None:
    images, weights = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3)
    trials = AlternativeTrials(CPU, budget_seconds=5)
    (call,) = logged(lambda: torch.conv2d(images, weights), trials)
    assert set(call.spared) == {"channels_last"}
    turned = torch.ones(8, 64, 32).permute(2, 1, 0)
    (call,) = logged(lambda: turned.exp(), trials)
    assert set(call.spared) == {"contiguous"}


# --- dividing a step ----------------------------------------------------------------------------------


def call(name: str = "aten::add", *, line: int = 1, phase: Any = "forward", **fields: Any) -> OperatorCall:
    known: dict[str, Any] = {
        "site": Site("model.py", line, "Net.forward", 1),
        "invocation": 1,
        "module": 0,
        "flops": 0,
        "num_bytes": 0,
        "is_pointwise": False,
        "is_view": False,
        "reads_back": False,
        "is_float64": False,
        "changes_layout": False,
        "reads_permuted": False,
        "reads_images": False,
    }
    return OperatorCall(name=name, phase=phase, **(known | fields))


def watched(*operators: tuple[str, float, float]) -> WatchedStep:
    return WatchedStep(data=[], step=[TimedOperator(*item, "forward") for item in operators], synchronization=0.0)


SECONDS = st.floats(0, 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), SECONDS, SECONDS), min_size=1, max_size=30), st.floats(1e-6, 10))
def test_operators_share_the_whole_step(timed: list[tuple[str, float, float]], step: float) -> None:
    calls = [call(name) for name, _, _ in timed]
    divided = attribute(calls, [watched(*timed), watched(*timed)], step, COST)
    assert sum(item.seconds for item in divided) == pytest.approx(step)
    assert all(item.compute_seconds >= 0 and item.overhead_seconds > 0 for item in divided)


def test_calls_are_matched_by_name_and_order_and_a_burst_is_left_out() -> None:
    calls = [call("a"), call("b"), call("a")]
    steps = [watched(("a", 1.0, 0.0), ("b", 2.0, 0.0), ("a", 3.0, 0.0)) for _ in range(4)]
    steps.append(watched(("a", 900.0, 0.0), ("b", 900.0, 0.0), ("a", 900.0, 0.0)))
    divided = attribute(calls, steps, 6.0, replace(COST, unwatched_seconds=0.0))
    assert [item.compute_seconds for item in divided] == pytest.approx([1.0, 2.0, 3.0])


def test_steps_that_call_an_operator_more_often_share_its_time() -> None:
    calls = [call("a"), call("b"), call("b")]
    steps = [watched(("a", 1.0, 0.0), *[("b", 1.0, 0.0)] * 6) for _ in range(3)]
    divided = attribute(calls, steps, 7.0, replace(COST, unwatched_seconds=0.0))
    assert [item.compute_seconds for item in divided] == pytest.approx([1.0, 3.0, 3.0])


def test_rows_add_up_their_calls_and_know_their_limit() -> None:
    roofline = Roofline(flops_per_second=100.0, bytes_per_second=10.0)
    items = [
        AttributedCall(call("mm", flops=50, num_bytes=1, line=3), 1.0, 0.5),
        AttributedCall(call("mm", flops=50, num_bytes=1, line=4), 3.0, 0.5),
        AttributedCall(call("add", num_bytes=10), 2.0, 0.0),
    ]
    product, addition = operator_rows(items, 10.0, roofline)
    assert (product.calls, product.seconds, product.overhead_seconds, product.share) == (2, 4.0, 1.0, 0.5)
    assert (product.flops_per_second, product.share_of_limit, product.limited_by) == (25.0, 0.25, "compute")
    assert product.site == "model.py:4"
    assert (addition.share_of_limit, addition.limited_by) == (0.5, "memory bandwidth")
    # The addition moves its bytes in one second at best: what else it takes, the bandwidth does not explain.
    assert memory_share(items, roofline) == pytest.approx(1 / 6)
    (unknown, _) = operator_rows(items, 10.0, None)
    assert unknown.share_of_limit is None


def test_products_in_float64_are_not_judged_by_what_float32_reaches() -> None:
    roofline = Roofline(flops_per_second=100.0, bytes_per_second=10.0)
    product = AttributedCall(call("mm", flops=50, num_bytes=10, is_float64=True), 1.0, 0.0)
    addition = AttributedCall(call("add", num_bytes=10, is_float64=True), 2.0, 0.0)
    row_of_addition, row_of_product = operator_rows([product, addition], 3.0, roofline)
    assert (row_of_product.share_of_limit, row_of_product.limited_by) == (None, None)
    assert row_of_product.flops_per_second == 50.0
    assert (row_of_addition.share_of_limit, row_of_addition.limited_by) == (0.5, "memory bandwidth")
    assert memory_share([product, addition], roofline) == pytest.approx(1 / 3)


def test_operators_of_the_loader_take_no_more_than_was_waited_for() -> None:
    steps = [[TimedOperator("aten::to", 1.0, 0.0, "forward")], []]
    (row,) = timed_rows(steps, 2.0, phase="data", at_most=0.1)
    assert (row.seconds, row.share, row.calls, row.phase) == (0.1, 0.05, 0.5, "data")
    (row,) = timed_rows(steps, 2.0, phase="data")
    assert row.seconds == 0.5
    assert timed_rows([], 1.0) == []


# --- causes and advice --------------------------------------------------------------------------------


def measurement(calls: Sequence[AttributedCall] = (), *, data_wait: float = 0.0, **fields: Any) -> Measurement:
    parts = {
        "host_overhead": sum(item.overhead_seconds for item in calls),
        "device_compute": sum(item.compute_seconds for item in calls),
    }
    known: dict[str, Any] = {
        "breakdown": Breakdown(batch_size=32, num_steps=50, data_wait=data_wait, **parts),
        "times": StepTimes(),
        "calls": tuple(calls),
        "rows": (),
        "memory": MemoryProfile(
            parameters=0, gradients=0, optimizer_state=0, peak=0, peak_by_phase={}, timeline=(), holders=()
        ),
        "items": None,
        "scaling": None,
        "num_float64": (0, 1),
        "roofline": None,
        "notes": (),
    }
    return Measurement(**(known | fields))


def items(number: int, seconds: float, overhead: float, **fields: Any) -> list[AttributedCall]:
    return [AttributedCall(call(**fields), seconds, overhead) for _ in range(number)]


def kinds(found: Sequence[Cause]) -> list[str]:
    return [cause.kind for cause in found]


REST = items(1, 1.0, 0.0, name="aten::mm", line=99)


def test_causes_are_ranked_by_the_seconds_that_they_spare() -> None:
    reads = items(10, 0.0, 0.05, reads_back=True, line=5)
    copies = items(4, 0.2, 0.0, changes_layout=True, line=6)
    found = find_causes(measurement([*REST, *reads, *copies], data_wait=0.3))
    assert kinds(found) == ["layout", "synchronization", "data"]
    assert [cause.spared_seconds for cause in found] == pytest.approx([0.8, 0.5, 0.3])
    assert [cause.site.line for cause in found if cause.site] == [6, 5]


def test_all_of_a_line_that_reads_values_back_is_its_cause() -> None:
    line = [*items(10, 0.0, 0.05, name="aten::select", line=5), *items(10, 0.0, 0.05, reads_back=True, line=5)]
    (cause,) = find_causes(measurement([*REST, *line]))
    assert (cause.kind, cause.facts["number"]) == ("synchronization", 10)
    assert cause.spared_seconds == pytest.approx(1.0)


def test_values_that_the_training_itself_reads_are_no_cause() -> None:
    assert find_causes(measurement([*REST, *items(1, 0.0, 0.5, reads_back=True, site=None)])) == []


def test_a_chain_spares_all_but_its_slowest_operator() -> None:
    chain = [*items(2, 0.1, 0.0, is_pointwise=True), *items(1, 0.3, 0.0, is_pointwise=True)]
    (cause,) = find_causes(measurement([*REST, *chain]))
    assert (cause.kind, cause.facts["chained"], cause.facts["looped"]) == ("unfused", 3, 0)
    assert cause.spared_seconds == pytest.approx(0.2)


def test_products_and_other_calls_break_a_chain_and_views_do_not() -> None:
    pair = items(2, 0.2, 0.0, is_pointwise=True)
    product, view = items(1, 0.1, 0.0, name="aten::mm"), items(1, 0.0, 0.0, name="aten::view", is_view=True)
    assert find_causes(measurement([*pair, *product, *pair])) == []
    assert kinds(find_causes(measurement([*pair, *view, *pair]))) == ["unfused"]
    other = items(2, 0.2, 0.0, is_pointwise=True, invocation=2)
    assert find_causes(measurement([*pair, *other])) == []


def test_a_loop_is_one_line_called_often_within_one_call_of_its_function() -> None:
    loop = items(20, 0.0, 0.05, name="aten::mm", line=7)
    (cause,) = find_causes(measurement([*REST, *loop]))
    assert (cause.kind, cause.facts["looped"]) == ("unfused", 20)
    assert cause.spared_seconds == pytest.approx(1.0 * (1 - 1 / 20))
    layers = [item for number in range(20) for item in items(1, 0.0, 0.05, name="aten::mm", invocation=number)]
    assert find_causes(measurement([*REST, *layers])) == []
    modules = [item for number in range(20) for item in items(1, 0.0, 0.05, name="aten::mm", module=number)]
    assert find_causes(measurement([*REST, *modules])) == []


def test_a_backward_pass_of_many_operators_is_no_loop_by_itself() -> None:
    backward = items(20, 0.0, 0.05, name="aten::mul", phase="backward")
    forward = items(1, 0.0, 0.05, name="aten::mul")
    assert find_causes(measurement([*REST, *forward, *backward])) == []


def test_a_larger_batch_is_not_credited_with_what_other_advice_spares() -> None:
    loop = items(20, 0.0, 0.1, name="aten::mm", line=7)
    scaling = BatchScaling(batch_size=32, larger_batch_size=64, seconds=3.0, ratio=1.4)
    alone = find_causes(measurement(items(1, 3.0, 0.0), scaling=scaling))
    assert kinds(alone) == ["small batch"] and alone[0].spared_seconds == pytest.approx(3.0 * 0.3)
    assert kinds(find_causes(measurement([*REST, *loop], scaling=scaling))) == ["unfused"]


def test_a_layout_that_helps_some_operators_and_hurts_others_is_judged_as_a_whole() -> None:
    better = items(1, 1.0, 0.0, reads_images=True, spared={"channels_last": 0.5}, line=3)
    worse = items(1, 1.0, 0.0, reads_images=True, spared={"channels_last": -0.7})
    (cause,) = find_causes(measurement(better))
    assert (cause.kind, cause.spared_seconds) == ("memory format", 0.5)
    assert find_causes(measurement([*better, *worse])) == []
    untried = items(1, 1.0, 0.0, reads_images=True)
    assert find_causes(measurement([*better, *untried])) == []


def test_little_causes_are_left_out() -> None:
    assert find_causes(measurement([*REST, *items(1, 0.01, 0.0, changes_layout=True)])) == []


def test_scaling_never_spares_less_than_nothing() -> None:
    scaling = BatchScaling(batch_size=2, larger_batch_size=64, seconds=1.0, ratio=40.0)
    assert scaling.spared_share == 0.0
    assert replace(scaling, ratio=1.0).spared_share == pytest.approx(1 - 2 / 64)


def job(tmp_path: Path, **fields: Any) -> Job:
    known: dict[str, Any] = {
        "recipe": "digits",
        "options": {"variant": "a b"},
        "settings": (),
        "data_handed_over": False,
        "plan": BASELINE,
        "plan_argument": "baseline",
        "data_path": "resident",
        "augments": False,
        "num_cores": 4,
        "folder": tmp_path,
    }
    return Job(**(known | fields))


def test_waiting_for_packed_data_is_answered_by_where_they_lie(tmp_path: Path) -> None:
    slow = measurement(REST, data_wait=1.0)
    assert [item.cause for item in advise(slow, job(tmp_path))] == ["search"]
    advice, _ = advise(slow, job(tmp_path, data_path="mmap"))
    assert advice.plan == {"data_path": "resident"}
    assert advice.command == f"upshift train digits --variant 'a b' --plan {tmp_path / 'plan-resident.json'}"
    advice, _ = advise(slow, job(tmp_path, augments=True))
    assert advice.command == "upshift profile digits --variant 'a b'"
    assert "Augment less" in advice.action and advice.action.endswith("Then profile again.")


def test_nobody_is_told_to_change_a_model_of_upshift(tmp_path: Path) -> None:
    from upshift.models import text

    copies = items(4, 0.2, 0.0, changes_layout=True, site=Site(str(text.__file__), 95, "Transformer.forward", 90))
    own = items(4, 0.1, 0.0, changes_layout=True, line=6)
    search, of_upshift = advise(measurement([*REST, *copies]), job(tmp_path))
    assert (search.cause, of_upshift.cause, of_upshift.where) == ("search", "layout", "upshift/models/text.py:95")
    assert "nothing to change in your code" in of_upshift.action and of_upshift.spared_seconds is None
    assert of_upshift.command == search.command
    first, last = advise(measurement([*REST, *own]), job(tmp_path))
    assert (first.where, last.cause) == ("model.py:6", "search") and first.spared_seconds == pytest.approx(0.4)


def test_samples_made_one_by_one_are_answered_by_processes_for_each_core(tmp_path: Path) -> None:
    made = profile_items(lambda row: sum(range(20_000)), range(20))
    step = items(1, made.seconds, 0.0, name="aten::mm")
    slow = measurement(step, data_wait=32 * made.seconds, items=made)
    found = advise(slow, job(tmp_path, recipe=None, data_handed_over=True))
    workers = next(item for item in found if item.plan is not None)
    called = eval(workers.command, {"upshift": Calls, "recipe": "it", "data": "these"})
    expected = {"data": "these", "variant": "a b", "plan": replace(BASELINE, data_path="worker", num_workers=4)}
    assert called == ("train", "it", expected)
    busy = job(tmp_path, recipe=None, plan=Plan(data_path="worker", num_workers=4))
    assert all(item.plan is None for item in advise(slow, busy))


def test_commands_repeat_the_settings_and_replace_the_one_that_is_advised(tmp_path: Path) -> None:
    asked = job(tmp_path, settings=("batch_size=2", "epochs=3"))
    assert asked.train_with_setting("batch_size=64") == (
        "upshift train digits --set epochs=3 --set batch_size=64 --variant 'a b'"
    )
    assert asked.tune() == "upshift tune digits --set batch_size=2 --set epochs=3 --variant 'a b'"


def test_commands_repeat_the_plan_and_all_options_in_python_too(tmp_path: Path) -> None:
    options = {"variant": "fast", "seed": 3, "data_dir": "/a b", "skip_bad": True}
    plan = Plan(micro_batch_size=16, memory_format="channels_last")
    asked = job(tmp_path, options=options, plan=plan, plan_argument="my plan.json")
    words = "--variant fast --seed 3 --data-dir '/a b' --skip-bad --plan 'my plan.json'"
    assert asked.train_with_setting("batch_size=64") == f"upshift train digits --set batch_size=64 {words}"
    assert asked.profile() == f"upshift profile digits {words}"
    unnamed = job(tmp_path, options={}, plan=plan, plan_argument=None)
    assert unnamed.train_with_setting("epochs=2").endswith(f"--plan {tmp_path / 'plan-profiled.json'}")
    assert unnamed.needs_profiled_plan
    from_python = job(tmp_path, recipe=None, settings=("batch_size=2",), options=options, plan=plan, plan_argument=None)
    commands = (
        from_python.train_with_setting("batch_size=64"),
        from_python.train_with("compile", {"compile": "whole"}),
        from_python.profile(),
        from_python.tune(),
    )
    setting, compiled, profiled, tuned = (eval(text, {"upshift": Calls, "recipe": "it"}) for text in commands)
    assert setting == ("train", "it", options | {"overrides": ["batch_size=64"], "plan": plan})
    as_before = options | {"overrides": ["batch_size=2"]}
    assert compiled == ("train", "it", as_before | {"plan": replace(plan, compile="whole")})
    assert profiled == ("profile", "it", as_before | {"plan": plan})
    assert tuned == ("tune", "it", as_before)


class Calls:
    """In the place of upshift: gives what its functions are called with."""

    Plan = Plan

    @staticmethod
    def train(recipe: str, **named: Any) -> tuple[str, str, dict[str, Any]]:
        return "train", recipe, named

    @staticmethod
    def profile(recipe: str, **named: Any) -> tuple[str, str, dict[str, Any]]:
        return "profile", recipe, named

    @staticmethod
    def tune(recipe: str, **named: Any) -> tuple[str, str, dict[str, Any]]:
        return "tune", recipe, named


# --- the dataset --------------------------------------------------------------------------------------


def slow_function(row: int) -> int:
    return sum(value * value for value in range(3000 + row))


def test_functions_of_a_dataset_are_named_by_the_time_in_them() -> None:
    profile = profile_items(lambda row: (slow_function(row), row + 1), range(50))
    assert profile.num_items == 50 and profile.seconds > 0
    names = {function.name: function.share for function in profile.functions}
    assert sum(names.values()) <= 1 + 1e-9
    assert names["<genexpr>"] + names.get("slow_function", 0) > 0.5
    assert all(Path(__file__).name in function.place for function in profile.functions)


def test_a_dataset_of_tensors_has_no_function_to_blame() -> None:
    dataset = TensorDataset(torch.ones(8, 2), torch.ones(8))
    assert profile_items(dataset.__getitem__, range(8)).functions == ()


# --- the rehearsal ------------------------------------------------------------------------------------


def test_a_rehearsal_has_the_learning_rates_of_the_trainer_to_its_last_step() -> None:
    overrides = ["max_steps=4", "schedule.name=linear", "schedule.warmup_fraction=0", "log_every=1"]
    with tempfile.TemporaryDirectory() as folder:
        trained = upshift.train("digits", overrides=overrides, plan="baseline", out=Path(folder) / "run")
        recorded = [line["learning_rate"] for line in read_jsonl(RunFolder(trained.path).metrics)]
    rehearsal = rehearsal_of("digits", overrides=overrides)
    batches, rates = rehearsal.batches(), []
    for _ in range(4):
        rehearsal.step(*next(batches))
        rates.append(rehearsal.optimizer.learning_rate)
    assert rates == pytest.approx(recorded) and rates[-1] == 0


def test_a_rehearsal_reads_metrics_as_often_as_the_trainer() -> None:
    class Counting(RunningMetrics):
        num_taken = 0

        def take(self) -> dict[str, float]:
            self.num_taken += 1
            return super().take()

    # 1,438 steps an epoch: the trainer writes a line every 28.
    rehearsal = rehearsal_of(Recipe(name="squashes", model=Squashes), overrides=["batch_size=1"])
    rehearsal._metrics = counting = Counting()
    batches = rehearsal.batches()
    for _ in range(60):
        rehearsal.step(*next(batches))
    assert counting.num_taken == 2


@pytest.mark.parametrize("mark", ["step", "data"])
def test_regions_of_a_users_own_are_not_taken_for_those_of_the_profile(mark: str) -> None:
    class Marked(Squashes):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            with torch.profiler.record_function(mark):
                return super().forward(images)

    rehearsal = rehearsal_of(Recipe(name="squashes", model=Squashes))
    rehearsal.model.__class__ = Marked
    steps = watched_steps(record(rehearsal, rehearsal.batches(), num_steps=3), COST, CPU)
    assert len(steps) == 3
    assert all({"aten::tanh", "aten::linear"} <= {timed.name for timed in step.step} for step in steps)


@settings(max_examples=2, deadline=None)
@given(st.integers(1, 5), st.integers(0, 3))
def test_a_rehearsal_trains_as_the_trainer_does(num_steps: int, seed: int) -> None:
    overrides = [f"max_steps={num_steps}", "schedule.name=constant", "schedule.warmup_fraction=0", "ema_decay=none"]
    with tempfile.TemporaryDirectory() as folder:
        trained = upshift.train("digits", overrides=overrides, plan="baseline", seed=seed, out=Path(folder) / "run")
    rehearsal = rehearsal_of("digits", overrides=overrides, seed=seed)
    batches = rehearsal.batches()
    for _ in range(num_steps):
        rehearsal.step(*next(batches))
    expected = trained.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in rehearsal.model.state_dict().items())
