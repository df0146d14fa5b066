"""`--set` and `--variant`: typed, checked, and refused with the field's name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from upshift.errors import BadInputError, ConfigError, UnknownNameError
from upshift.models.mlp import MLP
from upshift.models.resnet import resnet50
from upshift.recipes.overrides import field_called, with_overrides
from upshift.recipes.recipe import Recipe
from upshift.training.config import StageConfig

RECIPE = Recipe(
    name="mine",
    model=MLP,
    model_args={"hidden": [8]},
    variants={"fast": {"epochs": 4, "optimizer.momentum": 0.9, "model_args.dropout": 0.5}},
)


def overridden(*assignments: str, variant: str | None = None) -> Recipe:
    return with_overrides(RECIPE, variant, assignments)


def value_of(recipe: Recipe, name: str) -> Any:
    value: Any = recipe
    for part in name.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("name=other", "other"),
        ("batch_size=128", 128),
        ("optimizer.lr=1e-3", 1e-3),
        ("optimizer.lr=1", 1.0),
        ("optimizer.betas=0.8,0.9", (0.8, 0.9)),
        ("optimizer.options.eps_inside_sqrt=true", True),
        ("optimizer.options.name=plain text", "plain text"),
        ("clip_grad_norm=1", 1.0),
        ("clip_grad_norm=none", None),
        ("checkpoint_every_minutes=None", None),
        ("data.source=/data/a=b", "/data/a=b"),
        ("data.source= spaced ", " spaced "),
        ("data.image_size=32,48", (32, 48)),
        ("data.image_size=[32, 48]", (32, 48)),
        ("data.image_size=none", None),
        ("data.channels=3", 3),
        ("data.feature_columns=age, height", ("age", "height")),
        ("data.feature_columns=", ()),
        ("data.skip_bad=yes", True),
        ("augment.horizontal_flip=0", False),
        ("target.accuracy=0.99", 0.99),
        ('target={"accuracy": 1}', {"accuracy": 1.0}),
        ("model_args.hidden=[128, 64]", [128, 64]),
        ("model_args.dropout=.5", 0.5),
        ("model_args={}", {}),
        ("schedule.name=cosine", "cosine"),
        ('schedule={"name": "linear"}', None),
    ],
)
def test_text_becomes_a_value_of_the_fields_type(assignment: str, value: object) -> None:
    name = assignment.partition("=")[0]
    received = value_of(overridden(assignment), name)
    if name == "schedule":
        assert received.name == "linear"
    else:
        assert received == value
        assert type(received) is type(value)


def test_stages_are_given_as_json() -> None:
    recipe = overridden("epochs=3", 'stages=[{"epochs": 1, "image_size": [8, 8], "freeze": ["a*"]}, {"epochs": 2}]')
    assert recipe.stages == (StageConfig(epochs=1, image_size=(8, 8), freeze=("a*",)), StageConfig(epochs=2))
    assert overridden("stages=[]").stages == ()


def test_model_and_loss_are_given_by_name() -> None:
    recipe = overridden(
        "model=upshift.models.resnet:resnet50", "model_args={}", "loss=torch.nn.functional:multi_margin_loss"
    )
    assert recipe.model is resnet50
    assert recipe.loss is nn.functional.multi_margin_loss
    assert with_overrides(recipe, None, ["loss=none"]).loss is None


def test_assignments_win_over_the_variant_and_the_last_over_the_first() -> None:
    recipe = overridden("epochs=6", "epochs=7", variant="fast")
    assert (recipe.epochs, recipe.optimizer.momentum) == (7, 0.9)
    assert recipe.model_args == {"hidden": [8], "dropout": 0.5}
    assert RECIPE.model_args == {"hidden": [8]}, "the recipe itself must stay as it was"


def test_changes_that_need_each_other_are_checked_together() -> None:
    for assignments in (["optimizer.nesterov=true", "optimizer.momentum=0.9"], ["epochs=2", 'stages=[{"epochs": 2}]']):
        assert overridden(*assignments) == overridden(*reversed(assignments))


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("optimzer.lr", "optimizer.lr"),
        ("lr", "optimizer.lr"),
        ("batchsize", "batch_size"),
        ("horizontal_flip", "augment.horizontal_flip"),
        ("model_args.hiden", "hidden"),
        ("model_args.", "model_args"),
    ],
)
def test_unknown_field_offers_the_nearest(name: str, guess: str) -> None:
    with pytest.raises(UnknownNameError, match=f"did you mean '{guess}'"):
        overridden(f"{name}=1")


def test_unknown_variant_names_those_that_there_are() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'fast'"):
        overridden(variant="fats")
    with pytest.raises(UnknownNameError, match="mine has none"):
        with_overrides(Recipe(name="mine", model=MLP), "fast", [])


@pytest.mark.parametrize(
    ("assignment", "rule"),
    [
        ("epochs", "FIELD=VALUE"),
        ("=3", "FIELD=VALUE"),
        ("epochs=", "epochs must be a whole number"),
        ("epochs=2.5", "epochs must be a whole number"),
        ("epochs=none", "epochs must be a whole number"),
        ("epochs=0", "epochs must be at least 1"),
        ("batch_size=-3", "batch_size must be at least 1"),
        ("optimizer.lr=fast", "optimizer.lr must be a finite number"),
        ("optimizer.lr=nan", "optimizer.lr must be a finite number"),
        ("optimizer.lr=inf", "optimizer.lr must be a finite number"),
        ("optimizer.lr=0", "optimizer.lr must be above 0"),
        ("optimizer.betas=0.9", "2 values, each a finite number"),
        ("optimizer=adam", "optimizer must be a mapping"),
        ("data.image_size=32", "2 values, each a whole number, or none"),
        ("data.image_size=a,b", "data.image_size must be a whole number"),
        ("augment.horizontal_flip=maybe", "true or false"),
        ("target=0.9", "target must be a mapping"),
        ("target.accuracy=high", "target.accuracy must be a finite number"),
        ("stages=3", "stages must be a list"),
        ("stages=[{]", "stages must be a list"),
        ("model=MLP", "package.module:name"),
        ("variants.fast=1", "variants cannot be overridden"),
        ("name=a/b", "usable as a folder name"),
    ],
)
def test_bad_value_is_refused_by_name(assignment: str, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        overridden(assignment)
    assert rule in caught.value.rule
    assert caught.value.hint


def test_unknown_key_inside_json_is_refused() -> None:
    for assignment in ('stages=[{"epoch": 1}]', 'optimizer={"rate": 1}'):
        with pytest.raises(UnknownNameError):
            overridden(assignment)


def test_code_that_is_not_there_is_refused_with_its_reason() -> None:
    for reference, reason in (("torch:nothing", "no attribute 'nothing'"), ("foo:Bar", "No module named 'foo'")):
        with pytest.raises(ConfigError, match=f"model must name code that can be imported.*{reason}.*check the name"):
            overridden(f"model={reference}")
    with pytest.raises(ConfigError, match="loss must name code that can be imported"):
        overridden("loss=crossentropy")


def test_a_value_of_another_type_is_answered_with_the_recipes_own() -> None:
    for assignment, example in (("epochs=abc", "epochs=5"), ("optimizer.lr=x", "optimizer.lr=0.1")):
        with pytest.raises(ConfigError, match=f"for example {example}$"):
            with_overrides(Recipe(name="mine", model=MLP, epochs=5, optimizer={"lr": 0.1}), None, [assignment])


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("epochs", "epochs"),
        ("batch-size", "batch_size"),
        ("lr", "optimizer.lr"),
        ("learning-rate", "optimizer.lr"),
        ("num_epochs", "epochs"),
        ("image-size", "data.image_size"),
        ("model_args.hidden", "model_args.hidden"),
        ("epohcs", "epochs"),
        ("colour", None),
    ],
)
def test_a_word_that_names_a_field_finds_it(word: str, field: str | None) -> None:
    assert field_called(word) == field


@pytest.mark.parametrize("blank", ["", " ", "\x85", "\u3000"])
def test_a_blank_source_is_refused(blank: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.source must not be empty"):
        overridden(f"data.source={blank}")


@given(
    st.floats(min_value=1e-12, max_value=1e12),
    st.integers(1, 10**9),
    st.booleans(),
    st.text(min_size=1).filter(str.strip),
)
def test_every_value_survives_its_text(lr: float, batch_size: int, flip: bool, source: str) -> None:
    recipe = overridden(
        f"optimizer.lr={lr!r}", f"batch_size={batch_size}", f"augment.horizontal_flip={flip}", f"data.source={source}"
    )
    assert (recipe.optimizer.lr, recipe.batch_size) == (lr, batch_size)
    assert (recipe.augment.horizontal_flip, recipe.data.source) == (flip, source)


@given(st.dictionaries(st.text(st.characters(categories=["L"]), min_size=1), st.none() | st.booleans() | st.integers()))
def test_free_options_survive_as_json(options: dict[str, object]) -> None:
    whole = overridden(f"optimizer.options={json.dumps(options)}")
    one_by_one = overridden(*[f"optimizer.options.{key}={json.dumps(value)}" for key, value in options.items()])
    assert whole.optimizer.options == one_by_one.optimizer.options == options


@given(st.text())
def test_no_text_is_anything_but_a_recipe_or_bad_input(assignment: str) -> None:
    try:
        overridden(assignment)
    except BadInputError as error:
        assert error.rule
