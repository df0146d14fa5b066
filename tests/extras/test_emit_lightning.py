"""What is emitted for Lightning trains with the real library as `upshift train` does, without upshift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import upshift
from emitted import assert_clean, assert_same_weights, images, residual_recipe, run_emitted
from upshift.core.records import RunFolder, read_jsonl

pytest.importorskip("lightning")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

# Imports the file, as a user does, and notes the loss of each batch and what is monitored.
DRIVER = """
import json, sys, warnings
warnings.simplefilter("ignore")
sys.modules["upshift"] = None
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
import lightning, train_it

class Note(lightning.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, number):
        print(json.dumps({"loss": outputs["loss"].item(), "rate": trainer.optimizers[0].param_groups[0]["lr"]}))

    def on_validation_end(self, trainer, module):
        print(json.dumps({name: value.item() for name, value in trainer.callback_metrics.items() if "val" in name}))

quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
callbacks = [Note(), *(train_it.make_callbacks() if hasattr(train_it, "make_callbacks") else [])]
trainer = lightning.Trainer(**train_it.TRAINER, **quiet, callbacks=callbacks)
trainer.fit(train_it.RecipeModule(), datamodule=train_it.RecipeData())
"""
AUGMENTED = ['augment={"crop_padding": 2, "horizontal_flip": true, "translate": 0.1}', "schedule.name=one_cycle"]


def overrides_of(tmp_path: Path, *, num_train: int = 160, num_validation: int = 0) -> list[str]:
    data = images(tmp_path / "images.npz", num_train=num_train, num_validation=num_validation)
    return [f"data.source={data}", "model_args.widths=[4,8]", "epochs=3", "batch_size=40", "log_every=1"]


@pytest.mark.parametrize(
    ("plan", "changes"),
    [
        (
            upshift.Plan(memory_format="channels_last", micro_batch_size=20, num_threads=1),
            [*AUGMENTED, "optimizer.name=adamw", "optimizer.weight_decay=0.1", "clip_grad_norm=0.5", "max_steps=10"],
        ),
        (
            upshift.Plan(precision="bf16", device="cpu", data_path="mmap"),
            ["label_smoothing=0.1", "optimizer.name=muon", "optimizer.momentum=0.9"],
        ),
    ],
    ids=["accumulated", "bf16"],
)
def test_file_as_a_script_reaches_the_weights_of_the_trainer(
    plan: upshift.Plan, changes: list[str], tmp_path: Path
) -> None:
    overrides = [*overrides_of(tmp_path), *changes]
    upshift.emit(plan, "cifar10-simplecnn", "lightning", out=tmp_path / "train_it.py", overrides=overrides, seed=3)
    assert_clean(tmp_path / "train_it.py")
    run_emitted(tmp_path / "train_it.py")
    run = upshift.train("cifar10-simplecnn", plan=plan, overrides=overrides, seed=3, out=tmp_path / "run")
    assert_same_weights(tmp_path / "train_it.safetensors", run.path)


def compared(
    tmp_path: Path, recipe: str | Path, plan: upshift.Plan, overrides: list[str], *, rtol: float = 1e-6
) -> int:
    """Losses, learning rates and what is monitored, step by step; gives the number of steps."""
    upshift.emit(plan, recipe, "lightning", out=tmp_path / "train_it.py", overrides=overrides, seed=3)
    assert_clean(tmp_path / "train_it.py")
    printed = run_emitted(tmp_path / "train_it.py", code=DRIVER)
    run = upshift.train(recipe, plan=plan, overrides=overrides, seed=3, out=tmp_path / "run")
    recorded = list(read_jsonl(RunFolder(run.path).metrics))
    steps = [line for line in printed if "rate" in line]
    np.testing.assert_allclose([line["loss"] for line in steps], [line["loss"] for line in recorded], rtol=rtol)
    monitored = [line["val_loss"] for line in printed if "val_loss" in line]
    np.testing.assert_allclose(monitored, [line["eval_loss"] for line in recorded if "eval_loss" in line], rtol=1e-4)
    # Lightning tells the rate after the step, the trainer that of the step.
    rates = [line["rate"] for line in steps]
    np.testing.assert_allclose(rates[:-1], [line["learning_rate"] for line in recorded][1:], rtol=1e-6)
    return len(recorded)


def test_settings_that_are_imported_make_the_steps_of_the_trainer_and_stop_where_it_stops(tmp_path: Path) -> None:
    overrides = [*overrides_of(tmp_path, num_train=150, num_validation=50), *AUGMENTED, "target.accuracy=0.5"]
    overrides += ["epochs=20", "patience=15", "optimizer.lr=0.05", "optimizer.momentum=0.9"]
    assert compared(tmp_path, "cifar10-simplecnn", upshift.Plan(), overrides) < 20 * 4


@pytest.mark.parametrize(
    "changes",
    [
        ["target.accuracy=1.0", "optimizer.lr=0.05", "optimizer.momentum=0.9"],
        ["patience=3", "evaluate_every=2", "optimizer.lr=0.5"],
    ],
    ids=["target", "patience"],
)
def test_training_ends_where_the_trainer_ends_it(changes: list[str], tmp_path: Path) -> None:
    overrides = [*overrides_of(tmp_path, num_train=150, num_validation=50), "epochs=24", *changes]
    assert compared(tmp_path, "cifar10-simplecnn", upshift.Plan(), overrides) < 24 * 4


def test_a_schedule_free_optimizer_is_evaluated_and_saved_by_its_averages(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_optimizer")
    overrides = [*overrides_of(tmp_path, num_train=150), "optimizer.name=schedulefreeadamw", "optimizer.lr=0.01"]
    assert compared(tmp_path, "cifar10-simplecnn", upshift.Plan(), overrides, rtol=1e-4) == 12
    run_emitted(tmp_path / "train_it.py")
    assert_same_weights(tmp_path / "train_it.safetensors", tmp_path / "run", atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("scope", ["whole", "regional"])
def test_model_is_compiled_as_the_plan_says(scope: str, tmp_path: Path) -> None:
    plan = upshift.Plan(compile=scope, compile_mode="default", activation_checkpointing=True)  # type: ignore[arg-type]
    assert compared(tmp_path, residual_recipe(tmp_path), plan, [], rtol=1e-4) == 4
