"""What all loops train: the same model, weights, data, batches and number of steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from upshift.data.dataset import PackedDataset
from upshift.recipes.overrides import with_overrides
from upshift.recipes.recipe import Recipe
from upshift.recipes.record import model_spec
from upshift.recipes.registry import find_recipe
from upshift.training.optimizers import decay_groups
from upshift.training.rng import seed_everything
from upshift.training.trainer import Loader
from upshift.tuning.plan import BASELINE, Plan
from upshift.workflows.datasets import load_data
from upshift.workflows.preparation import device_of

SEED = 0
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Turn:
    """One turn of a loop.

    Attributes:
        seconds: From asking for the first batch to the end of the last step.
        loss: Mean training loss over the steps: tells whether loops do the same thing.
    """

    seconds: float
    loss: float


@dataclass(frozen=True)
class Job:
    """A recipe's baseline, cut to a number of steps.

    Attributes:
        recipe: With one epoch.
        dataset: All of it: only the steps are cut, so that memory is touched as in a whole epoch.
        device: Where it trains.
        num_steps: Steps of a turn.
        weights: What every turn starts from.
    """

    recipe: Recipe
    dataset: PackedDataset
    device: torch.device
    num_steps: int
    weights: dict[str, torch.Tensor]

    @property
    def num_samples(self) -> int:
        """Samples of a turn."""
        return self.num_steps * self.recipe.batch_size

    def optimizer(self, model: nn.Module, *, fused: bool = False) -> torch.optim.Optimizer:
        """The recipe's optimizer, new, by torch.optim: plain SGD or AdamW."""
        config = self.recipe.optimizer
        groups = decay_groups(model.named_parameters(), config)
        kernels = {"fused": True} if fused else {}  # None of it is torch's own choice
        if config.name == "sgd":
            return torch.optim.SGD(groups, lr=config.lr, **kernels)
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, **kernels)

    def model(self, plan: Plan = BASELINE) -> nn.Module:
        """A new model with the weights, laid out as a plan says."""
        made = make_model(self.recipe, self.dataset)
        layout = torch.channels_last if plan.memory_format == "channels_last" else torch.contiguous_format
        made = made.to(self.device).to(memory_format=layout)  # type: ignore[call-overload]
        return self.reset(made)

    def reset(self, model: nn.Module) -> nn.Module:
        """The model with the weights that every turn starts from, ready to train."""
        model.load_state_dict(self.weights)
        return model.train()

    def synchronize(self) -> None:
        """Wait for the device, so that a clock tells the truth."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()


def make_job(name: str, data_dir: Path | None, num_steps: int) -> Job:
    """The job of a recipe; its steps are cut to those of an epoch with whole batches."""
    recipe = with_overrides(find_recipe(name)[0], None, ["epochs=1"])
    optimizer = recipe.optimizer
    is_plain_sgd = optimizer.name == "sgd" and not optimizer.momentum and not optimizer.weight_decay
    if not (is_plain_sgd or optimizer.name == "adamw") or optimizer.options or recipe.schedule.name != "constant":
        raise ValueError(f"the loops train by plain SGD or AdamW at a constant rate; {name} does not")
    device = device_of(BASELINE)
    dataset = load_data(recipe, None, data_dir=data_dir, seed=SEED, on_progress=None)
    assert isinstance(dataset, PackedDataset)  # no torch dataset was handed over
    num_steps = min(num_steps, len(dataset.splits["train"]) // recipe.batch_size)
    weights = {key: tensor.clone() for key, tensor in make_model(recipe, dataset).state_dict().items()}
    return Job(recipe, dataset, device, num_steps, weights)


def make_model(recipe: Recipe, dataset: PackedDataset) -> nn.Module:
    """The recipe's model with the weights that its seed draws."""
    seed_everything(SEED)
    return model_spec(recipe, dataset.info).make()


def first_batches(loader: Iterable[Batch], num_batches: int) -> Iterator[Batch]:
    """So many batches of a loader, which is begun again as often as that takes."""
    while num_batches > 0:
        for batch in islice(loader, num_batches):
            yield batch
            num_batches -= 1


class FirstBatches:
    """A loader of the first batches of each epoch of another."""

    def __init__(self, loader: Loader, num_batches: int) -> None:
        self._loader, self._num_batches = loader, num_batches

    def __len__(self) -> int:
        return self._num_batches

    def epoch(
        self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch; see `upshift.data.loaders.Loader.epoch`."""
        batches = self._loader.epoch(epoch, start_batch=start_batch, image_size=image_size)
        return islice(batches, self._num_batches - start_batch)
