"""What a training cannot be made of is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from upshift import train
from upshift.errors import BadInputError, ConfigError
from upshift.training.loss import CrossEntropy, check_loss

LOGITS, LABELS = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])


def refused(tmp_path: Path, *overrides: str, recipe: str = "digits") -> str:
    out = tmp_path / "run"
    with pytest.raises(BadInputError) as caught:
        train(recipe, overrides=overrides, out=out, plan="baseline")
    assert not out.exists(), "something was written"
    return str(caught.value)


@pytest.mark.parametrize(
    ("loss", "received"),
    [
        ("torch.nn.functional:relu", "RuntimeError: Boolean value of Tensor"),
        ("torch.nn.functional:softmax", "TypeError: softmax"),
    ],
)
def test_a_loss_of_no_use_is_refused_before_the_run_begins(loss: str, received: str, tmp_path: Path) -> None:
    text = refused(tmp_path, "label_smoothing=0", f"loss={loss}")
    assert "a recipe's loss must take logits (N, C) and labels (N,)" in text
    assert f"received {received}" in text


@pytest.mark.parametrize(
    ("loss", "received"),
    [
        (lambda logits, labels: logits, "a tensor of shape (4, 3)"),
        (lambda logits, labels: logits.sum().item(), r"-?\d+\.\d+"),
        (lambda logits, labels: None, "None"),
        (lambda logits, labels: (logits.argmax(1) == labels).float().mean(), "a tensor that has no gradient"),
    ],
)
def test_a_loss_must_be_one_number_that_can_be_descended_on(loss: object, received: str) -> None:
    import re

    with pytest.raises(ConfigError, match=r"a recipe's loss must") as caught:
        check_loss(loss, LOGITS, LABELS)
    assert re.match(re.escape(received) if "(" in received else received, caught.value.received)


def test_checking_a_loss_leaves_the_generators_and_the_logits_alone() -> None:
    state, logits = torch.get_rng_state(), LOGITS.clone()
    check_loss(lambda outputs, labels: (outputs * torch.rand(3)).mean(), logits, LABELS)
    check_loss(CrossEntropy(0.1), logits, LABELS)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(logits, LOGITS) and not logits.requires_grad


@pytest.mark.parametrize("goal", ["-1", "0"])
def test_a_target_loss_that_no_training_reaches_is_refused(goal: str, tmp_path: Path) -> None:
    assert "a target loss must lie above 0" in refused(tmp_path, f"target.loss={goal}")


@pytest.mark.parametrize(
    "field", ["data.image_size=100000,100000", 'stages=[{"epochs": 20, "image_size": [99999, 99999]}]']
)
def test_images_that_do_not_go_into_memory_are_refused_before_one_is_decoded(field: str, tmp_path: Path) -> None:
    for split, name, colour in (("train", "a", 0), ("train", "b", 255), ("test", "a", 0), ("test", "b", 255)):
        (tmp_path / "pictures" / split / name).mkdir(parents=True)
        Image.new("L", (8, 8), colour).save(tmp_path / "pictures" / split / name / "1.png")
    text = refused(tmp_path, f"data.source={tmp_path / 'pictures'}", "epochs=20", field)
    assert "image_size must leave a batch of 256 images within this machine's memory" in text
    assert "at least 9" in text and "TiB" in text


@pytest.mark.parametrize("field", ["epochs", "max_steps", "data.max_text_bytes"])
def test_a_number_that_no_machine_gets_through_is_refused(field: str, tmp_path: Path) -> None:
    text = refused(tmp_path, f"{field}=99999999999999999999")
    assert field in text and "at most" in text and "received 99999999999999999999" in text


def test_what_makes_no_model_is_told_so_whatever_its_arguments(tmp_path: Path) -> None:
    text = refused(tmp_path, "model=os:system")
    assert "model must be a torch.nn.Module class, or a function annotated to return one" in text


@pytest.mark.parametrize("recipe", ["no_such_module:RECIPE", "upshift.no_such_module:RECIPE"])
def test_a_module_that_is_not_there_is_no_broken_file(recipe: str, tmp_path: Path) -> None:
    text = refused(tmp_path, recipe=recipe)
    assert "must be in a module that Python finds" in text and "no module" in text and "mend the file" not in text


def test_what_a_module_cannot_import_is_told_of_that_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_another.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = refused(tmp_path, recipe="needs_another:RECIPE")
    assert "needs_another must import without an error" in text and "no_such_module" in text


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["optimizer.name=adam", "optimizer.momentum=0.9"], "optimizer.momentum must be one that adam takes"),
        (["optimizer.name=sgd", "optimizer.betas=0.8,0.9"], "optimizer.betas must be one that sgd takes"),
        (["optimizer.adamw_lr=0.1"], "optimizer.adamw_lr must be one that adamw takes"),
        (["schedule.name=constant", "schedule.final_fraction=0.1"], "schedule.final_fraction needs a schedule"),
        (["data.max_text_bytes=64"], "data.max_text_bytes needs texts"),
    ],
)
def test_a_field_that_would_change_nothing_is_refused(overrides: list[str], text: str, tmp_path: Path) -> None:
    assert text in refused(tmp_path, *overrides)
