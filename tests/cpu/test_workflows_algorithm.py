"""Trainings whose batch upshift may change: what is learnt, recorded and taken up again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from layered_recipe import RECIPE, Layered

from simulated_clock import spend
from upshift import BadInputError, train, tune
from upshift.errors import ArtifactError

pytestmark = pytest.mark.usefixtures("simulated_clock")

SHORT = ("epochs=2", "log_every=1")


def test_without_leave_the_batch_is_the_recipes(tmp_path: Path) -> None:
    result = train(RECIPE, overrides=SHORT, out=tmp_path / "run", plan="baseline").result
    assert result["algorithm"] is None and result["steps"] == 2 * math.ceil(1437 / 64)
    assert not (tmp_path / "run" / "algorithm.json").exists()


def test_with_leave_the_batch_grows_to_the_knee_and_the_run_says_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = train(RECIPE, overrides=SHORT, out=out, allow=("algorithm",)).result
    changed = result["algorithm"]
    assert changed["adopted"] and (changed["batch_size"], changed["new_batch_size"]) == (64, 128)
    assert changed["rule"] == "linear" and changed["new_learning_rate"] == pytest.approx(0.004)
    assert changed["rates"]["128"] > 1.5 * changed["rates"]["64"] and changed["num_rounds"] == 12
    ratio, low, high = changed["speedups"]["128"]
    assert 1.5 < low < ratio < high
    assert result["steps"] == 2 * math.ceil(1437 / 128), "the same epochs"
    assert result["plan"]["trials"][0]["name"] == "batch size 128" and result["plan"]["trials"][0]["tier"] == "C"
    recipe = json.loads((out / "recipe.json").read_text())["recipe"]
    assert recipe["batch_size"] == 128 and recipe["optimizer"]["lr"] == pytest.approx(0.004)
    assert recipe["schedule"]["warmup_fraction"] == 0.05

    again = train(RECIPE, overrides=SHORT, out=out, allow=("algorithm",), resume=True).result
    assert again["algorithm"] == changed, "a resumed run does not measure again"
    with pytest.raises(BadInputError, match="batch_size was 128, is 64"):
        train(RECIPE, overrides=SHORT, out=out, resume=True)
    (out / "algorithm.json").write_text('{"batch_size": 64}')
    with pytest.raises(ArtifactError, match="as upshift has written it"):
        train(RECIPE, overrides=SHORT, out=out, allow=("algorithm",), resume=True)


class PerSample(Layered):
    """Takes as long for each sample."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        spend(0.0002 * len(images))
        return self.head(self.dropout(self.stem(images).mean((2, 3))))


def test_a_batch_that_is_no_faster_is_not_taken(tmp_path: Path) -> None:
    recipe = replace(RECIPE, name="per-sample", model=PerSample)
    result = train(recipe, overrides=SHORT, out=tmp_path / "run", plan="baseline", allow=("algorithm",)).result
    assert result["algorithm"]["adopted"] is False and result["algorithm"]["settings"] == []
    assert result["steps"] == 2 * math.ceil(1437 / 64)


class Fragmenting(Layered):
    """Has room for a batch of twice the recipe's a few times, and then no more.

    Args:
        most: Samples that always fit.
        num_times: That larger batches fit.
    """

    def __init__(self, most: int = 64, num_times: int = 20) -> None:
        super().__init__()
        self.most, self.num_times = most, num_times

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training and len(images) > self.most:
            self.num_times -= 1
            if self.num_times < 0:
                raise torch.OutOfMemoryError("no room")
        return super().forward(images)


@pytest.mark.parametrize("num_times", [0, 20])
def test_a_batch_that_runs_out_of_memory_is_out_whenever_that_is(tmp_path: Path, num_times: int) -> None:
    recipe = replace(RECIPE, name="fragmenting", model=Fragmenting, model_args={"num_times": num_times})
    changed = train(recipe, overrides=SHORT, out=tmp_path / "run", plan="baseline", allow=("algorithm",)).result[
        "algorithm"
    ]
    assert changed["adopted"] is False and "128 samples did not fit into memory" in changed["reason"]
    assert list(changed["rates"]) == ["64"] and changed["speedups"] == {}


def test_where_not_even_the_recipes_batch_fits_training_goes_on_in_smaller_parts(tmp_path: Path) -> None:
    recipe = replace(RECIPE, name="fragmenting", model=Fragmenting, model_args={"most": 32, "num_times": 0})
    result = train(recipe, overrides=SHORT, out=tmp_path / "run", plan="baseline", allow=("algorithm",)).result
    assert result["algorithm"]["adopted"] is False and result["algorithm"]["rates"] == {}
    assert "64 samples did not fit into memory" in result["algorithm"]["reason"]
    assert result["steps"] == 2 * math.ceil(1437 / 64)


def test_tuning_at_another_batch_says_how_to_train_by_it(tmp_path: Path) -> None:
    tuned = tune(RECIPE, allow=("algorithm",), budget_seconds=0.001)
    assert tuned.result["algorithm"]["new_batch_size"] == 128
    assert any("--set batch_size=128 --set optimizer.lr=0.004" in note for note in tuned.notes)
