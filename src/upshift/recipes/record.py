"""`recipe.json` of a run: every field of a recipe resolved, its code by reference."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from typing import Any, Protocol

from upshift.core.reference import CodeReference, reference_to, reference_to_factory
from upshift.core.typed_fields import from_json, to_json
from upshift.errors import ArtifactError, BadInputError, ConfigError
from upshift.models.spec import ModelSpec
from upshift.recipes.recipe import Recipe
from upshift.recipes.registry import RecipeOrigin

VERSION = 1


class DataShape(Protocol):
    """What a model must know of its data."""

    @property
    def num_classes(self) -> int: ...

    @property
    def input_shape(self) -> tuple[int, ...]: ...


def model_spec(recipe: Recipe, data: DataShape) -> ModelSpec:
    """The recipe's model for the data at hand, as data that another process makes it from.

    `num_classes` and `input_shape` (without the batch: (C, H, W), (F,) or (L,)) of the data go to the
    factory where it has a parameter of that name and `model_args` does not set it.

    Raises:
        ConfigError: The factory cannot be found again by its name, or an argument is not a JSON value.
    """
    reference = reference_to_factory(recipe.model)
    args = _json_mapping(recipe.model_args, "model_args")
    parameters = inspect.signature(recipe.model).parameters
    for name, value in (("num_classes", data.num_classes), ("input_shape", list(data.input_shape))):
        if name in parameters and name not in args:
            args[name] = value
    return ModelSpec(factory=reference.name, file=reference.file, file_sha256=reference.file_sha256, args=args)


def recipe_to_json(recipe: Recipe, origin: RecipeOrigin) -> dict[str, Any]:
    """A recipe as a JSON object.

    Raises:
        ConfigError: A callable cannot be found again by its name, or a value is not JSON's.
    """
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(Recipe):
        value = getattr(recipe, field.name)
        if field.name == "model":
            fields["model"] = dataclasses.asdict(reference_to_factory(value))
        elif field.name == "loss":
            fields["loss"] = None if value is None else dataclasses.asdict(reference_to(value, field="loss"))
        else:
            fields[field.name] = _json_value(value, field.name)
    return {"version": VERSION, "origin": dataclasses.asdict(origin), "recipe": fields}


def recipe_from_json(document: Mapping[str, Any], *, with_loss: bool = True) -> tuple[Recipe, RecipeOrigin]:
    """The recipe of a `recipe.json`, whatever has become of the recipe's own file since.

    Args:
        document: The content of `recipe.json`.
        with_loss: Import the loss; what only evaluates or predicts does not need that code to run.

    Raises:
        ArtifactError: A field is missing, unknown or of the wrong type, the document is of a newer
            version, or the code that it refers to is missing or has changed.
    """
    version = document.get("version")
    if version != VERSION:
        raise ArtifactError(
            f"recipe.json must be of version {VERSION}", received=repr(version), hint="use the upshift that wrote it"
        )
    try:
        origin = from_json(document.get("origin"), RecipeOrigin, "origin")
        fields = dict(from_json(document.get("recipe"), Mapping[str, Any], "recipe"))
        if not with_loss:
            fields["loss"] = None
        for name in ("model", "loss"):
            if fields.get(name) is not None:
                fields[name] = from_json(fields[name], CodeReference, name).resolve()
        recipe = from_json(fields, Recipe, "recipe")
    except ArtifactError:
        raise
    except BadInputError as error:
        raise ArtifactError(
            f"recipe.json of a run must be whole: {error.rule}", received=error.received, hint=error.hint
        ) from error
    return typing.cast(Recipe, recipe), typing.cast(RecipeOrigin, origin)


def _json_mapping(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    return typing.cast(dict[str, Any], _json_value(value, name))


def _json_value(value: Any, name: str) -> Any:
    try:
        return to_json(value)
    except TypeError as error:
        raise ConfigError(
            f"{name} must hold JSON values (text, numbers, true, false, none, lists, mappings)",
            received=str(error),
            hint="make objects inside the model factory, from such values",
        ) from error
