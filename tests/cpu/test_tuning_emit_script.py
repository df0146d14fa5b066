"""The emitted script makes the steps of `upshift train`: the same losses, without upshift."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import upshift
from emitted import assert_clean, assert_same_weights, images, residual_recipe, run_emitted
from upshift.core.records import RunFolder, read_jsonl
from upshift.workflows.emit import EmitResult

pytestmark = pytest.mark.usefixtures("one_thread")

CNN = "model_args.widths=[4,8]"


@dataclass(frozen=True)
class Compared:
    """What a script and `upshift train` came to.

    Attributes:
        printed: The script's JSON lines.
        recorded: Lines of metrics.jsonl.
        metrics: Of the final evaluation by upshift.
        emitted: The script.
    """

    printed: list[dict[str, Any]]
    recorded: list[dict[str, Any]]
    metrics: dict[str, float]
    emitted: EmitResult


def compared(
    tmp_path: Path,
    recipe: Any,
    plan: upshift.Plan,
    overrides: list[str],
    *,
    trainer: upshift.Plan | None = None,
    log_every: int = 1,
    atol: float = 1e-6,
) -> Compared:
    """Emit a script, run it, and make the same training by `upshift train`, by the same plan or another.

    The weights are compared here.
    """
    overrides = [*overrides, f"log_every={log_every}"]
    emitted = upshift.emit(plan, recipe, "script", out=tmp_path / "train_it.py", overrides=overrides, seed=3)
    assert_clean(tmp_path / "train_it.py")
    printed = run_emitted(tmp_path / "train_it.py")
    run = upshift.train(recipe, plan=trainer or plan, overrides=overrides, seed=3, out=tmp_path / "run")
    assert_same_weights(tmp_path / "train_it.safetensors", run.path, atol=atol)
    return Compared(printed, list(read_jsonl(RunFolder(run.path).metrics)), run.result["metrics"], emitted)


def assert_same_losses(both: Compared, *, rtol: float = 1e-6) -> None:
    printed, recorded = both.printed, both.recorded
    steps = [line for line in printed if "step" in line]
    assert [line["step"] for line in steps] == [line["step"] for line in recorded]
    assert [line["epoch"] for line in steps] == [line["epoch"] for line in recorded]
    np.testing.assert_allclose([line["loss"] for line in steps], [line["loss"] for line in recorded], rtol=rtol)
    losses = [line["eval_loss"] for line in recorded if "eval_loss" in line]
    monitored = [line for line in printed if "epoch" in line and "split" in line]
    evaluated = [line for line in recorded if "eval_loss" in line]
    assert [line["split"] for line in monitored] == [line["eval_split"] for line in evaluated]
    np.testing.assert_allclose([line["loss"] for line in monitored], losses, rtol=rtol)
    accuracies = [line["eval_accuracy"] for line in recorded if "eval_accuracy" in line]
    assert [line["accuracy"] for line in monitored] == pytest.approx(accuracies)
    assert printed[-1]["split"] == "test"
    assert printed[-1]["accuracy"] == pytest.approx(both.metrics["accuracy"])
    assert printed[-1]["loss"] == pytest.approx(both.metrics["loss"], rel=1e-4)


MUON = '{"name": "muon", "momentum": 0.9, "weight_decay": 0.1, "nesterov": true, "adamw_lr": 0.003}'
VARIED = (
    '{"crop_padding": 2, "horizontal_flip": true, "cutout": 3, "rotation_degrees": 15, "translate": 0.1, "scale": 0.2, '
    '"brightness": 0.2, "contrast": 0.3, "saturation": 0.4}'
)
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "everything varied": ({}, [f"augment={VARIED}"]),
    "micro-batches": (
        {"micro_batch_size": 24},
        [
            'optimizer={"name": "adamw", "weight_decay": 0.1}',
            'schedule={"name": "linear", "warmup_fraction": 0.2, "final_fraction": 0.1}',
        ],
    ),
    "muon, cut short": ({}, [f"optimizer={MUON}", "max_steps=5", "schedule.name=cosine", "label_smoothing=0.1"]),
}
SLOW_CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "plain": ({}, []),
    "everything varied, channels last": ({"memory_format": "channels_last"}, [f"augment={VARIED}"]),
    "cropped and flipped, not normalised": (
        {"memory_format": "channels_last"},
        ['augment={"crop_padding": 2, "horizontal_flip": true, "cutout": 3, "normalize": false}'],
    ),
    "bf16 from the file": ({"precision": "bf16", "data_path": "mmap", "num_threads": 1}, ["clip_grad_norm=0.5"]),
    "fp16, clipped": ({"precision": "fp16", "device": "cpu"}, ["clip_grad_norm=0.5", "schedule.warmup_fraction=0.1"]),
}


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_CASES)])
def test_script_reaches_the_losses_and_weights_of_the_trainer(case: str, tmp_path: Path) -> None:
    fields, overrides = (CASES | SLOW_CASES)[case]
    data = images(tmp_path / "images.npz")
    overrides = [f"data.source={data}", CNN, "epochs=2", "batch_size=40", *overrides]
    assert_same_losses(compared(tmp_path, "cifar10-simplecnn", upshift.Plan(**fields), overrides))


@pytest.mark.parametrize("fields", [{}, {"micro_batch_size": 24}])
def test_lines_of_several_steps_weight_each_by_its_samples(fields: dict[str, Any], tmp_path: Path) -> None:
    data = images(tmp_path / "images.npz", num_train=130)
    # Steps 8 and 4 end an epoch, with 10 samples: the line of step 8 is of 40 and 10, that of step 4 of 10 alone.
    overrides = [f"data.source={data}", CNN, "epochs=2", "batch_size=40"]
    both = compared(tmp_path, "cifar10-simplecnn", upshift.Plan(**fields), overrides, log_every=3)
    assert_same_losses(both)
    assert [line["step"] for line in both.recorded] == [3, 4, 6, 8]


def test_script_keeps_the_best_average_of_the_weights_and_stops_for_patience(tmp_path: Path) -> None:
    data = images(tmp_path / "images.npz", num_validation=50)
    overrides = [f"data.source={data}", CNN, "epochs=12", "batch_size=40", "ema_decay=0.9", "patience=2"]
    both = compared(tmp_path, "cifar10-simplecnn", upshift.Plan(), [*overrides, "optimizer.lr=0.5"])
    assert_same_losses(both)
    assert {line["split"] for line in both.printed if "split" in line} == {"validation", "test"}
    assert both.recorded[-1]["epoch"] < 11


@pytest.mark.parametrize("has_validation", [True, False])
def test_script_evaluates_and_saves_what_a_schedule_free_optimizer_converges_with(
    has_validation: bool, tmp_path: Path
) -> None:
    pytest.importorskip("pytorch_optimizer")
    data = images(tmp_path / "images.npz", num_validation=50 * has_validation)
    overrides = [f"data.source={data}", CNN, "epochs=3", "batch_size=40", "optimizer.name=schedulefreeadamw"]
    assert_same_losses(compared(tmp_path, "cifar10-simplecnn", upshift.Plan(), [*overrides, "optimizer.lr=0.01"]))


@pytest.mark.parametrize("has_validation", [pytest.param(True, marks=pytest.mark.slow), False])
def test_script_stops_at_the_target_when_it_is_evaluated(has_validation: bool, tmp_path: Path) -> None:
    data = images(tmp_path / "images.npz", num_validation=50 * has_validation)
    overrides = [f"data.source={data}", CNN, "epochs=9", "batch_size=25", "evaluate_every=2", "optimizer.lr=0.05"]
    overrides += ['target={"accuracy": 0.7, "loss": 0.9}']
    both = compared(tmp_path, "cifar10-simplecnn", upshift.Plan(), overrides)
    assert_same_losses(both)
    assert both.recorded[-1]["epoch"] in (1, 3, 5)


def test_script_freezes_and_resizes_by_stages(tmp_path: Path) -> None:
    data = images(tmp_path / "images.npz")
    stages = '[{"epochs": 1, "image_size": [8, 8], "freeze": ["blocks.0.*"]}, {"epochs": 2}]'
    overrides = [f"data.source={data}", CNN, "epochs=3", "batch_size=40", f"stages={stages}", "optimizer.momentum=0.9"]
    plan = upshift.Plan(memory_format="channels_last")
    both = compared(tmp_path, "cifar10-simplecnn", plan, overrides)
    assert_same_losses(both, rtol=1e-5)
    assert any(missing.startswith("the fused optimizer") for missing in both.emitted.inexpressible)


RECIPE_FILE = """
import torch
from torch import nn
from torch.nn import functional as F
from upshift import DataConfig, OptimizerConfig, Recipe

WIDTH = 16


def focal(logits, labels):
    losses = F.cross_entropy(logits, labels, reduction="none")
    return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


class OfFeatures(nn.Sequential):
    def __init__(self, input_shape, num_classes, label=""):
        self.label = label
        super().__init__(nn.Linear(input_shape[0], WIDTH), nn.Dropout(0.3), nn.ReLU(), nn.Linear(WIDTH, num_classes))


class OfBytes(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.embedding, self.head = nn.EmbeddingBag(256, WIDTH), nn.Linear(WIDTH, num_classes)

    def forward(self, texts):
        return self.head(self.embedding(texts))


RECIPE = Recipe(
    name={name!r}, model={model}, model_args={args!r}, loss={loss}, data=DataConfig(source={source!r}, **{fields!r}),
    batch_size=30, epochs=3, optimizer=OptimizerConfig(name="adam", lr=0.01, weight_decay=0.1),
)
"""


def test_script_of_a_recipes_own_model_loss_and_features_runs_without_the_recipes_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    features = generator.normal([100.0, -3.0, 0.0], [0.01, 50.0, 1.0], (200, 3))
    labels = (features[:, 1] > 0).astype(int)
    source = str(tmp_path / "features.npz")
    np.savez(source, x_train=features[:150], y_train=labels[:150], x_test=features[150:], y_test=labels[150:])
    hostile = 'a"""b\\\nimport os  # \u202e\'{0}'
    file = tmp_path / "recipe.py"
    file.write_text(
        RECIPE_FILE.format(
            name="a\"b's {0}", model="OfFeatures", args={"label": hostile}, loss="focal", source=source, fields={}
        )
    )
    both = compared(tmp_path, file, upshift.Plan(data_path="mmap"), [])
    assert_same_losses(both, rtol=1e-5)
    assert "upshift" not in both.emitted.text.replace("upshift 0", "").replace("upshift ", "")


def test_script_of_texts_reads_bytes(tmp_path: Path) -> None:
    texts = np.array([f"{'good' if i % 2 else 'bad'} film, number {i} – ü" for i in range(80)])
    labels = np.arange(80) % 2
    source = str(tmp_path / "texts.npz")
    np.savez(source, x_train=texts[:60], y_train=labels[:60], x_test=texts[60:], y_test=labels[60:])
    file = tmp_path / "recipe.py"
    fields = {"max_text_bytes": 24, "validation_fraction": 0.2}
    file.write_text(RECIPE_FILE.format(name="texts", model="OfBytes", args={}, loss=None, source=source, fields=fields))
    assert_same_losses(compared(tmp_path, file, upshift.Plan(), []))


def test_script_computes_blocks_once_more_and_counts_batches_once(tmp_path: Path) -> None:
    plan = upshift.Plan(activation_checkpointing=True, fused_optimizer=False)
    both = compared(tmp_path, residual_recipe(tmp_path), plan, [])
    assert_same_losses(both)
    assert "recomputed(block.forward, block)" in both.emitted.text


def test_script_keeps_freed_memory(tmp_path: Path) -> None:
    plan = upshift.Plan(keep_freed_memory=True)
    both = compared(tmp_path, residual_recipe(tmp_path), plan, [])
    assert_same_losses(both)
    assert "\n    keep_freed_memory()\n" in both.emitted.text


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"micro_batch_size": 24, "fused_optimizer": False}, {"precision": "bf16"}])
def test_script_has_a_step_as_one_graph(fields: dict[str, Any], tmp_path: Path) -> None:
    plan = upshift.Plan(compile="step", memory_format="channels_last", **fields)
    data = images(tmp_path / "images.npz")
    overrides = [f"data.source={data}", CNN, "epochs=2", "batch_size=40", "clip_grad_norm=0.5"]
    overrides += ['stages=[{"epochs": 1, "freeze": ["blocks.0.*"]}, {"epochs": 1}]']
    tolerance = 1e-4 if plan.precision == "fp32" else 2e-2
    plain = replace(plan, compile="none")
    both = compared(tmp_path, "cifar10-simplecnn", plan, overrides, trainer=plain, atol=tolerance)
    assert_same_losses(both, rtol=tolerance)
    assert "torch.func.grad_and_value(loss_of)" in both.emitted.text


@pytest.mark.slow
# Dynamo of torch 2.13 asks any tensor for its gradient while it traces a block.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("scope", ["whole", "regional"])
def test_script_compiles_as_the_plan_says(scope: str, tmp_path: Path) -> None:
    recomputes = scope == "regional"
    plan = upshift.Plan(compile=scope, activation_checkpointing=recomputes, micro_batch_size=16)  # type: ignore[arg-type]
    assert_same_losses(compared(tmp_path, residual_recipe(tmp_path), plan, [], atol=1e-5), rtol=1e-4)
