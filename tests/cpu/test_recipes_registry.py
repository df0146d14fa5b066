"""Recipes are found by name, in files and in packages, and what is wrong with them is said by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import upshift.recipes
from upshift.errors import BadInputError, ConfigError, UnknownNameError
from upshift.recipes.overrides import with_overrides
from upshift.recipes.recipe import Recipe
from upshift.recipes.registry import find_recipe, recipe_names

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_recipe.py"
NOT_RECIPES = {"__init__", "overrides", "recipe", "record", "registry"}


@pytest.mark.parametrize("name", recipe_names())
def test_built_in_recipe_is_found_by_its_own_name(name: str) -> None:
    recipe, origin = find_recipe(name)
    assert recipe.name == origin.reference == name
    assert origin.file_sha256 is None
    assert recipe.description
    for variant in recipe.variants:
        assert with_overrides(recipe, variant, []) != recipe


def test_every_recipe_file_is_listed() -> None:
    folder = Path(upshift.recipes.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - NOT_RECIPES
    assert files == {name.replace("-", "_") for name in recipe_names()}


def test_names_cost_no_import_of_torch() -> None:
    script = (
        "import sys\nfrom upshift.recipes.registry import recipe_names\nrecipe_names()\n"
        "print([name for name in ('torch', 'numpy', 'upshift.recipes.digits') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mnist-mlp'"):
        find_recipe("mnist-mpl")


def test_recipe_object_is_its_own_origin() -> None:
    recipe = Recipe(name="mine", model=nn.Linear)
    assert find_recipe(recipe)[0] is recipe
    assert find_recipe(recipe)[1].reference == "python"


@pytest.mark.parametrize("reference", [EXAMPLE, str(EXAMPLE)])
def test_recipe_is_found_in_a_file(reference: str | Path) -> None:
    recipe, origin = find_recipe(reference)
    assert recipe.name == "my-recipe"
    assert origin.reference == str(EXAMPLE)
    assert origin.file_sha256 is not None


def test_recipe_is_found_in_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "recipes.py").write_text(
        "from torch import nn\nfrom upshift import Recipe\nOTHER = Recipe(name='other', model=nn.Linear)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe, origin = find_recipe("their_package.recipes:OTHER")
    assert (recipe.name, origin.reference) == ("other", "their_package.recipes:OTHER")
    with pytest.raises(ConfigError, match=r"their_package\.recipes must define RECIPE"):
        find_recipe("their_package.recipes:RECIPE")


BROKEN = {
    "no RECIPE": ("x = 1\n", "must define RECIPE"),
    "a syntax error": ("def f(:\n", r"SyntaxError: .*line 1"),
    "an exception": ("a = 1\nb = a / 0\n", r"ZeroDivisionError: .* \(line 2\)"),
    "a missing package": ("import no_such_package\n", "No module named 'no_such_package'"),
    "an exit": ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    "a RECIPE of the wrong type": ("RECIPE = {'name': 'x'}\n", "must hold an upshift Recipe; received dict"),
    "bad values": (
        "from upshift import Recipe\nfrom torch import nn\nRECIPE = Recipe(name='x', model=nn.Linear, epochs=0)\n",
        "epochs must be at least 1; received 0",
    ),
    "values of the wrong type": (
        "from upshift import Recipe\nfrom torch import nn\nRECIPE = Recipe(name='x', model=nn.Linear, epochs=2.5)\n",
        r"epochs must be a whole number; received 2\.5",
    ),
    "an unknown argument": (
        "from upshift import Recipe\nfrom torch import nn\nRECIPE = Recipe(name='x', model=nn.Linear, epoch=1)\n",
        r"unexpected keyword argument 'epoch' \(line 3\)",
    ),
    "no text": (b"\x00\xff\xfe", "must import without an error"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_refused_by_name(what: str, tmp_path: Path) -> None:
    content, message = BROKEN[what]
    path = tmp_path / "broken.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message) as caught:
        find_recipe(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "reference", ["missing.py", Path("missing"), "no_such_package.recipes:RECIPE", "__main__:RECIPE", "a b:c", ":", ""]
)
def test_a_reference_to_nothing_is_bad_input(reference: str | Path) -> None:
    with pytest.raises(BadInputError):
        find_recipe(reference)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"an existing \.py file"):
        find_recipe(tmp_path)


def test_an_interrupt_is_not_swallowed(tmp_path: Path) -> None:
    path = tmp_path / "interrupted.py"
    path.write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        find_recipe(path)
