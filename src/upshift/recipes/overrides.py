"""`--set optimizer.lr=0.01` and `--variant fast`: a recipe with other values, typed and checked."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from upshift.core.reference import CodeReference, reference_to_factory
from upshift.core.typed_fields import dataclass_from_json, from_json, from_text, leaf_hints, with_example
from upshift.errors import ArtifactError, ConfigError, UnknownNameError
from upshift.recipes.recipe import Recipe

_CALLABLES = ("model", "loss")
_SYNONYMS = {"learning_rate": "lr", "num_epochs": "epochs"}  # names that other tools have for our fields
_HINTS = dict(leaf_hints(Recipe))
_NESTED = {
    name: hint
    for name, hint in typing.get_type_hints(Recipe).items()
    if dataclasses.is_dataclass(hint) and isinstance(hint, type)
}


def with_overrides(recipe: Recipe, variant: str | None, assignments: Sequence[str]) -> Recipe:
    """A recipe with the values of one of its variants, and then with those of assignments.

    All changes are made at once and then checked, so their order matters only where two name one field.

    Args:
        recipe: The recipe as written.
        variant: A key of `recipe.variants`; None for the recipe itself.
        assignments: Texts such as "optimizer.lr=0.01", "data.image_size=32,32", "model_args.hidden=128".

    Raises:
        UnknownNameError: There is no such variant or field.
        ConfigError: A value is of the wrong type or out of its range.
    """
    tree = _tree(recipe)
    for name, value in _variant(recipe, variant).items():
        _assign(tree, name, value, is_text=False)
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or not name.strip():
            raise ConfigError(
                "an override must read FIELD=VALUE", received=repr(assignment), hint="for example optimizer.lr=0.01"
            )
        _assign(tree, name.strip(), text, is_text=True)
    values = {
        name: dataclass_from_json(value, _NESTED[name], name) if name in _NESTED else value
        for name, value in tree.items()
    }
    changed = type(recipe)(**values)
    _check_model_args(changed)
    return changed


def _tree(recipe: Recipe) -> dict[str, Any]:
    """The recipe's fields, with configs and mappings as fresh dicts that can be assigned into."""
    tree = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    for name, value in tree.items():
        if name in _NESTED:
            tree[name] = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        elif isinstance(value, Mapping):
            tree[name] = dict(value)
    return tree


def _variant(recipe: Recipe, variant: str | None) -> Mapping[str, Any]:
    if variant is None:
        return {}
    if variant not in recipe.variants:
        hint = "" if recipe.variants else f"{recipe.name} has none: leave --variant out"
        raise UnknownNameError(f"a variant of {recipe.name}", variant, recipe.variants, hint=hint)
    return recipe.variants[variant]


def _assign(tree: dict[str, Any], name: str, value: Any, *, is_text: bool) -> None:
    """Put one value into the tree, at the field or at the key of a mapping field that `name` tells."""
    convert = from_text if is_text else from_json
    if name == "variants" or name.startswith("variants."):
        raise ConfigError(
            "variants cannot be overridden", received=name, hint="override the fields themselves, or edit the recipe"
        )
    if name in _CALLABLES and isinstance(value, str):
        tree[name] = None if name == "loss" and value.lower() == "none" else _callable(name, value)
        return
    if name in _NESTED:
        changes = convert(value, Mapping[str, Any], name)
        tree[name] = tree[name] | changes
        return
    field, key = _field_and_key(name)
    hint = _HINTS[field]
    *parents, last = field.split(".")
    place = tree
    for parent in parents:
        place = place[parent]
    if key is None:
        try:
            place[last] = convert(value, hint, name)
        except ConfigError as error:
            raise with_example(error, name, place[last]) from error
    else:
        place[last] = dict(place[last]) | {key: convert(value, typing.get_args(hint)[1], name)}


def _field_and_key(name: str) -> tuple[str, str | None]:
    """("model_args", "hidden") from "model_args.hidden"; ("optimizer.lr", None) from "optimizer.lr"."""
    if name in _HINTS:
        return name, None
    for field, hint in _HINTS.items():
        if typing.get_origin(hint) is Mapping and name.startswith(f"{field}.") and len(name) > len(field) + 1:
            return field, name.removeprefix(f"{field}.")
    namesakes = _namesakes(name)
    if namesakes:
        raise UnknownNameError("a recipe field", name, (), hint=f"did you mean {' or '.join(map(repr, namesakes))}?")
    raise UnknownNameError("a recipe field", name, _HINTS, hint="docs/recipes.md lists them")


def _namesakes(name: str) -> list[str]:
    """The fields whose last part is that of a name, or what other tools call it."""
    last = name.rpartition(".")[2]
    return [known for known in _HINTS if known.rpartition(".")[2] in (last, _SYNONYMS.get(last))]


def field_called(word: str) -> str | None:
    """The field that a word such as "epochs", "batch-size" or "lr" means; None where there is no such field."""
    name = word.replace("-", "_")
    try:
        _field_and_key(name)
    except UnknownNameError:
        near = _namesakes(name) or difflib.get_close_matches(name, _HINTS, n=1, cutoff=0.8)
        return near[0] if near else None
    return name


def _callable(name: str, reference: str) -> Any:
    try:
        return CodeReference(name=reference).resolve()
    except ArtifactError as error:
        raise ConfigError(
            f"{name} must name code that can be imported, as package.module:name",
            received=error.received,
            hint="check the name, install the package, or put the code into a recipe file",
        ) from error


def _check_model_args(recipe: Recipe) -> None:
    """Refuse what makes no model, and a model argument that the factory does not have, before any data is read."""
    reference_to_factory(recipe.model)
    parameters = inspect.signature(recipe.model).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY]
    for name in recipe.model_args:
        if name not in known:
            raise UnknownNameError("a key of model_args", name, known)
