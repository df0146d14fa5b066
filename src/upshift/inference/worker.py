"""The child's side of the search: build, load, run and time one candidate."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from upshift.core.isolation import Handler
from upshift.errors import BackendError
from upshift.inference.artifact import Artifact, open_artifact
from upshift.inference.backend import Array, BackendInfo, BuildContext, register
from upshift.inference.manifest import Manifest, read_manifest
from upshift.inference.preprocess import Preprocessing
from upshift.inference.structure import flatten
from upshift.models.spec import ModelSpec

# Every dynamic batch is proven with one sample, with a few, and with many.
_BATCH_SIZES = (1, 3)
MAX_BATCH = 64


def create() -> Handler:
    """The handler of requests, with the state of one candidate."""
    return _Candidate().handle


class _Candidate:
    """One candidate in its process."""

    def __init__(self) -> None:
        self._run: Callable[[torch.Tensor], list[Array]] | None = None
        self._call: Callable[[torch.Tensor], Any] | None = None
        self._preprocessing: Preprocessing | None = None
        self._sample: torch.Tensor | None = None
        self._num_threads: int | None = None

    def handle(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer one request."""
        operation: Callable[[Mapping[str, Any]], Mapping[str, Any]] = getattr(self, f"_do_{message['do']}")
        return operation(message)

    def _do_start(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        self._num_threads = int(message["num_threads"])
        torch.set_num_threads(self._num_threads)
        torch.manual_seed(message["seed"])
        self._preprocessing = Preprocessing.from_json(message["preprocessing"])
        info = message["backend"]
        self._info = register(BackendInfo(**{**info, "packages": tuple(info["packages"])}))
        self._sample = self._model_input(Path(message["sample"]), 0, message["batch_size"])
        return {}

    def _do_build(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        calibration, folder = Path(message["calibration"]), Path(message["folder"])
        context = BuildContext(
            folder=folder,
            shared=Path(message["shared"]),
            spec=ModelSpec.from_json(message["spec"]),
            weights=Path(message["weights"]),
            sample=_two_of(self._model_input(calibration, 0, 2)),
            calibration=self._model_input(calibration, 0, None),
            batch_size=message["batch_size"],
            seed=message["seed"],
        )
        start = time.perf_counter()
        options = dict(self._info.create().build(context))
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in folder.iterdir())
        return {"options": options, "build_seconds": seconds, "size_bytes": size}

    def _do_reference(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Load the model as the user has it, and tell what it returns."""
        start = time.perf_counter()
        model = ModelSpec.from_json(message["spec"]).build(Path(message["weights"]))
        seconds = time.perf_counter() - start

        def call(inputs: torch.Tensor) -> Any:
            with torch.inference_mode():
                return model(inputs)

        def run(inputs: torch.Tensor) -> list[Array]:
            return [leaf.numpy() for leaf in flatten(call(inputs))[0]]

        self._run, self._call = run, call
        first_call_ms = self._first_call()
        assert self._sample is not None
        leaves, tree = flatten(call(_two_of(self._sample)))
        return {
            "load_seconds": seconds,
            "first_call_ms": first_call_ms,
            "tree": tree,
            "dtypes": [str(leaf.dtype).removeprefix("torch.") for leaf in leaves],
            "shapes": [list(leaf.shape) for leaf in leaves],
        }

    def _do_open(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Load data files that were just built."""
        manifest = Manifest.from_json(message["manifest"])
        return self._opened(lambda: self._open(manifest, Path(message["folder"])))

    def _do_load(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Load a saved artifact, hashes and all, as its user would."""
        path = Path(message["path"])
        return self._opened(lambda: self._open(read_manifest(path), path))

    def _open(self, manifest: Manifest, folder: Path) -> Artifact:
        """Open data files for the threads that all candidates have; a manifest names none unless the user did."""
        return open_artifact(replace(manifest, num_threads=self._num_threads), folder, trust_code=True)

    def _opened(self, open_: Callable[[], Artifact]) -> Mapping[str, Any]:
        start = time.perf_counter()
        artifact = open_()
        seconds = time.perf_counter() - start
        self._call = artifact
        self._run = lambda inputs: artifact.run_flat(inputs.numpy())
        return {"load_seconds": seconds, "first_call_ms": self._first_call()}

    def _do_run(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the output leaves of stored samples [start, stop) to files."""
        if self._run is None:
            raise BackendError("the candidate is not loaded")
        collected: list[list[Array]] = []
        start, stop = message["start"], message["stop"]
        sizes = list(_BATCH_SIZES) if start == 0 else []
        while start < stop:
            size = min(stop - start, sizes.pop(0) if sizes else MAX_BATCH)
            outputs = self._run(self._model_input(Path(message["input"]), start, start + size))
            wanted = outputs if message["leaf"] is None else [outputs[message["leaf"]]]
            collected.append([np.asarray(leaf) for leaf in wanted])
            start += size
        paths = []
        for index, pieces in enumerate(zip(*collected, strict=True)):
            path = Path(message["folder"]) / f"{message['name']}-{message['start']}-{index}.npy"
            np.save(path, _joined(pieces), allow_pickle=False)
            paths.append(str(path))
        return {"paths": paths}

    def _do_time(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._call is None or self._sample is None:
            raise BackendError("the candidate is not loaded")
        call, sample, clock = self._call, self._sample, time.perf_counter
        seconds = []
        for _ in range(message["calls"]):
            start = clock()
            call(sample)
            seconds.append(clock() - start)
        return {"seconds": seconds}

    def _first_call(self) -> float:
        assert self._call is not None and self._sample is not None
        start = time.perf_counter()
        self._call(self._sample)
        return (time.perf_counter() - start) * 1e3

    def _model_input(self, path: Path, start: int, stop: int | None) -> torch.Tensor:
        """Samples of an `.npy` file, as the model takes them."""
        assert self._preprocessing is not None
        stored = np.array(np.load(path, mmap_mode="r", allow_pickle=False)[start:stop])
        return self._preprocessing.apply(stored).contiguous()


def _two_of(samples: torch.Tensor) -> torch.Tensor:
    """Two samples: with one, tracing would take the batch for a constant."""
    return torch.cat([samples, samples])[:2]


def _joined(pieces: tuple[Array, ...]) -> Array:
    """Leaves of several batches as one; a leaf without a batch dimension is kept once a batch."""
    return np.stack(pieces) if pieces[0].ndim == 0 else np.concatenate(pieces)
