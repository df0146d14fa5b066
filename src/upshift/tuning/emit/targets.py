"""The targets that a plan can be emitted for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from upshift.errors import UnknownNameError
from upshift.tuning.emit.accelerate import emit_accelerate
from upshift.tuning.emit.hf import emit_hf
from upshift.tuning.emit.job import Emission, Job
from upshift.tuning.emit.lightning import emit_lightning
from upshift.tuning.emit.script import emit_script


@dataclass(frozen=True)
class Target:
    """What is known of a target.

    Attributes:
        description: What is emitted, in a few words.
        emit: Makes it.
    """

    description: str
    emit: Callable[[Job], Emission]


TARGETS = {
    "script": Target("a plain PyTorch training script", emit_script),
    "lightning": Target("a LightningModule, a LightningDataModule and settings of the Trainer", emit_lightning),
    "accelerate": Target("settings of an Accelerator, and a training loop with it", emit_accelerate),
    "hf": Target("TrainingArguments of Transformers, and a Trainer of the recipe's model", emit_hf),
}


def find_target(name: str) -> Target:
    """A target by its name.

    Raises:
        UnknownNameError: There is no such target.
    """
    if name not in TARGETS:
        raise UnknownNameError("a target", name, TARGETS)
    return TARGETS[name]
