"""A plan in a loop of one's own: what each field does, what stays, and that the loop learns the same."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import upshift
from upshift.core.malloc import can_keep_freed_memory, keeps_freed_memory
from upshift.errors import ConfigError, PlanError
from upshift.tuning.compiler import CompilerCounts
from upshift.tuning.framework import PlanInFramework
from upshift.tuning.plan import BASELINE, Plan
from upshift.tuning.process_settings import set_to
from upshift.tuning.subject import subject_of
from upshift.workflows.tune import TunedPlan


class Block(nn.Module):
    """Repeats in a network, draws random numbers, and keeps running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Dropout of channels: that of single pixels draws its mask in the order in which they lie in memory.
        gate = self.drop(x.mean((2, 3)).sigmoid())[:, :, None, None]
        result: torch.Tensor = x + gate * torch.relu(self.norm(self.conv(x)))
        return result


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Conv2d(3, 4, 3), nn.Sequential(Block(), Block()), nn.Linear(4, 3)

    def forward(self, images: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        result: torch.Tensor = self.head(self.blocks(self.stem(images)).mean((2, 3))) * scale
        return result


NUM_SAMPLES, BATCH = 40, 16  # two full batches and a smaller one


@pytest.fixture(autouse=True)
def process_settings() -> Iterator[None]:
    """Plans set threads and precision for the process."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    set_to({})
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


def make() -> tuple[Net, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(0)
    model = Net()
    data = TensorDataset(torch.randn(NUM_SAMPLES, 3, 8, 8), torch.randint(0, 3, (NUM_SAMPLES,)))
    loader: DataLoader[Any] = DataLoader(
        data, batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(5)
    )
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), loader


def losses(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Any, *, epochs: int = 2) -> list[float]:
    """As a user writes it, evaluation included."""
    torch.manual_seed(1)
    found = []
    for _ in range(epochs):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        model.eval()
        with torch.no_grad():
            found.append(model(torch.ones(5, 3, 8, 8)).sum().item())
    return found


@pytest.fixture(scope="module")
def plain_losses() -> list[float]:
    return losses(*make())


def plan(**changes: Any) -> Plan:
    return Plan(fused_optimizer=False, **changes)


SAME_MATHEMATICS = {
    "channels_last": {"memory_format": "channels_last"},
    "threads": {"num_threads": 2},
    "checkpointing": {"activation_checkpointing": True},
    "workers": {"data_path": "worker", "num_workers": 1},
    "all of these": {
        "memory_format": "channels_last",
        "num_threads": 2,
        "activation_checkpointing": True,
        "data_path": "worker",
        "num_workers": 1,
    },
}
COMPILED = {
    "whole": {"compile": "whole"},
    "regional": {"compile": "regional"},
    "whole, checkpointing": {"compile": "whole", "activation_checkpointing": True},
    "regional, checkpointing": {"compile": "regional", "activation_checkpointing": True},
    "whole, channels_last": {"compile": "whole", "memory_format": "channels_last"},
}


@pytest.mark.parametrize("changes", SAME_MATHEMATICS.values(), ids=SAME_MATHEMATICS)
@pytest.mark.parametrize("fused", [False, True])
def test_a_loop_with_a_plan_has_the_losses_of_one_without(
    changes: dict[str, Any], fused: bool, plain_losses: list[float]
) -> None:
    found = losses(*Plan(fused_optimizer=fused, **changes).apply(*make()))
    torch.testing.assert_close(found, plain_losses, rtol=1e-4, atol=1e-5)


def num_graphs() -> int:
    return CompilerCounts().read().num_graphs


def graphs_of_a_new_compiler() -> int:
    """What earlier tests compiled is forgotten: models of one class share their code."""
    torch.compiler.reset()
    return num_graphs()


@pytest.mark.slow
@pytest.mark.parametrize("changes", COMPILED.values(), ids=COMPILED)
def test_a_compiled_loop_has_the_losses_of_a_plain_one_dropout_included(
    changes: dict[str, Any], plain_losses: list[float]
) -> None:
    before = graphs_of_a_new_compiler()
    found = losses(*plan(**changes).apply(*make()))
    assert num_graphs() > before
    torch.testing.assert_close(found, plain_losses, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("compile", ["whole", "regional"])
def test_a_smaller_last_batch_is_not_compiled_for_however_often_it_comes(compile: str) -> None:
    before = graphs_of_a_new_compiler()
    model, optimizer, loader = plan(compile=compile).apply(*make())
    losses(model, optimizer, loader, epochs=2)
    graphs = num_graphs()
    assert graphs > before
    losses(model, optimizer, loader, epochs=5)
    for size in range(1, 12):
        model.train()
        model(torch.randn(size, 3, 8, 8)).sum().backward()
    assert num_graphs() == graphs


@pytest.mark.slow
def test_compiling_for_a_plan_leaves_the_settings_of_the_compiler_alone() -> None:
    before = torch._inductor.config.fallback_random
    losses(*plan(compile="whole").apply(*make()), epochs=1)
    assert torch._inductor.config.fallback_random == before


# --- fields ------------------------------------------------------------------------------------------------


def test_channels_last_lays_out_kernels_and_the_state_of_the_optimizer_and_contiguous_lays_them_back() -> None:
    model, optimizer, loader = make()
    losses(model, optimizer, loader, epochs=1)
    plan(memory_format="channels_last").apply(model, optimizer)
    kernel = model.stem.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last) and not kernel.is_contiguous()
    assert optimizer.state[kernel]["momentum_buffer"].stride() == kernel.stride()
    plan().apply(model, optimizer)
    assert kernel.is_contiguous()
    assert optimizer.state[kernel]["momentum_buffer"].stride() == kernel.stride()


def test_a_model_with_3d_convolutions_keeps_their_layout() -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 2), nn.Conv2d(1, 2, 2))
    plan(memory_format="channels_last").apply(model)
    assert model[0].weight.is_contiguous()
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("fused", [False, True])
def test_fused_kernels_are_switched_on_and_off(fused: bool) -> None:
    model, _, _ = make()
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, fused=not fused)
    Plan(fused_optimizer=fused).apply(model, optimizer)
    # Not False: torch takes its kernels for many tensors at once only where it is not told.
    assert [group["fused"] for group in optimizer.param_groups] == [True if fused else None]


def test_a_loop_whose_optimizer_became_fused_may_thaw_parameters() -> None:
    weights = []
    for fused in (True, False):
        model, optimizer, loader = make()
        for _ in range(2):  # a second plan makes no difference
            Plan(fused_optimizer=fused).apply(model, optimizer)
        for is_trained in (False, True):
            model.stem.requires_grad_(is_trained)
            losses(model, optimizer, loader, epochs=1)
        weights.append(model.state_dict())
        assert len(optimizer._optimizer_step_pre_hooks) == int(fused)
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [None, False, True])
def test_a_plan_that_says_nothing_of_fused_kernels_leaves_the_optimizer_as_it_is(fused: bool | None) -> None:
    model, _, _ = make()
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    Plan(fused_optimizer=None).apply(model, optimizer)
    assert [group["fused"] for group in optimizer.param_groups] == [fused]


class SelfPaced(torch.optim.SGD):
    """As Adafactor of transformers: it finds its rate itself."""

    def __init__(self, parameters: Any, *, has_rate: bool) -> None:
        super().__init__(parameters)
        for group in self.param_groups:
            group["lr"] = None
            if not has_rate:
                del group["lr"]


@pytest.mark.parametrize("has_rate", [False, True])
def test_an_optimizer_without_a_learning_rate_is_laid_out_like_any_other(has_rate: bool) -> None:
    model, _, _ = make()
    optimizer = SelfPaced(model.parameters(), has_rate=has_rate)
    assert plan(memory_format="channels_last").apply(model, optimizer)[1] is optimizer
    assert model.stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_optimizers_without_fused_kernels_stay_as_they_are() -> None:
    model, _, loader = make()
    optimizer = torch.optim.Rprop(model.parameters())
    assert BASELINE.apply(model, optimizer)[1] is optimizer
    losses(model, optimizer, loader, epochs=1)


def test_what_is_no_torch_optimizer_or_loader_comes_back_as_it_is() -> None:
    model, _, _ = make()
    optimizer, batches = object(), [1, 2]
    assert plan(data_path="worker", num_workers=2).apply(model, optimizer, batches) == (model, optimizer, batches)
    assert plan().apply(model) == (model, None, None)


def test_threads_are_set_for_the_process_and_put_back_by_a_plan_without_a_number() -> None:
    model, _, _ = make()
    before = torch.get_num_threads()
    for threads in (before + 1, before + 2):
        plan(num_threads=threads).apply(model)
        assert torch.get_num_threads() == threads
    plan().apply(model)
    assert torch.get_num_threads() == before


def test_threads_that_the_user_has_set_since_are_left_alone() -> None:
    model, _, _ = make()
    before = torch.get_num_threads()
    plan().apply(model)
    assert torch.get_num_threads() == before
    plan(num_threads=before + 1).apply(model)
    torch.set_num_threads(before + 2)
    plan().apply(model)
    assert torch.get_num_threads() == before + 2


@pytest.fixture
def usual_limit() -> Iterator[None]:
    """Dynamo's own limit of recompiling, whatever tests before have left."""
    before = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = 8
    yield
    torch._dynamo.config.recompile_limit = before  # monkeypatch would delete what is no plain attribute of the module


@pytest.mark.usefixtures("usual_limit")
def test_the_limit_of_recompiling_is_raised_for_blocks_alone_and_put_back() -> None:
    model, _, _ = make()
    before = torch._dynamo.config.recompile_limit
    plan(compile="regional").apply(model)
    plan(compile="regional").apply(model)
    assert torch._dynamo.config.recompile_limit > before
    plan(compile="whole").apply(model)
    assert torch._dynamo.config.recompile_limit == before


@pytest.mark.usefixtures("usual_limit")
def test_a_limit_of_recompiling_that_was_raised_since_stays() -> None:
    model, _, _ = make()
    plan(compile="regional").apply(model)
    torch._dynamo.config.recompile_limit = 1000
    plan(compile="regional").apply(model)
    assert torch._dynamo.config.recompile_limit == 1000
    plan().apply(model)
    assert torch._dynamo.config.recompile_limit == 1000


@pytest.mark.parametrize("of_framework", [None, 3])
def test_a_number_of_threads_that_was_set_since_a_plan_outlives_one_in_a_framework(of_framework: int | None) -> None:
    model, optimizer, _ = make()
    plan(num_threads=1).apply(model)
    torch.set_num_threads(2)
    in_loop = PlanInFramework(plan(num_threads=of_framework))
    in_loop.begin(model, [optimizer])
    in_loop.end()
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(not can_keep_freed_memory(), reason="not glibc, or told otherwise")
def test_freed_memory_is_kept_as_long_as_a_plan_says_so() -> None:
    model, _, _ = make()
    plan(keep_freed_memory=True).apply(model)
    assert keeps_freed_memory()
    plan().apply(model)
    assert not keeps_freed_memory()


def test_bf16_is_autocast_and_nothing_else() -> None:
    model, optimizer, loader = make()
    seen = []
    model.stem.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    images = torch.randn(4, 3, 8, 8)
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(images).float()
    plan(precision="bf16").apply(model, optimizer, loader)
    outputs = model(images)
    assert torch.equal(outputs, expected)
    assert seen == [torch.bfloat16, torch.bfloat16]
    # A loss outside of the model is computed in single precision, and so are all weights and their gradients.
    outputs.sum().backward()
    assert outputs.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters() if p.grad is not None}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_activation_checkpointing_computes_blocks_again_in_the_backward_pass_alone() -> None:
    model, _, _ = make()
    calls = []
    model.blocks[0].conv.register_forward_hook(lambda *_: calls.append(1))
    plan(activation_checkpointing=True).apply(model)
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        model(torch.randn(4, 3, 8, 8))
    assert len(calls) == 3


@pytest.mark.parametrize("replaced", [False, True])
def test_recomputed_blocks_count_a_batch_once_whatever_their_forward_is(replaced: bool) -> None:
    model, _, _ = make()
    if replaced:
        for block in model.blocks:
            block.forward = functools.partial(Block.forward, block)
    plan(activation_checkpointing=True).apply(model)
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    assert [int(block.norm.num_batches_tracked) for block in model.blocks] == [1, 1]


def test_other_paths_of_data_than_workers_leave_the_loader_alone() -> None:
    model, _, loader = make()
    for path in ("auto", "resident", "mmap"):
        assert plan(data_path=path).apply(model, None, loader)[2] is loader
    assert plan(data_path="worker").apply(model, None, loader)[2] is loader  # it has no workers already


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"micro_batch_size": 8}, r"split its batches; received micro_batch_size=8"),
        ({"precision": "fp16"}, r"GradScaler in the loop itself"),
        ({"compile": "step"}, r'compile its loss and its backward pass; received compile="step"; hint: .*"whole"'),
        ({"device": "cuda"}, r"must be on this machine"),
        ({"precision": "tf32"}, r"needs a CUDA device"),
    ],
)
def test_what_a_loop_cannot_be_given_is_refused_before_anything_changes(changes: dict[str, Any], text: str) -> None:
    model, optimizer, _ = make()
    before = {name: getattr(model, name) for name in ("forward", "training")}
    with pytest.raises(PlanError, match=text):
        Plan(memory_format="channels_last", **changes).apply(model, optimizer)
    assert {name: getattr(model, name) for name in before} == before
    assert model.stem.weight.is_contiguous()


def test_a_model_on_another_device_than_the_plans_is_refused() -> None:
    with pytest.raises(PlanError, match="device cpu needs a model there; received a model on meta"):
        plan(device="cpu").apply(nn.Linear(2, 2, device="meta"))


def test_compiled_models_and_what_is_no_model_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"before torch\.compile"):
        plan().apply(torch.compile(make()[0]))
    with pytest.raises(ConfigError, match=r"before it is wrapped.*a DataParallel"):
        plan().apply(nn.DataParallel(make()[0]))
    not_a_model: Any = "model"
    with pytest.raises(ConfigError, match="torch module; received 'model'"):
        plan().apply(not_a_model)


# --- the model stays what it is ------------------------------------------------------------------------------

CALLED = plan(precision="bf16", activation_checkpointing=True, memory_format="channels_last", compile="regional")


def test_the_model_stays_the_same_object_of_the_same_class_with_the_same_keys() -> None:
    model, optimizer, loader = make()
    keys, names = list(model.state_dict()), [name for name, _ in model.named_modules()]
    applied, same_optimizer, _ = CALLED.apply(model, optimizer, loader)
    assert applied is model and same_optimizer is optimizer
    assert type(model) is Net
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_modules()] == names
    assert inspect.signature(model.forward) == inspect.signature(Net().forward)


def test_weights_go_into_a_plain_model_and_come_from_one(tmp_path: Path) -> None:
    model, _, _ = make()
    CALLED.apply(model)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    plain = Net()
    plain.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    model.load_state_dict(plain.state_dict())
    assert all(map(torch.equal, plain.state_dict().values(), model.state_dict().values()))


def copies(model: nn.Module) -> Iterator[nn.Module]:
    yield copy.deepcopy(model)
    yield pickle.loads(pickle.dumps(model))
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    yield torch.load(saved, weights_only=False)


def test_copies_are_plain_models_of_their_own() -> None:
    model, _, _ = make()
    images = torch.randn(4, 3, 8, 8)
    model.eval()
    expected = model(images)
    CALLED.apply(model)
    for copied in copies(model):
        assert type(copied) is Net
        torch.testing.assert_close(copied(images), expected, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.zero_()
        assert torch.count_nonzero(copied(images)) == 0
        CALLED.apply(copied)
        assert torch.count_nonzero(copied(images)) == 0
    assert torch.count_nonzero(model(images)) > 0


def test_an_average_of_the_weights_can_be_kept() -> None:
    model, _, _ = make()
    model.eval()
    images = torch.randn(4, 3, 8, 8)
    expected = model(images)
    CALLED.apply(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    average.eval()
    torch.testing.assert_close(average(images), expected, rtol=1e-5, atol=1e-5)  # of one model alone, as it was


@pytest.mark.parametrize(
    "changes",
    [{"compile": "whole"}, {"compile": "regional"}, {"activation_checkpointing": True}, {"precision": "bf16"}],
)
def test_a_model_can_be_exported_with_a_plan_applied(changes: dict[str, Any]) -> None:
    model, _, _ = make()
    plan(**changes).apply(model)
    model.eval()
    images = torch.randn(4, 3, 8, 8)
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images), rtol=1e-2, atol=1e-2)


def test_applying_twice_is_applying_once() -> None:
    model, optimizer, loader = make()
    calls = []
    model.blocks[0].conv.register_forward_hook(lambda *_: calls.append(1))
    twice = plan(activation_checkpointing=True, precision="bf16", data_path="worker", num_workers=1)
    _, _, first = twice.apply(model, optimizer, loader)
    _, _, second = twice.apply(model, optimizer, first)
    assert second is first
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    assert len(calls) == 2


def test_another_plan_takes_the_place_of_the_first() -> None:
    model, optimizer, loader = make()
    CALLED.apply(model, optimizer, loader)
    plan().apply(model, optimizer, loader)
    assert all("forward" not in vars(module) for module in model.modules())
    assert model(torch.randn(4, 3, 8, 8)).dtype == torch.float32


def test_a_forward_that_was_set_on_the_instance_is_called_and_given_back() -> None:
    model, _, _ = make()
    plain = model.forward
    model.forward = lambda images: plain(images) + 100.0
    own = model.forward
    plan(precision="bf16").apply(model)
    assert model(torch.randn(4, 3, 8, 8)).min() > 50
    plan().apply(model)
    assert model.forward is own


def test_hooks_of_the_model_are_called_with_a_plan_too() -> None:
    model, _, _ = make()
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append("before"))
    model.register_forward_hook(lambda *_: calls.append("after"))
    plan(precision="bf16").apply(model)
    model(torch.randn(4, 3, 8, 8))
    assert calls == ["before", "after"]


def test_errors_of_the_model_come_through_and_the_next_call_is_as_any_other() -> None:
    model, _, _ = make()
    CALLED.apply(model)
    with pytest.raises(RuntimeError, match="expected input"):
        model(torch.randn(4, 2, 8, 8))
    assert not torch.is_autocast_enabled("cpu")
    model(torch.randn(4, 3, 8, 8))


def test_named_arguments_reach_the_model() -> None:
    model, _, _ = make()
    plan(precision="bf16").apply(model)
    model.eval()
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(model(images, scale=2.0), 2 * model(images))


class OfTuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"logits": self.net(x), "states": (self.net(x), 7)}


def test_bf16_outputs_of_any_shape_are_single_precision() -> None:
    model = OfTuple()
    plan(precision="bf16").apply(model)
    outputs = model(torch.randn(2, 4))
    assert outputs["logits"].dtype == outputs["states"][0].dtype == torch.float32
    assert outputs["states"][1] == 7


def test_frozen_and_tied_parameters_stay_so() -> None:
    model, optimizer, _ = make()
    model.stem.requires_grad_(False)
    model.blocks[1].conv.weight = model.blocks[0].conv.weight
    CALLED.apply(model, optimizer)
    assert model.blocks[1].conv.weight is model.blocks[0].conv.weight
    assert not model.stem.weight.requires_grad


# --- tuned plans, and plans in a framework ---------------------------------------------------------------------


def test_what_tune_gave_is_applied_like_its_plan() -> None:
    model, optimizer, loader = make()
    tuned = TunedPlan(plan(memory_format="channels_last"), 1.0, (), {})
    assert tuned.apply(model, optimizer, loader)[0] is model
    assert model.stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_plan_of_another_model_is_applied_with_a_warning() -> None:
    model, optimizer, _ = make()
    fitting = plan(memory_format="channels_last", subject=subject_of(Net()))
    fitting.apply(model, optimizer)  # of another object with other weights, and no warning
    wider = nn.Sequential(nn.Conv2d(3, 8, 3))
    with pytest.warns(UserWarning, match="found for another model than this Sequential"):
        fitting.apply(wider)
    assert wider[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("usual_limit")
def test_a_plan_in_a_framework_ends_with_its_training() -> None:
    model, optimizer, _ = make()
    threads = torch.get_num_threads()
    limit = torch._dynamo.config.recompile_limit
    in_loop = PlanInFramework(
        plan(
            num_threads=threads + 1,
            precision="bf16",
            activation_checkpointing=True,
            compile="regional",
            keep_freed_memory=True,
        )
    )
    for _ in range(2):
        in_loop.begin(model, [optimizer])
        assert torch.get_num_threads() == threads + 1
        assert torch._dynamo.config.recompile_limit > limit
        assert keeps_freed_memory() == can_keep_freed_memory()
        assert "forward" in vars(model)
        in_loop.end()
        in_loop.end()
        assert torch.get_num_threads() == threads
        assert torch._dynamo.config.recompile_limit == limit
        assert not keeps_freed_memory()
        assert all("forward" not in vars(module) for module in model.modules())


def test_a_plan_in_a_framework_ends_with_the_plan_that_was_applied_before_it() -> None:
    model, optimizer, _ = make()
    threads = torch.get_num_threads()
    plan(num_threads=threads + 1).apply(model)
    in_loop = PlanInFramework(plan(num_threads=threads + 2))
    in_loop.begin(model, [optimizer])
    in_loop.end()
    assert torch.get_num_threads() == threads + 1
    plan().apply(model)
    assert torch.get_num_threads() == threads


def test_a_layout_behind_the_back_of_a_wrapper_for_several_processes_is_refused() -> None:
    model, optimizer, _ = make()
    in_loop = PlanInFramework(plan(memory_format="channels_last", num_threads=torch.get_num_threads() + 1))
    threads = torch.get_num_threads()
    with pytest.raises(PlanError, match="before it is wrapped for several processes"):
        in_loop.begin(model, [optimizer], is_distributed=True)
    assert model.stem.weight.is_contiguous()
    assert torch.get_num_threads() == threads
    in_loop.lay_out(model)
    in_loop.begin(model, [optimizer], is_distributed=True)
    assert torch.get_num_threads() == threads + 1
    in_loop.end()


def test_a_plan_that_no_loop_can_follow_is_refused_when_the_framework_gets_it() -> None:
    with pytest.raises(PlanError, match="split its batches"):
        PlanInFramework(Plan(micro_batch_size=4))


def test_plan_is_applied_by_the_public_name(tmp_path: Path) -> None:
    upshift.Plan(memory_format="channels_last").save(tmp_path / "plan.json")
    model, _, _ = make()
    upshift.Plan.load(tmp_path / "plan.json").apply(model)
    assert model.stem.weight.is_contiguous(memory_format=torch.channels_last)
