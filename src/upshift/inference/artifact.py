"""A saved model as a callable: `upshift.load(path)(inputs)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from upshift.core.arguments import checked_arguments
from upshift.errors import ArtifactError, BackendError, BadInputError
from upshift.inference.backend import Array, LoadContext, Runner, backend_info
from upshift.inference.inputs import refusal
from upshift.inference.manifest import Manifest, read_manifest
from upshift.inference.preprocess import Preprocessing, writable
from upshift.inference.structure import builder


class Artifact:
    """A model that is called as the PyTorch model was.

    It may be called from several threads.

    Attributes:
        manifest: Signature, preprocessing, labels, environment and evidence.
    """

    def __init__(self, manifest: Manifest, runner: Runner) -> None:
        self.manifest = manifest
        self._runner = runner
        self._rebuild = builder(manifest.output.tree)
        self._preprocessing = manifest.preprocessing
        self._shape, self._dtype = manifest.preprocessing.input_shape, np.dtype(manifest.preprocessing.model_dtype)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the scores."""
        return self.manifest.labels

    @property
    def preprocessing(self) -> Preprocessing:
        """From stored samples to the model's input."""
        return self._preprocessing

    @property
    def backend(self) -> str:
        """Name of the backend that runs the model."""
        return self.manifest.backend

    def __call__(self, inputs: Array | torch.Tensor) -> Any:
        """What the model returns for a batch of any size.

        Args:
            inputs: What the model took: float32 (N, …) already normalised, or int64 bytes (N, L) for text;
                as an array or a tensor. uint8 is taken for stored data, to which the preprocessing is
                applied: images (N, C, H, W), or (N, H, W, C) where that can be nothing else, and text.

        Returns:
            The structure that the model returned (tensor, tuple, dict, …), with arrays if an array was
            given and tensors on the same device if a tensor was given.

        Raises:
            BadInputError: Another shape or dtype.
        """
        if not isinstance(inputs, torch.Tensor):
            try:
                array = np.asarray(inputs)
            except (ValueError, TypeError):
                raise refusal(self._preprocessing, inputs) from None
            return self._rebuild(self.run_flat(self._model_input(array, inputs)))
        device = inputs.device
        try:
            array = inputs.detach().cpu().numpy()
        except (TypeError, RuntimeError):  # no values to be had, or of a type that NumPy lacks
            raise refusal(self._preprocessing, inputs) from None
        leaves = self.run_flat(self._model_input(array, inputs))
        tensors = [torch.from_numpy(leaf) for leaf in leaves]
        return self._rebuild(tensors if device.type == "cpu" else [tensor.to(device) for tensor in tensors])

    def predict_stored(self, stored: Array, batch_size: int = 64) -> Array:
        """Class scores of stored samples, computed batch by batch.

        Args:
            stored: (N, *input_shape) as in the packed store: uint8 images or text, float32 features.
            batch_size: Samples a call.

        Returns:
            float32 logits (N, num_classes).

        Raises:
            BadInputError: Another shape or dtype, or a model whose output has no class scores.
        """
        index = self.manifest.output.logits
        if index is None:
            raise BadInputError(
                "predictions need a model that returns one score a class",
                received=f"outputs of shape {self.manifest.output.to_json()['leaves']}",
                hint="call the artifact itself to get what the model returns",
            )
        if len(stored) == 0:
            return np.zeros((0, max(len(self.labels), 1)), dtype=np.float32)
        batches = (stored[start : start + batch_size] for start in range(0, len(stored), batch_size))
        return np.concatenate([self.run_flat(self.preprocessing.apply(b).numpy())[index] for b in batches])

    def run_flat(self, inputs: Array) -> list[Array]:
        """The flat leaves of the output for model inputs that were checked."""
        try:
            return self._runner(inputs)
        except (RuntimeError, ValueError, TypeError) as error:
            raise BackendError(f"{self.backend} failed: {str(error)[:300]}") from error

    def _model_input(self, array: Array, given: object) -> Array:
        preprocessing, shape = self._preprocessing, self._shape
        if array.dtype == self._dtype and array.shape[1:] == shape and array.shape[0] > 0:
            return writable(np.ascontiguousarray(array))
        if array.dtype == np.uint8 and preprocessing.kind != "tabular":
            if array.shape[1:] != shape and preprocessing.kind == "image" and len(shape) == 3:
                height_width_channels = (*shape[1:], shape[0])
                if array.shape[1:] == height_width_channels:
                    array = array.transpose(0, 3, 1, 2)
            if array.shape[1:] == shape and array.shape[0] > 0:
                return preprocessing.apply(array).numpy()
        raise refusal(preprocessing, given)


@checked_arguments({"path": 'path="runs/latest/artifact"'})
def load(path: str | Path, *, trust_code: bool = False, code_file: str | Path | None = None) -> Artifact:
    """Load an artifact after checking each of its files against the manifest.

    Args:
        path: The artifact's folder.
        trust_code: You vouch for the Python code that the artifact names. Only artifacts that run the
            model in PyTorch (backends "eager" and "compile") and whose model is not one of upshift's
            own name any.
        code_file: Your copy of the Python file that the artifact names; its hash must be the recorded one.

    Raises:
        ArtifactError: The artifact is not whole, was altered, is of a newer format, or names code that
            was not vouched for.
        BackendError: The backend is not usable here, or cannot load the model.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    return open_artifact(manifest, folder, trust_code=trust_code, code_file=code_file)


def open_artifact(
    manifest: Manifest, folder: Path, *, trust_code: bool = False, code_file: str | Path | None = None
) -> Artifact:
    """An artifact from its manifest and data files, without checking the files."""
    info = backend_info(manifest.backend)
    if reason := info.usable():
        raise BackendError(f"the artifact runs on {info.name}, which cannot be used here: {reason}")
    context = LoadContext(
        folder=folder,
        options=manifest.options,
        input_shape=manifest.preprocessing.input_shape,
        input_dtype=manifest.preprocessing.model_dtype,
        num_threads=manifest.num_threads,
        trust_code=trust_code or code_file is not None,
        code_file=None if code_file is None else Path(code_file).resolve(),
    )
    try:
        return Artifact(manifest, info.create().load(context))
    except (OSError, KeyError, TypeError) as error:
        raise ArtifactError(
            "an artifact's data files must be what its backend writes",
            received=f"{type(error).__name__}: {error}",
            hint="make the artifact again with `upshift optimize`",
        ) from error
