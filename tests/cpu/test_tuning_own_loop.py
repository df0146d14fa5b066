"""Tuning a model of one's own: its data, what cannot be tuned, what is left behind."""

from __future__ import annotations

import copy
import multiprocessing
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_models import BATCH, SAMPLES, loader, mlp
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import upshift
from upshift.core.limits import known_limits
from upshift.core.malloc import can_keep_freed_memory, keep_freed_memory, keeps_freed_memory
from upshift.errors import ConfigError, DataError, Interrupted
from upshift.tuning.own_loop import OwnLoop
from upshift.tuning.plan import load_plan
from upshift.tuning.subject import subject_of
from upshift.tuning.undisturbed import undisturbed

BRIEFLY = 0.05  # seconds: the steps are made and looked into, and what takes long is not begun


def tune(model: nn.Module, loss: Any = functional.cross_entropy, data: Any = None, **settings: Any) -> Any:
    """Tune; whatever the model is, its weights and buffers are left as they were."""
    data = loader() if data is None else data
    before = copy.deepcopy(model.state_dict())
    tuned = upshift.tune(model=model, loss=loss, data=data, **({"budget_seconds": BRIEFLY} | settings))
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0, equal_nan=True)
    return tuned


class Iterated(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(SAMPLES):
            yield torch.randn(4, generator=generator), int(torch.randint(0, 3, (), generator=generator))


def test_iterable_datasets_keep_their_workers() -> None:
    loop = OwnLoop(mlp(), functional.cross_entropy, DataLoader(Iterated(), batch_size=BATCH), None)
    assert loop.job().data_paths == ()
    tune(mlp(), data=DataLoader(Iterated(), batch_size=BATCH))


def test_endless_generators_are_data() -> None:
    def endless() -> Iterator[Any]:
        while True:
            yield torch.randn(BATCH, 4), torch.randint(0, 3, (BATCH,))

    tune(mlp(), data=endless())


@pytest.mark.parametrize("loss", [functional.cross_entropy, lambda outputs, targets: None], ids=["tuned", "refused"])
def test_workers_of_the_loader_end_with_tuning(loss: Any) -> None:
    caught = None
    try:
        tune(mlp(), loss, loader(num_workers=1, persistent_workers=True))
    except ConfigError as error:
        caught = error  # its traceback holds what was under way
    deadline = time.monotonic() + 120
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []
    assert (caught is None) == (loss is functional.cross_entropy)


class SlowItems(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        time.sleep(0.002)
        return super().__getitem__(index)


class Sleeping(nn.Identity):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.03)
        return x


@pytest.mark.slow
def test_waiting_for_data_is_answered_by_workers() -> None:
    # Batches and steps are slept for, as long each: one worker halves the time on a machine as busy as it may be.
    data = DataLoader(SlowItems(torch.randn(640, 4), torch.randint(0, 3, (640,))), batch_size=BATCH)
    tuned = tune(nn.Sequential(Sleeping(), mlp()), data=data, budget_seconds=60)
    names = {trial["name"]: trial["verdict"] for trial in tuned.plan.trials}
    assert "adopted" in [verdict for name, verdict in names.items() if "data worker" in name]
    assert tuned.plan.num_workers > 0
    _, _, faster = tuned.apply(nn.Sequential(Sleeping(), mlp()), None, data)
    assert faster.num_workers == tuned.plan.num_workers


class PerRow(nn.Module):
    """Breaks the graph at each call: what it does depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = mlp(), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if float(x.detach().sum()) > 0:
            x = x * 1.5
        result: torch.Tensor = self.net(torch.sin(x))
        print(end="")
        return torch.tanh(result)


@pytest.mark.slow
def test_a_model_that_breaks_the_graph_is_tuned_and_its_breaks_are_counted() -> None:
    tuned = tune(PerRow(), budget_seconds=120)
    (compiled,) = [trial for trial in tuned.plan.trials if trial["name"] == "compiled"]
    assert compiled["verdict"] in ("adopted", "refused")
    assert compiled["details"]["num_graph_breaks"] >= 1


# --- what cannot be tuned ----------------------------------------------------------------------------------


def raising(*arguments: Any) -> torch.Tensor:
    raise RuntimeError("no such thing")


@pytest.mark.parametrize(
    ("loss", "received"),
    [
        (lambda o, t: functional.cross_entropy(o, t, reduction="none"), r"a tensor of shape \(16,\)"),
        (lambda o, t: functional.cross_entropy(o, t).item(), r"received \d+\.\d+"),
        (lambda o, t: functional.cross_entropy(o.detach(), t), "a loss without gradients"),
        (lambda o, t: (o.argmax(1) == t).float().mean(), "a loss without gradients"),
        (lambda o, t: o.mean() * float("nan"), "NaN or infinite"),
        (raising, "RuntimeError: no such thing"),
        (None, "outputs of type Tensor without one"),
    ],
    ids=["a loss a sample", "a float", "detached", "accuracy", "nan", "raises", "none"],
)
def test_a_loss_that_gives_no_gradient_is_refused_by_what_it_gave(loss: Any, received: str) -> None:
    with pytest.raises(ConfigError, match=received):
        tune(mlp(), loss)


def test_the_error_of_the_users_code_is_the_cause_of_the_refusal() -> None:
    with pytest.raises(ConfigError) as caught:
        tune(mlp(), raising)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_loss_that_goes_back_to_the_users_model_is_refused_and_leaves_no_gradient() -> None:
    model = mlp()
    before = torch.ones_like(model[0].weight)
    model[0].weight.grad = before

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(outputs, targets) + model[0].weight.square().sum()

    with pytest.raises(ConfigError, match="the model's own parameters"):
        tune(model, loss)
    assert model[0].weight.grad is before
    assert torch.equal(before, torch.ones_like(before))
    assert model[2].weight.grad is None


def test_a_pair_of_models_is_refused_with_the_way_out() -> None:
    generator, critic = mlp(), mlp()
    with pytest.raises(ConfigError, match=r"forward.*\(as of a GAN\) by itself"):
        tune(nn.ModuleDict({"generator": generator, "critic": critic}))
    with pytest.raises(ConfigError, match=r"one that has others.*by itself"):
        tune(generator, optimizer=torch.optim.Adam([*generator.parameters(), *critic.parameters()]))
    with pytest.raises(ConfigError, match=r"\(as GANs\) are tuned one by one"):
        optimizers: Any = [torch.optim.Adam(generator.parameters()), torch.optim.Adam(critic.parameters())]
        tune(generator, optimizer=optimizers)


def test_models_without_anything_to_train_are_refused() -> None:
    with pytest.raises(ConfigError, match="parameters to train"):
        tune(nn.Flatten())
    with pytest.raises(ConfigError, match="parameters to train"):
        tune(mlp().requires_grad_(False))


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    class Locked(nn.Sequential):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("locked")

    with pytest.raises(ConfigError, match=r"can be copied.*TypeError: locked"):
        tune(Locked(*mlp()))


def test_a_model_that_keeps_a_tensor_with_gradients_cannot_be_copied_and_is_refused() -> None:
    model = mlp()
    model.last = model(torch.randn(2, 4))
    with pytest.raises(ConfigError, match="keep tensors with gradients out"):
        tune(model)


def test_optimizers_that_need_a_closure_are_refused() -> None:
    model = mlp()
    with pytest.raises(ConfigError, match=r"without a closure.*LBFGS"):
        tune(model, optimizer=torch.optim.LBFGS(model.parameters()))


@pytest.mark.parametrize("rate", [{"lr": None}, {}], ids=["none", "no lr"])
def test_optimizers_that_find_their_rate_themselves_are_refused_before_anything_changes(rate: dict[str, Any]) -> None:
    model, threads = mlp(), torch.get_num_threads()
    optimizer = torch.optim.SGD(model.parameters())
    del optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0].update(rate)
    with pytest.raises(ConfigError, match=r"learning rate that can be set.*SGD with.*or tune without the optimizer"):
        tune(model, optimizer=optimizer)
    assert torch.get_num_threads() == threads


def test_running_out_of_memory_is_told_as_that() -> None:
    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with pytest.raises(ConfigError, match=r"must fit in memory.*can't allocate.*smaller batches"):
        tune(mlp(), loss)


def test_compiled_models_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"before torch\.compile"):
        tune(torch.compile(mlp()))
    model = mlp()
    model.compile()
    with pytest.raises(ConfigError, match=r"before torch\.compile"):
        tune(model)


def batches_once(count: int) -> Iterator[Any]:
    for _ in range(count):
        yield torch.randn(BATCH, 4), torch.randint(0, 3, (BATCH,))


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        ([], DataError, "no batch"),
        (batches_once(2), DataError, "no more after 2; hint: .* a generator is used up"),
        (batches_once(9), DataError, "no more after 9"),
        (iter(()), DataError, "no batch"),
        ([torch.tensor(1.0)], DataError, "first axis counts samples"),
        ([()], DataError, "an empty one"),
        ([None], DataError, "first axis counts samples"),
        ({"x": torch.randn(4, 4)}, ConfigError, "an iterable of batches; received an object of type dict"),
        (torch.randn(4, 4), ConfigError, "type Tensor"),
        (TensorDataset(torch.randn(4, 4)), ConfigError, "a dataset, .*DataLoader"),
        ([(torch.randn(BATCH, 5), torch.randint(0, 3, (BATCH,)))], ConfigError, "mat1 and mat2 shapes"),
        ([{"x": torch.randn(BATCH, 4)}], ConfigError, "unexpected keyword argument 'x'"),
        ([(torch.full((BATCH, 4), float("nan")), torch.randint(0, 3, (BATCH,)))], ConfigError, "NaN or infinite"),
    ],
)
def test_data_that_give_no_usable_batch_are_refused_by_what_they_gave(data: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        tune(mlp(), data=data, budget_seconds=60)


class Broken(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        if index == 40:
            raise OSError("row 40 is damaged")
        return super().__getitem__(index)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_the_dataset_is_told_as_one(num_workers: int) -> None:
    data = DataLoader(Broken(torch.randn(48, 4), torch.randint(0, 3, (48,))), batch_size=8, num_workers=num_workers)
    with pytest.raises(DataError, match=r"row 40 is damaged|Caught OSError") as caught:
        tune(mlp(), data=data)
    assert isinstance(caught.value.__cause__, OSError)


def test_no_data_and_no_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="tuned on data"):
        upshift.tune(model=mlp(), loss=functional.cross_entropy)
    with pytest.raises(ConfigError, match="a recipe or a model"):
        upshift.tune()
    with pytest.raises(ConfigError, match="a recipe or a model"):
        upshift.tune("digits", model=mlp())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"overrides": ["epochs=3"]}, r"takes overrides with a recipe alone; received overrides=.* with a model"),
        ({"variant": "fast"}, "takes variant with a recipe alone"),
        ({"data_dir": "data"}, "takes data_dir with a recipe alone"),
        ({"skip_bad": True}, "takes skip_bad with a recipe alone"),
    ],
)
def test_arguments_of_recipes_are_refused_beside_a_model(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        tune(mlp(), **arguments)


def test_arguments_of_models_are_refused_beside_a_recipe() -> None:
    model = mlp()
    with pytest.raises(ConfigError, match=r"takes loss with a model alone; received .* with a recipe; hint: leave"):
        upshift.tune("digits", loss=functional.cross_entropy)
    with pytest.raises(ConfigError, match="takes optimizer with a model alone"):
        upshift.tune("digits", optimizer=torch.optim.SGD(model.parameters()))


def test_whether_a_precision_is_tried_does_not_depend_on_what_was_run_before(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPSHIFT_CACHE_DIR", str(tmp_path))  # nothing was measured here yet
        tune(mlp())
        assert known_limits("cpu") is not None


# --- what is left behind -----------------------------------------------------------------------------------


def everything(model: nn.Module, optimizer: torch.optim.Optimizer, shuffle: torch.Generator) -> list[Any]:
    """What a user could notice, as values that can be compared."""
    tensors = [*model.state_dict().values(), *(entry for state in optimizer.state.values() for entry in state.values())]
    numpy_state: Any = np.random.get_state(legacy=False)
    return [
        [tensor.tolist() for tensor in tensors],
        [None if parameter.grad is None else parameter.grad.tolist() for parameter in model.parameters()],
        [module.training for module in model.modules()],
        [tensor.stride() for tensor in model.state_dict().values()],
        [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups],
        torch.get_rng_state().tolist(),
        shuffle.get_state().tolist(),
        random.getstate(),
        numpy_state["state"]["key"].tolist(),
        (torch.get_num_threads(), torch.get_float32_matmul_precision(), keeps_freed_memory()),
        (torch._inductor.config.fallback_random, torch._dynamo.config.recompile_limit),
        sorted(vars(model)),
    ]


@pytest.mark.parametrize("train", [True, False])
def test_tuning_leaves_no_trace_in_model_optimizer_loader_and_process(train: bool) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 36, 3))
    model.train(train)
    model[2].eval()
    optimizer = torch.optim.Adam(model.parameters())
    functional.cross_entropy(model(torch.randn(4, 1, 8, 8)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    shuffle = torch.Generator().manual_seed(3)
    data = loader(
        torch.randn(SAMPLES, 1, 8, 8), torch.randint(0, 3, (SAMPLES,)), shuffle=True, generator=shuffle, num_workers=0
    )
    before = everything(model, optimizer, shuffle)
    tuned = tune(model, data=data, optimizer=optimizer, budget_seconds=2)
    assert len(tuned.plan.trials) >= 2
    assert everything(model, optimizer, shuffle) == before


def test_an_error_leaves_no_trace_either() -> None:
    model, data = mlp(), loader()
    before = torch.get_rng_state()
    with pytest.raises(ConfigError):
        tune(model, raising, data)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_number_of_threads_is_restored() -> None:
    before = torch.get_num_threads()
    tune(mlp(), budget_seconds=3, data=[next(batches_once(1))])
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not can_keep_freed_memory(), reason="not glibc, or told otherwise")
@pytest.mark.parametrize("keeps", [False, True])
def test_whether_freed_memory_is_kept_is_as_before(keeps: bool) -> None:
    keep_freed_memory(keeps)
    try:
        with undisturbed(None):
            loop = OwnLoop(mlp(), functional.cross_entropy, loader(), None)
            loop.step.execute(replace(loop.plan, keep_freed_memory=not keeps))
            assert keeps_freed_memory() != keeps
        assert keeps_freed_memory() == keeps
    finally:
        keep_freed_memory(False)


def test_frozen_batch_norm_stays_in_evaluation_in_the_copy() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    model[1].eval()
    loop = OwnLoop(model, functional.cross_entropy, loader(), None)
    assert loop.model.training
    assert not loop.model[1].training


def test_weights_of_the_copy_do_not_move_so_that_no_learning_rate_is_too_high() -> None:
    model = mlp()
    loop = OwnLoop(model, functional.cross_entropy, loader(), torch.optim.SGD(model.parameters(), lr=1e9, momentum=0.9))
    inputs, targets = torch.randn(BATCH, 4), torch.randint(0, 3, (BATCH,))
    for _ in range(3):
        loop.step(inputs, targets)
    assert loop.step.num_skipped == 0
    assert all(map(torch.equal, model.state_dict().values(), loop.model.state_dict().values()))


def test_the_plan_begins_with_how_the_loop_executes_now() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)).to(memory_format=torch.channels_last)
    data = loader(torch.randn(SAMPLES, 3, 8, 8), torch.randint(0, 3, (SAMPLES,)), num_workers=2)
    loop = OwnLoop(model, functional.cross_entropy, data, torch.optim.SGD(model.parameters(), fused=True))
    plan = loop.plan
    assert (plan.memory_format, plan.fused_optimizer, plan.num_workers) == ("channels_last", True, 2)
    model = mlp()
    loop = OwnLoop(model, functional.cross_entropy, [next(batches_once(1))], torch.optim.SGD(model.parameters()))
    assert (loop.plan.memory_format, loop.plan.fused_optimizer, loop.plan.data_path) == ("contiguous", False, "auto")


def test_a_plan_that_was_found_without_the_optimizer_leaves_its_fused_kernels_as_they_are() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tuned = tune(model)
    assert tuned.plan.fused_optimizer is None
    assert not any("fused_optimizer" in trial["changes"] for trial in tuned.plan.trials)
    tuned.apply(model, optimizer)
    assert optimizer.param_groups[0]["fused"] is True


def test_an_optimizer_without_fused_kernels_is_proposed_none() -> None:
    model = mlp()
    loop = OwnLoop(model, functional.cross_entropy, loader(), torch.optim.Rprop(model.parameters()))
    assert loop.plan.fused_optimizer is None


def test_a_step_as_one_graph_is_never_proposed_as_a_loop_would_have_to_be_written_for_it() -> None:
    assert not OwnLoop(mlp(), functional.cross_entropy, loader(), None).job().can_compile_step


def test_fp16_is_never_proposed_as_a_loop_would_have_to_scale_its_loss() -> None:
    loop = OwnLoop(mlp(), functional.cross_entropy, loader(), None)
    assert loop.job(("tf32", "bf16", "fp16")).fast_dtypes == ("tf32", "bf16")


def test_a_plan_is_written_and_read_again(tmp_path: Path) -> None:
    tuned = tune(mlp(), out=tmp_path / "plan.json")
    assert tuned.plan.subject == subject_of(mlp()) != subject_of(nn.Sequential(nn.Linear(4, 3)))
    assert load_plan(tmp_path / "plan.json").to_json() == tuned.plan.to_json()


INTERRUPTED = """
import sys, time, torch, upshift
from torch import nn

num_steps = 0

class Held(nn.Sequential):
    def forward(self, x):
        global num_steps
        num_steps += 1
        if num_steps == 60:
            print("held", flush=True)
            time.sleep(1e6)
        return super().forward(x)

model = Held(nn.Linear(64, 64), nn.Linear(64, 3))
data = [(torch.randn(16, 64), torch.randint(0, 3, (16,)))]
try:
    upshift.tune(model=model, loss=nn.functional.cross_entropy, data=data, out="plan.json")
except upshift.UpshiftError as error:
    print("interrupted:", error.exit_code, error, flush=True)
"""


def test_ctrl_c_while_the_machine_is_measured_says_so_and_leaves_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(device: torch.device) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("upshift.workflows.tune.limits", interrupted)
    before = multiprocessing.active_children()
    with pytest.raises(Interrupted, match="before anything was tried"):
        tune(mlp(), data=loader(num_workers=1))
    assert not set(multiprocessing.active_children()) - set(before)  # those of tests before may end meanwhile


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_best_plan_so_far(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        process.send_signal(number)
        last = process.stdout.readline()
    assert last == f"interrupted: 130 tuning was stopped by {number.name}; the best plan so far is in plan.json\n"
    load_plan(tmp_path / "plan.json")
