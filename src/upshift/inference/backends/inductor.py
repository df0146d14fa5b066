"""torch.compile: the model as PyTorch has it, compiled by Inductor when it is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from upshift.errors import BackendError
from upshift.inference.backend import Array, BuildContext, LoadContext, Runner
from upshift.inference.backends.eager import load_model, save_model
from upshift.inference.structure import FlatOutputs


class Inductor:
    """The files of `Eager`, and the batch size to compile for at load; others compile when they come."""

    def build(self, context: BuildContext) -> Mapping[str, Any]:
        save_model(context)
        return {"batch_size": context.batch_size}

    def load(self, context: LoadContext) -> Runner:
        model = FlatOutputs(load_model(context))
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's own, of parts of PyTorch that it uses
                # Freezing makes the weights constants, which Inductor may fold and lay out anew.
                run = _runner(torch.compile(model, options={"freezing": True}))
                run(context.zeros(int(context.options.get("batch_size", 1))))
        except Exception as error:
            raise BackendError(f"torch.compile failed: {_first_line(error)}") from error
        return run


def _runner(compiled: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> Runner:
    def run(inputs: Array) -> list[Array]:
        # Not inference_mode: freezing wants no_grad, and guards on the mode would compile again.
        with torch.no_grad():
            return [leaf.numpy() for leaf in compiled(torch.from_numpy(inputs))]

    return run


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
