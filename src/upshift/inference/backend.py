"""What an inference backend is, and which there are."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from upshift.errors import UnknownNameError
from upshift.models.spec import ModelSpec

Array = NDArray[Any]
Runner = Callable[[Array], list[Array]]
"""Computes the flat outputs of a batch: C-contiguous input (N, …) in, arrays that the caller owns out."""


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """What a backend builds from.

    Attributes:
        folder: Empty folder for the artifact's data files.
        shared: Folder that the candidates of one search share (an exported ONNX file lies there).
        spec: How the model is made.
        weights: Its safetensors file.
        sample: Model inputs (2, …) for tracing.
        calibration: Model inputs (n, …) for calibration; not used for any check.
        batch_size: What the artifact is timed with; it must serve any other as well.
        seed: Of whatever is drawn.
    """

    folder: Path
    shared: Path
    spec: ModelSpec
    weights: Path
    sample: torch.Tensor
    calibration: torch.Tensor
    batch_size: int
    seed: int

    def model(self) -> nn.Module:
        """The model in evaluation mode, fresh."""
        return self.spec.build(self.weights)


@dataclass(frozen=True, kw_only=True)
class LoadContext:
    """What a backend loads from.

    Attributes:
        folder: The artifact's data files.
        options: What `build` returned.
        input_shape: Of one sample.
        input_dtype: "float32" or "int64".
        num_threads: Cores to use; None leaves it to the library.
        trust_code: The user vouches for the code that the artifact names.
        code_file: The user's own copy of the Python file that the artifact names.
    """

    folder: Path
    options: Mapping[str, Any]
    input_shape: tuple[int, ...]
    input_dtype: str
    num_threads: int | None = None
    trust_code: bool = False
    code_file: Path | None = None

    def zeros(self, batch_size: int) -> Array:
        """A batch of zeros of the right shape and dtype."""
        return np.zeros((batch_size, *self.input_shape), dtype=self.input_dtype)


class Backend(Protocol):
    """A way to run a model."""

    def build(self, context: BuildContext) -> Mapping[str, Any]:
        """Write data files into `context.folder` and return options for `load` (JSON).

        Raises:
            BackendError: The model cannot be expressed; the message says what failed.
        """

    def load(self, context: LoadContext) -> Runner:
        """A runner from the data files."""


@dataclass(frozen=True, kw_only=True)
class BackendInfo:
    """The facts about a backend.

    Attributes:
        name: As in `--candidates` and the manifest.
        tier: "A": the same mathematics within float round-off; "B": changed numerics.
        description: One line.
        implementation: "package.module:Class", imported in the process that uses it.
        packages: Importable packages that it needs.
        cost: Of building and loading it, roughly, as a multiple of a plain export; the cheap are tried first.
        extra: Tells why the machine cannot run it although the packages are there; None if it can.
    """

    name: str
    tier: Literal["A", "B"]
    description: str
    implementation: str
    packages: tuple[str, ...] = ()
    cost: float = 1.0
    extra: Callable[[], str | None] = field(default=lambda: None)

    def usable(self) -> str | None:
        """Why this backend cannot be used here; None if it can."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                return f"the package {package} is not installed (pip install {package})"
        return self.extra()

    def create(self) -> Backend:
        """The backend itself."""
        module, _, attribute = self.implementation.partition(":")
        backend: Backend = getattr(importlib.import_module(module), attribute)()
        return backend


_REGISTRY: dict[str, BackendInfo] = {}


def register(info: BackendInfo) -> BackendInfo:
    """Make a backend known; the order is from the simplest to the most intricate."""
    _REGISTRY[info.name] = info
    return info


def backends() -> dict[str, BackendInfo]:
    """All backends by name, the simplest first."""
    return dict(_REGISTRY)


def backend_info(name: str) -> BackendInfo:
    """The facts of one backend.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in _REGISTRY:
        raise UnknownNameError("an inference backend", name, _REGISTRY)
    return _REGISTRY[name]


def _needs_compiler() -> str | None:
    import shutil

    if any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
        return None
    return "torch.compile needs a C++ compiler (install g++ or clang)"


_HERE = "upshift.inference.backends"
register(
    BackendInfo(
        name="eager",
        tier="A",
        description="PyTorch as it is",
        implementation=f"{_HERE}.eager:Eager",
    )
)
register(
    BackendInfo(
        name="compile",
        tier="A",
        description="torch.compile (Inductor) with frozen weights; compiles when it is loaded",
        implementation=f"{_HERE}.inductor:Inductor",
        cost=20.0,
        extra=_needs_compiler,
    )
)
register(
    BackendInfo(
        name="onnxruntime",
        tier="A",
        description="ONNX Runtime in float32",
        implementation=f"{_HERE}.onnx_runtime:OnnxRuntime",
        packages=("onnx", "onnxscript", "onnxruntime"),
    )
)
register(
    BackendInfo(
        name="openvino",
        tier="A",
        description="OpenVINO in float32",
        implementation=f"{_HERE}.openvino_float:OpenVino",
        packages=("onnx", "onnxscript", "openvino"),
    )
)
register(
    BackendInfo(
        name="openvino-int8",
        tier="B",
        description="OpenVINO in int8, post-training quantization by NNCF",
        implementation=f"{_HERE}.openvino_int8:OpenVinoInt8",
        cost=2.0,
        packages=("onnx", "onnxscript", "openvino", "nncf"),
    )
)
