"""PyTorch as it is: the reference, and the fallback that always works."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from upshift.core.files import read_json, write_json
from upshift.errors import ArtifactError
from upshift.inference.backend import Array, BuildContext, LoadContext, Runner
from upshift.inference.structure import flatten
from upshift.models.spec import ModelSpec

WEIGHTS = "model.safetensors"
SPEC = "model.json"


class Eager:
    """Weights as safetensors, and the name of the factory; never its code."""

    def build(self, context: BuildContext) -> Mapping[str, Any]:
        save_model(context)
        return {}

    def load(self, context: LoadContext) -> Runner:
        model = load_model(context)

        def run(inputs: Array) -> list[Array]:
            with torch.inference_mode():
                return [leaf.numpy() for leaf in flatten(model(torch.from_numpy(inputs)))[0]]

        return run


def save_model(context: BuildContext) -> None:
    """Write the weights and the factory's name."""
    shutil.copyfile(context.weights, context.folder / WEIGHTS)
    write_json(context.folder / SPEC, context.spec.to_json())


def load_model(context: LoadContext) -> nn.Module:
    """Make the model again.

    A manifest could name any function of any installed package, so that code outside upshift is only
    called when the user vouches for it.

    Raises:
        ArtifactError: The artifact names code outside upshift and the user did not vouch for it.
    """
    spec = ModelSpec.from_json(read_json(context.folder / SPEC, kind="an artifact's model"))
    if context.code_file is not None:
        spec = replace(spec, file=str(context.code_file))
    elif not context.trust_code and not spec.reference.is_own:
        where = spec.file or spec.factory
        raise ArtifactError(
            "an artifact that runs Python code outside upshift needs your word for that code",
            received=f"a model made by {spec.factory!r} of {where}",
            hint="load(path, trust_code=True), or load(path, code_file='recipe.py') for a copy elsewhere",
        )
    return spec.build(context.folder / WEIGHTS)
