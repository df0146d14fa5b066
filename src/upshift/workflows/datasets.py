"""The data of a recipe as the workflows use them: packed splits, and loaders by a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from upshift.core.environment import memory_bytes
from upshift.core.files import cache_folder
from upshift.core.units import size as shown_bytes
from upshift.data.augment import augments
from upshift.data.dataset import PackedDataset
from upshift.data.find import lasting_name
from upshift.data.loaders import Loader, make_loader
from upshift.data.prepare import prepare
from upshift.data.torch_datasets import DatasetSplit, TorchDataset, dataset_from_torch
from upshift.data.worker_loader import WorkerLoader
from upshift.errors import ConfigError, DataError, PlanError
from upshift.recipes.recipe import Recipe
from upshift.tuning.plan import Plan

Data: TypeAlias = PackedDataset | TorchDataset

EVALUATION_BATCH_SIZE = 256
BYTES_PER_VALUE = 4
"""Of a model's input."""
NUM_SAMPLES_SHOWN = 32


@dataclass(frozen=True)
class Loaders:
    """The loaders of a training.

    Attributes:
        train: Shuffled and augmented.
        monitor: What is evaluated while training.
        monitor_split: "validation" where there is such a split, else "test".
        test: The final evaluation's.
        stored: The first training samples as stored, for TensorBoard.
        is_image: Whether they are images.
    """

    train: Loader
    monitor: Loader
    monitor_split: str
    test: Loader
    stored: np.ndarray[Any, Any]
    is_image: bool

    def first_samples(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A model-ready batch, and the first training images as they are stored (None for other data)."""
        inputs, _ = next(iter(self.test.epoch(0)))
        return inputs, torch.from_numpy(np.array(self.stored)) if self.is_image else None


def load_data(
    recipe: Recipe,
    data: Mapping[str, Any] | None,
    *,
    data_dir: str | Path | None,
    seed: int,
    on_progress: Callable[[str, int, int], None] | None,
) -> Data:
    """The packed data of a recipe, or the torch datasets that were handed over instead.

    Raises:
        DataError: The data are missing or wrong.
        ConfigError: Images of the size asked for do not go into memory.
    """
    _check_image_sizes(recipe)
    if data is None:
        folder = Path(data_dir) if data_dir else None
        return prepare(recipe.data, data_dir=folder, seed=seed, on_progress=on_progress)
    return dataset_from_handed_over(data)


def with_lasting_source(recipe: Recipe, data_dir: str | Path | None) -> Recipe:
    """A recipe whose source is found from any folder: a path is written in full."""
    folder = Path(data_dir) if data_dir else None
    source = lasting_name(recipe.data.source, data_dir=folder, cache_dir=cache_folder())
    return replace(recipe, data=replace(recipe.data, source=source))


def _check_image_sizes(recipe: Recipe) -> None:
    """Refuse an image size of which one batch does not go into memory, before an image is decoded to it."""
    sizes = {"data.image_size": recipe.data.image_size}
    sizes |= {f"stages[{index}].image_size": stage.image_size for index, stage in enumerate(recipe.stages)}
    num_images, num_channels = max(recipe.batch_size, EVALUATION_BATCH_SIZE), recipe.data.channels or 1
    for name, size in sizes.items():
        if size is None:
            continue
        needed, there = num_images * num_channels * size[0] * size[1] * BYTES_PER_VALUE, memory_bytes()
        if needed > there:
            raise ConfigError(
                f"{name} must leave a batch of {num_images} images within this machine's memory ({shown_bytes(there)})",
                received=f"{size[0]},{size[1]}: at least {shown_bytes(needed)} for the images alone",
                hint=f"for example {name}=224,224",
            )


def dataset_from_handed_over(data: Mapping[str, Any]) -> TorchDataset:
    """The torch datasets of a mapping with "train", "test" and maybe "validation" and "label_names".

    Raises:
        DataError: The mapping has other keys, or a dataset is wrong.
    """
    names = {"train", "test", "validation", "label_names"}
    if not {"train", "test"} <= set(data) <= names:
        raise DataError(
            'data must map "train" and "test", and may map "validation" and "label_names"',
            received=sorted(map(str, data)),
            hint='for example data={"train": train_dataset, "test": test_dataset}',
        )
    return dataset_from_torch(**data)


def make_loaders(dataset: Data, recipe: Recipe, plan: Plan, device: torch.device, seed: int) -> Loaders:
    """The loaders of a training by a plan.

    Raises:
        ConfigError: The batch is larger than the training split.
        PlanError: The plan's data path does not fit the data.
    """
    if isinstance(dataset, TorchDataset) and plan.data_path not in ("auto", "worker"):
        raise PlanError(
            'torch datasets need the data path "worker"', received=plan.data_path, hint='set data_path to "auto"'
        )
    if augments(recipe.augment) and is_float_image(dataset):
        raise ConfigError(
            "augmentation needs uint8 images",
            received="float images, already prepared by their dataset",
            hint="augment in the dataset, or let it return uint8 images",
        )
    monitor_split = "validation" if "validation" in dataset.splits else "test"

    def evaluated(name: str) -> Loader:
        return _make_loader(dataset, name, recipe, plan, device, seed, training=False)

    test = evaluated("test")
    return Loaders(
        train=make_train_loader(dataset, recipe, plan, device, seed),
        monitor=test if monitor_split == "test" else evaluated(monitor_split),
        monitor_split=monitor_split,
        test=test,
        stored=dataset.splits["train"].inputs[:NUM_SAMPLES_SHOWN],
        is_image=dataset.info.kind == "image",
    )


def make_train_loader(dataset: Data, recipe: Recipe, plan: Plan, device: torch.device, seed: int) -> Loader:
    """The training batches by a plan: the same ones, whatever the plan."""
    return _make_loader(dataset, "train", recipe, plan, device, seed, training=True)


def _make_loader(
    dataset: Data, name: str, recipe: Recipe, plan: Plan, device: torch.device, seed: int, *, training: bool
) -> Loader:
    batch_size = recipe.batch_size if training else max(recipe.batch_size, EVALUATION_BATCH_SIZE)
    channels_last = plan.memory_format == "channels_last"
    split = dataset.splits[name]
    if isinstance(split, DatasetSplit):
        return WorkerLoader(
            split.inputs.dataset,
            dataset.info,
            batch_size=batch_size,
            device=device,
            seed=seed,
            augment=recipe.augment,
            training=training,
            num_workers=plan.num_workers,
            channels_last=channels_last,
        )
    return make_loader(
        split,
        dataset.info,
        batch_size=batch_size,
        device=device,
        seed=seed,
        augment=recipe.augment,
        training=training,
        data_path=_array_path(plan),
        channels_last=channels_last,
    )


def _array_path(plan: Plan) -> Literal["auto", "resident", "mmap"]:
    if plan.num_workers:
        raise PlanError(
            "num_workers must be 0 for packed data", received=plan.num_workers, hint="workers are for torch datasets"
        )
    if plan.data_path == "worker":
        raise PlanError(
            'the data path "worker" is for torch datasets handed over in Python',
            received="packed data",
            hint='set data_path to "auto": packed data are indexed a batch at a time, faster than by workers',
        )
    return plan.data_path


def is_float_image(dataset: Data) -> bool:
    """Whether the inputs are images that their torch dataset has prepared for the model itself."""
    return dataset.info.kind == "image" and dataset.splits["train"].inputs[:1].dtype != np.uint8
