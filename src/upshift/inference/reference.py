"""Eager float32: what every candidate is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from upshift.errors import BadInputError
from upshift.inference.backend import Array
from upshift.inference.candidate import Candidate
from upshift.inference.config import Samples
from upshift.inference.manifest import OutputSignature
from upshift.inference.parity import num_not_finite
from upshift.inference.structure import leaf_paths

NUM_FINAL_SAMPLES = 256
"""Test samples of which all leaves are compared after reload (class scores are compared on all of them)."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The model's own outputs.

    Attributes:
        signature: What it returns.
        selection: Leaves for all selection samples.
        test: Leaves for the first test samples.
        scores: Class scores (N, num_classes) for all test samples; None if the model returns none.
    """

    signature: OutputSignature
    selection: list[Array]
    test: list[Array]
    scores: Array | None


def run_reference(candidate: Candidate, samples: Samples, num_labels: int) -> tuple[Reference, dict[str, Any]]:
    """Load the model in a candidate's process and run it on all samples.

    Returns:
        The reference, and {"load_seconds", "first_call_ms"} among other facts.

    Raises:
        ChildFailure: The model cannot be run.
        BadInputError: Its outputs are not finite.
    """
    facts = candidate.reference()
    num_classes = num_labels
    if not num_classes and samples.test_labels is not None:
        num_classes = int(samples.test_labels.max()) + 1
    signature = _signature(facts, num_classes)
    selection = candidate.run("selection", len(samples.selection))
    _refuse_not_finite(selection, leaf_paths(signature.tree), "selection")
    test = candidate.run("test", min(NUM_FINAL_SAMPLES, len(samples.test)))
    _refuse_not_finite(test, leaf_paths(signature.tree), "test")
    scores = None
    if signature.logits is not None:
        scores = candidate.run("test", len(samples.test), leaf=signature.logits)[0]
        _refuse_not_finite([scores], ["the class scores"], "test")
    return Reference(signature=signature, selection=selection, test=test, scores=scores), facts


def _signature(facts: dict[str, Any], num_classes: int) -> OutputSignature:
    shapes = [tuple(shape[1:]) if shape and shape[0] == 2 else None for shape in facts["shapes"]]
    dtypes = tuple(facts["dtypes"])
    scores = [
        index
        for index, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
        if shape == (num_classes,) and "float" in dtype
    ]
    if len(scores) > 1:  # by its name, or not at all
        paths = leaf_paths(facts["tree"])
        scores = [index for index in scores if paths[index] == "output.logits"]
    return OutputSignature(
        tree=facts["tree"], dtypes=dtypes, shapes=tuple(shapes), logits=scores[0] if len(scores) == 1 else None
    )


def _refuse_not_finite(leaves: Sequence[Array], paths: Sequence[str], part: str) -> None:
    for path, leaf in zip(paths, leaves, strict=True):
        if num_bad := num_not_finite(leaf):
            raise BadInputError(
                "a model's outputs must be finite before it can be optimized",
                received=f"NaN or infinity in {path} for {num_bad} of {len(leaf)} {part} samples",
                hint="look at the training: the weights or a layer overflow",
            )
