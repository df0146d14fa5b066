"""What is to be emitted: a plan and the facts of a recipe and its data, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from upshift.core.reference import CodeReference
from upshift.data.config import AugmentConfig
from upshift.data.dataset import DataInfo
from upshift.models.spec import ModelSpec
from upshift.training.config import TrainingConfig
from upshift.tuning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that an emitted file says.

    Attributes:
        name: Of the recipe.
        plan: How fast.
        config: What training does.
        augment: How training images are varied and normalised.
        info: The facts of the data.
        num_samples: Samples of each split.
        evaluation_batch_size: Samples of a batch of evaluation.
        data_path: Where batches come from, decided.
        data_folder: Name of the folder with the arrays, beside the file.
        model: The model as data.
        optimizers: Class names of the optimizers that the recipe's comes to for the model: of Muon's two, maybe one.
        averages: Whether an optimizer averages the weights for itself, and is told when they are to be used.
        fused: Use torch's fused optimizer kernels: the plan asks for them, and the parameters have them.
        loss: The recipe's own loss; None for cross-entropy.
        seed: Of weights, order, augmentation and dropout.
    """

    name: str
    plan: Plan
    config: TrainingConfig
    augment: AugmentConfig
    info: DataInfo
    num_samples: Mapping[str, int]
    evaluation_batch_size: int
    data_path: Literal["resident", "mmap"]
    data_folder: str
    model: ModelSpec
    optimizers: tuple[str, ...]
    averages: bool
    fused: bool
    loss: CodeReference | None
    seed: int

    @property
    def micro_batch_size(self) -> int:
        """Samples of one forward and backward pass."""
        return min(self.plan.micro_batch_size or self.config.batch_size, self.config.batch_size)

    @property
    def accumulates(self) -> bool:
        """Whether a step takes more than one pass."""
        return self.micro_batch_size < self.config.batch_size

    @property
    def resizes(self) -> bool:
        """Whether a stage has an image size of its own."""
        return any(stage.image_size for stage in self.config.stages)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_samples["train"] // self.config.batch_size)

    @property
    def monitor_split(self) -> str:
        """What is evaluated while training."""
        return "validation" if "validation" in self.num_samples else "test"


@dataclass(frozen=True)
class Emission:
    """A file's text.

    Attributes:
        text: Python source.
        inexpressible: What the file leaves out of the plan, the recipe, or what upshift does with them; its docstring
            names them too.
    """

    text: str
    inexpressible: tuple[str, ...]
