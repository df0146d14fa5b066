"""Checkpoints that are whole, hashed, and enough to go on with bitwise the same losses."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from upshift.core.files import atomic_folder, finite, read_json, sha256_file, storage_errors, write_bytes
from upshift.errors import ArtifactError, StorageError

FORMAT_VERSION = 1
TENSORS = "state.safetensors"
STATE = "state.json"
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        step: Optimizer steps done when it was saved.
        tensors: Weights, buffers, optimizer state, average and RNG states by path.
        state: Everything else, as JSON values.
    """

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step}"


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `step-<n>` into a folder: whole or not at all, with hashes of both files.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    path = checkpoint_folder(folder, checkpoint.step)
    with atomic_folder(path) as temporary:
        save_tensors(checkpoint.tensors, temporary / TENSORS)
        state = {
            "version": FORMAT_VERSION,
            "step": checkpoint.step,
            "tensors_sha256": sha256_file(temporary / TENSORS),
            **checkpoint.state,
        }
        state["sha256"] = _state_hash(state)
        write_bytes(temporary / STATE, json.dumps(finite(state), allow_nan=False).encode())
    return path


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write tensors as safetensors, whole or not at all; tensors that share memory are written apart.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with storage_errors(path):
        try:
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)
            save_file(apart, temporary)
            temporary.chmod(mode)  # safetensors keeps its files to their owner, whatever the umask
            os.replace(temporary, path)
        except SafetensorError as error:
            # safetensors reports an operating-system error as text.
            raise StorageError(
                f"writing {path.name} needs a folder with free space that can be written",
                received=error,
                hint="free some space, or name another folder with --out",
            ) from error
        finally:
            temporary.unlink(missing_ok=True)


class _OtherFormatError(ArtifactError):
    """A checkpoint of another version of upshift: nothing is wrong with it."""


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and a warning for each that is not; None where none was saved yet.

    Raises:
        ArtifactError: There are checkpoints, and none is whole; or the newest is of another format.
    """
    warnings: list[str] = []
    for step in reversed(saved_steps(folder)):
        path = checkpoint_folder(folder, step)
        try:
            return load_checkpoint(path), warnings
        except _OtherFormatError:
            raise
        except ArtifactError as error:
            warnings.append(f"checkpoint {path.name} is damaged and was passed over ({error.received})")
    if warnings:
        raise ArtifactError(
            "a run that has saved checkpoints is resumed from one that is whole",
            received=f"{folder}, where each is damaged: {'; '.join(warnings)}",
            hint="start anew, without --resume and with another --out",
        )
    return None, warnings


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and check its hashes.

    Raises:
        ArtifactError: A file is missing, cut short, altered, or of another format.
    """
    state = read_json(path / STATE, kind="a checkpoint's state")
    hint = "the checkpoint before it is used where there is one"
    # Before the hash, which another format may take otherwise.
    version = state.get("version")
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise _OtherFormatError(
            f"a checkpoint must be of format {FORMAT_VERSION}",
            received=f"format {version} in {path}",
            hint="upgrade upshift" if version > FORMAT_VERSION else "resume with the version of upshift that began it",
        )
    claimed = state.pop("sha256", None)
    if claimed != _state_hash(state):
        raise ArtifactError("a checkpoint must be as it was written", received=f"{STATE} was altered", hint=hint)
    tensors_path = path / TENSORS
    if not tensors_path.is_file() or sha256_file(tensors_path) != state["tensors_sha256"]:
        what = "altered" if tensors_path.is_file() else "missing"
        raise ArtifactError("a checkpoint must be as it was written", received=f"{TENSORS} is {what}", hint=hint)
    return Checkpoint(step=state["step"], tensors=load_file(tensors_path), state=state)


def saved_steps(folder: Path) -> list[int]:
    """The steps with a checkpoint in a folder, ascending."""
    if not folder.is_dir():
        return []
    matches = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match.group(1)) for match in matches if match)


def prune(folder: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; each carries the best weights so far."""
    for step in saved_steps(folder)[:-keep]:
        shutil.rmtree(checkpoint_folder(folder, step), ignore_errors=True)


def set_aside_after(folder: Path, step: int) -> None:
    """Rename checkpoints of later steps, which were found damaged: as the newest they would outlive all others."""
    for later in saved_steps(folder):
        if later > step:
            path = checkpoint_folder(folder, later)
            shutil.rmtree(path.with_name(f"damaged-{path.name}"), ignore_errors=True)
            path.rename(path.with_name(f"damaged-{path.name}"))


def _state_hash(state: dict[str, Any]) -> str:
    text = json.dumps(finite(state), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
