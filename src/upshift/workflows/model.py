"""A trained model as later verbs open it: from a run folder or an artifact."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from upshift.core.files import read_json
from upshift.core.records import RunFolder
from upshift.core.reference import CodeReference
from upshift.core.typed_fields import from_json, to_json
from upshift.core.vouching import is_vouched
from upshift.data.config import DataConfig
from upshift.data.dataset import DataInfo
from upshift.data.torch_datasets import RowView
from upshift.errors import ArtifactError, BadInputError
from upshift.inference.artifact import Artifact
from upshift.inference.artifact import load as load_artifact
from upshift.inference.manifest import NAME as MANIFEST
from upshift.inference.preprocess import Preprocessing
from upshift.models.spec import ModelSpec
from upshift.recipes.recipe import Recipe
from upshift.recipes.record import recipe_from_json, recipe_to_json
from upshift.recipes.registry import RecipeOrigin
from upshift.workflows.datasets import Data, is_float_image

BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What `recipe.json` of a run holds: enough to make the model and its inputs again.

    Attributes:
        recipe: The resolved recipe.
        origin: Where it came from.
        spec: The model as data.
        info: The facts of the data it was trained on.
        preprocessing: How stored samples become the model's inputs.
        data_handed_over: Whether it was trained on torch datasets, which no record can name.
        seed: Of the run.
        variant: The recipe's variant, or None.
    """

    recipe: Recipe
    origin: RecipeOrigin
    spec: ModelSpec
    info: DataInfo
    preprocessing: Preprocessing
    data_handed_over: bool
    seed: int
    variant: str | None

    @property
    def data(self) -> NamedData | None:
        """What it was trained on; None where these were datasets of a program."""
        return None if self.data_handed_over else NamedData(self.recipe.data, self.seed, self.info.fingerprint)

    def to_json(self) -> dict[str, Any]:
        document = recipe_to_json(self.recipe, self.origin)
        return document | {
            "model_spec": self.spec.to_json(),
            "data_info": self.info.to_json(),
            "preprocessing": self.preprocessing.to_json(),
            "data_handed_over": self.data_handed_over,
            "seed": self.seed,
            "variant": self.variant,
        }


@dataclass(frozen=True)
class NamedData:
    """The data of a run as they can be read again.

    Attributes:
        config: Which they are, and how they are read.
        seed: Of the run, which draws a validation split.
        fingerprint: Of their content, all splits together.
    """

    config: DataConfig
    seed: int
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        return to_json(self)  # type: ignore[no-any-return]

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> NamedData:
        """The data that a manifest names.

        Raises:
            ArtifactError: It names none that this version of upshift can read.
        """
        try:
            config = from_json(value["config"], DataConfig, "data")
            return NamedData(config, int(value["seed"]), str(value["fingerprint"]))
        except (BadInputError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                "an artifact's manifest must name its data as upshift writes them",
                received=f"{type(error).__name__}: {error}",
                hint="name the data with --source",
            ) from error


def preprocessing_of(recipe: Recipe, data: Data) -> Preprocessing:
    """How stored samples become the inputs of a recipe's model, as its loaders make them."""
    info = data.info
    # Float images of a torch dataset are given to the model as they are: to preprocessing they are plain numbers.
    prepared = is_float_image(data)
    normalize = recipe.augment.normalize and not prepared
    return Preprocessing(
        kind="tabular" if prepared else info.kind,
        input_shape=info.input_shape,
        mean=info.mean if normalize else (),
        std=info.std if normalize else (),
        feature_names=info.feature_names,
    )


def read_run(
    folder: RunFolder, *, trust_code: bool = False, rule: str = "a model must be a run folder or an artifact"
) -> RunRecord:
    """The record of a run.

    Args:
        folder: The run folder.
        trust_code: Import the model's code though the user has not trained with it on this machine.
        rule: What is asked for, for the error where it is none.

    Raises:
        ArtifactError: The folder is no run, its recipe cannot be read, or it names code that nobody vouched for.
    """
    folder.require(rule)
    document = read_json(folder.recipe, kind="a run's recipe")
    if not trust_code:
        _require_vouched(document)
    recipe, origin = recipe_from_json(document, with_loss=False)
    try:
        spec = ModelSpec.from_json(document["model_spec"])
        info = DataInfo.from_json(document["data_info"])
        preprocessing = Preprocessing.from_json(document["preprocessing"])
        handed_over = bool(document["data_handed_over"])
        seed, variant = int(document["seed"]), document["variant"]
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            "recipe.json of a run must name its model and data",
            received=f"{type(error).__name__}: {error}",
            hint="train again",
        ) from error
    return RunRecord(
        recipe=recipe,
        origin=origin,
        spec=spec,
        info=info,
        preprocessing=preprocessing,
        data_handed_over=handed_over,
        seed=seed,
        variant=variant,
    )


def _require_vouched(document: Mapping[str, Any]) -> None:
    """Refuse code of a record that the user has not named himself: it would run when the model is made."""
    recipe = document.get("recipe")
    for code, kind in (
        (recipe.get("model") if isinstance(recipe, Mapping) else None, CodeReference),
        (document.get("model_spec"), ModelSpec),
    ):
        try:
            named = from_json(code, kind, "model")
        except BadInputError:
            continue  # it cannot be imported: what is wrong with it is said where it is read
        reference = named.reference if isinstance(named, ModelSpec) else named
        if not is_vouched(reference):
            raise ArtifactError(
                "a run may have code run that you trained with on this machine, or that you say you trust",
                received=f"a run that names {reference.name} of {reference.file or 'an installed package'}",
                hint="read that code; if you trust it, say --trust-code, or trust_code=True in Python",
            )


@dataclass(frozen=True)
class OpenedModel:
    """A model that turns stored samples into logits.

    Attributes:
        path: The run folder or artifact.
        preprocessing: What it takes.
        labels: Names of the classes.
        data: What it was trained and judged on; None where nothing can name them.
        run: The record of its run; None for an artifact.
        artifact: The artifact; None for a run.
    """

    path: Path
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    data: NamedData | None = None
    run: RunRecord | None = None
    artifact: Artifact | None = None
    module: nn.Module | None = None

    @torch.no_grad()
    def logits(self, stored: np.ndarray[Any, Any] | RowView) -> torch.Tensor:
        """Logits (N, C) of stored samples (N, …), a batch at a time."""
        stretches = (np.array(stored[start : start + BATCH_SIZE]) for start in range(0, len(stored), BATCH_SIZE))
        return torch.cat([self._logits(stretch) for stretch in stretches])

    def _logits(self, stretch: np.ndarray[Any, Any]) -> torch.Tensor:
        if self.artifact is not None:
            return torch.from_numpy(self.artifact.predict_stored(stretch, BATCH_SIZE))
        assert self.module is not None
        return self.module(self.preprocessing.apply(stretch)).float()  # type: ignore[no-any-return]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What a model draws while it is made or used follows from this seed; the program's generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def open_model(path: str | Path, *, trust_code: bool = False) -> OpenedModel:
    """Open a run folder or an artifact.

    Args:
        path: The run folder or artifact.
        trust_code: Import code that the run or the artifact names and that the user has not named before; see
            `upshift.load`.

    Raises:
        ArtifactError: It is neither, is not whole, or was altered.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        artifact = load_artifact(path, trust_code=trust_code)
        named = artifact.manifest.data
        data = NamedData.from_json(named) if named else None
        return OpenedModel(path, artifact.preprocessing, artifact.labels, data, artifact=artifact)
    folder = RunFolder(path)
    run = read_run(folder, trust_code=trust_code)
    if not folder.model.is_file():
        raise ArtifactError(
            "a run must be finished before its model is used",
            received=f"{path} without model.safetensors",
            hint=f"go on with --resume --out {path}",
        )
    folder.check_model()
    module = run.spec.build(folder.model)
    return OpenedModel(path, run.preprocessing, run.info.label_names, run.data, run=run, module=module)
