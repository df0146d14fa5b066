"""`plan emit`: nothing of a plan or recipe is dropped in silence, and what cannot be emitted is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import upshift
from answers import Answer
from emitted import assert_clean, images
from upshift.core.typed_fields import leaf_hints
from upshift.errors import BadInputError, ConfigError, PlanError, StorageError, UnknownNameError
from upshift.recipes.registry import find_recipe, recipe_names
from upshift.training.config import TrainingConfig
from upshift.tuning.emit.targets import TARGETS

CHANGES_OF_PLANS: dict[str, dict[str, Any]] = {
    "device": {"device": "cuda"},
    "precision": {"precision": "bf16"},
    "memory_format": {"memory_format": "channels_last"},
    "compile": {"compile": "regional"},
    "compile_mode": {"compile": "whole", "compile_mode": "max-autotune"},
    "activation_checkpointing": {"activation_checkpointing": True},
    "fused_optimizer": {"fused_optimizer": False},
    "data_path": {"data_path": "mmap"},
    "num_threads": {"num_threads": 3},
    "micro_batch_size": {"micro_batch_size": 16},
    "keep_freed_memory": {"keep_freed_memory": True},
}
REFUSED_OR_EVIDENCE = {"num_workers", "version", "subject", "environment", "trials"}

HELD_OUT = "data.validation_fraction=0.2"
CHANGES_OF_RECIPES = {
    "batch_size": ["batch_size=32"],
    "epochs": ["epochs=7"],
    "max_steps": ["max_steps=9"],
    "optimizer.name": ["optimizer.name=adam"],
    "optimizer.lr": ["optimizer.lr=0.5"],
    "optimizer.momentum": ["optimizer.name=sgd", "optimizer.momentum=0.7"],
    "optimizer.nesterov": ["optimizer.name=sgd", "optimizer.momentum=0.9", "optimizer.nesterov=true"],
    "optimizer.weight_decay": ["optimizer.weight_decay=0.2"],
    "optimizer.decay_norm_and_bias": ["optimizer.decay_norm_and_bias=true"],
    "optimizer.betas": ["optimizer.betas=0.8,0.9"],
    "optimizer.eps": ["optimizer.eps=0.001"],
    "optimizer.adamw_lr": ["optimizer.name=muon", "optimizer.momentum=0.9", "optimizer.adamw_lr=0.7"],
    "optimizer.options": ['optimizer.options={"amsgrad": true}'],
    "schedule.name": ["schedule.name=linear"],
    "schedule.warmup_fraction": ["schedule.warmup_fraction=0.05"],
    "schedule.final_fraction": ["schedule.final_fraction=0.5"],
    "label_smoothing": ["label_smoothing=0.3"],
    "clip_grad_norm": ["clip_grad_norm=2"],
    "ema_decay": ["ema_decay=0.9"],
    "target": ["target.accuracy=0.9"],
    "patience": [HELD_OUT, "patience=3"],
    "stages": ['stages=[{"epochs": 20, "freeze": ["head.*"]}]'],
    "evaluate_every": ["evaluate_every=2"],
    "log_every": ["log_every=3"],
}
ABOUT_RECORDS = {"checkpoint_every_steps", "checkpoint_every_minutes", "keep_checkpoints", "max_nonfinite_steps"}
AUGMENTATIONS = {
    "crop_padding": 1,
    "horizontal_flip": True,
    "cutout": 2,
    "rotation_degrees": 5,
    "translate": 0.3,
    "scale": 0.1,
    "brightness": 0.1,
    "contrast": 0.1,
    "saturation": 0.1,
    "normalize": False,
}


def emitted(target: str, plan: upshift.Plan | None = None, overrides: list[str] | None = None) -> str:
    emission = upshift.emit(plan or upshift.Plan(), "digits", target, overrides=overrides or [])
    flat = " ".join(emission.text.split())
    for sentence in emission.inexpressible:
        assert sentence in flat
    return emission.text


@pytest.mark.parametrize("target", TARGETS)
def test_every_field_of_a_plan_shows_in_what_is_emitted(target: str) -> None:
    assert {field.name for field in fields(upshift.Plan)} == CHANGES_OF_PLANS.keys() | REFUSED_OR_EVIDENCE
    baseline = emitted(target)
    for name, changes in CHANGES_OF_PLANS.items():
        assert emitted(target, upshift.Plan(**changes)) != baseline, name
    whole = emitted(target, upshift.Plan(compile="whole"))
    assert whole not in (baseline, emitted(target, upshift.Plan(compile="whole", compile_mode="max-autotune")))


@pytest.mark.parametrize("target", TARGETS)
def test_every_field_of_training_and_augmentation_shows_in_what_is_emitted(target: str) -> None:
    assert {name for name, _ in leaf_hints(TrainingConfig)} == CHANGES_OF_RECIPES.keys() | ABOUT_RECORDS
    assert {field.name for field in fields(upshift.AugmentConfig)} == AUGMENTATIONS.keys()
    baseline = emitted(target)
    for name, changes in CHANGES_OF_RECIPES.items():
        assert emitted(target, overrides=changes) != baseline, name
        if len(changes) > 1:
            assert emitted(target, overrides=changes) != emitted(target, overrides=changes[:-1]), name
    for name, value in AUGMENTATIONS.items():
        assert emitted(target, overrides=[f"augment.{name}={json.dumps(value)}"]) != baseline, name


@pytest.mark.parametrize("target", TARGETS)
def test_seed_shows_in_what_is_emitted(target: str) -> None:
    assert "\nSEED = 5\n" in upshift.emit("baseline", "digits", target, seed=5).text


def names(target: str, plan: upshift.Plan, overrides: list[str]) -> str:
    return " ".join(upshift.emit(plan, "digits", target, overrides=overrides).inexpressible)


@pytest.mark.parametrize("target", ["lightning", "hf"])
def test_what_a_framework_cannot_express_is_named(target: str) -> None:
    # 1,438 training samples: 64 leaves a rest of 30, and 24 does not divide 64.
    told = names(target, upshift.Plan(micro_batch_size=24), [])
    assert "so they have 16" in told and "has 30 of 64 samples" in told
    assert "weights" not in names(target, upshift.Plan(micro_batch_size=2), ["batch_size=2", "epochs=1"])
    assert "ema_decay=0.9" in names(target, upshift.Plan(), ["ema_decay=0.9"])
    assert "nothing is frozen" in names(target, upshift.Plan(), ['stages=[{"epochs": 20, "freeze": ["head.*"]}]'])
    assert "target of two metrics" in names(target, upshift.Plan(), ['target={"accuracy": 0.9, "loss": 0.1}'])
    assert "best validation accuracy" in names(target, upshift.Plan(), [HELD_OUT])


@pytest.mark.parametrize("target", ["lightning", "hf"])
def test_a_step_as_one_graph_is_named_and_nothing_else_is_compiled_in_its_place(target: str) -> None:
    plan = upshift.Plan(compile="step", compile_mode="max-autotune-no-cudagraphs")
    assert "the step as one compiled graph" in names(target, plan, [])
    text = emitted(target, plan)
    assert "torch.compile" not in text and "torch_compile" not in text and "max-autotune" not in text


@pytest.mark.parametrize("target", ["lightning", "hf"])
@pytest.mark.parametrize(("asked", "taken"), [(64, 97), (8, 97), (2, 1)])
def test_a_batch_that_cannot_be_shared_out_is_taken_whole(target: str, asked: int, taken: int) -> None:
    plan, overrides = upshift.Plan(micro_batch_size=asked), ["batch_size=97"]
    assert f"\nMICRO_BATCH_SIZE = {taken}\nACCUMULATION = {97 // taken}" in emitted(target, plan, overrides)
    assert ("97 has no divisor near" in names(target, plan, overrides)) == (taken == 97)


def test_lightning_is_told_to_stop_at_the_target_and_after_the_epochs_of_patience() -> None:
    # 287 validation samples: 273 of them are the first that make 0.95.
    text = emitted("lightning", overrides=[HELD_OUT, "target.accuracy=0.95", "patience=3", "evaluate_every=2"])
    threshold = float(text.partition("stopping_threshold=")[2].partition(",")[0])
    assert 272 / 287 < threshold < 273 / 287 and 272 / 287 < 0.95 <= 273 / 287
    assert 'mode="max", stopping_threshold=' in text and "patience=2" in text
    text = emitted("lightning", overrides=["target.accuracy=1"])
    assert 359 / 360 < float(text.partition("stopping_threshold=")[2].partition(",")[0]) < 1


def test_an_end_that_lightning_does_not_evaluate_is_named() -> None:
    for overrides in (["evaluate_every=3", "epochs=10"], ["max_steps=30"]):
        assert "evaluation after the last step" in names("lightning", upshift.Plan(), overrides)
    for overrides in (["evaluate_every=3", "epochs=9"], ["max_steps=46", "epochs=9"]):
        assert "evaluation after the last step" not in names("lightning", upshift.Plan(), overrides)


@pytest.mark.parametrize("target", ["lightning", "hf", "accelerate"])
def test_fp16_is_named_where_it_may_be_refused(target: str) -> None:
    told = names(target, upshift.Plan(precision="fp16", device="cpu"), [])
    assert "fp16 on a CPU" in told
    text = emitted(target, upshift.Plan(precision="fp16", device="cpu"))
    assert '"16-mixed"' not in text and '"fp16": True' not in text and 'mixed_precision="fp16"' not in text
    assert "fp16 on a CPU" not in names(target, upshift.Plan(precision="fp16", device="cuda"), [])


def test_a_plan_for_a_device_that_is_not_here_can_be_emitted() -> None:
    missing = "cuda" if not torch.cuda.is_available() else "mps"
    precision = "tf32" if missing == "cuda" else "fp32"
    text = emitted("script", upshift.Plan(device=missing, precision=precision))  # type: ignore[arg-type]
    assert f'DEVICE = torch.device("{missing}")' in text
    assert ('set_float32_matmul_precision("high")' in text) == (precision == "tf32")


def test_optimizers_of_the_package_pytorch_optimizer_are_made_by_name() -> None:
    pytest.importorskip("pytorch_optimizer")
    overrides = ["optimizer.name=lion", "optimizer.betas=0.95,0.98", 'optimizer.options={"weight_decouple": true}']
    text = emitted("script", overrides=overrides)
    assert "import pytorch_optimizer\n" in text
    assert 'pytorch_optimizer.load_optimizer("lion")(groups, lr=LEARNING_RATE, betas=(0.95, 0.98), ' in text


@pytest.mark.slow
def test_every_built_in_recipe_can_be_emitted_for_every_target(tmp_path: Path) -> None:
    pictures, sentences = images(tmp_path / "images.npz", side=32), tmp_path / "texts.npz"
    texts, labels = np.array([f"film {number}" for number in range(80)]), np.arange(80) % 2
    np.savez(sentences, x_train=texts, y_train=labels, x_test=texts, y_test=labels)
    for recipe, target in itertools.product(recipe_names(), TARGETS):
        has_pictures = find_recipe(recipe)[0].data.source in ("digits", "mnist", "cifar10")
        data = pictures if has_pictures else sentences
        emission = upshift.emit("baseline", recipe, target, overrides=[f"data.source={data}"])
        assert "from upshift" not in emission.text
        (tmp_path / f"{recipe}_{target}.py".replace("-", "_")).write_text(emission.text, encoding="utf-8")
    assert_clean(tmp_path)


# --- files ---------------------------------------------------------------------------------------------------


def test_arrays_are_written_beside_the_file_and_replaced_with_it(tmp_path: Path) -> None:
    data = images(tmp_path / "images.npz")
    out = tmp_path / "some where" / "train.py"
    out.parent.mkdir()
    for channels in (3, 1):
        images(tmp_path / "images.npz", channels=channels)
        overrides = [f"data.source={data}", "model_args.widths=[4]"]
        result = upshift.emit("baseline", "cifar10-simplecnn", "script", out=out, overrides=overrides)
        folder = out.parent / "train-data"
        assert {*result.files} == {out, *folder.iterdir()}
        assert out.read_text(encoding="utf-8") == result.text
        assert_clean(out)
        assert np.load(folder / "train-inputs.npy").shape == (150, channels, 12, 12)
    assert upshift.emit("baseline", "digits", "script").files == ()


def test_a_folder_with_files_of_others_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "train-data").mkdir()
    (tmp_path / "train-data" / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="must hold nothing else"):
        upshift.emit("baseline", "digits", "script", out=tmp_path / "train.py")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["thesis.txt", "train-data"]


RECIPE_BESIDE = """
from torch import nn
from upshift import DataConfig, Recipe


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))


RECIPE = Recipe(name="mine", model=Net, data=DataConfig(source="digits"))
"""


@pytest.mark.parametrize("is_emitted_too", [False, True])
def test_the_file_that_a_recipe_is_in_is_not_replaced(is_emitted_too: bool, tmp_path: Path) -> None:
    source = tmp_path / "train_it.py"
    text = (upshift.emit("baseline", "digits", "script").text if is_emitted_too else "") + RECIPE_BESIDE
    source.write_text(text)
    with pytest.raises(StorageError, match="an emitted file"):
        upshift.emit("baseline", source, "script", out=source)
    assert source.read_text() == text and list(tmp_path.iterdir()) == [source]


def test_a_file_that_was_not_emitted_is_not_replaced(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.py"
    thesis.write_text('"""Mine."""\n')
    with pytest.raises(StorageError, match="replaces none but one that was emitted before"):
        upshift.emit("baseline", "digits", "script", out=thesis)
    assert thesis.read_text() == '"""Mine."""\n' and list(tmp_path.iterdir()) == [thesis]


def test_settings_of_the_process_are_as_they_were() -> None:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(threads + 1)
        torch.set_float32_matmul_precision("medium")
        upshift.emit(upshift.Plan(num_threads=threads + 2), "digits", "script")
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads + 1, "medium")
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("name", ["train", "train.txt", "my-train.py", "class.py", "1.py", ".py"])
def test_a_name_that_python_cannot_import_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="that Python can import"):
        upshift.emit("baseline", "digits", "script", out=tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["torch", "random", "numpy", "accelerate", "pytest", "sys"])
def test_a_name_that_hides_a_module_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must not have the name of a module") as caught:
        upshift.emit("baseline", "digits", "script", out=tmp_path / f"{name}.py")
    assert caught.value.hint == f"for example --out train_{name}.py"
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_hides_what_the_recipe_imports_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = tmp_path / "my_recipe.py"
    text = RECIPE_BESIDE.replace("nn.Flatten()", "nn.Flatten(WIDTH)")
    source.write_text(f"from a_package_of_mine import WIDTH\n{text}")
    (tmp_path / "a_package_of_mine.py").write_text("WIDTH = 1\n")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="must not have the name of a module"):
        upshift.emit("baseline", source, "script", out=tmp_path / "out" / "a_package_of_mine.py")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_emitted_file_may_take_the_place_of_one_that_python_finds_where_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(2):
        assert upshift.emit("baseline", "digits", "script", out="train_it.py").files[0] == Path("train_it.py")


@pytest.mark.parametrize("out", ["/proc/train.py", "/proc/deep/er/train.py", "/dev/null/train.py"])
def test_a_file_that_cannot_be_written_is_refused_before_data_are_packed(out: str) -> None:
    packed: list[str] = []
    with pytest.raises(StorageError, match=f"^{out} must be a file that can be written; "):
        upshift.emit("baseline", "digits", "script", out=out, on_data_progress=lambda *done: packed.append(done[0]))
    assert not packed


# --- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "recipe", "target", "overrides", "error"),
    [
        ("baseline", "digits", "tensorflow", [], UnknownNameError),
        ("no.json", "digits", "script", [], PlanError),
        ("baseline", "digitz", "script", [], UnknownNameError),
        ("baseline", "digits", "script", ["epoch=3"], UnknownNameError),
        ("baseline", "digits", "script", ["batch_size=100000"], ConfigError),
        ("baseline", "digits", "script", ['stages=[{"epochs": 20, "freeze": ["nothing"]}]'], ConfigError),
        ("baseline", "digits", "script", ['optimizer.options={"no such": 1}'], ConfigError),
        ("baseline", "digits", "script", ["patience=3"], ConfigError),
        ("baseline", "mnist-mlp", "script", [f"data.source=/no/{'x' * 9}"], BadInputError),
        (upshift.Plan(data_path="worker"), "digits", "script", [], PlanError),
        (upshift.Plan(num_workers=2), "digits", "script", [], PlanError),
        (3, "digits", "script", [], ConfigError),
        ("baseline", "digits", 7, [], ConfigError),
        ("baseline", "digits", "script", "epochs=3", ConfigError),
    ],
)
def test_what_cannot_be_emitted_is_refused_before_anything_is_written(
    plan: Any, recipe: str, target: Any, overrides: Any, error: type[BadInputError], tmp_path: Path
) -> None:
    with pytest.raises(error):
        upshift.emit(plan, recipe, target, overrides=overrides, out=tmp_path / "train.py")
    assert list(tmp_path.iterdir()) == []


# --- the command line --------------------------------------------------------------------------------------------


def test_command_tells_its_files_and_what_is_left_out(upshift_cli: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"version": 1, "micro_batch_size": 20}')
    options = ("--recipe", "digits", "--as", "hf", "--out", "train.py", "--set", "epochs=2", "--quiet")
    answer = upshift_cli("plan", "emit", "plan.json", *options)
    assert answer.code == 0
    assert answer.out.startswith("train.py\ntrain-data/")
    assert "- micro-batches of 20 samples: Transformers takes equal ones, so they have 16\n" in answer.out
    assert "\nEPOCHS = 2\n" in (tmp_path / "train.py").read_text()


def test_command_prints_the_file_or_a_json_document(upshift_cli: Callable[..., Answer]) -> None:
    options = ("plan", "emit", "baseline", "--recipe", "digits", "--as", "script", "--seed", "4")
    printed = upshift_cli(*options)
    document = json.loads(upshift_cli(*options, "--json").out)
    assert printed.out == document["text"] and "\nSEED = 4\n" in printed.out
    assert document.keys() == {"text", "inexpressible", "files"} and document["files"] == []


def test_command_answers_bad_input_in_one_line(upshift_cli: Callable[..., Answer]) -> None:
    answer = upshift_cli("plan", "emit", "baseline", "--recipe", "digits", "--as", "ligthning")
    assert answer.code == 2 and answer.out == ""
    assert answer.err == (
        "error: a target must be one that upshift knows; received 'ligthning'; "
        "hint: did you mean 'lightning'? known: accelerate, hf, lightning, script\n"
    )
    answer = upshift_cli("plan", "emit", "baseline", "--as", "script")
    assert answer.code == 2 and "--recipe" in answer.err and "upshift plan emit --help" in answer.err
