"""recipe.json holds a recipe whole, and the model that it makes is found in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from upshift.errors import ArtifactError, ConfigError
from upshift.models.mlp import MLP
from upshift.recipes.overrides import with_overrides
from upshift.recipes.recipe import Recipe
from upshift.recipes.record import model_spec, recipe_from_json, recipe_to_json
from upshift.recipes.registry import find_recipe, recipe_names

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_recipe.py"


@dataclass(frozen=True)
class Shape:
    num_classes: int
    input_shape: tuple[int, ...]


def through_json(document: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    return loaded


@pytest.mark.parametrize("name", recipe_names())
def test_built_in_recipe_survives_json(name: str) -> None:
    recipe, origin = find_recipe(name)
    for variant in (None, *recipe.variants):
        changed = with_overrides(recipe, variant, ["target.accuracy=0.9", "data.image_size=32,32"])
        again = recipe_from_json(through_json(recipe_to_json(changed, origin)))
        assert recipe_to_json(*again) == recipe_to_json(changed, origin)
        assert again[0].model is changed.model


def test_every_field_is_recorded() -> None:
    document = recipe_to_json(*find_recipe("mnist-mlp"))
    assert document["version"] == 1
    assert document["origin"] == {"reference": "mnist-mlp", "file_sha256": None}
    assert set(document["recipe"]) == set(Recipe.__dataclass_fields__)
    assert document["recipe"]["optimizer"]["betas"] == [0.9, 0.999]
    assert document["recipe"]["model"] == {"name": "upshift.models.mlp:MLP", "file": None, "file_sha256": None}


def test_custom_loss_survives_json() -> None:
    recipe = Recipe(name="margin", model=MLP, loss=nn.functional.multi_margin_loss)
    again, _ = recipe_from_json(through_json(recipe_to_json(*find_recipe(recipe))))
    assert again.loss is nn.functional.multi_margin_loss


@pytest.fixture
def user_recipe(tmp_path: Path) -> Path:
    path = tmp_path / "user_recipe.py"
    path.write_text(EXAMPLE.read_text())
    return path


def test_user_recipe_is_made_again_in_another_process(user_recipe: Path, tmp_path: Path) -> None:
    recipe, origin = find_recipe(user_recipe)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe_to_json(recipe, origin)))
    script = (
        "import json, pathlib, sys\n"
        "from upshift.recipes.record import recipe_from_json\n"
        "recipe, origin = recipe_from_json(json.loads(pathlib.Path(sys.argv[1]).read_text()))\n"
        "print(recipe.name, recipe.optimizer.name, type(recipe.model(num_classes=3)).__name__)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "recipe.json")]
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    assert output.stdout.split() == ["my-recipe", "adamw", "MyNetwork"]


@pytest.mark.parametrize("change", ["changed", "missing"])
def test_user_recipe_that_is_no_longer_the_same_is_refused(user_recipe: Path, change: str) -> None:
    document = recipe_to_json(*find_recipe(user_recipe))
    if change == "changed":
        user_recipe.write_text(user_recipe.read_text() + "\n")
    else:
        user_recipe.unlink()
    with pytest.raises(ArtifactError, match=change):
        recipe_from_json(document)


def test_lambda_as_a_model_is_refused_with_the_way_out() -> None:
    recipe = Recipe(name="mine", model=lambda: nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"model must be .* found again by its name"):
        recipe_to_json(*find_recipe(recipe))


def test_objects_in_model_args_are_refused() -> None:
    recipe = Recipe(name="mine", model=MLP, model_args={"hidden": [torch.tensor(3)]})
    with pytest.raises(ConfigError, match=r"model_args must hold JSON values.*received Tensor"):
        recipe_to_json(*find_recipe(recipe))


DAMAGED: dict[str, dict[str, Any]] = {
    "empty": {},
    "a newer version": {"version": 2},
    "no recipe": {"recipe": None},
    "no origin": {"origin": None},
    "no name": {"recipe": {"model": {"name": "upshift.models.mlp:MLP"}}},
    "an unknown field": {"recipe": {"name": "x", "model": {"name": "upshift.models.mlp:MLP"}, "lr": 1}},
    "a wrong type": {"recipe": {"name": "x", "model": {"name": "upshift.models.mlp:MLP"}, "epochs": "3"}},
    "a value out of range": {"recipe": {"name": "x", "model": {"name": "upshift.models.mlp:MLP"}, "epochs": 0}},
    "no model": {"recipe": {"name": "x", "model": None}},
    "a model that is not there": {"recipe": {"name": "x", "model": {"name": "upshift.models.mlp:LMP"}}},
    "a model without a module": {"recipe": {"name": "x", "model": {"name": "MLP"}}},
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_record_is_an_artifact_error(what: str) -> None:
    document = recipe_to_json(*find_recipe("mnist-mlp")) | DAMAGED[what] if DAMAGED[what] else {}
    with pytest.raises(ArtifactError):
        recipe_from_json(document)


def test_shape_of_the_data_reaches_a_factory_that_asks_for_it() -> None:
    recipe, _ = find_recipe("cifar10-simplecnn")
    spec = model_spec(recipe, Shape(3, (1, 64, 48)))
    assert spec.args == {"widths": [6, 16, 32, 64, 128], "num_classes": 3, "input_shape": [1, 64, 48]}
    assert spec.make()(torch.zeros(2, 1, 64, 48)).shape == (2, 3)


def test_model_args_win_over_the_shape_of_the_data() -> None:
    recipe, _ = find_recipe("mnist-mlp")
    recipe = with_overrides(recipe, None, ["model_args.num_classes=12"])
    assert model_spec(recipe, Shape(10, (1, 28, 28))).args["num_classes"] == 12


def test_a_factory_that_does_not_ask_for_the_shape_gets_none_of_it() -> None:
    recipe = Recipe(name="mine", model=nn.Linear, model_args={"in_features": 4, "out_features": 2})
    spec = model_spec(find_recipe(recipe)[0], Shape(2, (4,)))
    assert spec.args == {"in_features": 4, "out_features": 2}


def test_users_model_gets_the_shape_of_the_data(user_recipe: Path) -> None:
    spec = model_spec(find_recipe(user_recipe)[0], Shape(2, (3, 16, 16)))
    assert spec.file == str(user_recipe)
    assert spec.make()(torch.zeros(5, 3, 16, 16)).shape == (5, 2)
