"""The manifest of an artifact: what it takes and returns, how it was proven, and a hash of each file."""

from __future__ import annotations

import importlib.metadata
import math
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upshift.core.files import read_json, sha256_file, write_json
from upshift.errors import ArtifactError
from upshift.inference.preprocess import Preprocessing
from upshift.inference.structure import Tree, builder, leaf_paths

FORMAT = 1
NAME = "manifest.json"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_MAX_SAMPLE_ELEMENTS = 2**31
_AGAIN = "make the artifact again with `upshift optimize`"


@dataclass(frozen=True, kw_only=True)
class OutputSignature:
    """What a model returns.

    Attributes:
        tree: How the leaves stand together (see `structure`).
        dtypes: Of each leaf.
        shapes: Of each leaf for one sample; None where the first dimension is not the batch.
        logits: Index of the leaf with class scores (N, num_classes); None if there is none.
    """

    tree: Tree
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    logits: int | None

    def to_json(self) -> dict[str, Any]:
        shapes = [None if shape is None else [None, *shape] for shape in self.shapes]
        leaves = zip(leaf_paths(self.tree), self.dtypes, shapes, strict=True)
        return {
            "tree": self.tree,
            "leaves": [{"path": path, "dtype": dtype, "shape": shape} for path, dtype, shape in leaves],
            "logits": self.logits,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> OutputSignature:
        shapes = [leaf["shape"] for leaf in value["leaves"]]
        logits = value["logits"]
        signature = OutputSignature(
            tree=value["tree"],
            dtypes=tuple(str(leaf["dtype"]) for leaf in value["leaves"]),
            shapes=tuple(None if shape is None else tuple(int(size) for size in shape[1:]) for shape in shapes),
            logits=None if logits is None else int(logits),
        )
        builder(signature.tree)
        if len(leaf_paths(signature.tree)) != len(shapes) or not (logits is None or 0 <= int(logits) < len(shapes)):
            raise ValueError("the output tree and its leaves do not fit together")
        return signature


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An artifact's facts.

    Attributes:
        backend: Name of the backend that runs it.
        options: What the backend needs to load it.
        preprocessing: From stored samples to the model's input, and the input's shape.
        output: What the model returns.
        labels: Class names; empty if the model has none.
        num_threads: Cores it was measured with when the user fixed them; None is all of the machine.
        environment: Where it was made and measured.
        evidence: The `optimize` object: every candidate, verdict and reason.
        data: Which data the model was trained and judged on, as whoever made the artifact names data; empty where
            nothing can name them.
        files: SHA-256 and size in bytes of each data file.
    """

    backend: str
    options: Mapping[str, Any]
    preprocessing: Preprocessing
    output: OutputSignature
    labels: tuple[str, ...] = ()
    num_threads: int | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The content of `manifest.json`; null stands for the batch in shapes."""
        inputs = {"shape": [None, *self.preprocessing.input_shape], "dtype": self.preprocessing.model_dtype}
        return {
            "format": FORMAT,
            "upshift": _version(),
            "backend": self.backend,
            "options": dict(self.options),
            "input": inputs,
            "output": self.output.to_json(),
            "preprocessing": self.preprocessing.to_json(),
            "labels": list(self.labels),
            "num_threads": self.num_threads,
            "environment": dict(self.environment),
            "evidence": dict(self.evidence),
            "data": dict(self.data),
            "files": {name: dict(facts) for name, facts in self.files.items()},
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Manifest:
        """Check and read a manifest.

        Raises:
            ArtifactError: It is of a newer format, or not a manifest.
        """
        version = value.get("format")
        if not isinstance(version, int) or version < 1 or version > FORMAT:
            raise ArtifactError(
                f"an artifact's manifest must be of format {FORMAT} or older",
                received=f"format {version!r}",
                hint="update upshift with `pip install -U upshift`" if isinstance(version, int) else _AGAIN,
            )
        try:
            preprocessing = Preprocessing.from_json(value["preprocessing"])
            sizes = preprocessing.input_shape
            if any(size < 1 for size in sizes) or math.prod(sizes) > _MAX_SAMPLE_ELEMENTS:
                raise ValueError(f"input shape {sizes}")
            threads = value["num_threads"]
            return Manifest(
                backend=str(value["backend"]),
                options=dict(value["options"]),
                preprocessing=preprocessing,
                output=OutputSignature.from_json(value["output"]),
                labels=tuple(str(label) for label in value["labels"]),
                num_threads=None if threads is None else max(1, min(4096, int(threads))),
                environment=dict(value["environment"]),
                evidence=dict(value["evidence"]),
                data=dict(value.get("data", {})),
                files={str(name): dict(facts) for name, facts in value["files"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                "an artifact's manifest must hold all of its fields",
                received=f"{type(error).__name__}: {error}",
                hint=_AGAIN,
            ) from error


def file_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of each data file of a folder."""
    paths = sorted(path for path in folder.iterdir() if path.name != NAME)
    return {path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for path in paths}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into an artifact's folder."""
    write_json(folder / NAME, manifest.to_json())


def read_manifest(folder: Path) -> Manifest:
    """Read an artifact's manifest and check every file against it.

    Raises:
        ArtifactError: No manifest, a newer format, a file that is missing, changed, not listed, or a link.
    """
    if not (folder / NAME).is_file():
        raise ArtifactError(
            "an artifact must be a folder with a manifest.json",
            received=folder,
            hint="name the folder that `upshift optimize` wrote",
        )
    manifest = Manifest.from_json(read_json(folder / NAME, kind="an artifact's manifest"))
    for name in manifest.files:
        if not _FILE_NAME.fullmatch(name) or name == NAME:
            raise _altered(f"the manifest lists {name!r}, which is not a plain file name")
    present = {entry.name for entry in folder.iterdir()} - {NAME}
    if extra := sorted(present - set(manifest.files)):
        raise _altered(f"{extra[0]!r} is not listed in the manifest")
    for name, facts in manifest.files.items():
        _check_file(folder / name, facts)
    return manifest


def _check_file(path: Path, facts: Mapping[str, Any]) -> None:
    try:
        status = path.lstat()
    except OSError:
        raise _altered(f"{path.name} is missing") from None
    if not stat.S_ISREG(status.st_mode):
        raise _altered(f"{path.name} is not a regular file")
    if status.st_size != facts.get("bytes"):
        raise _altered(f"{path.name} has {status.st_size} bytes, not {facts.get('bytes')}")
    if sha256_file(path) != facts.get("sha256"):
        raise _altered(f"the content of {path.name} has changed (SHA-256)")


def _altered(what: str) -> ArtifactError:
    return ArtifactError("an artifact must be as it was made, file by file", received=what, hint=_AGAIN)


def _version() -> str:
    try:
        return importlib.metadata.version("upshift")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
