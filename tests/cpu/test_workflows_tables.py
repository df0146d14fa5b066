"""Columns are matched by their names: a table in another order is answered as the same table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest
import torch

import upshift
from upshift.errors import BadInputError, DataError

RECIPE = """
from torch import nn
from upshift import DataConfig, OptimizerConfig, Recipe


class Net(nn.Sequential):
    def __init__(self, num_classes: int = 2) -> None:
        super().__init__(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, num_classes))


RECIPE = Recipe(name="table", model=Net, data=DataConfig(source="train.parquet"), epochs=6,
                optimizer=OptimizerConfig(name="adamw", lr=0.05))
"""


def table(num_rows: int, seed: int) -> dict[str, np.ndarray]:
    """Rows of which only the column a tells the class, and b the other one."""
    generator = np.random.default_rng(seed)
    labels = np.arange(num_rows) % 2
    sign = 2 * labels - 1
    return {
        "a": sign * 2 + generator.normal(size=num_rows) * 0.3,
        "b": -sign * 2 + generator.normal(size=num_rows) * 0.3,
        "label": labels,
    }


def save(path: Path, columns: dict[str, np.ndarray], order: str) -> str:
    arrow.parquet.write_table(arrow.table({name: columns[name] for name in order.split()}), path)
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    save(folder / "train.parquet", table(400, 0), "a b label")
    (folder / "table.py").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        upshift.train("table.py", plan="baseline", out="run")
    return folder / "run"


@pytest.fixture(scope="module")
def artifact(run: Path) -> Path:
    upshift.optimize(run, candidates=["eager"], max_drop=0.5)
    return run / "artifact"


@pytest.mark.parametrize("what", ["run", pytest.param("artifact", marks=pytest.mark.slow)])
def test_reordered_columns_are_evaluated_as_the_same_table(request, tmp_path, what) -> None:
    path = request.getfixturevalue(what)
    other = table(200, 1)
    straight, swapped = (
        upshift.evaluate(path, source=save(tmp_path / f"{order[:3]}.parquet", other, order), trust_code=True)
        for order in ("a b label", "b a label")
    )
    assert straight["metrics"]["accuracy"] > 0.95
    assert swapped["metrics"] == straight["metrics"]


def test_a_table_without_a_feature_is_refused(run, tmp_path) -> None:
    other = table(20, 1)
    other["c"] = other["b"]
    with pytest.raises(BadInputError, match="'b'"):
        upshift.evaluate(run, source=save(tmp_path / "ac.parquet", other, "a c label"))


def test_a_header_tells_which_column_is_which(run, tmp_path) -> None:
    rows = table(8, 2)
    straight, swapped, bare = (tmp_path / name for name in ("ab.csv", "ba.csv", "bare.csv"))
    pairs = list(zip(rows["a"].tolist(), rows["b"].tolist(), strict=True))
    straight.write_text("a,b\n" + "".join(f"{a},{b}\n" for a, b in pairs))
    swapped.write_text("b,a\n" + "".join(f"{b},{a}\n" for a, b in pairs))
    bare.write_text("".join(f"{a},{b}\n" for a, b in pairs))

    def answers(path: Path) -> list[str]:
        return [prediction["top"][0]["label"] for prediction in upshift.predict(run, path, top_k=1)]

    assert answers(straight) == [str(label) for label in rows["label"]]
    assert answers(swapped) == answers(bare) == answers(straight)
    swapped.write_text("b,c\n1,2\n")
    with pytest.raises(DataError, match=r"name the model's 2 features.*without a, with the unknown c"):
        upshift.predict(run, swapped)


def test_what_a_model_draws_itself_follows_from_the_seed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "train.parquet", table(200, 0), "a b label")
    (tmp_path / "noisy.py").write_text(
        RECIPE.replace(
            "\n\n\nRECIPE",
            "\n\n    def forward(self, x):\n        return super().forward(x + torch.randn_like(x))\n\n\nRECIPE",
        )
        .replace("from torch import nn", "import torch\nfrom torch import nn")
        .replace("epochs=6", "epochs=1")
    )
    run = upshift.train("noisy.py", plan="baseline", out="run").path
    (tmp_path / "x.csv").write_text("0,0\n" * 50)
    before = torch.get_rng_state()
    first, second, other = (upshift.predict(run, tmp_path / "x.csv", seed=seed) for seed in (1, 1, 2))
    assert first == second != other
    assert upshift.evaluate(run, seed=1) == upshift.evaluate(run, seed=1) != upshift.evaluate(run, seed=2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_from_before_names_were_kept_is_still_read_by_position(run, tmp_path) -> None:
    import json
    import shutil

    old = tmp_path / "old"
    shutil.copytree(run, old)
    document = json.loads((old / "recipe.json").read_text())
    assert document["preprocessing"].pop("feature_names") == document["data_info"].pop("feature_names") == ["a", "b"]
    (old / "recipe.json").write_text(json.dumps(document))
    (tmp_path / "ba.csv").write_text("b,a\n-2,2\n")
    notes: list[str] = []
    (prediction,) = upshift.predict(old, tmp_path / "ba.csv", top_k=1, on_note=notes.append)
    assert prediction["top"][0]["label"] == "0"
    assert notes == [
        "the model does not know the names of its features: the columns are taken in the order of the file"
    ]
