"""Batches and outputs of any shape: what is mapped, counted, cut and called, and that classes stay what they are."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upshift.errors import DataError
from upshift.training.batches import at_least_single, call, map_tensors, num_samples, shapes, take, tensors


class Point(NamedTuple):
    x: Any
    y: Any


@dataclass(frozen=True)
class Frozen:
    x: Any
    note: str = "kept"


@dataclass
class Computed:
    x: torch.Tensor
    size: int = field(init=False)
    later: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.size = self.x.numel()


class Encoding(UserDict[str, Any]):
    """As that of a tokenizer: its constructor takes other things than its items."""

    def __init__(self, data: Any = None, encoding: Any = None) -> None:
        super().__init__(data or {})


leaves = st.one_of(
    st.integers(),
    st.none(),
    st.text(max_size=2),
    st.just(torch.arange(6.0)),
    st.just(torch.ones(6, 2)),
    st.just(torch.tensor(1)),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
        st.dictionaries(st.text(max_size=2), inner, max_size=3).map(OrderedDict),
        st.tuples(inner, inner).map(lambda pair: Point(*pair)),
        inner.map(Frozen),
    ),
    max_leaves=8,
)


def kinds(tree: Any) -> Any:
    """The tree with the class of each part."""
    if isinstance(tree, dict):
        return type(tree), [(key, kinds(value)) for key, value in tree.items()]
    if isinstance(tree, tuple | list):
        return type(tree), [kinds(value) for value in tree]
    return (type(tree), kinds(tree.x)) if isinstance(tree, Frozen) else type(tree)


@given(trees)
def test_mapping_keeps_all_classes_and_meets_each_tensor_once_in_order(tree: Any) -> None:
    met: list[torch.Tensor] = []

    def negated(tensor: torch.Tensor) -> torch.Tensor:
        met.append(tensor)
        return -tensor

    mapped = map_tensors(negated, tree)
    assert kinds(mapped) == kinds(tree)
    assert [id(tensor) for tensor in met] == [id(tensor) for tensor in tensors(tree)]
    assert all(torch.equal(-old, new) for old, new in zip(met, tensors(mapped), strict=True))
    assert shapes(mapped) == shapes(tree) == tuple(tensor.shape for tensor in met)


@given(trees)
def test_mapping_leaves_the_tree_itself_alone(tree: Any) -> None:
    before = [tensor.clone() for tensor in tensors(tree)]
    map_tensors(lambda tensor: tensor * 0 + 9, tree)
    assert all(map(torch.equal, before, tensors(tree)))


@given(trees.filter(lambda tree: any(tensor.dim() for tensor in tensors(tree))), st.integers(0, 3), st.integers(3, 6))
def test_taking_samples_cuts_the_first_axis_alone(tree: Any, start: int, stop: int) -> None:
    for old, new in zip(tensors(tree), tensors(take(tree, start, stop)), strict=True):
        assert torch.equal(new, old[start:stop] if old.dim() else old)


def test_computed_and_missing_fields_of_a_dataclass_stay() -> None:
    mapped = map_tensors(lambda tensor: tensor[:1], Computed(torch.ones(4)))
    assert (mapped.x.numel(), mapped.size) == (1, 4)
    assert not hasattr(mapped, "later")
    assert shapes(mapped) == ((1,),)


def test_a_dataclass_itself_is_no_batch() -> None:
    assert map_tensors(torch.neg, Frozen) is Frozen
    with pytest.raises(DataError, match="counts samples; received type"):
        num_samples(Frozen)


def test_frozen_dataclasses_are_copied() -> None:
    given_ = Frozen(torch.ones(3))
    mapped = map_tensors(torch.neg, given_)
    assert mapped is not given_ and mapped.note == "kept"
    with pytest.raises(dataclasses.FrozenInstanceError):
        mapped.note = "changed"


@pytest.mark.parametrize(
    "tree", [Encoding({"x": torch.ones(2)}), defaultdict(list, {1: torch.ones(2)}), UserDict({"x": torch.ones(2)})]
)
def test_mappings_that_are_made_otherwise_keep_their_items(tree: Any) -> None:
    mapped = map_tensors(torch.neg, tree)
    assert list(mapped) == list(tree)
    assert [tensor.tolist() for tensor in tensors(mapped)] == [[-1, -1]]


def test_tuples_of_torch_stay_readable() -> None:
    mapped = map_tensors(torch.neg, torch.ones(2, 3).max(1))
    assert isinstance(mapped, tuple)
    assert mapped[0].tolist() == [-1, -1]


@pytest.mark.parametrize("tree", [None, 3, "text", [], {}, (), torch.tensor(1.0), [torch.tensor(1.0)], {"a": {"b": 1}}])
def test_samples_of_what_has_none_are_refused(tree: Any) -> None:
    with pytest.raises(DataError, match="first axis counts samples"):
        num_samples(tree)


def test_samples_are_those_of_the_first_tensor_that_has_an_axis() -> None:
    assert num_samples({"scale": torch.tensor(2.0), "x": [torch.ones(5, 2)], "y": torch.ones(7)}) == 5


def test_only_half_precision_is_made_single() -> None:
    kinds_ = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool]
    outputs = at_least_single([torch.ones(2, dtype=kind) for kind in kinds_])
    assert [tensor.dtype for tensor in outputs] == [torch.float32] * 3 + kinds_[3:]


def test_a_model_is_called_with_what_its_inputs_are() -> None:
    def model(*arguments: Any, **named: Any) -> Any:
        return arguments, named

    one, two = torch.ones(1), torch.ones(2)
    assert call(model, one) == ((one,), {})
    assert call(model, (one, two)) == call(model, [one, two]) == call(model, Point(one, two)) == ((one, two), {})
    assert call(model, {"x": one}) == call(model, Encoding({"x": one})) == ((), {"x": one})
    assert call(model, Frozen(one)) == ((Frozen(one),), {})
