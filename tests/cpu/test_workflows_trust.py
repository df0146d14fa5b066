"""A run folder has no code run that its user has not named: a stranger's is refused before anything is imported."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import upshift
from upshift.core.reference import CodeReference
from upshift.core.vouching import is_vouched, vouch
from upshift.errors import BadInputError

Cli = Callable[..., Any]
MINE = """
from pathlib import Path
from torch import nn
from upshift import Recipe

class Net(nn.Sequential):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))

with open({marker!r}, "a") as marker:
    marker.write("imported")
RECIPE = Recipe(name="mine", model=Net, epochs=1, max_steps=2)
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, cache_of_the_tests: Path) -> Path:
    out = tmp_path_factory.mktemp("plain") / "run"
    upshift.train("digits", plan="baseline", overrides=["epochs=1", "max_steps=2"], out=out)
    return out


def stranger(plain: Path, folder: Path, *, where: str, broken: str = "") -> tuple[Path, Path]:
    """A run folder that names a file that came with it, and the marker that this file writes when it is imported."""
    run, marker = folder / "run", folder / f"marker-{where}-{broken}"
    shutil.copytree(plain, run)
    code = run / "model.py"
    code.write_text(MINE.format(marker=str(marker)))
    digest = hashlib.sha256(code.read_bytes()).hexdigest()
    document = json.loads((run / "recipe.json").read_text())
    if where == "recipe":
        document["recipe"]["model"] = {"name": "Net", "file": str(code), "file_sha256": digest}
        document["recipe"]["model_args"] = {}
    else:
        document["model_spec"] = {"factory": "Net", "file": str(code), "file_sha256": digest, "args": {}}
    if broken:
        document[broken] = 3
    (run / "recipe.json").write_text(json.dumps(document))
    return run, marker


@pytest.mark.parametrize("where", ["recipe", "model_spec"])
def test_a_strangers_run_has_no_code_run(plain: Path, tmp_path: Path, upshift_cli: Cli, where: str) -> None:
    run, marker = stranger(plain, tmp_path, where=where)
    for arguments in (("evaluate", run), ("predict", run, "x.png"), ("optimize", run, "--candidate", "eager")):
        answer = upshift_cli(*arguments)
        assert answer.code == 2 and "that you trained with on this machine" in answer.err
        assert "--trust-code" in answer.err and str(run / "model.py") in answer.err
    assert upshift_cli("report", run).code == 0, "a page is made of records alone"
    assert not marker.exists()
    upshift_cli("evaluate", run, "--trust-code")
    assert marker.exists(), "code that one says to trust is imported"


@pytest.mark.parametrize("broken", ["model_spec", "data_info", "origin", "preprocessing", "seed"])
def test_a_record_that_is_broken_elsewhere_is_no_way_around(
    plain: Path, tmp_path: Path, upshift_cli: Cli, broken: str
) -> None:
    run, marker = stranger(plain, tmp_path, where="recipe", broken=broken)
    assert upshift_cli("evaluate", run).code == 2
    assert not marker.exists()


def test_any_function_of_an_installed_package_needs_ones_word_too(
    plain: Path, tmp_path: Path, upshift_cli: Cli
) -> None:
    run = tmp_path / "run"
    shutil.copytree(plain, run)
    document = json.loads((run / "recipe.json").read_text())
    document["model_spec"] = {"factory": "antigravity:Net", "args": {}}
    (run / "recipe.json").write_text(json.dumps(document))
    answer = upshift_cli("evaluate", run)
    assert answer.code == 2 and "antigravity:Net of an installed package" in answer.err
    assert "antigravity" not in sys.modules


@pytest.mark.slow
def test_ones_own_recipe_is_trusted_where_it_was_trained_with_and_only_there(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "mine.py").write_text(MINE.format(marker=str(marker)))
    command = [sys.executable, "-m", "upshift"]
    subprocess.run(
        [*command, "train", "mine.py", "--plan", "baseline", "--out", "run", "--quiet"], cwd=tmp_path, check=True
    )
    subprocess.run([*command, "evaluate", "run", "--json"], cwd=tmp_path, check=True)
    marker.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPSHIFT_CACHE_DIR", str(tmp_path / "another"))
        done = subprocess.run([*command, "evaluate", "run"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and "mine.py" in done.stderr and not marker.exists()
        subprocess.run([*command, "evaluate", "run", "--trust-code"], cwd=tmp_path, check=True)


def test_code_is_known_by_its_content_or_its_importable_name() -> None:
    mine = CodeReference(name="Net", file="/a/mine.py", file_sha256="ab" * 32)
    assert not is_vouched(mine)
    vouch(mine)
    assert is_vouched(mine)
    assert is_vouched(CodeReference(name="Other", file="/b/copy.py", file_sha256="ab" * 32)), "the same content"
    assert not is_vouched(CodeReference(name="Net", file="/a/mine.py", file_sha256="cd" * 32)), "another content"
    vouch(CodeReference(name="some.package:Net"))
    assert is_vouched(CodeReference(name="some.package:Net"))
    assert not is_vouched(CodeReference(name="some.package:Other"))
    assert is_vouched(CodeReference(name="upshift.models.mlp:MLP")), "upshift's own"
    assert not is_vouched(CodeReference(name="upshift.core.reference:importlib.import_module"))
    assert not is_vouched(CodeReference(name="upshift.models.mlp:nn"))


def test_a_cache_that_cannot_be_written_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UPSHIFT_CACHE_DIR", str(tmp_path / "file"))
    reference = CodeReference(name="another.package:Net")
    assert not is_vouched(reference)
    vouch(reference)
    assert is_vouched(reference), "in this process"
    with pytest.raises(BadInputError):
        upshift.evaluate(tmp_path)
