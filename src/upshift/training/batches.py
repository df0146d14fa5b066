"""Batches and outputs of any shape: tensors in tuples, lists, mappings and dataclasses; how a model is called."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from upshift.errors import DataError

Tree = Any
"""A tensor, something else, or a tuple, list, mapping or dataclass instance of such things."""


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], tree: Tree) -> Tree:
    """The tree with each tensor replaced; what is no tensor stays."""
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        mapped = {key: map_tensors(function, value) for key, value in tree.items()}
        # A model's output class (as of transformers) is kept: losses read its attributes.
        return mapped if type(tree) is dict else _same_mapping(tree, mapped)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(function, value) for value in tree))
    if isinstance(tree, tuple | list):
        return _same_sequence(tree, [map_tensors(function, value) for value in tree])
    if _is_dataclass(tree):
        return _same_dataclass(tree, lambda value: map_tensors(function, value))
    return tree


def _same_mapping(tree: Mapping[Any, Any], mapped: dict[Any, Any]) -> Any:
    try:
        return type(tree)(**mapped)
    except TypeError:
        return mapped


def _same_sequence(tree: Any, values: list[Any]) -> Any:
    try:
        return type(tree)(values)
    except TypeError:  # such as torch.return_types.max, or a class whose constructor takes something else
        return tuple(values) if isinstance(tree, tuple) else values


def _is_dataclass(tree: Tree) -> bool:
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type)


def _same_dataclass(tree: Any, changed: Callable[[Any], Any]) -> Any:
    # Not dataclasses.replace: that calls a constructor, which may compute fields, or take others.
    copied = copy.copy(tree)
    for field in dataclasses.fields(tree):
        if hasattr(tree, field.name):
            object.__setattr__(copied, field.name, changed(getattr(tree, field.name)))
    return copied


def tensors(tree: Tree) -> Iterator[torch.Tensor]:
    """The tensors of a tree, in order."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from tensors(value)
    elif _is_dataclass(tree):
        for field in dataclasses.fields(tree):
            yield from tensors(getattr(tree, field.name, None))


def shapes(tree: Tree) -> tuple[torch.Size, ...]:
    """The shapes of a tree's tensors, in order."""
    return tuple(tensor.shape for tensor in tensors(tree))


def num_samples(tree: Tree) -> int:
    """The length of the first axis that its tensors share.

    Raises:
        DataError: There is no tensor with an axis.
    """
    if isinstance(tree, torch.Tensor) and tree.dim() > 0:
        return tree.shape[0]
    for tensor in tensors(tree):
        if tensor.dim() > 0:
            return tensor.shape[0]
    raise DataError(
        "a batch must hold tensors whose first axis counts samples",
        received=type(tree).__name__,
        hint="give (inputs, targets), where inputs may be a tensor, a tuple or a mapping of tensors",
    )


def micro_batch_sizes(num_samples: int, most: int) -> list[int]:
    """How a batch is cut into parts of at most `most` samples: equal ones, and a smaller last one for the rest.

    A rest of one sample takes one from the part before where that has one to spare: batch norm needs two.
    """
    sizes = [min(most, num_samples - start) for start in range(0, num_samples, most)]
    if len(sizes) > 1 and sizes[-1] == 1 and most > 2:
        sizes[-2:] = [most - 1, 2]
    return sizes


def take(tree: Tree, start: int, stop: int) -> Tree:
    """Samples `start` to `stop` of a batch; tensors without that axis stay."""
    total = num_samples(tree)

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[start:stop] if tensor.dim() > 0 and tensor.shape[0] == total else tensor

    return map_tensors(cut, tree)


def at_least_single(tree: Tree) -> Tree:
    """Outputs with half-precision tensors as float32: a loss of autocast outputs is computed in single precision."""
    return map_tensors(_single, tree)


def _single(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def call(model: Callable[..., Any], inputs: Tree) -> Any:
    """A model's outputs: a mapping is given as named arguments, a tuple or list as positional ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)
