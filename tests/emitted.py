"""What the tests of `plan emit` share: small data, a recipe's file, and emitted code run in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from upshift.core.records import RunFolder

# Anything of upshift that emitted code imports fails, as it would where upshift is not installed.
WITHOUT_UPSHIFT = """
import runpy, sys, warnings
warnings.simplefilter("error", ResourceWarning)
sys.modules["upshift"] = None
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
runpy.run_path(sys.argv[1], run_name="__main__")
assert not [name for name in sys.modules if name.startswith("upshift.")]
"""

# A model with a block that repeats, small enough to be compiled in seconds.
RESIDUAL_RECIPE = """
import torch
from torch import nn
from upshift import DataConfig, OptimizerConfig, Recipe


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.first = nn.BatchNorm1d(width), nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, inputs):
        return inputs + self.second(torch.tanh(self.first(self.norm(inputs))))


class Residual(nn.Sequential):
    def __init__(self, input_shape, num_classes, width=16):
        channels, height, _ = input_shape
        ends = nn.Flatten(), nn.Linear(channels * height * height, width), nn.Linear(width, num_classes)
        super().__init__(*ends[:2], Block(width), Block(width), ends[2])


RECIPE = Recipe(
    name="residual", model=Residual, data=DataConfig(source={source!r}), batch_size=32, epochs=1, log_every=1,
    optimizer=OptimizerConfig(lr=0.1),
)
"""


def residual_recipe(folder: Path) -> Path:
    """A recipe's file, with data of four steps of which the last is short."""
    file = folder / "residual.py"
    file.write_text(RESIDUAL_RECIPE.format(source=str(images(folder / "images.npz", num_train=100))))
    return file


def images(path: Path, *, num_train: int = 150, num_validation: int = 0, channels: int = 3, side: int = 12) -> Path:
    """An `.npz` of learnable random images of four classes."""
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 256, (4, channels, side, side))
    arrays = {}
    for split, count in (("train", num_train), ("validation", num_validation), ("test", 60)):
        if count:
            labels = generator.integers(0, 4, count)
            noise = generator.integers(-60, 61, (count, channels, side, side))
            arrays[f"x_{split}"] = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8)
            arrays[f"y_{split}"] = labels
    np.savez(path, **arrays)
    return path


def run_emitted(path: Path, *, code: str = WITHOUT_UPSHIFT) -> list[dict[str, Any]]:
    """Run an emitted file in a process of its own; the JSON lines that it prints."""
    finished = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=path.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return [json.loads(line) for line in finished.stdout.splitlines() if line.startswith('{"')]


def assert_same_weights(ours: Path, run: Path, *, atol: float = 1e-6) -> None:
    """Weights that emitted code saved are those of a run folder."""
    mine, theirs = load_file(ours), load_file(RunFolder(run).model)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=atol)


def ruff(path: Path, *arguments: str) -> str:
    """What ruff says of a file, by the project's rules and no configuration file."""
    command = [sys.executable, "-m", "ruff", *arguments, "--isolated", "--line-length", "120", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def assert_clean(path: Path) -> None:
    """An emitted file has nothing that ruff would change."""
    rules = "E,F,I,B,UP,SIM,RUF"
    report = ruff(path, "check", "--output-format", "concise", "--select", rules, "--ignore", "RUF001,RUF002,RUF003")
    assert report == "All checks passed!\n", report
    difference = ruff(path, "format", "--diff")
    assert difference == "", difference
