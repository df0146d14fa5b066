"""`predict`: what a run or an artifact says of files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from upshift.data.decode import DecodedInputs, read_inputs, read_table, read_texts
from upshift.errors import ConfigError, DataError
from upshift.workflows.arguments import verb
from upshift.workflows.model import OpenedModel, open_model

STDIN = "-"


@verb
def predict(
    path: str | Path,
    files: str | Path | Sequence[str | Path],
    *,
    top_k: int = 3,
    trust_code: bool = False,
    on_note: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Classify files.

    Args:
        path: A run folder or an artifact.
        files: Images or folders of images, `.csv` tables, `.txt` lines, `.npz` arrays; "-" reads a table
            or lines of text from standard input.
        top_k: How many classes to name for each input.
        trust_code: Import code that the run or the artifact names, though you have not trained with it here.
        on_note: Called with what the user should know, as that an image was resized or converted.

    Returns:
        For each input {"input": its name, "top": [{"label", "probability"}, …]}, most probable first.

    Raises:
        ArtifactError: No such run or artifact, or it was altered.
        DataError: A file cannot be read as the model's input.
    """
    if top_k < 1:
        raise ConfigError("top_k must be at least 1", received=top_k, hint="leave it out for 3")
    model = open_model(path, trust_code=trust_code)
    predictions = []
    for file in [files] if isinstance(files, str | Path) else files:
        decoded = _read(str(file), model)
        if on_note is not None:
            for note in decoded.notes:
                on_note(note)
        predictions += _classify(model, decoded, top_k)
    return predictions


def _read(file: str, model: OpenedModel) -> DecodedInputs:
    if file != STDIN:
        return read_inputs(Path(file), model.preprocessing)
    kind, shape = model.preprocessing.kind, model.preprocessing.input_shape
    if kind == "text":
        return read_texts(sys.stdin, shape[0], name="stdin")
    if kind == "tabular":
        return read_table(sys.stdin, shape[0], name="stdin")
    raise DataError(
        "standard input must be a table or lines of text", received="a model of images", hint="name the image files"
    )


def _classify(model: OpenedModel, decoded: DecodedInputs, top_k: int) -> list[dict[str, Any]]:
    probabilities = model.logits(decoded.inputs).softmax(1)
    values, indices = probabilities.topk(min(top_k, probabilities.shape[1]), dim=1)
    return [
        {
            "input": name,
            "top": [
                {"label": model.labels[index], "probability": value}
                for value, index in zip(row_values, row_indices, strict=True)
            ],
        }
        for name, row_values, row_indices in zip(decoded.names, values.tolist(), indices.tolist(), strict=True)
    ]
