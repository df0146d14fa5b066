"""What a training does as a whole, on scikit-learn's real digits."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from upshift import (
    BadInputError,
    DataConfig,
    OptimizerConfig,
    Plan,
    Recipe,
    ScheduleConfig,
    StageConfig,
    evaluate,
    optimize,
    train,
)
from upshift.errors import ConfigError, NonFiniteLossError, PlanError
from upshift.workflows.train import TrainedRun


class Network(nn.Module):
    """A small network with batch norm and dropout; `poison` makes some outputs NaN while training."""

    def __init__(self, num_classes: int = 10, dropout: float = 0.1, poison: str = "never") -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(128, num_classes)
        self.poison, self.calls = poison, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
            if self.poison == "always" or (self.poison == "sometimes" and self.calls % 5 == 0):
                images = images * float("nan")
        return self.head(self.dropout(self.features(images).flatten(1)))


class Talkative(Network):
    """Returns more than logits."""

    def forward(self, images: torch.Tensor) -> Any:
        return {"logits": super().forward(images), "features": images}


RECIPE = Recipe(
    name="small",
    model=Network,
    data=DataConfig(source="digits"),
    batch_size=64,
    epochs=2,
    optimizer=OptimizerConfig(name="adamw", lr=0.01),
)


def run(tmp_path: Path, *overrides: str, recipe: Recipe = RECIPE, name: str = "run", **arguments: Any) -> TrainedRun:
    # The plain plan: what tuning finds depends on the clock, and another plan rounds otherwise.
    return train(recipe, overrides=overrides, out=tmp_path / name, **({"plan": "baseline"} | arguments))


def records(trained: TrainedRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in trained.folder.metrics.read_text().splitlines()]


def test_a_run_learns_and_leaves_the_records_that_scripts_rely_on(tmp_path: Path) -> None:
    trained = run(tmp_path, "epochs=5")
    result = json.loads(trained.folder.result.read_text())
    assert result == trained.result
    assert result["version"] == 1 and result["recipe"] == "small" and result["variant"] is None
    assert result["metrics"]["accuracy"] > 0.9 and result["metrics"]["loss"] < 0.5
    assert (result["epochs"], result["steps"]) == (5, 115) and result["stopped"] == "completed"
    assert result["num_parameters"] == sum(p.numel() for p in trained.model.parameters())
    assert result["time_to_target_seconds"] is None and result["optimize"] is None
    assert result["run_dir"] == str(tmp_path / "run")
    lines = records(trained)
    assert {"step", "epoch", "loss", "learning_rate", "samples_per_second"} <= set(lines[0])
    assert [line["epoch"] for line in lines if "eval_accuracy" in line] == [0, 1, 2, 3, 4]
    assert lines[-1]["eval_accuracy"] == result["metrics"]["accuracy"]
    assert load_file(trained.folder.model).keys() == trained.model.state_dict().keys()
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    assert json.loads(trained.folder.evaluation.read_text())["num_samples"] == result["data"]["num_test"]


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(tmp_path: Path) -> None:
    same = [records(run(tmp_path, "log_every=1", name=name, seed=7)) for name in ("a", "b")]
    other = records(run(tmp_path, "log_every=1", name="c", seed=8))
    assert [line["loss"] for line in same[0]] == [line["loss"] for line in same[1]]
    assert [line["loss"] for line in same[0]] != [line["loss"] for line in other]


def test_losses_are_logged_with_full_float_precision(tmp_path: Path) -> None:
    losses = [line["loss"] for line in records(run(tmp_path, "log_every=1"))]
    assert all(float(np.float32(loss)) == loss for loss in losses)
    assert len(losses) == 46


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch_size": 10},
        {"data_path": "mmap"},
        {"memory_format": "channels_last"},
        {"fused_optimizer": False},
    ],
)
def test_a_plan_of_the_same_mathematics_gives_the_same_losses(tmp_path: Path, changes: dict[str, Any]) -> None:
    # Without batch norm and dropout, whose statistics and masks depend on the micro-batch.
    recipe = Recipe(
        name="mlp",
        model=Plain,
        data=DataConfig(source="digits"),
        batch_size=64,
        epochs=1,
        optimizer=OptimizerConfig(lr=0.1, momentum=0.9),
    )
    plain = records(run(tmp_path, "log_every=1", recipe=recipe, name="plain"))
    changed = records(run(tmp_path, "log_every=1", recipe=recipe, name="changed", plan=Plan(**changes)))
    expected = [line["loss"] for line in plain]
    assert [line["loss"] for line in changed] == pytest.approx(expected, rel=2e-4)


class Plain(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(144, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(images).relu().flatten(1))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_learns_too(tmp_path: Path, precision: Any) -> None:
    trained = run(tmp_path, "epochs=4", plan=Plan(precision=precision))
    assert trained.result["metrics"]["accuracy"] > 0.85
    assert trained.result["plan"]["precision"] == precision


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_losses_and_keeps_the_users_names(tmp_path: Path) -> None:
    plain = run(tmp_path, "log_every=1", "model_args.dropout=0.0", name="plain")
    compiled = run(tmp_path, "log_every=1", "model_args.dropout=0.0", name="compiled", plan=Plan(compile="whole"))
    losses = [line["loss"] for line in records(plain)]
    assert [line["loss"] for line in records(compiled)] == pytest.approx(losses, rel=1e-3)
    assert load_file(compiled.folder.model).keys() == Network().state_dict().keys()


def test_training_stops_at_its_target_and_says_when(tmp_path: Path) -> None:
    start = time.perf_counter()
    trained = run(tmp_path, "epochs=30", "target.accuracy=0.9")
    assert trained.result["stopped"] == "target" and trained.result["epochs"] < 30
    assert 0 < trained.result["time_to_target_seconds"] < time.perf_counter() - start
    assert trained.result["metrics"]["accuracy"] >= 0.9


def test_max_steps_ends_training_within_an_epoch_with_the_whole_schedule_done(tmp_path: Path) -> None:
    trained = run(tmp_path, "max_steps=30", "epochs=9", "log_every=1", "schedule.name=linear")
    lines = records(trained)
    assert (trained.result["steps"], trained.result["epochs"], trained.result["stopped"]) == (30, 2, "completed")
    assert lines[-1]["step"] == 30 and lines[-1]["learning_rate"] == 0.0 and "eval_accuracy" in lines[-1]
    longer = train(RECIPE, overrides=["max_steps=40", "epochs=9", "log_every=1", "schedule.name=linear"],
                   out=tmp_path / "run", resume=True)  # fmt: skip
    assert longer.result["steps"] == 40 and longer.result["resumed_from_step"] == 30
    assert [line["step"] for line in records(longer)] == list(range(1, 41))


def test_training_stops_when_it_no_longer_gains_and_keeps_the_best_weights(tmp_path: Path) -> None:
    trained = run(tmp_path, "epochs=40", "patience=2", "data.validation_fraction=0.2", "optimizer.lr=0.03")
    assert trained.result["stopped"] == "patience"
    evaluated = [line for line in records(trained) if "eval_accuracy" in line]
    assert evaluated[0]["eval_split"] == "validation"
    accuracies = [line["eval_accuracy"] for line in evaluated]
    assert max(accuracies[-2:]) <= max(accuracies[:-2])
    # The saved weights are those of the best validation accuracy, not the last.
    assert trained.result["data"]["num_validation"] > 0
    assert not any("monitored on the test split" in note for note in trained.result["notes"])


def test_an_average_of_the_weights_is_what_is_evaluated_and_saved(tmp_path: Path) -> None:
    plain = run(tmp_path, name="plain")
    averaged = run(tmp_path, "ema_decay=0.99", name="averaged")
    # The same steps, another result: the average only watches.
    assert [line["loss"] for line in records(plain)] == [line["loss"] for line in records(averaged)]
    assert not torch.equal(plain.model.state_dict()["head.weight"], averaged.model.state_dict()["head.weight"])


def test_a_frozen_stage_leaves_its_parameters_as_they_were_made(tmp_path: Path) -> None:
    recipe = Recipe(
        **{
            **{name: getattr(RECIPE, name) for name in ("name", "model", "data", "batch_size", "optimizer")},
            "epochs": 2,
            "stages": (StageConfig(epochs=1, freeze=("features.*",), image_size=(8, 8)), StageConfig(epochs=1)),
        }
    )
    seen: dict[str, torch.Tensor] = {}

    class Watch:
        def on_start(self, **_: Any) -> None: ...
        def on_progress(self, **_: Any) -> None: ...
        def on_note(self, note: str) -> None: ...
        def on_end(self) -> None: ...
        def on_record(self, record: dict[str, Any]) -> None: ...

    first = train(recipe, overrides=["epochs=1", 'stages=[{"epochs":1,"freeze":["features.*"]}]'], out=tmp_path / "a")
    both = train(recipe, out=tmp_path / "b", observers=(Watch(),))
    torch.manual_seed(0)
    fresh = Network().state_dict()
    seen = first.model.state_dict()
    assert torch.equal(seen["features.0.weight"], fresh["features.0.weight"])
    assert not torch.equal(seen["head.weight"], fresh["head.weight"])
    assert not torch.equal(both.model.state_dict()["features.0.weight"], fresh["features.0.weight"])


def test_progressive_resizing_trains_on_smaller_images_first(tmp_path: Path) -> None:
    recipe = Recipe(
        name="resized",
        model=Pooled,
        data=DataConfig(source="digits"),
        epochs=2,
        stages=(StageConfig(epochs=1, image_size=(4, 4)), StageConfig(epochs=1)),
        optimizer=OptimizerConfig(name="adamw", lr=0.01),
    )
    Pooled.sizes.clear()
    train(recipe, out=tmp_path / "run")
    assert [size for size, before in zip(Pooled.sizes[1:], Pooled.sizes, strict=False) if size != before] == [4, 8]


class Pooled(nn.Module):
    """Takes images of any size, and remembers the sizes it was trained on."""

    sizes: list[int] = []  # noqa: RUF012 - the test reads it

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            Pooled.sizes.append(images.shape[-1])
        else:
            Pooled.sizes.append(Pooled.sizes[-1] if Pooled.sizes else 0)
        return self.head(self.conv(images).relu().mean((2, 3)))


# Losses that are not finite


def test_steps_with_a_loss_that_is_not_finite_are_skipped_counted_and_reported(tmp_path: Path) -> None:
    trained = run(tmp_path, "model_args.poison=sometimes", "epochs=4", "log_every=1", "ema_decay=0.9")
    skipped = [line["step"] for line in records(trained) if line["loss"] is None]
    assert skipped == list(range(5, 93, 5))
    assert trained.result["num_skipped_steps"] == len(skipped)
    assert any("skipped" in note for note in trained.result["notes"])
    assert all(torch.isfinite(tensor).all() for tensor in trained.model.state_dict().values())
    assert trained.result["metrics"]["accuracy"] > 0.8


def test_training_gives_up_when_the_loss_stays_not_finite_with_the_last_good_state_saved(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="7 steps in a row"):
        run(tmp_path, "model_args.poison=always", "max_nonfinite_steps=7")
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved.name == "step-7"
    tensors = load_file(saved / "state.safetensors")
    assert all(torch.isfinite(tensor).all() for name, tensor in tensors.items() if name.startswith("model/"))
    assert not (tmp_path / "run" / "result.json").exists()


class InfiniteGradient(Network):
    """Finite outputs whose gradient is not: the square root's slope at 0."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + self.head.bias.sub(self.head.bias.detach()).sqrt()


def test_weights_spoilt_by_an_update_are_never_saved(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="spoilt the weights"):
        run(tmp_path, "max_nonfinite_steps=3", "checkpoint_every_steps=1", "optimizer.name=sgd", "optimizer.lr=1e39")
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


@pytest.mark.parametrize("clipping", [(), ("clip_grad_norm=1",)])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path: Path, clipping: tuple[str, ...]) -> None:
    recipe = Recipe(name="spoilt", model=InfiniteGradient, data=DataConfig(source="digits"), epochs=1)
    with pytest.raises(NonFiniteLossError, match="3 steps in a row"):
        run(tmp_path, "max_nonfinite_steps=3", *clipping, recipe=recipe)
    assert list((tmp_path / "run").glob("checkpoints/step-3"))


# Memory

OUT_OF_MEMORY = '''
import resource, sys, torch
from torch import nn
from upshift import DataConfig, Recipe, train

class Hungry(nn.Module):
    """Takes 4 MiB a sample and keeps it for the backward pass."""
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.head = nn.Linear(64, num_classes)
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = images.flatten(1)
        if self.training:
            features = features + 0 * features.repeat(1, 16384).exp().sum(1, keepdim=True)
        return self.head(features)

if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe = Recipe(name="hungry", model=Hungry, data=DataConfig(source="digits"), batch_size=64, epochs=1)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20, -1))
    run = train(recipe, out=sys.argv[1], overrides=["log_every=1"])
    assert run.result["micro_batch_size"] < 64, run.result["micro_batch_size"]
    assert run.result["steps"] == 23
    assert any("out of memory" in note and "effective batch stays 64" in note for note in run.result["notes"])
'''


@pytest.mark.slow
def test_out_of_memory_halves_the_micro_batch_and_training_goes_on(tmp_path: Path) -> None:
    script = tmp_path / "hungry.py"
    script.write_text(textwrap.dedent(OUT_OF_MEMORY))
    done = subprocess.run([sys.executable, script, tmp_path / "run"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_script_without_a_guard_is_refused_instead_of_training_twice(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(OUT_OF_MEMORY.replace('if __name__ == "__main__":', "if True:"))
    done = subprocess.run([sys.executable, script, tmp_path / "run"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "ConfigError" in done.stderr
    assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


# Data handed over in Python


class Doubled(torch.utils.data.Dataset[Any]):
    """Needs Python work for each item; random in training."""

    def __init__(self, count: int, noise: float) -> None:
        generator = torch.Generator().manual_seed(count)
        self.labels = torch.randint(0, 3, (count,), generator=generator)
        self.noise = noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        label = int(self.labels[row])
        value = torch.full((1, 8, 8), float(label)) + self.noise * torch.randn(1, 8, 8)
        return {"input": value, "label": label}


@pytest.fixture
def handed_over() -> Iterator[dict[str, Any]]:
    yield {"train": Doubled(320, 0.3), "test": Doubled(100, 0.0), "label_names": ["low", "middle", "high"]}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_torch_datasets_are_trained_on(tmp_path: Path, handed_over: dict[str, Any], num_workers: int) -> None:
    plan = Plan(data_path="worker", num_workers=num_workers)
    trained = run(tmp_path, "epochs=8", data=handed_over, plan=plan)
    assert trained.result["metrics"]["accuracy"] > 0.95
    assert trained.result["data"]["num_train"] == 320 and trained.result["data"]["num_classes"] == 3


@pytest.mark.parametrize("data", [{}, {"train": Doubled(8, 0)}, {"train": 1, "test": 2, "dev": 3}])
def test_data_handed_over_must_name_train_and_test(tmp_path: Path, data: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match='must map "train" and "test"'):
        run(tmp_path, data=data)
    assert not (tmp_path / "run").exists()


# Refusals leave nothing behind


@pytest.mark.parametrize(
    ("recipe", "overrides", "plan", "words"),
    [
        (Recipe(name="x", model=Talkative, data=DataConfig(source="digits")), (), Plan(), "keys 'logits', 'features'"),
        (RECIPE, ("model_args.num_classes=4",), Plan(), "4 outputs and a label 9"),
        (RECIPE, ("data.image_size=16,16",), Plan(), "inputs of shape"),
        (RECIPE, ("batch_size=5000",), Plan(), "5000"),
        (RECIPE, ("target.acuracy=0.9",), Plan(), "did you mean 'accuracy'"),
        (RECIPE, ("target.accuracy=90",), Plan(), "at most 1"),
        (RECIPE, (), Plan(data_path="worker"), "for torch datasets"),
        (RECIPE, ('stages=[{"epochs":2,"freeze":["*"]}]',), Plan(), "leave some parameters"),
        (RECIPE, ('stages=[{"epochs":2,"freeze":["nothing.*"]}]',), Plan(), "must match parameters"),
        (RECIPE, ("optimizer.name=sdg",), Plan(), "did you mean 'sgd'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tmp_path: Path, recipe: Recipe, overrides: tuple[str, ...], plan: Plan, words: str
) -> None:
    with pytest.raises(BadInputError, match=words) as caught:
        run(tmp_path, *overrides, recipe=recipe, plan=plan)
    assert isinstance(caught.value, ConfigError | PlanError | BadInputError) and caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_an_output_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInputError, match="new or empty"):
        run(tmp_path)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_schedules_reach_the_optimizer(tmp_path: Path) -> None:
    recipe = Recipe(**{**vars(RECIPE), "schedule": ScheduleConfig(name="linear", warmup_fraction=0.5)})
    rates = [line["learning_rate"] for line in records(run(tmp_path, "log_every=1", recipe=recipe))]
    assert max(rates) == pytest.approx(0.01) and rates.index(max(rates)) == 22
    assert rates[-1] == 0.0


def test_a_run_on_datasets_handed_over_is_evaluated_and_optimized_only_with_them(
    tmp_path: Path, handed_over: dict[str, Any]
) -> None:
    trained = run(tmp_path, "epochs=6", data=handed_over)
    assert trained.result["command"] == []
    for refused in (lambda: evaluate(trained.path), lambda: optimize(trained.path)):
        with pytest.raises(BadInputError, match=r"torch datasets.*data="):
            refused()
    record = evaluate(trained.path, data=handed_over)
    assert record["metrics"]["accuracy"] == trained.result["metrics"]["accuracy"]
    found = optimize(trained.path, data=handed_over, candidates=["onnxruntime"])
    assert {candidate["name"] for candidate in found["candidates"]} == {"eager", "onnxruntime"}
