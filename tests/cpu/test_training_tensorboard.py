"""What TensorBoard shows of a run that was killed and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from upshift.training.tensorboard import TensorBoardObserver


def record(step: int) -> dict[str, Any]:
    return {"step": step, "loss": float(step), "eval_split": "test"}


@pytest.mark.parametrize("checkpoint", [0, 2])
def test_steps_that_a_killed_run_made_after_the_checkpoint_are_not_shown(tmp_path: Path, checkpoint: int) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed = TensorBoardObserver(tmp_path)
    killed.write_start(nn.Linear(2, 2), torch.zeros(1, 2), None)
    killed.on_start(steps_per_epoch=4, epochs=1, total_steps=4, step=0)
    for step in (1, 2, 3):
        killed.on_record(record(step))
    killed.on_end()

    resumed = TensorBoardObserver(tmp_path)
    resumed.on_start(steps_per_epoch=4, epochs=1, total_steps=4, step=checkpoint)
    resumed.on_record(record(checkpoint + 1))
    resumed.on_end()

    shown = EventAccumulator(str(tmp_path))
    shown.Reload()
    assert [event.step for event in shown.Scalars("loss/train")] == list(range(1, checkpoint + 2))
