"""What is emitted for Accelerate trains with the real library as `upshift train` does, without upshift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import upshift
from emitted import assert_clean, assert_same_weights, images, residual_recipe, run_emitted
from upshift.core.records import RunFolder, read_jsonl

pytest.importorskip("accelerate")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

PLANS = {
    "accumulated": (
        upshift.Plan(memory_format="channels_last", micro_batch_size=24, num_threads=1),
        ['augment={"crop_padding": 2, "horizontal_flip": true}', "schedule.name=one_cycle", "clip_grad_norm=0.5"],
    ),
    "bf16": (
        upshift.Plan(precision="bf16", device="cpu", data_path="mmap"),
        ["label_smoothing=0.1", "ema_decay=0.9", 'stages=[{"epochs": 2, "freeze": ["head.*"]}]'],
    ),
}


def compared(
    tmp_path: Path, recipe: str | Path, plan: upshift.Plan, overrides: list[str], *, rtol: float, atol: float
) -> None:
    """Losses step by step, and the weights."""
    upshift.emit(plan, recipe, "accelerate", out=tmp_path / "train_it.py", overrides=overrides, seed=3)
    assert_clean(tmp_path / "train_it.py")
    printed = run_emitted(tmp_path / "train_it.py")
    run = upshift.train(recipe, plan=plan, overrides=overrides, seed=3, out=tmp_path / "run")
    recorded = list(read_jsonl(RunFolder(run.path).metrics))
    losses = [line["loss"] for line in printed if "step" in line]
    np.testing.assert_allclose(losses, [line["loss"] for line in recorded], rtol=rtol)
    assert_same_weights(tmp_path / "train_it.safetensors", run.path, atol=atol)


@pytest.mark.parametrize("name", ["accumulated", "bf16"])
def test_file_makes_the_steps_of_the_trainer(name: str, tmp_path: Path) -> None:
    plan, changes = PLANS[name]
    data = images(tmp_path / "images.npz", num_validation=50)
    overrides = [f"data.source={data}", "model_args.widths=[4,8]", "epochs=2", "batch_size=40", "log_every=1", *changes]
    compared(tmp_path, "cifar10-simplecnn", plan, overrides, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("micro_batch_size", [None, 24])
def test_lines_of_several_steps_weight_each_by_its_samples(micro_batch_size: int | None, tmp_path: Path) -> None:
    data = images(tmp_path / "images.npz", num_train=130)  # the last line of the second epoch is of 40 and 10 samples
    overrides = [f"data.source={data}", "model_args.widths=[4,8]", "epochs=2", "batch_size=40", "log_every=3"]
    plan = upshift.Plan(micro_batch_size=micro_batch_size)
    compared(tmp_path, "cifar10-simplecnn", plan, overrides, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_step_is_one_graph_as_the_plan_says(precision: str, tmp_path: Path) -> None:
    plan = upshift.Plan(compile="step", precision=precision, device="cpu", micro_batch_size=24, keep_freed_memory=True)  # type: ignore[arg-type]
    data = images(tmp_path / "images.npz")
    overrides = [f"data.source={data}", "model_args.widths=[4,8]", "epochs=2", "batch_size=40", "log_every=1"]
    rtol = 1e-4 if precision == "fp32" else 1e-2
    compared(tmp_path, "cifar10-simplecnn", plan, [*overrides, "clip_grad_norm=0.5"], rtol=rtol, atol=rtol)
    assert "torch.func.grad_and_value" in (tmp_path / "train_it.py").read_text()


def test_a_schedule_free_optimizer_is_evaluated_and_saved_by_its_averages(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_optimizer")
    data = images(tmp_path / "images.npz")
    overrides = [f"data.source={data}", "model_args.widths=[4,8]", "epochs=2", "batch_size=40", "log_every=1"]
    overrides += ["optimizer.name=schedulefreeadamw", "optimizer.lr=0.01"]
    compared(tmp_path, "cifar10-simplecnn", upshift.Plan(), overrides, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("scope", ["whole", "regional"])
def test_model_is_compiled_as_the_plan_says(scope: str, tmp_path: Path) -> None:
    plan = upshift.Plan(compile=scope, compile_mode="default", activation_checkpointing=True)  # type: ignore[arg-type]
    compared(tmp_path, residual_recipe(tmp_path), plan, [], rtol=1e-4, atol=1e-5)
