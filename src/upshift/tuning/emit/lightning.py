"""The target "lightning": settings of a Lightning `Trainer`, a `LightningDataModule` and a `LightningModule`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

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
    total_steps,
    trainer_constants,
)
from upshift.tuning.emit.job import Emission, Job
from upshift.tuning.emit.model import (
    block_sections,
    compile_arguments,
    memory_section,
    missing_of_blocks,
    model_sections,
    replaces_blocks,
    settings,
)
from upshift.tuning.emit.optimizer import has_schedule, learning_rate_factor, loss_sections, make_optimizer
from upshift.tuning.emit.source import call, indented, lines, literal, when

_PRECISIONS = {"fp32": "32-true", "tf32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def emit_lightning(asked: Job) -> Emission:
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
        _trainer(job),
    )
    sections = [
        constants,
        *model_sections(job, carried, to_device=True),
        *block_sections(job, carried),
        *memory_section(job, carried),
        seed_everything(),
        *data_sections(job, carried),
        epochs_section(),
        make_optimizer(job),
        *when(has_schedule(job), learning_rate_factor(job)),
        *loss_sections(job, carried),
        _data_module(job),
        _module(job),
        *when(_stops(job), _callbacks(job)),
        _main(job),
        lines('if __name__ == "__main__":', "    main()"),
    ]
    missing = (*missing_of_a_trainer(asked, name="Lightning"), *_missing_evaluation(job), *missing_of_blocks(job))
    callbacks = ", callbacks=make_callbacks()" if _stops(job) else ""
    about = [
        "It needs lightning, numpy and safetensors, and the arrays beside it; upshift need not be installed. The plan "
        "is in TRAINER, RecipeData and RecipeModule, which can be imported:",
        f"    trainer = lightning.Trainer(**TRAINER{callbacks})\n"
        "    trainer.fit(RecipeModule(), datamodule=RecipeData())",
        "As it is, the file is a script that does so, and writes the weights beside itself.",
    ]
    return Emission(assemble(job, "Settings of Lightning", about, missing, sections, carried), tuple(missing))


def _trainer(job: Job) -> list[str]:
    config, plan = job.config, job.plan
    precision = "32-true" if plan.precision == "fp16" and plan.device == "cpu" else _PRECISIONS[plan.precision]
    clip = literal(config.clip_grad_norm)
    return [
        "# Keyword arguments of lightning.Trainer.",
        "TRAINER = {",
        f'    "accelerator": "{plan.device}",',
        '    "devices": 1,',
        f'    "precision": "{precision}",',
        '    "max_epochs": EPOCHS,',
        *when(config.max_steps is not None, '    "max_steps": TOTAL_STEPS,'),
        '    "accumulate_grad_batches": ACCUMULATION,',
        *when(config.clip_grad_norm is not None, f'    "gradient_clip_val": {clip},'),
        f'    "check_val_every_n_epoch": {config.evaluate_every},',
        '    "log_every_n_steps": LOG_EVERY,',
        '    "num_sanity_val_steps": 0,',
        '    "reload_dataloaders_every_n_epochs": 1,',
        "}",
    ]


def _data_module(job: Job) -> str:
    evaluation = f"Batches({{}}, {job.evaluation_batch_size}, training=False)"
    return lines(
        "class RecipeData(lightning.LightningDataModule):",
        '    """The data of the recipe, in the order and with the augmentation that SEED decides."""',
        "",
        "    def setup(self, stage: str) -> None:",
        '        self.train = Batches("train", MICRO_BATCH_SIZE, training=True)',
        f"        self.test = {evaluation.format(literal('test'))}",
        "        self.monitored = "
        + (evaluation.format(literal("validation")) if job.monitor_split == "validation" else "self.test"),
        "",
        "    def train_dataloader(self) -> Epochs:",
        "        # TRAINER has it asked for anew each epoch.",
        "        return Epochs(self.train, self.trainer.current_epoch)",
        "",
        "    def val_dataloader(self) -> Epochs:",
        "        return Epochs(self.monitored)",
        "",
        "    def test_dataloader(self) -> Epochs:",
        "        return Epochs(self.test)",
    )


def _module(job: Job) -> str:
    compiles = job.plan.compile == "whole"
    choose = "        forward = self.compiled if len(inputs) == MICRO_BATCH_SIZE else self.model"
    return lines(
        "class RecipeModule(lightning.LightningModule):",
        '    """The model of the recipe, or another, and how it is trained."""',
        "",
        "    def __init__(self, model: nn.Module | None = None) -> None:",
        "        super().__init__()",
        "        seed_everything()",
        "        self.model = make_model() if model is None else model",
        when(replaces_blocks(job), "        prepare_blocks(self.model)"),
        when(
            compiles,
            "        # Of a function, so that it is no module whose weights would be saved once more.",
            f"        self.compiled = torch.compile(lambda inputs: self.model(inputs){compile_arguments(job)})",
        ),
        "",
        when(
            settings(job),
            "    def setup(self, stage: str) -> None:",
            *indented(2, settings(job)),
            "",
        ),
        "    def on_train_start(self) -> None:",
        "        seed_everything()  # again: dropout must not depend on how many numbers the weights took",
        when(job.averages, "        self.use_averages(False)"),
        "",
        when(job.averages, *_averages()),
        "    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:",
        "        inputs, labels = batch",
        when(compiles, choose, "        loss = compute_loss(forward(inputs), labels)"),
        when(not compiles, "        loss = compute_loss(self.model(inputs), labels)"),
        '        self.log("train_loss", loss, batch_size=len(labels))',
        "        return loss",
        "",
        _evaluation_step(job, "validation_step", "val"),
        "",
        _evaluation_step(job, "test_step", "test"),
        "",
        "    def configure_optimizers(self) -> Any:",
        "        optimizer = make_optimizer(self.model)",
        when(not has_schedule(job), "        return optimizer"),
        when(
            has_schedule(job),
            "        schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, TOTAL_STEPS))",
            '        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}',
        ),
    )


def _averages() -> list[str]:
    """Methods for an optimizer that trains other weights than those that it converges with."""
    return [
        "    def use_averages(self, averaged: bool) -> None:",
        '        """Take the weights that the optimizer converges with, or those that it trains."""',
        "        for optimizer in self.trainer.optimizers:",
        "            optimizer.eval() if averaged else optimizer.train()",
        "",
        "    def on_validation_start(self) -> None:",
        "        self.use_averages(True)",
        "",
        "    def on_validation_end(self) -> None:",
        "        self.use_averages(False)",
        "",
        "    def on_train_end(self) -> None:",
        "        self.use_averages(True)  # for what is tested and saved",
        "",
    ]


def _evaluation_step(job: Job, name: str, prefix: str) -> str:
    loss = "F.cross_entropy" if job.loss is None else "compute_loss"
    return lines(
        f"    def {name}(self, batch: Batch, batch_index: int) -> None:",
        "        inputs, labels = batch",
        "        logits = self.model(inputs).float()",
        f"        loss, accuracy = {loss}(logits, labels), (logits.argmax(1) == labels).float().mean()",
        f'        self.log_dict({{"{prefix}_loss": loss, "{prefix}_accuracy": accuracy}}, batch_size=len(labels))',
    )


def _missing_evaluation(job: Job) -> Sequence[str]:
    """An end of the training that Lightning does not evaluate at."""
    config, steps = job.config, total_steps(job)
    epochs, rest = divmod(steps, job.steps_per_epoch)
    return when(
        rest or epochs % config.evaluate_every,
        f"evaluation after the last step: Lightning evaluates after every {config.evaluate_every} whole epochs"
        if config.evaluate_every > 1
        else "evaluation after the last step: Lightning evaluates after whole epochs",
    )


def _stops(job: Job) -> bool:
    """Whether training may end before its last step."""
    return len(job.config.target) == 1 or job.config.patience is not None


def _threshold(job: Job, metric: str, goal: float) -> float:
    """What a metric passes, as Lightning wants it, where it reaches its goal; Lightning compares float32."""
    if metric == "loss":
        return float(np.nextafter(np.float32(goal), np.float32(np.inf)))
    # Half a sample less than the fewest right ones whose share reaches the goal.
    num_samples = job.num_samples[job.monitor_split]
    num_right = math.ceil(goal * num_samples)
    while num_right > 0 and (num_right - 1) / num_samples >= goal:
        num_right -= 1
    return (num_right - 0.5) / num_samples


def _callbacks(job: Job) -> str:
    config = job.config
    rows: dict[str, list[str]] = {}
    comments = []
    if len(config.target) == 1:
        ((metric, goal),) = config.target.items()
        rows[metric] = [f"stopping_threshold={literal(_threshold(job, metric, goal))}", "patience=EPOCHS"]
        comments.append(f"    # Lightning stops past a threshold, and not at it: {metric} is to reach {literal(goal)}.")
    if config.patience is not None:
        # Lightning counts evaluations, the recipe epochs.
        checks = -(-config.patience // config.evaluate_every)
        rows["accuracy"] = [*rows.get("accuracy", [])[:1], f"patience={checks}"]
        if checks != config.patience:
            comments.append(f"    # Evaluations of which each is after {config.evaluate_every} epochs.")
    modes = {"accuracy": "max", "loss": "min"}
    made = [
        call("EarlyStopping", [f'monitor="val_{metric}"', f'mode="{modes[metric]}"', *arguments])
        for metric, arguments in rows.items()
    ]
    return lines(
        "def make_callbacks() -> list[lightning.Callback]:",
        '    """What ends the training before its last step."""',
        comments,
        f"    return [{made[0]}]"
        if len(made) == 1
        else ["    return [", *(f"        {one}," for one in made), "    ]"],
    )


def _main(job: Job) -> str:
    callbacks = ", callbacks=make_callbacks()" if _stops(job) else ""
    return lines(
        "def main() -> None:",
        "    module, data = RecipeModule(), RecipeData()",
        f"    trainer = lightning.Trainer(**TRAINER{callbacks})",
        "    trainer.fit(module, datamodule=data)",
        "    trainer.test(module, datamodule=data)",
        save_weights("module.model"),
    )
