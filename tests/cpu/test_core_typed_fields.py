"""Every config takes values of its fields' types, whatever they come as, and refuses all others by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import upshift
from upshift.core.typed_fields import from_json, to_json
from upshift.errors import BadInputError, ConfigError, PlanError
from upshift.inference.config import SearchConfig

NEEDED: dict[type, dict[str, Any]] = {
    upshift.Recipe: {"name": "mine", "model": nn.Linear},
    upshift.StageConfig: {"epochs": 1},
    upshift.OptimizerConfig: {},
    upshift.ScheduleConfig: {},
    upshift.DataConfig: {},
    upshift.AugmentConfig: {},
    upshift.Plan: {},
    SearchConfig: {},
}
HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), st.text(max_size=3), max_size=2),
    st.sampled_from([object(), nn.Linear, nn.Linear(2, 2), np.zeros(3), torch.zeros(2), range(3), {1}, 3j, print]),
)


@pytest.mark.parametrize("config", NEEDED, ids=lambda config: config.__name__)
@given(data=st.data())
def test_a_config_takes_a_value_or_refuses_it_as_bad_input(config: type, data: st.DataObject) -> None:
    names = [field.name for field in dataclasses.fields(config)]
    changes = data.draw(st.dictionaries(st.sampled_from(names), HOSTILE, min_size=1, max_size=2))
    try:
        made = config(**(NEEDED[config] | changes))
    except BadInputError as error:
        assert "\n" not in str(error) and len(str(error)) < 1200
    else:
        # What was taken is of the field's own type: it is the same after another round.
        again = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
        assert config(**again) == made


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: upshift.Recipe(name="a", model=nn.Linear, epochs="3"), "epochs must be a whole number; received '3'"),
        (lambda: upshift.Recipe(name="a", model=nn.Linear, epochs=2.5), "epochs must be a whole number; received 2.5"),
        (lambda: upshift.Recipe(name="a", model=nn.Linear, batch_size=True), "batch_size must be a whole number"),
        (lambda: upshift.Recipe(name="a", model=nn.Linear(1, 1)), "not a model itself"),
        (lambda: upshift.Recipe(name="a", model=nn.Linear, optimizer="sgd"), "optimizer must be an object with the"),
        (lambda: upshift.Recipe(name=3, model=nn.Linear), "name must be text; received 3"),
        (lambda: upshift.DataConfig(image_size=32), "data.image_size must be 2 values.*received 32.*image_size=64,64"),
        (lambda: upshift.OptimizerConfig(lr="x"), "optimizer.lr must be a finite number.*example optimizer.lr=0.01"),
        (lambda: upshift.OptimizerConfig(lr=10**400), "optimizer.lr must be a finite number; received 1000"),
        (lambda: upshift.OptimizerConfig(lr=float("nan")), "optimizer.lr must be a finite number; received nan"),
        (lambda: upshift.AugmentConfig(horizontal_flip=1), "augment.horizontal_flip must be true or false; received 1"),
        (lambda: upshift.StageConfig(epochs="3"), "stages.epochs must be a whole number; received '3'"),
        (lambda: SearchConfig(max_drop="1 %"), "max_drop must be a finite number.*for example max_drop=0.005"),
    ],
)
def test_a_field_of_another_type_is_named_with_an_example(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_plan_of_wrong_types_is_a_plan_error() -> None:
    for fields in ({"num_threads": "2"}, {"precision": "fp64"}, {"compile": True}, {"trials": 3}, {"num_workers": 0.0}):
        with pytest.raises(PlanError, match=f"plan.{next(iter(fields))} must be"):
            upshift.Plan(**fields)


def test_lists_numbers_of_numpy_and_mappings_become_what_the_field_holds() -> None:
    recipe = upshift.Recipe(
        name="a",
        model=nn.Linear,
        epochs=np.int64(3),
        data={"image_size": [32, 32]},
        optimizer={"lr": np.float32(0.5), "betas": [0.5, 1 / 4]},
        stages=[{"epochs": 3}],
    )
    assert type(recipe.epochs) is int and recipe.data == upshift.DataConfig(image_size=(32, 32))
    assert recipe.optimizer == upshift.OptimizerConfig(lr=0.5, betas=(0.5, 0.25))
    assert type(recipe.optimizer.lr) is float and recipe.stages == (upshift.StageConfig(epochs=3),)


def test_a_mapping_with_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(BadInputError, match="did you mean 'image_size'"):
        upshift.Recipe(name="a", model=nn.Linear, data={"image_sise": [32, 32]})


def test_the_mapping_that_was_handed_over_can_change_without_the_config() -> None:
    arguments = {"hidden": 3}
    recipe = upshift.Recipe(name="a", model=nn.Linear, model_args=arguments)
    arguments["hidden"] = 4
    assert recipe.model_args == {"hidden": 3}


@given(st.sampled_from(["fp32", "bf16"]), st.one_of(st.none(), st.integers(1, 99)), st.booleans())
def test_what_is_written_as_json_is_read_as_the_same(precision: Any, threads: int | None, fused: bool) -> None:
    plan = upshift.Plan(precision=precision, num_threads=threads, fused_optimizer=fused)
    assert from_json(to_json(plan), upshift.Plan, "plan") == plan
