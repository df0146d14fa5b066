"""That a run is what it says: resumes, splits, folders and models that do not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from upshift import BadInputError, DataConfig, OptimizerConfig, Recipe, evaluate, predict, train
from upshift.core.records import RunFolder
from upshift.errors import ArtifactError
from upshift.training.config import TrainingConfig
from upshift.training.ema import ExponentialMovingAverage
from upshift.training.loss import CrossEntropy
from upshift.training.optimizers import build_optimizer
from upshift.training.step import TrainingStep
from upshift.training.trainer import Trainer
from upshift.tuning.plan import Plan
from upshift.workflows.folders import hold_run_folder


class Linear(nn.Sequential):
    """One layer."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))


RECIPE = Recipe(
    name="linear",
    model=Linear,
    data=DataConfig(source="digits"),
    epochs=4,
    optimizer=OptimizerConfig(name="adamw", lr=0.01),
)


def run(out: Path, *overrides: str, **arguments: Any) -> dict[str, Any]:
    return train(RECIPE, overrides=overrides, out=out, plan="baseline", **arguments).result


# Goals


def test_a_resume_with_a_higher_target_goes_on_and_does_not_claim_it(tmp_path: Path) -> None:
    first = run(tmp_path / "run", "target.accuracy=0.5")
    assert first["stopped"] == "target" and first["epochs"] < 4
    second = run(tmp_path / "run", "target.accuracy=0.999", resume=True)
    assert second["stopped"] == "completed" and second["epochs"] == 4
    assert second["time_to_target_seconds"] is None
    third = run(tmp_path / "run", "target.accuracy=0.5", resume=True)
    assert third["stopped"] == "target" and third["steps"] == second["steps"]


def test_patience_needs_a_validation_split(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="patience needs a validation split"):
        run(tmp_path / "run", "patience=1")
    assert not (tmp_path / "run").exists()


def test_a_run_that_the_test_split_stopped_says_so(tmp_path: Path) -> None:
    notes = run(tmp_path / "run", "target.accuracy=0.5")["notes"]
    assert any("the test split said when to stop" in note and "optimistic" in note for note in notes)


def test_patience_counts_epochs_not_evaluations(tmp_path: Path) -> None:
    result = run(
        tmp_path / "run", "epochs=30", "patience=4", "evaluate_every=2", "data.validation_fraction=0.2",
        "optimizer.lr=0.3",
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    evaluated = [(line["epoch"] + 1, line["eval_accuracy"]) for line in lines if "eval_accuracy" in line]
    best_epoch = max(evaluated, key=lambda pair: (pair[1], -pair[0]))[0]
    assert result["stopped"] == "patience" and result["epochs"] == best_epoch + 4


# Weights


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(inputs))


def test_the_average_of_tied_weights_is_what_is_kept(tmp_path: Path) -> None:
    model = Tied()
    trainer = Trainer(
        model, CrossEntropy(), _Batches(), _Batches(), eval_split="test",
        config=TrainingConfig(epochs=2, ema_decay=0.9, optimizer=OptimizerConfig(lr=0.5)),
        execution=Plan(), device=torch.device("cpu"),
    )  # fmt: skip
    trainer.train(RunFolder(tmp_path))
    averages = trainer._ema.averages
    assert torch.equal(model.first.weight, averages["first.weight"])
    assert torch.equal(model.second.weight, averages["first.weight"])


class _Batches:
    def __len__(self) -> int:
        return 3

    def epoch(self, epoch: int, *, start_batch: int = 0, image_size: Any = None) -> Any:
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(start_batch, 3):
            yield torch.randn(8, 4, generator=generator), torch.randint(0, 4, (8,), generator=generator)


def test_the_average_is_of_every_parameter_once() -> None:
    assert list(ExponentialMovingAverage(Tied(), 0.5).averages) == ["first.weight"]


class SlopeWithoutEnd(nn.Module):
    """A finite loss with a gradient that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs) + self.layer.bias.sub(self.layer.bias.detach()).sqrt()


@pytest.mark.parametrize("skips_on_device", [False, True])
def test_a_clipped_gradient_that_is_not_finite_is_skipped_by_host_and_by_device(skips_on_device: bool) -> None:
    # The fused kernels of the CPU take the flag too, so the path of accelerators can be gone through here.
    model = SlopeWithoutEnd()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = TrainingConfig(clip_grad_norm=1.0, optimizer=OptimizerConfig(name="adamw", lr=0.1))
    optimizer = build_optimizer(model, config.optimizer, fused=True)
    step = TrainingStep(model, CrossEntropy(), optimizer, config, Plan(), torch.device("cpu"))
    step._skips_on_device = skips_on_device
    step(torch.randn(8, 4), torch.randint(0, 3, (8,)))
    step.synchronize()
    assert step.num_skipped == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Data


def test_a_run_is_not_evaluated_on_data_that_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)

    def write(count: int) -> None:
        np.savez("table.npz", x_train=generator.normal(size=(count, 64)), y_train=np.arange(count) % 10)

    write(200)
    train(RECIPE, overrides=["data.source=table.npz"], out="run")
    assert evaluate("run")["num_samples"] == 40
    write(250)
    with pytest.raises(BadInputError, match="evaluated on the data that it was made with"):
        evaluate("run")
    assert evaluate("run", source="table.npz")["num_samples"] == 50


def test_a_model_with_more_outputs_than_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="20 outputs and 10 classes"):
        run(tmp_path / "run", "model_args.num_classes=20")
    assert not (tmp_path / "run").exists()


def test_top_k_is_at_most_the_number_of_classes(tmp_path: Path) -> None:
    run(tmp_path / "run", "epochs=1")
    np.savez(tmp_path / "one.npz", inputs=np.zeros((1, 8, 8), dtype=np.uint8))
    notes: list[str] = []
    for top_k, told in ((99, ["the model knows 10 classes: no more are named, though 99 were asked for"]), (10, [])):
        notes.clear()
        answer = predict(tmp_path / "run", [tmp_path / "one.npz"], top_k=top_k, on_note=notes.append)
        assert len(answer[0]["top"]) == 10 and notes == told


@pytest.mark.parametrize("field", ["momentum=0.9", "betas=0.5,0.6", "eps=0.1"])
def test_a_field_that_an_optimizer_does_not_take_is_refused_or_used(field: str) -> None:
    name, _, text = field.partition("=")
    value: Any = tuple(map(float, text.split(","))) if "," in text else float(text)
    config = OptimizerConfig(name="lion", lr=0.01, **{name: value})
    if name == "betas":
        group = build_optimizer(Linear(), config).optimizers[0].param_groups[0]
        assert group["betas"] == (0.5, 0.6)
    else:
        with pytest.raises(BadInputError, match=f"optimizer.{name} must be one that lion takes"):
            build_optimizer(Linear(), config)


# Folders


def test_damaged_checkpoints_do_not_outlive_the_new_ones(tmp_path: Path) -> None:
    run(tmp_path / "run", "checkpoint_every_steps=10", "keep_checkpoints=2", "epochs=2")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-40", "step-46"]
    (checkpoints / "step-46" / "state.json").write_text("{}")
    result = run(tmp_path / "run", "checkpoint_every_steps=10", "keep_checkpoints=1", "epochs=2", resume=True)
    assert any("damaged" in note for note in result["notes"]) and result["resumed_from_step"] == 40
    assert sorted(path.name for path in checkpoints.iterdir()) == ["damaged-step-46", "step-46"]


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew_over_its_records(tmp_path: Path) -> None:
    run(tmp_path / "run", "keep_checkpoints=1", "epochs=1")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    (checkpoint / "state.safetensors").unlink()
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ArtifactError, match="each is damaged"):
        run(tmp_path / "run", "epochs=2", resume=True)
    assert checkpoint.is_dir() and (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_of_a_newer_format_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    run(tmp_path / "run", "checkpoint_every_steps=10", "epochs=1")
    checkpoints = tmp_path / "run" / "checkpoints"
    newest = checkpoints / "step-23" / "state.json"
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {"version": 2}))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ArtifactError, match="upgrade upshift"):
        run(tmp_path / "run", "epochs=2", resume=True)
    assert newest.is_file() and (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("schedule", "is_noted"), [("cosine", True), ("constant", False)])
def test_a_resume_that_stretches_the_schedule_says_so(tmp_path: Path, schedule: str, is_noted: bool) -> None:
    options = (f"schedule.name={schedule}",)
    run(tmp_path / "run", *options, "epochs=1")
    same = run(tmp_path / "run", *options, "epochs=1", resume=True)
    assert not any("schedule" in note for note in same["notes"])
    longer = run(tmp_path / "run", *options, "epochs=2", resume=True)
    assert any("over 46 steps from step 23 on, and was over 23" in note for note in longer["notes"]) == is_noted


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_every_file_of_a_run_can_be_read_by_those_whom_the_umask_lets(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        run(tmp_path / "run", "max_steps=4", "checkpoint_every_steps=2")
    finally:
        os.umask(before)
    modes = {str(path): path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert any(name.endswith("state.safetensors") for name in modes)
    assert set(modes.values()) == {0o666 & ~umask}, modes


def test_a_run_folder_has_one_writer(tmp_path: Path) -> None:
    run(tmp_path / "run", "epochs=1")
    holder = (
        "import sys, time\nfrom pathlib import Path\nfrom upshift.core.records import RunFolder\n"
        "from upshift.workflows.folders import hold_run_folder\n"
        "with hold_run_folder(RunFolder(Path(sys.argv[1]))):\n    print('held', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", holder, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        with pytest.raises(BadInputError, match="one writer at a time"):
            run(tmp_path / "run", "epochs=1", resume=True)
    finally:
        process.kill()
        process.communicate()
    run(tmp_path / "run", "epochs=1", resume=True)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    run(tmp_path / "run", "epochs=1")
    left = tmp_path / "run" / "checkpoints" / ".step-9.1234abcd.tmp"
    left.mkdir()
    (left / "state.safetensors").write_bytes(b"half")
    (tmp_path / "run" / ".result.json.1234abcd.tmp").write_text("{")
    (tmp_path / "run" / ".artifact.1234abcd.old").mkdir()
    (tmp_path / "run" / ".checkpoints.1234abcd.old").mkdir()
    with hold_run_folder(RunFolder(tmp_path / "run")):
        pass
    assert not [path for path in (tmp_path / "run").rglob(".*") if path.name != ".lock"]
    assert (tmp_path / "run" / "artifact").is_dir(), "what was replaced is back, as its successor never came"
    assert list((tmp_path / "run" / "checkpoints").iterdir()), "a successor that came is kept"


SCRIPT = """
import sys
from torch import nn
from upshift import DataConfig, Recipe, train

class Net(nn.Sequential):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))

if __name__ == "__main__":
    recipe = Recipe(name="script", model=Net, data=DataConfig(source="digits"), epochs=int(sys.argv[1]))
    run = train(recipe, out="run", resume="resume" in sys.argv)
    print(run.result["steps"], run.result["resumed_from_step"])
"""


def test_a_recipe_of_the_running_script_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    for arguments, printed in ((["1"], "23 None"), (["2", "resume"], "46 23")):
        done = subprocess.run(
            [sys.executable, "script.py", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == printed
    (tmp_path / "script.py").write_text(SCRIPT.replace("nn.Flatten(), ", "nn.Flatten(), nn.Dropout(0.5), "))
    refused = subprocess.run([sys.executable, "script.py", "3", "resume"], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 1 and "can only be resumed with the recipe" in refused.stderr


def test_a_record_that_names_code_beside_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "run", "epochs=1")
    monkeypatch.chdir(tmp_path)
    evil = Path("evil.py")
    evil.write_text("open('ran', 'w')\n")
    document = json.loads(Path("run/recipe.json").read_text())
    for part in (document["recipe"]["model"], document["model_spec"]):
        part["file"] = "evil.py"
    document["recipe"]["loss"] = {"name": "loss", "file": "evil.py", "file_sha256": None}
    Path("run/recipe.json").write_text(json.dumps(document))
    with pytest.raises(BadInputError, match="code run that you trained with"):
        evaluate("run")
    with pytest.raises(BadInputError, match="absolute path"):
        evaluate("run", trust_code=True)
    assert not Path("ran").exists()


class Attentive(nn.Module):
    """An ordinary Transformer, which torch's tracer of TensorBoard's graph refuses."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(images.squeeze(1)).mean(1))


def test_a_model_that_tensorboard_cannot_trace_is_trained_all_the_same(tmp_path: Path) -> None:
    recipe = Recipe(name="attentive", model=Attentive, data=DataConfig(source="digits"), epochs=1)
    assert train(recipe, out=tmp_path / "run").result["steps"] == 23


class Broken(Linear):
    """Cannot be made."""

    def __init__(self) -> None:
        raise KeyError("width")


def test_an_error_in_a_models_constructor_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="KeyError: 'width'"):
        train(Recipe(name="broken", model=Broken, data=DataConfig(source="digits")), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
