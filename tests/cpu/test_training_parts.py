"""The parts of training, each on its own."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from upshift.errors import ArtifactError, ConfigError, StorageError, UnknownNameError
from upshift.training.checkpoint import Checkpoint, load_checkpoint, load_latest, prune, save_checkpoint, saved_steps
from upshift.training.config import SCHEDULES, OptimizerConfig, ScheduleConfig, StageConfig, TrainingConfig
from upshift.training.ema import ExponentialMovingAverage
from upshift.training.metrics import RunningMetrics, check_logits, evaluate_logits
from upshift.training.optimizers import build_optimizer
from upshift.training.rng import restore_rng_state, rng_state, seed_everything
from upshift.training.schedules import learning_rate_factor


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def one_step(model: nn.Module, config: OptimizerConfig, *, fused: bool = False) -> None:
    optimizer = build_optimizer(model, config, fused=fused)
    torch.manual_seed(1)
    inputs, labels = torch.randn(16, 6), torch.randint(0, 3, (16,))
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


# Schedules


@given(
    name=st.sampled_from(SCHEDULES),
    warmup=st.floats(0, 0.9),
    final=st.floats(0, 1),
    total=st.integers(1, 500),
    data=st.data(),
)
def test_a_learning_rate_stays_between_0_and_its_peak(
    name: str, warmup: float, final: float, total: int, data: st.DataObject
) -> None:
    config = ScheduleConfig(name=name, warmup_fraction=warmup, final_fraction=final)
    factors = [learning_rate_factor(config, step, total) for step in range(total)]
    assert all(0 <= factor <= 1 + 1e-12 for factor in factors)
    peak = factors.index(max(factors))
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(factors[: peak + 1]))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(factors[peak:]))
    if name != "constant" and total - round(warmup * total) > 1:
        assert factors[-1] == pytest.approx(final)


# Optimizers


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon", "lion"])
def test_an_optimizer_by_name_lowers_the_loss(name: str) -> None:
    model = small_model()
    inputs, labels = torch.randn(64, 6), torch.randint(0, 3, (64,))
    before = F.cross_entropy(model(inputs), labels).item()
    optimizer = build_optimizer(
        model, OptimizerConfig(name=name, lr=0.02, momentum=0.9 if name in ("sgd", "muon") else 0.0)
    )
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    assert F.cross_entropy(model(inputs), labels).item() < before - 0.05


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_fused_kernel_gives_what_the_plain_one_gives(name: str) -> None:
    config = OptimizerConfig(name=name, lr=0.05, momentum=0.9 if name == "sgd" else 0.0, weight_decay=0.01)
    plain, fused = small_model(), small_model()
    one_step(plain, config)
    one_step(fused, config, fused=True)
    for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("everywhere", [False, True])
def test_weight_decay_leaves_norms_and_biases_out_unless_asked(everywhere: bool) -> None:
    model = small_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    config = OptimizerConfig(lr=0.1, weight_decay=0.5, decay_norm_and_bias=everywhere)
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in model.parameters():
        decayed = parameter.dim() >= 2 or everywhere
        assert torch.all(parameter == (1.0 - 0.1 * 0.5 if decayed else 1.0))


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    optimizer = build_optimizer(small_model(), OptimizerConfig(name="muon", lr=0.02, momentum=0.9))
    muon, adamw = optimizer.optimizers
    assert [tuple(p.shape) for group in muon.param_groups for p in group["params"]] == [(8, 6), (8, 8)]
    assert sum(p.numel() for group in adamw.param_groups for p in group["params"]) == 8 + 16 + 8 + 27


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon", "lion"])
def test_optimizer_state_comes_back(name: str) -> None:
    config = OptimizerConfig(name=name, lr=0.01, momentum=0.9 if name in ("sgd", "muon") else 0.0)
    model = small_model()
    optimizer = build_optimizer(model, config)

    def step(model: nn.Module, optimizer: object) -> None:
        torch.manual_seed(5)
        F.cross_entropy(model(torch.randn(8, 6)), torch.randint(0, 3, (8,))).backward()
        optimizer.step()  # type: ignore[attr-defined]

    step(model, optimizer)
    twin = small_model()
    twin.load_state_dict(model.state_dict())
    restored = build_optimizer(twin, config)
    tensors, rest = optimizer.state()
    restored.load_state({name: tensor.clone() for name, tensor in tensors.items()}, rest)
    optimizer.zero_grad()
    restored.zero_grad()
    step(model, optimizer)
    step(twin, restored)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_unknown_optimizer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'adamw'"):
        build_optimizer(small_model(), OptimizerConfig(name="adamww"))


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="no_such_option"):
        build_optimizer(small_model(), OptimizerConfig(options={"no_such_option": 1}))


def test_a_model_without_parameters_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="parameters to train"):
        build_optimizer(nn.ReLU(), OptimizerConfig())


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TrainingConfig, {"batch_size": 0}),
        (TrainingConfig, {"epochs": -1}),
        (TrainingConfig, {"ema_decay": 1.5}),
        (TrainingConfig, {"label_smoothing": 1.0}),
        (TrainingConfig, {"checkpoint_every_steps": 0}),
        (TrainingConfig, {"epochs": 3, "stages": (StageConfig(epochs=2),)}),
        (OptimizerConfig, {"lr": 0.0}),
        (OptimizerConfig, {"lr": -1.0}),
        (OptimizerConfig, {"weight_decay": -0.1}),
        (OptimizerConfig, {"nesterov": True}),
        (ScheduleConfig, {"name": "cosin"}),
        (ScheduleConfig, {"warmup_fraction": 1.0}),
        (StageConfig, {"epochs": 0}),
    ],
)
def test_values_out_of_range_are_refused_with_rule_value_and_way_out(kind: type, values: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**values)
    assert next(iter(values)).split("_")[0] in caught.value.rule or "epochs" in caught.value.rule
    assert caught.value.hint and caught.value.exit_code == 2


# Average of the weights


def test_the_average_is_swapped_in_and_out_exactly() -> None:
    model = small_model()
    average = ExponentialMovingAverage(model, 0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    average.update()
    now = [p.detach().clone() for p in model.parameters()]
    expected = [a.clone() for a in average.averages.values()]
    with average.swapped_in():
        assert all(torch.equal(p, e) for p, e in zip(model.parameters(), expected, strict=True))
    assert all(torch.equal(p, n) for p, n in zip(model.parameters(), now, strict=True))
    # The first update has decay 2/11, so the average has moved 9/11 of the way.
    torch.testing.assert_close(expected[0], now[0] - 2 / 11)


# Metrics


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), seed=st.integers(0, 1000))
def test_running_metrics_equal_those_of_all_samples_together(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    metrics = RunningMetrics()
    logits = [torch.randn(size, 4, generator=generator) for size in sizes]
    labels = [torch.randint(0, 4, (size,), generator=generator) for size in sizes]
    for outputs, targets in zip(logits, labels, strict=True):
        metrics.update(F.cross_entropy(outputs, targets), outputs, targets)
    taken = metrics.take()
    everything, targets = torch.cat(logits), torch.cat(labels)
    assert taken["loss"] == pytest.approx(F.cross_entropy(everything, targets).item(), rel=1e-5)
    assert taken["accuracy"] == (everything.argmax(1) == targets).double().mean().item()
    assert metrics.num_steps == 0


@pytest.mark.parametrize("sizes", [(4, 4, 4), (4, 4, 2)])
def test_a_skipped_step_counts_neither_in_the_loss_nor_in_the_accuracy(sizes: tuple[int, ...]) -> None:
    metrics = RunningMetrics()
    for loss, size in zip((1.0, math.nan, 3.0), sizes, strict=True):
        labels = torch.zeros(size, dtype=torch.int64)
        logits = torch.tensor([[1.0, 0.0]] if math.isfinite(loss) else [[0.0, 1.0]]).expand(size, 2)
        metrics.update(torch.tensor(loss), logits, labels)
    first, last = sizes[0], sizes[2]
    assert metrics.take() == {"loss": (first * 1.0 + last * 3.0) / (first + last), "accuracy": 1.0}
    metrics.update(torch.tensor(math.inf), torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64))
    assert metrics.take() == {"loss": None, "accuracy": None}


def test_the_evaluation_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score

    torch.manual_seed(0)
    logits, labels = torch.randn(200, 7), torch.randint(0, 7, (200,))
    evaluation = evaluate_logits(logits, labels, tuple("abcdefg"))
    assert evaluation.confusion_matrix == confusion_matrix(labels, logits.argmax(1)).tolist()
    expected = precision_recall_fscore_support(labels, logits.argmax(1))
    for row, precision, recall, f1, support in zip(evaluation.per_class, *expected, strict=True):
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision, recall, f1))
        assert row["support"] == support
    assert evaluation.metrics["top5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5))
    assert evaluation.metrics["loss"] == pytest.approx(F.cross_entropy(logits.double(), labels).item())


def test_calibration_error_is_zero_for_a_calibrated_model_and_large_for_a_boastful_one() -> None:
    labels = torch.tensor([0, 1] * 500)
    fair = torch.zeros(1000, 2)  # says 50 %, is right half the time
    boastful = torch.tensor([[10.0, 0.0]]).expand(1000, 2)  # says 100 %, is right half the time
    assert evaluate_logits(fair, labels, ("a", "b")).metrics["calibration_error"] == pytest.approx(0, abs=1e-9)
    assert evaluate_logits(boastful, labels, ("a", "b")).metrics["calibration_error"] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"logits": torch.zeros(4, 3)}, "dict with the keys 'logits'"),
        ((torch.zeros(4, 3),), "a tuple of 1"),
        (torch.zeros(4), r"\(4,\)"),
        (torch.zeros(4, 1), r"\(4, 1\)"),
        (torch.zeros(4, 2), "2 outputs and a label 2"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(outputs: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_logits(outputs, torch.tensor([0, 1, 2, 0]))


# Random state


def test_every_generator_comes_back() -> None:
    import random

    import numpy as np

    seed_everything(4)
    random.gauss(0, 1), np.random.standard_normal()  # both keep a second value in store
    state = rng_state(torch.device("cpu"))

    def draw() -> list[float]:
        return [torch.rand(1).item(), np.random.standard_normal(), random.gauss(0, 1), random.random()]

    first = draw()
    restore_rng_state(state, torch.device("cpu"))
    assert draw() == first


# Checkpoints


def checkpoint(step: int) -> Checkpoint:
    shared = torch.arange(6.0)
    return Checkpoint(step, {"model/a": shared, "model/b": shared, "model/c": shared.view(2, 3).t()}, {"x": [1, 2.5]})


def test_a_checkpoint_comes_back_with_shared_and_transposed_tensors(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, checkpoint(5))
    loaded = load_checkpoint(path)
    assert loaded.step == 5 and loaded.state["x"] == [1, 2.5]
    assert torch.equal(loaded.tensors["model/c"], torch.arange(6.0).view(2, 3).t())


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, checkpoint(step))
    (tmp_path / ".step-200.1234.tmp").mkdir()
    (tmp_path / "step-100" / "state.safetensors").unlink()
    found, warnings = load_latest(tmp_path)
    assert found is not None and found.step == 10
    assert len(warnings) == 1 and "step-100" in warnings[0]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"step": 1}', b"\xff\xfe", b'{"a":' * 100_000])
def test_a_state_that_is_no_state_is_refused(tmp_path: Path, content: bytes) -> None:
    path = save_checkpoint(tmp_path, checkpoint(1))
    (path / "state.json").write_bytes(content)
    with pytest.raises(ArtifactError):
        load_checkpoint(path)


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    for step in (2, 10, 9, 30):
        save_checkpoint(tmp_path, checkpoint(step))
    prune(tmp_path, keep=2)
    assert saved_steps(tmp_path) == [10, 30]


def test_a_checkpoint_on_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StorageError):
            save_checkpoint(tmp_path / "checkpoints", Checkpoint(1, {"model/a": torch.zeros(100_000)}, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_numbers_that_json_lacks_do_not_break_a_checkpoint(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, Checkpoint(1, {"a": torch.zeros(1)}, {"loss": math.nan}))
    assert load_checkpoint(path).state["loss"] is None
