"""The transformer on bytes: padding has no effect, and the recipe runs through all verbs on a dataset of texts."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import upshift
from upshift.data.config import DataConfig
from upshift.data.parquet import parquet_source
from upshift.errors import ConfigError
from upshift.models.text import TextTransformer

OVERRIDES = ["epochs=12", "batch_size=16", "data.max_text_bytes=32", "model_args.width=32", "model_args.num_layers=1"]
WORDS = {0: ("dull", "awful", "tired"), 1: ("lovely", "bright", "touching")}


def texts(*rows: str, length: int = 64) -> torch.Tensor:
    encoded = [row.encode() for row in rows]
    return torch.tensor([list(row) + [0] * (length - len(row)) for row in encoded])


def write_reviews(folder: Path) -> Path:
    """Three splits of sentences whose label is told by their words."""
    rng = random.Random(0)
    for split, count in (("train", 96), ("validation", 32), ("test", 32)):
        labels = [index % 2 for index in range(count)]
        sentences = [f"a {rng.choice(WORDS[label])} film, {rng.choice(WORDS[label])} ." for label in labels]
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"sentence": sentences, "label": labels}), folder / f"{split}.parquet")
    return folder


@torch.no_grad()
def test_padding_has_no_effect_on_a_text() -> None:
    model = TextTransformer(input_shape=(64,)).eval()
    short, long = "a film .", "a film that goes on and on, and then on again until its end ."
    alone = model(texts(short))
    torch.testing.assert_close(model(texts(short, long))[:1], alone, rtol=1e-5, atol=1e-6)
    shorter_rows = TextTransformer(input_shape=(16,)).eval()
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "position"}
    shorter_rows.load_state_dict(state | {"position": model.position[:4]})
    torch.testing.assert_close(shorter_rows(texts(short, length=16)), alone, rtol=1e-5, atol=1e-6)


def test_order_of_words_matters() -> None:
    model = TextTransformer(input_shape=(64,)).eval()
    assert not torch.allclose(model(texts("not good, just bad")), model(texts("not bad, just good")), atol=1e-4)


def test_text_without_a_byte_has_finite_logits_and_gradients() -> None:
    model = TextTransformer(input_shape=(64,))
    model(texts("", "a film .")).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (3, 32, 32)}, "takes texts"),
        ({"input_shape": (30,)}, "multiple of 4 bytes; received 30; hint: --set data.max_text_bytes=32"),
        ({"width": 30}, "multiple of its heads"),
        ({"stride": 3}, "even stride"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextTransformer(**arguments)


def test_class_name_in_words_is_no_input(tmp_path: Path) -> None:
    rows = {"text": ["fine", "poor"], "label": [1, 0], "label_text": ["positive", "negative"]}
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    source = parquet_source(tmp_path, DataConfig(source="sst2"), name="sst2", description="sst2")
    assert [list(stretch) for stretch in source.splits["train"].inputs()] == [["fine", "poor"]]


def test_recipe_learns_from_texts_is_evaluated_and_predicts(tmp_path: Path) -> None:
    write_reviews(tmp_path / "data" / "sst2")
    trained = upshift.train(
        "sst2-transformer", overrides=OVERRIDES, plan="baseline", data_dir=tmp_path / "data", out=tmp_path / "run"
    )
    assert trained.result["data"]["kind"] == "text" and trained.result["data"]["num_classes"] == 2
    assert trained.result["metrics"]["accuracy"] >= 0.9
    (tmp_path / "review.txt").write_text("a bright film, lovely .")
    (prediction,) = upshift.predict(tmp_path / "run", [tmp_path / "review.txt"])
    assert prediction["top"][0]["label"] == "1"
    page = upshift.report(tmp_path / "run").read_text(encoding="utf-8")
    assert "sst2-transformer" in page
