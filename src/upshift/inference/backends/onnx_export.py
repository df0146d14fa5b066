"""A PyTorch model as an ONNX file with a dynamic batch."""

from __future__ import annotations

import logging
import os
import re
import warnings
from pathlib import Path

import torch

from upshift.errors import BackendError
from upshift.inference.backend import BuildContext
from upshift.inference.structure import FlatOutputs

INPUT = "input"
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*m")
MAX_BYTES = 2**31 - 1  # protobuf's limit; larger models would need files beside the model


def exported(context: BuildContext) -> Path:
    """The ONNX file of the model; exported once a search and shared by the candidates.

    Outputs are the leaves of the model's output, named "output_0", "output_1", …

    Raises:
        BackendError: The model cannot be exported with a dynamic batch.
    """
    path = context.shared / "model.onnx"
    if path.is_file():
        return path
    if context.weights.stat().st_size > MAX_BYTES:
        raise BackendError("a model of 2 GB or more does not fit in one ONNX file")
    model = FlatOutputs(context.model())
    with torch.no_grad():
        num_outputs = len(model(context.sample))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (context.sample,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[f"output_{index}" for index in range(num_outputs)],
                dynamic_shapes={"inputs": {0: torch.export.Dim("batch", min=1)}},
            )
    except Exception as error:
        raise BackendError(f"torch.onnx.export failed: {_cause(error)[:300]}") from error
    if program is None:
        raise BackendError("torch.onnx.export returned nothing")
    partial = path.with_suffix(".partial")
    program.save(str(partial), external_data=False)
    os.replace(partial, path)
    return path


def _cause(error: BaseException) -> str:
    """What made an export fail: the first error of the chain, as the last one only tells where to report bugs."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = _TERMINAL_CODES.sub("", str(error))
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
