"""upshift as a user has it: `train --plan auto` for a whole job, and the plan that `tune` finds for steady state."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from loops.job import SEED, Job, Turn
from loops.upshift_trainer import UpshiftTrainer
from upshift.workflows.train import train
from upshift.workflows.tune import tune


class UpshiftJob:
    """Whole jobs by `train`, with the tuner on; turns by the plan that `tune` finds before the first one.

    Args:
        job: What is trained.
        data_dir: Where the recipe's data are.
        tune_seconds: After which `tune` begins no further candidate; None lets it try all.

    Attributes:
        facts: What the tuner did, for the records.
        evaluation_seconds: Of the last training: nobody else evaluates.
    """

    def __init__(self, job: Job, data_dir: Path | None, tune_seconds: float | None) -> None:
        self._job, self._data_dir, self._tune_seconds = job, data_dir, tune_seconds
        self._steady: UpshiftTrainer | None = None
        self.facts: dict[str, Any] = {}
        self.evaluation_seconds = 0.0

    def train(self, num_steps: int) -> Turn:
        """A whole training: data opened, plan found, steps made, records and the model written."""
        job = self._job
        num_epochs = math.ceil(num_steps * job.recipe.batch_size / len(job.dataset.splits["train"]))
        with tempfile.TemporaryDirectory() as folder:
            result = train(
                job.recipe.name,
                overrides=[f"epochs={num_epochs}", f"max_steps={num_steps}", f"evaluate_every={num_epochs}"],
                data_dir=self._data_dir,
                out=Path(folder) / "run",
            ).result
        self.evaluation_seconds = result["evaluation_seconds"]
        self.facts["job"] = {"tuning": result["tuning"], "plan": _told(result["plan"])}
        return Turn(result["train_seconds"], math.nan)

    def __call__(self) -> Turn:
        if self._steady is None:
            found = tune(self._job.recipe.name, data_dir=self._data_dir, seed=SEED, budget_seconds=self._tune_seconds)
            self.facts["tuned"] = {"plan": _told(found.plan.to_json()), "speedup": found.speedup}
            self._steady = UpshiftTrainer(self._job, found.plan)
        return self._steady()


def _told(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan without its environment, which the record has, and with its trials in short."""
    kept = ("name", "verdict", "reason", "seconds")
    trials = [{key: trial[key] for key in kept if key in trial} for trial in plan["trials"]]
    return {key: value for key, value in plan.items() if key != "environment"} | {"trials": trials}
