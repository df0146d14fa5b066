"""The parent's side of one candidate: its process, and what it is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upshift.core.isolation import ChildProcess
from upshift.inference.backend import Array, BackendInfo
from upshift.inference.config import SearchConfig
from upshift.inference.manifest import Manifest
from upshift.inference.preprocess import Preprocessing
from upshift.models.spec import ModelSpec

_ROWS_A_REQUEST = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What all candidates of a search have in common.

    Attributes:
        num_threads: Of every candidate alike: libraries differ in which settings and cores they go by.
    """

    spec: ModelSpec
    weights: Path
    preprocessing: Preprocessing
    config: SearchConfig
    memory_limit_bytes: int
    num_threads: int
    scratch: Path

    def samples_file(self, name: str) -> Path:
        """The `.npy` file of "calibration", "selection", "test", or "timed" (one batch)."""
        return self.scratch / f"{name}.npy"


class Candidate:
    """A backend in a process of its own.

    Every method raises `ChildFailure` when the candidate cannot do what it is asked.
    """

    def __init__(self, info: BackendInfo, task: Task, *, attempt: str = "search") -> None:
        self.info, self._task = info, task
        self.folder = task.scratch / info.name / attempt
        self.data = self.folder / "data"
        self.data.mkdir(parents=True)
        (self.folder / "outputs").mkdir()
        self._process = ChildProcess(
            "upshift.inference.worker:create",
            folder=self.folder,
            memory_limit_bytes=task.memory_limit_bytes,
            environment=self._environment(),
        )

    def _environment(self) -> dict[str, str]:
        return {
            # What Inductor caches stays in the scratch folder, and so does all that libraries put in /tmp.
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "TMPDIR": str(self.folder),
            "OMP_NUM_THREADS": str(self._task.num_threads),
        }

    def start(self) -> None:
        """Import what is needed and read the batch to be timed."""
        config = self._task.config
        facts = {name: getattr(self.info, name) for name in ("name", "tier", "description", "implementation")}
        self._ask(
            "start",
            backend={**facts, "packages": self.info.packages},
            preprocessing=self._task.preprocessing.to_json(),
            sample=str(self._task.samples_file("timed")),
            batch_size=config.batch_size,
            num_threads=self._task.num_threads,
            seed=config.seed,
        )

    def build(self) -> dict[str, Any]:
        """Write the data files: {"options", "build_seconds", "size_bytes"}."""
        shared = self._task.scratch / "shared"
        shared.mkdir(exist_ok=True)
        return self._ask(
            "build",
            folder=str(self.data),
            shared=str(shared),
            spec=self._task.spec.to_json(),
            weights=str(self._task.weights),
            calibration=str(self._task.samples_file("calibration")),
            batch_size=self._task.config.batch_size,
            seed=self._task.config.seed,
        )

    def reference(self) -> dict[str, Any]:
        """Load the model in PyTorch: {"tree", "dtypes", "shapes" (of two samples), "load_seconds", "first_call_ms"}."""
        return self._ask("reference", spec=self._task.spec.to_json(), weights=str(self._task.weights))

    def open(self, manifest: Manifest) -> dict[str, Any]:
        """Load the data files: {"load_seconds", "first_call_ms"}."""
        return self._ask("open", manifest=manifest.to_json(), folder=str(self.data))

    def load(self, path: Path) -> dict[str, Any]:
        """Load a saved artifact, hashes and all: {"load_seconds", "first_call_ms"}."""
        return self._ask("load", path=str(path))

    def run(self, samples: str, num_samples: int, *, leaf: int | None = None) -> list[Array]:
        """The output leaves (or only one of them) for the first samples of a part."""
        parts: list[list[Array]] = []
        for start in range(0, num_samples, _ROWS_A_REQUEST):
            answer = self._ask(
                "run",
                input=str(self._task.samples_file(samples)),
                start=start,
                stop=min(num_samples, start + _ROWS_A_REQUEST),
                leaf=leaf,
                folder=str(self.folder / "outputs"),
                name=samples,
            )
            parts.append([np.load(path, allow_pickle=False) for path in answer["paths"]])
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]

    def time(self, calls: int) -> Sequence[float]:
        """Seconds of each of so many calls."""
        seconds: list[float] = self._ask("time", calls=calls)["seconds"]
        return seconds

    def close(self) -> None:
        """End its process."""
        self._process.close()

    def _ask(self, do: str, **message: Any) -> dict[str, Any]:
        limit = self._task.config.time_limit_seconds
        return self._process.request({"do": do, **message}, time_limit_seconds=limit)
