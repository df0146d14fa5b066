"""What is emitted for Transformers trains with the real library as `upshift train` does, without upshift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import upshift
from emitted import assert_clean, assert_same_weights, images, residual_recipe, run_emitted
from upshift.core.records import RunFolder, read_jsonl

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

# Imports the file, as a user does, and notes the loss of each batch and what is evaluated.
DRIVER = """
import json, sys, warnings
warnings.simplefilter("ignore")
sys.modules["upshift"] = None
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
import transformers, train_it

class Noting(train_it.RecipeTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **named):
        loss = super().compute_loss(model, inputs, return_outputs, **named)
        if not return_outputs:
            print(json.dumps({"loss": loss.item(), "rate": self.optimizer.param_groups[0]["lr"]}))
        return loss

trainer = Noting(args=transformers.TrainingArguments(**train_it.ARGUMENTS, disable_tqdm=True))
trainer.train()
for record in trainer.state.log_history:
    if "eval_loss" in record:
        print(json.dumps({"cross_entropy": record["eval_cross_entropy"], "accuracy": record["eval_accuracy"]}))
"""
PLANS = {
    "accumulated": (
        upshift.Plan(memory_format="channels_last", micro_batch_size=20, num_threads=1, device="cpu"),
        ['augment={"crop_padding": 2, "horizontal_flip": true}', "schedule.name=one_cycle", "clip_grad_norm=0.5"],
    ),
    "bf16": (
        upshift.Plan(precision="bf16", device="cpu", data_path="mmap"),
        ["label_smoothing=0.1", "max_steps=10", "optimizer.name=muon", "optimizer.momentum=0.9"],
    ),
}


def overrides_of(tmp_path: Path, *, num_train: int) -> list[str]:
    data = images(tmp_path / "images.npz", num_train=num_train)
    return [f"data.source={data}", "model_args.widths=[4,8]", "epochs=3", "batch_size=40", "log_every=1"]


@pytest.mark.parametrize("name", ["accumulated", "bf16"])
def test_file_as_a_script_reaches_the_weights_of_the_trainer(name: str, tmp_path: Path) -> None:
    plan, changes = PLANS[name]
    overrides = [*overrides_of(tmp_path, num_train=160), *changes]
    upshift.emit(plan, "cifar10-simplecnn", "hf", out=tmp_path / "train_it.py", overrides=overrides, seed=3)
    assert_clean(tmp_path / "train_it.py")
    printed = run_emitted(tmp_path / "train_it.py")
    run = upshift.train("cifar10-simplecnn", plan=plan, overrides=overrides, seed=3, out=tmp_path / "run")
    assert_same_weights(tmp_path / "train_it.safetensors", run.path)
    if plan.precision == "fp32":
        assert printed[-1]["test_accuracy"] == pytest.approx(run.result["metrics"]["accuracy"])
        assert printed[-1]["test_cross_entropy"] == pytest.approx(run.result["metrics"]["loss"], rel=1e-4)


def compared(
    tmp_path: Path, recipe: str | Path, plan: upshift.Plan, overrides: list[str], *, rtol: float, seed: int = 3
) -> None:
    """Losses, learning rates and evaluations, step by step."""
    upshift.emit(plan, recipe, "hf", out=tmp_path / "train_it.py", overrides=overrides, seed=seed)
    assert_clean(tmp_path / "train_it.py")
    printed = run_emitted(tmp_path / "train_it.py", code=DRIVER)
    run = upshift.train(recipe, plan=plan, overrides=overrides, seed=seed, out=tmp_path / "run")
    recorded = list(read_jsonl(RunFolder(run.path).metrics))
    steps = [line for line in printed if "rate" in line]
    np.testing.assert_allclose([line["loss"] for line in steps], [line["loss"] for line in recorded], rtol=rtol)
    np.testing.assert_allclose([line["rate"] for line in steps], [line["learning_rate"] for line in recorded])
    entropies = [line["cross_entropy"] for line in printed if "cross_entropy" in line]
    np.testing.assert_allclose(entropies, [line["eval_loss"] for line in recorded if "eval_loss" in line], rtol=1e-4)


def test_settings_that_are_imported_make_the_steps_of_the_trainer(tmp_path: Path) -> None:
    overrides = [*overrides_of(tmp_path, num_train=150), "schedule.name=cosine", "label_smoothing=0.1"]
    overrides += ["optimizer.name=adamw", "optimizer.weight_decay=0.1"]
    compared(tmp_path, "cifar10-simplecnn", upshift.Plan(), overrides, rtol=1e-6)


def test_a_schedule_free_optimizer_is_evaluated_and_saved_by_its_averages(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_optimizer")
    overrides = [*overrides_of(tmp_path, num_train=150), "optimizer.name=schedulefreeadamw", "optimizer.lr=0.01"]
    compared(tmp_path, "cifar10-simplecnn", upshift.Plan(keep_freed_memory=True), overrides, rtol=1e-4, seed=2**40)
    run_emitted(tmp_path / "train_it.py")
    assert_same_weights(tmp_path / "train_it.safetensors", tmp_path / "run", atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("scope", ["whole", "regional"])
def test_model_is_compiled_as_the_plan_says(scope: str, tmp_path: Path) -> None:
    plan = upshift.Plan(compile=scope, compile_mode="default", activation_checkpointing=True)  # type: ignore[arg-type]
    compared(tmp_path, residual_recipe(tmp_path), plan, [], rtol=1e-4)
