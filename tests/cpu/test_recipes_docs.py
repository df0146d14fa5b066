"""docs/recipes.md says what is so."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from upshift.core.typed_fields import leaf_hints
from upshift.recipes.recipe import Recipe
from upshift.recipes.record import model_spec
from upshift.recipes.registry import find_recipe, recipe_names
from upshift.tuning.plan import BASELINE, load_plan

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Shape:
    num_classes: int
    input_shape: tuple[int, ...]


SHAPES = {
    "digits": Shape(10, (1, 8, 8)),
    "mnist": Shape(10, (1, 28, 28)),
    "cifar10": Shape(10, (3, 32, 32)),
    "sst2": Shape(2, (256,)),
}


def test_table_of_recipes_has_every_recipe_with_its_number_of_parameters() -> None:
    rows = dict(re.findall(r"^\| `([\w-]+)` \| [^|]+ \| ([\d,]+) \| .* \| .* \|$", TEXT, flags=re.MULTILINE))
    assert list(rows) == list(recipe_names())
    for name, documented in rows.items():
        recipe, _ = find_recipe(name)
        model = model_spec(recipe, SHAPES[recipe.data.source]).make()
        assert f"{sum(parameter.numel() for parameter in model.parameters()):,}" == documented


def test_example_in_the_text_is_the_example_file() -> None:
    block = re.search(r"```python\n(import torch.*?)```", TEXT, flags=re.DOTALL)
    assert block is not None
    file = (ROOT / "examples" / "my_recipe.py").read_text(encoding="utf-8")
    without_docstrings = re.sub(r'^ *"""(?:.*?)"""\n+', "", file, flags=re.DOTALL | re.MULTILINE)
    assert [line for line in block.group(1).splitlines() if line] == [
        line for line in without_docstrings.splitlines() if line
    ]


def test_every_field_is_in_the_text() -> None:
    for name, _ in leaf_hints(Recipe):
        assert f"`{name.rpartition('.')[2]}`" in TEXT or name == "variants"


def test_plan_in_the_text_is_one(tmp_path: Path) -> None:
    block = re.search(r"```json\n(.*?)```", TEXT, flags=re.DOTALL)
    assert block is not None
    (tmp_path / "plan.json").write_text(block.group(1))
    plan = load_plan(tmp_path / "plan.json")
    assert plan.to_json() == BASELINE.to_json() | json.loads(block.group(1))
