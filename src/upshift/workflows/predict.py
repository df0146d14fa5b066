"""`predict`: what a run or an artifact says of files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from upshift.data.decode import DecodedInputs, OnNote, read_inputs, read_lines
from upshift.errors import ConfigError
from upshift.training.rng import check_seed
from upshift.workflows.arguments import verb
from upshift.workflows.model import OpenedModel, open_model, seeded

STDIN = "-"


@verb
def predict(
    path: str | Path,
    files: str | Path | Sequence[str | Path],
    *,
    top_k: int = 3,
    trust_code: bool = False,
    seed: int = 0,
    on_note: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Classify files.

    Args:
        path: A run folder or an artifact.
        files: Images or folders of images, `.csv` tables, `.txt` lines, `.npz` arrays; "-" reads a table
            or lines of text from standard input.
        top_k: How many classes to name for each input.
        trust_code: Import code that the run or the artifact names, though you have not trained with it here.
        seed: Of what the model itself draws, as one that samples does.
        on_note: Called with what the user should know, as that an image was resized or converted.

    Returns:
        For each input {"input": its name, "top": [{"label", "probability"}, …]}, most probable first.

    Raises:
        ArtifactError: No such run or artifact, or it was altered.
        DataError: A file cannot be read as the model's input.
    """
    if top_k < 1:
        raise ConfigError("top_k must be at least 1", received=top_k, hint="leave it out for 3")
    check_seed(seed)
    predictions = []
    with seeded(seed):
        model = open_model(path, trust_code=trust_code)
        if on_note is not None and top_k > len(model.labels):
            on_note(f"the model knows {len(model.labels)} classes: no more are named, though {top_k} were asked for")
        for file in [files] if isinstance(files, str | Path) else files:
            for decoded in _read(str(file), model, on_note or (lambda note: None)):
                predictions += _classify(model, decoded, top_k)
    return predictions


def _read(file: str, model: OpenedModel, on_note: OnNote) -> Iterator[DecodedInputs]:
    if file == STDIN:
        return read_lines(sys.stdin, model.preprocessing, on_note, name="stdin")
    return read_inputs(Path(file), model.preprocessing, on_note)


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
