"""The peers, as the benchmarks run them, train what the articles' loop trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Every peer makes all steps of an epoch that is one batch, so that no order of samples can tell them apart.
SCRIPT = """
import json, sys
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from loops.accelerate_loop import AccelerateLoop
from loops.articles import ArticlesLoop
from loops.careful import CarefulLoop
from loops.job import Job, make_model
from loops.lightning_trainer import LightningTrainer
from loops.resident import ResidentLoop
from upshift.data.dataset import DataInfo, PackedDataset, Split
from upshift.recipes.overrides import with_overrides
from upshift.recipes.registry import find_recipe

rng = np.random.default_rng(0)
split = Split(rng.integers(0, 256, (64, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, 64))
names = tuple(map(str, range(10)))
info = DataInfo("image", (3, 32, 32), 10, names, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 0, "random", "none")
recipe = with_overrides(find_recipe("cifar10-simplecnn")[0], None, ["epochs=1"])
dataset = PackedDataset({"train": split, "test": split}, info)
weights = {name: tensor.clone() for name, tensor in make_model(recipe, dataset).state_dict().items()}
job = Job(recipe, dataset, torch.device("cpu"), 1, weights)
losses = {}
for make in (ArticlesLoop, ResidentLoop, CarefulLoop, LightningTrainer, AccelerateLoop):
    loop = make(job)
    losses[make.__name__] = [loop().loss, loop().loss]
print(json.dumps(losses))
"""


@pytest.mark.slow
def test_all_loops_compute_the_same_loss_and_start_each_turn_from_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    pytest.importorskip("accelerate")
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(BENCHMARKS)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    losses = json.loads(finished.stdout.splitlines()[-1])
    expected = losses["ArticlesLoop"][0]
    for name, turns in losses.items():
        np.testing.assert_allclose(turns, expected, rtol=1e-5, err_msg=name)


KERAS_SCRIPT = """
import json, sys
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from bench_training_peers import MODELS
from loops.keras_models import keras_model
from upshift.recipes.record import model_spec
from upshift.recipes.registry import find_recipe

class Shape:
    pass

SHAPES = {"mnist": (10, (1, 28, 28)), "cifar10": (10, (3, 32, 32)), "sst2": (2, (256,))}
counts = {}
for name in MODELS:
    recipe, _ = find_recipe(name)
    shape = Shape()
    shape.num_classes, shape.input_shape = SHAPES[recipe.data.source]
    torchs = sum(parameter.numel() for parameter in model_spec(recipe, shape).make().parameters())
    model = keras_model(recipe, shape.input_shape, shape.num_classes)
    inputs = np.zeros((2, *model.input_shape[1:]), np.float32)
    assert tuple(model(inputs).shape) == (2, shape.num_classes)
    counts[name] = [torchs, sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)]
print(json.dumps(counts))
"""


@pytest.mark.slow
def test_models_of_keras_train_as_many_parameters(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    finished = subprocess.run(
        [sys.executable, "-c", KERAS_SCRIPT, str(BENCHMARKS)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "KERAS_BACKEND": "torch", "KERAS_HOME": str(tmp_path)},
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    counts = json.loads(finished.stdout.splitlines()[-1])
    assert len(counts) == 7
    assert all(ours == theirs for ours, theirs in counts.values()), counts
