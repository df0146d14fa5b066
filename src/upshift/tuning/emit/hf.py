"""The target "hf": `TrainingArguments` of Hugging Face Transformers, and a `Trainer` of the recipe's model."""

from __future__ import annotations

from upshift.tuning.emit.assemble import assemble, device_lines
from upshift.tuning.emit.carry import Carried
from upshift.tuning.emit.constants import seed_everything
from upshift.tuning.emit.data import data_constants, data_sections
from upshift.tuning.emit.frameworks import (
    epochs_section,
    for_a_trainer,
    missing_of_a_trainer,
    plan_constants,
    save_weights,
    trainer_constants,
)
from upshift.tuning.emit.job import Emission, Job
from upshift.tuning.emit.model import (
    block_sections,
    memory_section,
    missing_of_blocks,
    model_sections,
    replaces_blocks,
    settings,
)
from upshift.tuning.emit.optimizer import has_schedule, learning_rate_factor, loss_sections, make_optimizer
from upshift.tuning.emit.source import indented, lines, literal, when


def emit_hf(asked: Job) -> Emission:
    """A file to import from, or to run."""
    job, carried = for_a_trainer(asked), Carried()
    constants = lines(
        data_constants(job),
        'WEIGHTS = Path(__file__).with_suffix(".safetensors")',
        "",
        "# What is learned: the recipe.",
        trainer_constants(job),
        "",
        "# How fast: the plan.",
        device_lines(job),
        plan_constants(job),
        _arguments(job),
    )
    sections = [
        constants,
        *model_sections(job, carried, to_device=True),
        *block_sections(job, carried),
        *memory_section(job, carried),
        seed_everything(),
        *data_sections(job, carried),
        epochs_section(as_mapping=True),
        make_optimizer(job),
        *when(has_schedule(job), learning_rate_factor(job)),
        *loss_sections(job, carried),
        _metrics(),
        _trainer(job),
        _main(job),
        lines('if __name__ == "__main__":', "    main()"),
    ]
    missing = _missing(asked)
    about = [
        "It needs transformers, accelerate, numpy and safetensors, and the arrays beside it; upshift need not be "
        "installed. The plan is in ARGUMENTS and RecipeTrainer, which can be imported:",
        "    trainer = RecipeTrainer(args=transformers.TrainingArguments(**ARGUMENTS))\n    trainer.train()",
        "As it is, the file is a script that does so, and writes the weights beside itself.",
    ]
    return Emission(assemble(job, "Settings of Transformers", about, missing, sections, carried), missing)


def _arguments(job: Job) -> list[str]:
    config, plan = job.config, job.plan
    is_half = plan.precision in ("bf16", "fp16") and not (plan.precision == "fp16" and plan.device == "cpu")
    compiles = plan.compile == "whole"
    return [
        "# Keyword arguments of transformers.TrainingArguments.",
        "ARGUMENTS = {",
        '    "output_dir": str(Path(__file__).with_suffix("")),',
        '    "seed": SEED % 2**32,',  # NumPy takes no more
        '    "num_train_epochs": EPOCHS,',
        *when(config.max_steps is not None, '    "max_steps": TOTAL_STEPS,'),
        '    "per_device_train_batch_size": MICRO_BATCH_SIZE,',
        '    "gradient_accumulation_steps": ACCUMULATION,',
        f'    "per_device_eval_batch_size": {job.evaluation_batch_size},',
        f'    "max_grad_norm": {literal(config.clip_grad_norm or 0.0)},',
        *when(plan.device == "cpu", '    "use_cpu": True,'),
        *when(is_half, f'    "{plan.precision}": True,'),
        *when(plan.precision == "tf32", '    "tf32": True,'),
        *when(compiles, '    "torch_compile": True,'),
        *when(compiles and plan.compile_mode is not None, f'    "torch_compile_mode": {literal(plan.compile_mode)},'),
        '    "label_names": ["labels"],',
        '    "eval_strategy": "epoch",',
        '    "logging_steps": LOG_EVERY,',
        '    "save_strategy": "no",',
        '    "report_to": "none",',
        "}",
    ]


def _metrics() -> str:
    return lines(
        "def compute_metrics(prediction: transformers.EvalPrediction) -> dict[str, float]:",
        '    """Mean cross-entropy and accuracy over a split; `eval_loss` weights batches alike, and is smoothed."""',
        "    logits, labels = torch.from_numpy(prediction.predictions).float(), torch.from_numpy(prediction.label_ids)",
        "    accuracy = (logits.argmax(1) == labels).float().mean().item()",
        '    return {"cross_entropy": F.cross_entropy(logits, labels).item(), "accuracy": accuracy}',
    )


def _trainer(job: Job) -> str:
    factor = "learning_rate_factor(step, TOTAL_STEPS)" if has_schedule(job) else "1.0"
    evaluation = _evaluation(job, job.monitor_split)
    return lines(
        "class RecipeTrainer(transformers.Trainer):",
        '    """A trainer of the recipe\'s model, or another: its batches, loss, optimizer and learning rate."""',
        "",
        "    def __init__(self, model: nn.Module | None = None, **named: Any) -> None:",
        *indented(2, settings(job)),
        "        seed_everything()",
        "        model = make_model() if model is None else model",
        when(replaces_blocks(job), "        prepare_blocks(model)"),
        "        optimizer = make_optimizer(model)",
        f"        schedule = LambdaLR(optimizer, lambda step: {factor})",
        "        mine = {",
        '            "train_dataset": Epochs(Batches("train", MICRO_BATCH_SIZE, training=True)),',
        f'            "eval_dataset": {evaluation},',
        '            "optimizers": (optimizer, schedule),',
        '            "compute_metrics": compute_metrics,',
        "        }",
        "        super().__init__(model, **(mine | named))",
        "        # The loss is a mean over the micro-batch, whatever the model's forward takes.",
        "        self.model_accepts_loss_kwargs = False",
        "",
        "    def get_train_dataloader(self) -> Epochs:",
        "        seed_everything()  # again: dropout must not depend on how many numbers the weights took",
        "        return self.train_dataset",
        "",
        "    def get_eval_dataloader(self, eval_dataset: Epochs | None = None) -> Epochs:",
        "        return self.eval_dataset if eval_dataset is None else eval_dataset",
        "",
        "    def compute_loss(",
        "        self, model: nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **named: Any",
        "    ) -> Any:",
        '        logits = model(inputs["inputs"])',
        '        loss = compute_loss(logits, inputs["labels"])',
        '        return (loss, {"logits": logits}) if return_outputs else loss',
    )


def _evaluation(job: Job, split: str) -> str:
    return f"Epochs(Batches({literal(split)}, {job.evaluation_batch_size}, training=False))"


def _main(job: Job) -> str:
    return lines(
        "def main() -> None:",
        "    trainer = RecipeTrainer(args=transformers.TrainingArguments(**ARGUMENTS))",
        "    trainer.train()",
        f"    test = {_evaluation(job, 'test')}",
        '    print(json.dumps(trainer.evaluate(test, metric_key_prefix="test")))',
        save_weights("trainer.accelerator.unwrap_model(trainer.model)"),
    )


def _missing(job: Job) -> tuple[str, ...]:
    config = job.config
    return (
        *missing_of_a_trainer(job, name="Transformers"),
        *when(config.target, "the target: it trains to its last step"),
        *when(config.patience is not None, "patience: it trains to its last step"),
        *when(config.evaluate_every > 1, "evaluation every so many epochs: it evaluates after each"),
        *when(
            job.plan.compile == "whole",
            "eager steps for a smaller last batch and for evaluation: they are compiled once more",
        ),
        *missing_of_blocks(job),
    )
