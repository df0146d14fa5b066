"""`evaluate`: how good a run or an artifact is on labelled data."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from upshift.core.files import read_json
from upshift.core.records import RunFolder
from upshift.data.class_names import require_classes
from upshift.data.config import DataConfig
from upshift.data.dataset import DataInfo
from upshift.data.prepare import prepare
from upshift.data.torch_datasets import RowView
from upshift.errors import ArtifactError, DataError, UnknownNameError
from upshift.training.metrics import Evaluation, evaluate_logits, of_other_loss
from upshift.training.rng import check_seed
from upshift.workflows.arguments import verb
from upshift.workflows.datasets import Data, dataset_from_handed_over
from upshift.workflows.model import OpenedModel, open_model, seeded

MAX_MISTAKES = 24
EVALUATION_VERSION = 1


@verb
def evaluate(
    path: str | Path,
    *,
    source: str | None = None,
    data: Mapping[str, Any] | None = None,
    split: str = "test",
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    trust_code: bool = False,
    seed: int = 0,
    on_data_progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a run or an artifact.

    Args:
        path: The run folder or artifact.
        source: Data to evaluate on, as `DataConfig.source`; what it was trained and judged on when None.
        data: torch datasets to evaluate on instead, as for `train`.
        split: Which split.
        data_dir: Where named datasets are looked for.
        skip_bad: Leave bad rows out.
        trust_code: Import code that the run or the artifact names, though you have not trained with it here.
        seed: Of what the model itself draws, as one that samples does.
        on_data_progress: Called with (description, done, total) while data are packed.

    Returns:
        The record that `evaluation.json` holds: metrics, per_class, confusion_matrix, calibration, mistakes.

    Raises:
        ArtifactError: No such run or artifact, or it was altered.
        DataError: The data are missing or do not fit the model.
    """
    check_seed(seed)
    with seeded(seed):
        model = open_model(path, trust_code=trust_code)
    dataset = _dataset(model, source, data, split, data_dir, skip_bad, on_data_progress)
    own = model.data if source is None and data is None else None
    if own is not None and dataset.info.fingerprint != own.fingerprint:
        raise DataError(
            "a model must be evaluated on the data that it was made with",
            received=f"{dataset.info.source}, which has changed since",
            hint="name the data with --source to evaluate on them as they are now",
        )
    if split not in dataset.splits:
        raise UnknownNameError("split", split, dataset.splits)
    info = dataset.info
    require_classes(info.label_names, model.labels)
    labels = torch.from_numpy(np.array(dataset.splits[split].labels))
    with seeded(seed):
        logits = model.logits(dataset.splits[split].inputs)
    evaluation = evaluate_logits(logits, labels, info.label_names)
    if model.run is not None and _has_own_loss(RunFolder(Path(path))):
        evaluation = of_other_loss(evaluation)
    return evaluation_record(evaluation, labels, info, dataset.splits[split].inputs, split=split)


def _has_own_loss(folder: RunFolder) -> bool:
    """Whether a run was trained by another loss than cross-entropy; it is named only, as using it would import it."""
    recipe = read_json(folder.recipe, kind="a run's recipe").get("recipe")
    return isinstance(recipe, Mapping) and recipe.get("loss") is not None


def _dataset(
    model: OpenedModel,
    source: str | None,
    data: Mapping[str, Any] | None,
    split: str,
    data_dir: str | Path | None,
    skip_bad: bool,
    on_progress: Callable[[str, int, int], None] | None,
) -> Data:
    if data is not None:
        return dataset_from_handed_over(data)
    config = _data_config(model, source)
    named = source is not None  # a model's own data are told by their fingerprint, over all splits
    return prepare(
        replace(config, skip_bad=skip_bad or config.skip_bad),
        data_dir=Path(data_dir) if data_dir else None,
        seed=model.data.seed if model.data else 0,
        split=split if named else None,
        labels=model.labels if named else None,
        on_progress=on_progress,
    )


def _data_config(model: OpenedModel, source: str | None) -> DataConfig:
    """The data config to read data for a model with: its own, or one that fits its input."""
    if source is None:
        if model.data is None:
            raise ArtifactError(
                "the data to evaluate on must be named",
                received=f"{'an artifact' if model.run is None else 'a run'} that does not name its own, as those of "
                "torch datasets",
                hint="name them with --source, or hand them over in Python with data=",
            )
        return model.data.config
    changes: dict[str, Any] = {"source": source}
    if model.preprocessing.kind == "image":
        channels, height, width = model.preprocessing.input_shape
        changes |= {"image_size": (height, width), "channels": channels}
    elif model.preprocessing.kind == "text":
        changes |= {"max_text_bytes": model.preprocessing.input_shape[0]}
    elif model.preprocessing.feature_names:  # by their names: a table may have its columns in another order
        changes |= {"feature_columns": model.preprocessing.feature_names}
    return replace(model.run.recipe.data if model.run else DataConfig(), **changes)


def evaluation_record(
    evaluation: Evaluation,
    labels: torch.Tensor,
    info: DataInfo,
    inputs: np.ndarray[Any, Any] | RowView,
    *,
    split: str = "test",
) -> dict[str, Any]:
    """The content of `evaluation.json`, with the most confident mistakes as pictures."""
    wrong = (evaluation.predictions != labels).nonzero().flatten()
    order = evaluation.confidences[wrong].argsort(descending=True, stable=True)[:MAX_MISTAKES]
    mistakes = [
        {
            "row": row,
            "label": info.label_names[int(labels[row])],
            "predicted": info.label_names[int(evaluation.predictions[row])],
            "probability": float(evaluation.confidences[row]),
            "png": _png(inputs[row]),
        }
        for row in wrong[order].tolist()
    ]
    return {
        "version": EVALUATION_VERSION,
        "split": split,
        "num_samples": len(labels),
        "metrics": evaluation.metrics,
        "labels": list(info.label_names),
        "confusion_matrix": evaluation.confusion_matrix,
        "per_class": evaluation.per_class,
        "calibration": evaluation.calibration,
        "mistakes": mistakes,
    }


def _png(stored: np.ndarray[Any, Any]) -> str | None:
    """A uint8 image (C, H, W) as base64 PNG; None for anything else."""
    if stored.dtype != np.uint8 or stored.ndim != 3:
        return None
    from PIL import Image

    picture = stored[0] if stored.shape[0] == 1 else stored.transpose(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
