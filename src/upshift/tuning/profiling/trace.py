"""A trace of a few steps for Perfetto or chrome://tracing."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from upshift.core.files import storage_errors
from upshift.tuning.profiling.events import record
from upshift.tuning.profiling.rehearsal import Batch, Rehearsal


def write_trace(rehearsal: Rehearsal, batches: Iterator[Batch], path: Path, *, num_steps: int) -> None:
    """Make steps and write what ran when, Python functions included, as gzipped JSON; the file is whole or absent.

    Args:
        rehearsal: Makes the steps.
        batches: Its batches.
        path: Ends with .json.gz.
        num_steps: How many.

    Raises:
        StorageError: It cannot be written.
    """
    recorded = record(rehearsal, batches, num_steps=num_steps, with_stack=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.tmp.json.gz")
    with storage_errors(path):
        try:
            recorded.export_chrome_trace(str(temporary))
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
