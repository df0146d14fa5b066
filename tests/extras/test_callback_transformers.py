"""The callback for Transformers, in real Trainers: the same losses, plain checkpoints, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

import upshift
from upshift.errors import ConfigError, PlanError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

pytestmark = [
    # Of transformers 5 and accelerate 1: their own use of what torch deprecates, and advice on devices.
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::UserWarning:accelerate"),
    pytest.mark.filterwarnings("ignore::FutureWarning:accelerate"),
]
PLAN = upshift.Plan(activation_checkpointing=True, num_threads=2, data_path="worker", num_workers=1)


class Sentences(Dataset[Any]):
    """40 of 6 tokens; what they are about is whether the first token is even."""

    def __init__(self) -> None:
        self.tokens = torch.randint(0, 30, (40, 6), generator=torch.Generator().manual_seed(4))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.tokens[index]
        return {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 2, "unused": row}

    def __len__(self) -> int:
        return 40


def classifier() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    return transformers.BertForSequenceClassification(config)


class Noting(transformers.TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.while_training: dict[str, Any] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **of_trainer: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **of_trainer: Any) -> None:
        self.while_training = {"threads": torch.get_num_threads(), "fused": optimizer.param_groups[0].get("fused")}


def train(model: Any, folder: Path, *callbacks: Any, resume: Any = None, **settings: Any) -> tuple[Any, Noting]:
    noting = Noting()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=16,
        learning_rate=0.01,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
        **({"num_train_epochs": 2, "save_strategy": "no", "optim": "adamw_torch"} | settings),
    )
    trainer = transformers.Trainer(
        model, arguments, train_dataset=Sentences(), eval_dataset=Sentences(), callbacks=[*callbacks, noting]
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, noting


@pytest.fixture(scope="module")
def plain_losses(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return train(classifier(), tmp_path_factory.mktemp("plain"))[1].losses


def test_training_with_a_plan_has_the_losses_of_one_without(tmp_path: Path, plain_losses: list[float]) -> None:
    model, threads = classifier(), torch.get_num_threads()
    trainer, noting = train(model, tmp_path, upshift.transformers_callback(PLAN))
    torch.testing.assert_close(noting.losses, plain_losses, rtol=1e-3, atol=1e-4)
    assert len(noting.losses) == 6
    assert noting.while_training == {"threads": 2, "fused": True}
    assert trainer.args.dataloader_num_workers == 1
    assert torch.get_num_threads() == threads
    assert all("forward" not in vars(part) for part in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("compile", ["whole", "regional"])
def test_a_compiled_model_has_the_losses_of_a_plain_one(
    compile: Any, tmp_path: Path, plain_losses: list[float]
) -> None:
    torch.compiler.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    model = classifier()
    _, noting = train(model, tmp_path, upshift.transformers_callback(upshift.Plan(compile=compile)))
    torch.testing.assert_close(noting.losses, plain_losses, rtol=1e-3, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    assert not any("_orig_mod" in key for key in model.state_dict())


def test_checkpoints_are_plain_and_are_resumed_from(tmp_path: Path, plain_losses: list[float]) -> None:
    callback = upshift.transformers_callback(PLAN)
    train(classifier(), tmp_path, callback, save_strategy="epoch")
    (first, _) = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    loaded = transformers.BertForSequenceClassification.from_pretrained(first)
    assert list(loaded.state_dict()) == list(classifier().state_dict())
    _, noting = train(classifier(), tmp_path, upshift.transformers_callback(PLAN), resume=str(first))
    torch.testing.assert_close(noting.losses, plain_losses[3:], rtol=1e-3, atol=1e-4)


def test_bf16_is_for_the_training_alone(tmp_path: Path) -> None:
    model = classifier()
    kinds = set()
    model.classifier.register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype))
    train(model, tmp_path, upshift.transformers_callback(upshift.Plan(precision="bf16")))
    assert kinds == {torch.bfloat16}
    kinds.clear()
    model(torch.ones(2, 6, dtype=torch.long))
    assert kinds == {torch.float32}


WORKERS = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 3}


def test_a_plan_without_workers_takes_the_settings_of_workers_with_them(
    tmp_path: Path, plain_losses: list[float]
) -> None:
    callback = upshift.transformers_callback(upshift.Plan(data_path="worker", num_workers=0))
    trainer, noting = train(classifier(), tmp_path, callback, **WORKERS)
    torch.testing.assert_close(noting.losses, plain_losses, rtol=1e-3, atol=1e-4)
    assert trainer.args.dataloader_num_workers == 0


def test_workers_that_no_tuning_has_looked_at_stay_those_of_the_arguments(tmp_path: Path) -> None:
    tried = {"name": "1 thread", "verdict": "adopted", "changes": {"num_threads": 1}}
    callback = upshift.transformers_callback(upshift.Plan(data_path="worker", num_workers=0, trials=(tried,)))
    trainer, _ = train(classifier(), tmp_path, callback, num_train_epochs=1, **WORKERS)
    assert trainer.args.dataloader_num_workers == 2
    assert trainer.args.dataloader_prefetch_factor == 3


def test_after_an_error_the_plan_stays_until_another_is_applied(tmp_path: Path) -> None:
    class Stopping(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **of_trainer: Any) -> None:
            raise RuntimeError("stopped")

    model, threads = classifier(), torch.get_num_threads()
    with pytest.raises(RuntimeError, match="stopped"):
        train(model, tmp_path, upshift.transformers_callback(PLAN), Stopping())
    upshift.Plan().apply(model)
    assert torch.get_num_threads() == threads
    assert all("forward" not in vars(part) for part in model.modules())


def test_a_plan_beside_torch_compile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave torch_compile out"):
        train(classifier(), tmp_path, upshift.transformers_callback(PLAN), torch_compile=True)


def test_plans_that_no_callback_can_carry_out_are_refused_when_it_is_made() -> None:
    with pytest.raises(PlanError, match="GradScaler"):
        upshift.transformers_callback(upshift.Plan(precision="fp16"))


@pytest.mark.usefixtures("simulated_clock")
def test_a_model_of_transformers_is_tuned_on_the_batches_of_its_trainer_by_the_loss_among_its_outputs(
    tmp_path: Path, plain_losses: list[float]
) -> None:
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=16, report_to=[], use_cpu=True, seed=0
    )
    model = classifier()
    loader = transformers.Trainer(model, arguments, train_dataset=Sentences()).get_train_dataloader().base_dataloader
    optimizer = torch.optim.AdamW(model.parameters())
    tuned = upshift.tune(model=model, data=loader, optimizer=optimizer, budget_seconds=0.05)
    (fused,) = [trial for trial in tuned.plan.trials if trial["name"] == "fused optimizer"]
    assert fused["verdict"] in ("adopted", "refused") and fused["gradient_error"] < 1e-5
    _, noting = train(model, tmp_path, upshift.transformers_callback(tuned))
    torch.testing.assert_close(noting.losses, plain_losses, rtol=1e-3, atol=1e-4)
