"""Code copied into an emitted file: all that it uses comes along, nothing else does, and it means what it meant."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emitted import ruff
from upshift.errors import ConfigError
from upshift.models.resnet import resnet18_cifar
from upshift.tuning.emit.carry import Carried
from upshift.tuning.emit.imports import Import, import_block, module, needed_names
from upshift.tuning.emit.source import literal, prose

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES, st.integers(0, 200), st.sampled_from([0, 4, 8]))
def test_literal_is_python_for_the_value(value: object, used: int, indent: int) -> None:
    assert ast.literal_eval(literal(value, used=used, indent=indent)) == value


@given(st.text())
def test_prose_neither_ends_a_docstring_nor_hides_what_follows(text: str) -> None:
    code = f'"""{prose(text)}\n"""\n# {prose(text)}\nx = 1\n'
    tree = ast.parse(code)
    assert [type(node) for node in tree.body] == [ast.Expr, ast.Assign]
    assert isinstance(tree.body[0], ast.Expr)
    assert ast.literal_eval(tree.body[0].value) == f"{text}\n"


def carried(tmp_path: Path, code: str, name: str = "Model") -> str:
    """What comes along with a name of a file, executed where upshift cannot be imported by accident."""
    file = tmp_path / "recipe.py"
    file.write_text(textwrap.dedent(code), encoding="utf-8")
    along = Carried()
    along.add_reference(name, str(file))
    return module("Copied.", [along.take()], along.imports)


def executed(text: str) -> dict[str, object]:
    assert "import upshift" not in text and "from upshift" not in text
    names: dict[str, object] = {}
    exec(compile(text, "copied", "exec"), names)
    return names


def test_helpers_constants_and_imports_come_along_and_the_rest_does_not(tmp_path: Path) -> None:
    text = carried(
        tmp_path,
        """
        import math
        import os.path
        from upshift import Recipe
        import json as unused

        # Pixels of a side.
        SIDE = 4
        '''Documented.'''
        NOT_USED = print("executed")

        def area(side: int = SIDE) -> float:
            return math.pow(side, 2)

        def decorated(cls):
            cls.name = os.path.basename("a/b")
            return cls

        @decorated
        class Model:
            size = area()

        RECIPE = Recipe(name="mine", model=Model)
        """,
    )
    assert "NOT_USED" not in text and "json" not in text and "RECIPE" not in text
    assert "# Pixels of a side.\nSIDE = 4\n'''Documented.'''" in text
    model = executed(text)["Model"]
    assert (model.size, model.name) == (16.0, "b")  # type: ignore[attr-defined]


def test_what_changes_a_name_after_its_definition_comes_along(tmp_path: Path) -> None:
    text = carried(
        tmp_path,
        """
        WIDTHS = []
        WIDTHS.append(3)
        TABLE = {}
        TABLE["a"] = 1
        TABLE["a"] += 1
        if len(WIDTHS) > 5:
            DEPTH = 9
        else:
            DEPTH = 2

        class Model:
            widths, table, depth = WIDTHS, TABLE, DEPTH

        Model.late = DEPTH
        if __name__ == "__main__":
            WIDTHS.append(4)
        """,
    )
    model = executed(text)["Model"]
    assert (model.widths, model.table, model.depth, model.late) == ([3], {"a": 2}, 2, 2)  # type: ignore[attr-defined]


def test_names_that_only_annotations_have_come_along(tmp_path: Path) -> None:
    code = """
    from __future__ import annotations
    import typing
    from pathlib import Path

    class Shape: ...

    class Model:
        def make(self, shape: Shape, where: "typing.Optional[Path]" = None) -> int:
            return 1
    """
    names = executed(carried(tmp_path, code))
    assert {"Shape", "Path", "typing"} <= set(names)


def test_a_model_of_upshift_is_copied_with_its_base_classes_and_helpers(tmp_path: Path) -> None:
    text = carried(
        tmp_path,
        """
        from upshift.models.cnn import SimpleCNN

        class Model(SimpleCNN):
            pass
        """,
    )
    model = executed(text)["Model"]
    assert sum(p.numel() for p in model().parameters()) == 99_576  # type: ignore[operator]
    along = Carried()
    assert along.add(resnet18_cifar) == "resnet18_cifar"
    made = executed(module("Copied.", [along.take()], along.imports))["resnet18_cifar"]()  # type: ignore[operator]
    assert sum(p.numel() for p in made.parameters()) == 11_173_962
    with pytest.raises(ValueError, match="at least 32×32 pixels"):
        model(input_shape=(3, 8, 8))  # type: ignore[operator]


def test_what_was_taken_is_not_taken_again() -> None:
    along = Carried()
    along.add(resnet18_cifar)
    assert "class BasicBlock" in along.take()
    along.add(resnet18_cifar)
    assert along.take() == ""


def test_a_model_of_an_installed_package_is_imported() -> None:
    along = Carried()
    assert along.add_reference("torch.nn:Linear", None) == "Linear"
    assert along.take() == "" and along.imports == {"Linear": Import("torch.nn", "Linear")}


@pytest.mark.parametrize(
    ("code", "received"),
    [
        ("from math import *\nclass Model:\n    size = sqrt(4)\n", r"sqrt in .*import \*"),
        ("from .parts import *\nclass Model:\n    size = max(1, 2)\n", r"max in .*import \*"),
        ("import upshift\nclass Model:\n    recipe = upshift.Recipe\n", "upshift in"),
        ("from upshift.models import cnn\nclass Model(cnn.SimpleCNN): ...\n", "cnn in"),
        ("from upshift.models.cnn import SimpleCNN as Base\nclass Model(Base): ...\n", "Base in"),
        ("class Model:\n    def f(self):\n        from upshift.models.cnn import Net\n", "upshift.models.cnn within"),
    ],
)
def test_code_that_cannot_be_copied_is_refused(tmp_path: Path, code: str, received: str) -> None:
    with pytest.raises(ConfigError, match=received):
        carried(tmp_path, code)


def test_a_name_for_two_things_is_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text("SIZE = 1\ndef Model() -> int:\n    return SIZE\n")
    second.write_text("SIZE = 2\ndef loss() -> int:\n    return SIZE\n")
    along = Carried()
    along.add_reference("Model", str(first))
    with pytest.raises(ConfigError, match=r"SIZE of .*second.py and of .*first.py"):
        along.add_reference("loss", str(second))


@pytest.mark.parametrize("name", ["SEED", "Batches", "F", "np"])
def test_a_name_of_the_emitted_file_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "recipe.py"
    file.write_text(f"{name} = 1\ndef Model() -> int:\n    return {name}\n")
    along = Carried()
    along.add_reference("Model", str(file))
    with pytest.raises(ConfigError, match=f"{name} of .* and of the emitted file"):
        along.check_free("SEED = 0\n\n\nclass Batches: ...\n")


def test_an_import_of_another_meaning_than_the_files_own_is_refused_and_of_the_same_is_not(tmp_path: Path) -> None:
    file = tmp_path / "recipe.py"
    file.write_text("from torch.nn import functional as F\nimport math as nn\ndef Model():\n    return F, nn\n")
    along = Carried()
    along.add_reference("Model", str(file))
    with pytest.raises(ConfigError, match="nn of math and of the emitted file"):
        along.check_free("")


def test_names_of_python_itself_mean_what_they_mean_in_the_file(tmp_path: Path) -> None:
    text = carried(
        tmp_path,
        """
        from math import pow
        from operator import add as sum

        def round(value):
            return ("mine", value)

        class Model:
            rounded, largest = round(2.5), max(1, 2)
            powered: list = [pow(2, 3)]
            added = sum(1, 2)
        """,
    )
    model = executed(text)["Model"]
    values = model.rounded, model.largest, model.powered, model.added  # type: ignore[attr-defined]
    assert values == (("mine", 2.5), 2, [8.0], 3) and isinstance(model.powered[0], float)  # type: ignore[attr-defined]


@pytest.mark.parametrize("code", ["def round(x):\n    return x\n", "from numpy import round\n"])
@pytest.mark.parametrize("is_copied", [True, False])
def test_a_name_of_python_itself_that_the_rest_of_the_file_needs_is_refused(
    code: str, is_copied: bool, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text(f"{code}def Model():\n    return round(1)\n")
    second.write_text("def loss():\n    return round(1.5)\n")
    along = Carried()
    along.add_reference("Model", str(first))
    with pytest.raises(ConfigError, match=r"round of .*(first\.py|numpy\.round) and of "):
        if is_copied:
            along.add_reference("loss", str(second))
        else:
            along.check_free("def rate(step: int) -> int:\n    return round(0.1 * step)\n")


def test_an_import_of_everything_does_not_hide_python_itself_unless_it_has_its_names(tmp_path: Path) -> None:
    assert executed(carried(tmp_path, "from math import *\nclass Model:\n    size = max(1, 2)\n"))["Model"]
    with pytest.raises(ConfigError, match=r"pow in .*import \*"):
        carried(tmp_path, "from math import *\nclass Model:\n    size = pow(1, 2)\n")


@pytest.mark.parametrize("character", ["\f", "\v", "\x1c", "\x85", "\u2028", "\u2029"])
def test_characters_that_only_look_like_line_ends_shift_no_line(character: str, tmp_path: Path) -> None:
    code = f"NAME = 'a{character}b'\n\n\nclass Model:\n    size = 3\n    name = NAME\n\n\nOTHER = 1\n"
    model = executed(carried(tmp_path, code))["Model"]
    assert (model.size, model.name) == (3, f"a{character}b")  # type: ignore[attr-defined]


def test_needed_names_are_those_from_outside() -> None:
    code = """
    x = 1
    def f(a: A, b=B) -> R:
        local = a + x + C
        return [item for item in local if item in D], len(local)
    class K(Base):
        field = x
        def g(self): return E
    """
    assert needed_names(textwrap.dedent(code)) == {"A", "B", "R", "C", "D", "Base", "E", "len"}


def test_imports_are_in_the_order_of_isort(tmp_path: Path) -> None:
    used = {
        "np": Import("numpy"),
        "nn": Import("torch", "nn"),
        "torch": Import("torch"),
        "Path": Import("pathlib", "Path"),
        "os.path": Import("os.path"),
        "F": Import("torch.nn", "functional"),
        "Linear": Import("torch.nn", "Linear"),
        "CONSTANT": Import("torch.nn", "CONSTANT"),
        "init": Import("torch.nn", "init"),
        "Layer": Import("torch.nn", "LazyLinear"),
    }
    block = import_block(used)
    assert "import os.path\nfrom pathlib import Path\n\nimport numpy as np\nimport torch\n" in block
    file = tmp_path / "imports.py"
    file.write_text(f"{block}\nprint({', '.join(used)})\n")
    assert ruff(file, "check", "--output-format", "concise", "--select", "I,F") == "All checks passed!\n"
