"""What a model returns, as a tree of leaves that is plain data.

Backends compute flat lists of arrays. The tree remembers how the model had put them together, so that an
artifact gives back a dict where the model returned a dict.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from upshift.errors import ArtifactError, BadInputError

Tree = dict[str, Any]


def flatten(output: Any) -> tuple[list[torch.Tensor], Tree]:
    """The tensors of an output in order, and the tree that holds them.

    Tensors, tuples, named tuples, lists and dicts with string keys (and their subclasses) are taken
    apart; None, numbers, booleans and strings are kept in the tree as constants.

    Raises:
        BadInputError: The output holds something else, or no tensor at all.
    """
    leaves: list[torch.Tensor] = []
    tree = _flatten(output, leaves, "output")
    if not leaves:
        raise BadInputError(
            "a model's output must hold at least one tensor",
            received=type(output).__name__,
            hint="return a tensor, or a tuple, list or dict of tensors",
        )
    return leaves, tree


def _flatten(value: Any, leaves: list[torch.Tensor], path: str) -> Tree:
    if isinstance(value, torch.Tensor):
        leaves.append(value)
        return {"kind": "tensor", "index": len(leaves) - 1, "path": path}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"kind": "dict", "items": {key: _flatten(item, leaves, f"{path}.{key}") for key, item in value.items()}}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        items = [_flatten(item, leaves, f"{path}.{name}") for name, item in zip(value._fields, value, strict=True)]
        return {"kind": "namedtuple", "name": type(value).__name__, "fields": list(value._fields), "items": items}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {"kind": kind, "items": [_flatten(item, leaves, f"{path}[{i}]") for i, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"kind": "constant", "value": value}
    raise BadInputError(
        "a model's output must be made of tensors, tuples, lists and dicts with string keys",
        received=f"{type(value).__name__} at {path}",
        hint="wrap the model so that it returns these",
    )


def builder(tree: Tree) -> Callable[[Sequence[Any]], Any]:
    """A function that puts flat leaves together again as `tree` says.

    Raises:
        ArtifactError: The tree is not one that `flatten` makes.
    """
    try:
        if sorted(_indices(tree)) != list(range(len(leaf_paths(tree)))):
            raise ValueError("the leaves are not numbered from 0")
        return _builder(tree)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            "an artifact's output signature must be a tree of tensors",
            received=f"{type(error).__name__}: {error}",
            hint="make the artifact again with `upshift optimize`",
        ) from error


def _builder(tree: Tree) -> Callable[[Sequence[Any]], Any]:
    kind = tree["kind"]
    if kind == "tensor":
        index = int(tree["index"])
        return lambda leaves: leaves[index]
    if kind == "constant":
        value = tree["value"]
        return lambda leaves: value
    if kind == "dict":
        named = {str(key): _builder(item) for key, item in tree["items"].items()}
        return lambda leaves: {key: build(leaves) for key, build in named.items()}
    parts = [_builder(item) for item in tree["items"]]
    if kind == "namedtuple":
        fields = [str(name) for name in tree["fields"]]
        make = collections.namedtuple(str(tree["name"]), fields)  # type: ignore[misc]
        return lambda leaves: make(*(build(leaves) for build in parts))
    if kind == "tuple":
        return lambda leaves: tuple(build(leaves) for build in parts)
    if kind == "list":
        return lambda leaves: [build(leaves) for build in parts]
    raise ValueError(f"unknown kind {kind!r}")


def _indices(tree: Tree) -> list[int]:
    if "items" in tree:
        items = tree["items"].values() if isinstance(tree["items"], dict) else tree["items"]
        return [index for item in items for index in _indices(item)]
    return [int(tree["index"])] if tree["kind"] == "tensor" else []


def leaf_paths(tree: Tree) -> list[str]:
    """Where each leaf stands in the output, as "output.logits"."""
    if tree["kind"] == "tensor":
        return [str(tree["path"])]
    if tree["kind"] == "constant":
        return []
    items = tree["items"].values() if isinstance(tree["items"], dict) else tree["items"]
    return [path for item in items for path in leaf_paths(item)]


class FlatOutputs(torch.nn.Module):
    """A model whose output is the tuple of its leaves: what exporters understand."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The leaves of the model's output."""
        return tuple(flatten(self.model(inputs))[0])
