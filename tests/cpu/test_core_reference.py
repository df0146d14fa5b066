"""Code is found again by its name in another process, or refused with the way out."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from upshift.core.reference import CodeReference, load_python_file, reference_to, reference_to_factory
from upshift.errors import ArtifactError, ConfigError
from upshift.models.mlp import MLP
from upshift.models.resnet import resnet50

USER_FILE = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.fc = nn.Linear(4, width)
    def forward(self, inputs):
        return self.fc(inputs)

def tiny(width: int = 3) -> Tiny:
    return Tiny(width)

def unannotated(width=3):
    return Tiny(width)

def make_closure():
    def inner() -> Tiny:
        return Tiny()
    return inner
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "my models.py"
    path.write_text(USER_FILE)
    return path


def test_class_and_function_of_a_module_are_referred_to_by_name() -> None:
    assert reference_to_factory(MLP) == CodeReference(name="upshift.models.mlp:MLP")
    assert reference_to_factory(resnet50).resolve() is resnet50
    assert reference_to_factory(nn.Linear).resolve() is nn.Linear
    loss = reference_to(nn.functional.cross_entropy, field="loss")
    assert loss.resolve() is nn.functional.cross_entropy


def test_class_of_a_user_file_is_referred_to_by_path_hash_and_name(user_file: Path) -> None:
    module = load_python_file(user_file)
    reference = reference_to_factory(module.Tiny)
    assert (reference.name, reference.file) == ("Tiny", str(user_file))
    assert reference.resolve() is module.Tiny
    assert load_python_file(user_file) is module


def test_two_versions_of_a_file_written_in_the_same_second_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "same_size.py"
    path.write_text("VALUE = 1\n")
    first = load_python_file(path)
    path.write_text("VALUE = 2\n")
    assert (first.VALUE, load_python_file(path).VALUE) == (1, 2)
    assert not (tmp_path / "__pycache__").exists()


def test_equal_files_in_two_folders_are_two_modules(tmp_path: Path) -> None:
    paths = [tmp_path / name / "recipe.py" for name in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("FOLDER = __file__\n")
    assert [load_python_file(path).FOLDER for path in paths] == [str(path) for path in paths]


def test_a_file_that_fails_to_import_leaves_no_module_behind(tmp_path: Path) -> None:
    path = tmp_path / "fails.py"
    path.write_text("x = 1 / 0\n")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            load_python_file(path)
    assert not [name for name in sys.modules if name.startswith("upshift_user_fails")]


def test_what_cannot_be_found_again_is_refused_with_the_way_out(user_file: Path) -> None:
    module = load_python_file(user_file)
    instance = nn.Linear(2, 2)
    for target in (lambda: nn.Linear(2, 2), module.make_closure(), functools.partial(MLP), instance, instance.forward):
        with pytest.raises(ConfigError, match=r"found again by its name.*hint: .*top level of a \.py file"):
            reference_to_factory(target)


def test_a_factory_that_does_not_say_that_it_makes_a_model_is_refused(user_file: Path) -> None:
    module = load_python_file(user_file)
    with pytest.raises(
        ConfigError, match=r"received unannotated; hint: annotate it: def unannotated\(...\) -> nn.Module"
    ):
        reference_to_factory(module.unannotated)
    assert reference_to_factory(module.tiny).name == "tiny"


def test_a_model_of_the_running_script_is_referred_to_by_its_file(tmp_path: Path) -> None:
    script = tmp_path / "train_mine.py"
    script.write_text(
        USER_FILE + "if __name__ == '__main__':\n"
        "    from upshift.core.reference import reference_to_factory\n"
        "    reference = reference_to_factory(Tiny)\n"
        "    assert reference.name == 'Tiny' and reference.file == __file__, reference\n"
        "    print(reference.resolve()(2))\n"
    )
    output = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert "out_features=2" in output.stdout


def test_a_model_typed_at_a_prompt_is_refused(tmp_path: Path) -> None:
    script = USER_FILE + (
        "from upshift.errors import ConfigError\n"
        "from upshift.core.reference import reference_to_factory\n"
        "try:\n    reference_to_factory(Tiny)\nexcept ConfigError as error:\n    print(error)\n"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "model must be defined in a file" in output.stdout


@pytest.mark.parametrize("change", ["changed", "missing"])
def test_a_user_file_that_is_no_longer_the_same_is_refused(user_file: Path, change: str) -> None:
    reference = reference_to_factory(load_python_file(user_file).Tiny)
    if change == "changed":
        user_file.write_text(USER_FILE + "# changed\n")
    else:
        user_file.unlink()
    with pytest.raises(ArtifactError, match=change):
        reference.resolve()
