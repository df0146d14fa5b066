"""What files for a framework's own trainer share: micro-batches, what is iterated over, what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from upshift.tuning.emit.constants import log_every
from upshift.tuning.emit.job import Job
from upshift.tuning.emit.optimizer import has_schedule
from upshift.tuning.emit.source import lines, literal, when
from upshift.tuning.emit.step_graph import compiles_step


def for_a_trainer(job: Job) -> Job:
    """The job without what a framework's trainer is not told: stages, the average of weights, a step as one graph."""
    plan = replace(job.plan, compile="none", compile_mode=None) if compiles_step(job) else job.plan
    return replace(job, plan=plan, config=replace(job.config, stages=(), ema_decay=None))


def accumulation(job: Job) -> tuple[int, int]:
    """Samples of a micro-batch, and how many make a step: a framework takes whole numbers of equal ones.

    The whole batch where equal ones would be less than half of what was asked for: 97 passes of a sample are no way
    to take 97 samples 64 at a time.
    """
    batch_size = job.config.batch_size
    size = next(size for size in range(job.micro_batch_size, 0, -1) if batch_size % size == 0)
    if 2 * size < job.micro_batch_size:
        size = batch_size
    return size, batch_size // size


def total_steps(job: Job) -> int:
    """Optimizer steps of the training."""
    steps = job.config.epochs * job.steps_per_epoch
    return steps if job.config.max_steps is None else min(steps, job.config.max_steps)


def trainer_constants(job: Job) -> list[str]:
    """Lines of constants: what is learned."""
    return [
        f"SEED = {job.seed}",
        f"EPOCHS = {job.config.epochs}",
        f"TOTAL_STEPS = {total_steps(job)}",
        f"LEARNING_RATE = {literal(job.config.optimizer.lr)}" + ("  # at its peak" if has_schedule(job) else ""),
        f"LOG_EVERY = {log_every(job)}",
    ]


def plan_constants(job: Job) -> list[str]:
    """Lines of constants: samples of a pass, and passes of a step."""
    size, passes = accumulation(job)
    return [
        f"MICRO_BATCH_SIZE = {size}",
        f"ACCUMULATION = {passes}" + ("  # micro-batches of a step" if passes > 1 else ""),
    ]


def epochs_section(*, as_mapping: bool = False) -> str:
    """The class `Epochs`, which a framework takes for a DataLoader: the batches are whole and on the device already.

    Args:
        as_mapping: Give batches as {"inputs": …, "labels": …}.
    """
    kind = "dict[str, torch.Tensor]" if as_mapping else "Batch"
    return lines(
        "class Epochs:",
        '    """The batches of one epoch, and of the next after `set_epoch`: what a trainer iterates over."""',
        "",
        "    def __init__(self, batches: Batches, epoch: int = 0) -> None:",
        "        self.batches, self.epoch = batches, epoch",
        "",
        "    def set_epoch(self, epoch: int) -> None:",
        "        self.epoch = epoch",
        "",
        "    def __len__(self) -> int:",
        "        return len(self.batches)",
        "",
        f"    def __iter__(self) -> Iterator[{kind}]:",
        when(not as_mapping, "        return self.batches.epoch(self.epoch)"),
        when(
            as_mapping,
            "        for inputs, labels in self.batches.epoch(self.epoch):",
            '            yield {"inputs": inputs, "labels": labels}',
        ),
    )


def save_weights(model: str) -> list[str]:
    """Lines of `main` that save a model's weights."""
    return [
        f"    weights = {model}.state_dict()",
        "    # One by one on the CPU: tensors that share memory cannot be saved together.",
        "    save_file({name: tensor.cpu().contiguous().clone() for name, tensor in weights.items()}, WEIGHTS)",
    ]


def missing_of_a_trainer(job: Job, *, name: str) -> Sequence[str]:
    """What a framework's file leaves out of the plan and the recipe.

    Args:
        job: What is emitted.
        name: Of the framework.
    """
    config, plan = job.config, job.plan
    size, passes = accumulation(job)
    rest = job.num_samples["train"] % config.batch_size
    patterns = any(stage.freeze for stage in config.stages)
    sizes = any(stage.image_size for stage in config.stages)
    return [
        "several processes or devices: the batches are not shared out among them",
        *when(
            size > job.micro_batch_size,
            f"micro-batches of {job.micro_batch_size} samples: {name} takes equal ones, and {config.batch_size} has no "
            "divisor near that, so all are taken at once, which needs more memory",
        ),
        *when(
            size < job.micro_batch_size,
            f"micro-batches of {job.micro_batch_size} samples: {name} takes equal ones, so they have {size}",
        ),
        *when(
            passes > 1 and rest,
            f"accumulation weighted by samples: the last step of an epoch has {rest} of {config.batch_size} samples, "
            f"and {name} weights its micro-batches without asking how many they hold",
        ),
        *when(
            compiles_step(job),
            f"the step as one compiled graph: gradients are computed by {name}, and nothing is compiled",
        ),
        *when(config.ema_decay, f"the average of the weights (ema_decay={literal(config.ema_decay)})"),
        *when(patterns or sizes, "the stages: nothing is frozen, and images keep their size"),
        *when(len(config.target) > 1, "the target of two metrics at once"),
        *when(
            job.monitor_split == "validation",
            "the weights of the best validation accuracy: those of the last step are saved",
        ),
        *when(plan.precision in ("bf16", "fp16"), f"evaluation in fp32: {name} evaluates in {plan.precision} too"),
        *when(
            plan.precision == "fp16" and plan.device == "cpu", f"fp16 on a CPU, which {name} refuses: it trains in fp32"
        ),
        *when(plan.precision == "fp16" and plan.device == "auto", f"fp16 on a CPU, which {name} refuses"),
        "skipping a step whose loss is not finite",
        "smaller micro-batches when memory does not suffice",
        *when(job.data_path == "mmap", "reading ahead: the arrays are read in step with training"),
    ]
