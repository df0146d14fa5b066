"""TensorBoard's view of a run: scalars while training, the graph and sample images at its start."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from upshift.core.files import storage_errors

SCALARS = {
    "loss": "loss/train",
    "eval_loss": "loss/{split}",
    "accuracy": "accuracy/train",
    "eval_accuracy": "accuracy/{split}",
    "learning_rate": "learning_rate",
    "samples_per_second": "samples_per_second",
}
NUM_IMAGES = 32
SCALARS_SECONDS = 0.5


@contextlib.contextmanager
def _traced_once() -> Iterator[None]:
    """torch compares three runs of a model that it traces, for traces that are to be run: a picture needs none.

    It was two thirds of the seconds that a ResNet-50's graph takes, before its first step.
    """
    trace = torch.jit.trace
    torch.jit.trace = functools.partial(trace, check_trace=False)
    try:
        yield
    finally:
        torch.jit.trace = trace


class TensorBoardObserver:
    """Writes event files into a run's `tensorboard/` folder.

    Scalars are written at most twice a second, and for each evaluation: an event costs a tenth of a millisecond
    of Python, here and again in TensorBoard's own thread. metrics.jsonl has every line.

    Every method raises `StorageError` where the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: Any = None
        self._written_at = -SCALARS_SECONDS

    @property
    def _writer(self) -> Any:
        if self._opened is None:
            self._open()
        return self._opened

    def _open(self, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _let_writers_fail_quietly()
        self._opened = SummaryWriter(str(self._folder), purge_step=purge_step)

    def write_start(self, model: nn.Module, inputs: torch.Tensor, images: torch.Tensor | None) -> None:
        """The model's graph and the first training images.

        Args:
            model: Traced in evaluation mode; a model that cannot be traced leaves the graph out.
            inputs: A few model-ready samples (N, …).
            images: uint8 images (N, C, H, W), or None where the data are no images.
        """
        with storage_errors(self._folder):
            if images is not None:
                self._writer.add_images("samples", images[:NUM_IMAGES])
            self._write_graph(model, inputs[:1])
            self._writer.flush()

    def _write_graph(self, model: nn.Module, inputs: torch.Tensor) -> None:
        was_training = model.training
        model.eval()
        with warnings.catch_warnings(), torch.random.fork_rng():
            # TensorBoard's graph is made by torch.jit.trace, which torch deprecates without a replacement for it.
            warnings.simplefilter("ignore")
            try:
                with _traced_once():
                    self._writer.add_graph(model, inputs)
            except OSError:
                raise
            except Exception as error:  # tracing runs the user's model and raises what it likes; only a picture is lost
                self._writer.add_text("graph", f"the model could not be traced: {error}")
        model.train(was_training)

    def on_start(self, *, steps_per_epoch: int, epochs: int, total_steps: int, step: int) -> None:
        # What a killed run wrote after the checkpoint that is resumed from, or before the first one, is not shown.
        if self._opened is None:
            self._open(purge_step=step + 1)

    def on_progress(self, *, step: int, epoch: int, batch: int) -> None:
        pass

    def on_record(self, record: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._written_at < SCALARS_SECONDS and "eval_split" not in record:
            return
        self._written_at = now
        with storage_errors(self._folder):
            for key, tag in SCALARS.items():
                if record.get(key) is not None:
                    self._writer.add_scalar(tag.format(split=record.get("eval_split")), record[key], record["step"])

    def on_note(self, note: str) -> None:
        with storage_errors(self._folder):
            self._writer.add_text("note", note)

    def on_end(self) -> None:
        with storage_errors(self._folder):
            self._writer.close()


def _let_writers_fail_quietly() -> None:
    """Keep Python from printing a traceback where TensorBoard's thread cannot write: its next call raises the error."""
    before = threading.excepthook
    if getattr(before, "of_upshift", False):
        return

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not (isinstance(failure.exc_value, OSError) and type(failure.thread).__module__.startswith("tensorboard.")):
            before(failure)

    hook.of_upshift = True  # type: ignore[attr-defined]
    threading.excepthook = hook
