"""Constants at the top of an emitted file, and the seed that they name."""

from __future__ import annotations

from upshift.training.trainer import LINES_PER_EPOCH, MIN_STEPS_A_LINE
from upshift.tuning.emit.job import Job
from upshift.tuning.emit.optimizer import has_schedule
from upshift.tuning.emit.source import lines, literal, when


def log_every(job: Job) -> int:
    """Steps between two lines, as the trainer has them."""
    return job.config.log_every or max(MIN_STEPS_A_LINE, job.steps_per_epoch // LINES_PER_EPOCH)


def recipe_constants(job: Job) -> list[str]:
    """Lines of constants: what is learned."""
    config = job.config
    return [
        f"SEED = {job.seed}",
        f"EPOCHS = {config.epochs}",
        *when(config.max_steps is not None, f"MAX_STEPS = {config.max_steps}"),
        f"BATCH_SIZE = {config.batch_size}",
        f"LEARNING_RATE = {literal(config.optimizer.lr)}" + ("  # at its peak" if has_schedule(job) else ""),
        *when(config.stages, *_stages(job)),
        f"LOG_EVERY = {log_every(job)}",
    ]


def _stages(job: Job) -> list[str]:
    sizes = "the size that images are resized to, " if job.resizes else ""
    stages = [
        (stage.epochs, stage.image_size, stage.freeze) if job.resizes else (stage.epochs, stage.freeze)
        for stage in job.config.stages
    ]
    return [
        f"# Stretches of epochs: how many, {sizes}the parameters that are not trained.",
        f"STAGES = {literal(stages, used=9)}",
    ]


def seed_everything() -> str:
    return lines(
        "def seed_everything() -> None:",
        "    random.seed(SEED)",
        "    np.random.seed(SEED % 2**32)",
        "    torch.manual_seed(SEED)",
    )
