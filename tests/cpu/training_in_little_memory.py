"""A training under a limit of memory that its batch does not fit in: a process of `test_tuning_out_of_memory.py`.

    python training_in_little_memory.py FOLDER MIB

Without a limit (MIB of 0) everything fits. It prints one JSON object.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from live_trainings import CLASSES, Batches, train, tuned
from torch import nn

import simulated_clock
from upshift.tuning.config import TunerConfig

BATCH_SIZE, SHAPE, WIDTH, COPIES = 64, (4, 6, 6), 64, 256
MIB = 2**20


class Block(nn.Module):
    """Keeps two activations of 4 MiB each, of a whole batch, for its backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.scales = nn.Parameter(torch.linspace(0.5, 1.5, COPIES).reshape(1, COPIES, 1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        many = torch.tanh(torch.sigmoid(self.linear(features).unsqueeze(1) * self.scales))
        return features + many.mean(1)


class Deep(nn.Module):
    """Blocks that repeat; each forward pass takes as long, whatever its batch."""

    def __init__(self, num_blocks: int = 8) -> None:
        super().__init__()
        self.stem = nn.Linear(math.prod(SHAPE), WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(num_blocks)))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.sizes.append(len(images))
        simulated_clock.spend(0.01)
        return self.head(self.blocks(self.stem(images.flatten(1))))


def main(folder: Path, limit_bytes: int) -> dict[str, Any]:
    """Train, within so much more memory than the process has already, if that is not 0."""
    simulated_clock.install()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Deep()
    batches = Batches(20, BATCH_SIZE)
    # What only a first step needs, such as the libraries that it loads, is there before memory becomes short.
    train(folder / "first", Deep(1), loader=Batches(2, 4), epochs=1)
    if not limit_bytes:
        return {"losses": train(folder / "plain", model, loader=batches, epochs=6).losses}
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + limit_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    found = tuned(folder / "tuned", model, loader=batches, tuner_config=TunerConfig(allowance_share=10.0), epochs=6)
    trials = [trial.to_json() for trial in found.trials.values()]
    return {
        "losses": found.losses,
        "notes": found.notes,
        "trials": trials,
        "plan": found.plan.to_json(),
        "sizes": model.sizes,
        "micro_batch_size": found.trainer.step.micro_batch_size,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]) * MIB)))
