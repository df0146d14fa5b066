"""A candidate's data files become an artifact: first a staged one, to be confirmed, then the one that is saved."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from upshift.core.files import atomic_folder
from upshift.errors import ArtifactError
from upshift.inference.manifest import Manifest, file_facts, read_manifest, write_manifest


def stage(data: Path, folder: Path, manifest: Manifest) -> Path:
    """Copy the data files to a new folder, add the manifest with their hashes, and return the folder."""
    shutil.copytree(data, folder)
    write_manifest(folder, replace(manifest, files=file_facts(folder)))
    return folder


def save(staged: Path, out: Path, manifest: Manifest) -> None:
    """Copy a staged artifact to `out`, which is replaced in one step, under a manifest with the search's evidence.

    Raises:
        StorageError: `out` cannot be written, or a disk is full.
        ArtifactError: What arrived is not what was confirmed.
    """
    manifest = replace(manifest, files=file_facts(staged))
    with atomic_folder(out) as folder:
        for file in manifest.files:
            shutil.copyfile(staged / file, folder / file)
        write_manifest(folder, manifest)
    if read_manifest(out).files != read_manifest(staged).files:
        raise ArtifactError("a saved artifact must be the one that was verified", received=out, hint="check the disk")
