"""Trainings that are slow on purpose: the real cause comes first, with the line of code that it is on.

Each of them is a real training in which one thing costs more than all others; nothing here asserts a time.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import upshift
from upshift.data.config import DataConfig
from upshift.recipes.recipe import Recipe

SIDE = 16
CLASSES = 4


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed data: 640 grey images."""
    path = tmp_path_factory.mktemp("images") / "images.npz"
    draw = np.random.default_rng(0)
    arrays = {}
    for split, amount in (("train", 512), ("test", 128)):
        arrays[f"x_{split}"] = draw.integers(0, 256, (amount, SIDE, SIDE), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(amount) % CLASSES
    np.savez(path, **arrays)
    return path


def profile_of(
    model: Callable[..., nn.Module], images: Path, out: Path, *, batch_size: int = 64, **fields: Any
) -> dict[str, Any]:
    data = DataConfig(source=str(images))
    recipe = Recipe(name="slow", model=model, data=data, batch_size=batch_size, **fields)
    result: dict[str, Any] = upshift.profile(recipe, out=out, num_steps=12).result
    return result


def line_of(function: Any, code: str) -> str:
    """The place "file:line" of the line of a function that holds this code."""
    lines, start = inspect.getsourcelines(function)
    (number,) = [start + index for index, line in enumerate(lines) if code in line]
    return f":{number}"


def first(result: dict[str, Any]) -> dict[str, Any]:
    advice: dict[str, Any] = result["advice"][0]
    return advice


def check(advice: dict[str, Any], cause: str, place: str) -> None:
    assert advice["cause"] == cause, advice
    assert advice["where"].endswith(f"{Path(__file__).name}{place}"), advice["where"]
    assert advice["spared_seconds"] > 0 and advice["speedup"] > 1


# --- data ---------------------------------------------------------------------------------------------


class SlowlyMade(Dataset[Any]):
    """Each item is made by a loop of Python over its pixels."""

    def __init__(self, amount: int) -> None:
        self._pixels = torch.randint(0, 256, (amount, 1, SIDE, SIDE), dtype=torch.uint8)
        self._amount = amount

    def __len__(self) -> int:
        return self._amount

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return torch.tensor(brightened(self._pixels[row].flatten().tolist())).view(1, SIDE, SIDE), row % CLASSES


def brightened(pixels: list[int]) -> list[float]:
    brighter = []
    for _ in range(2):
        brighter = [min(1.0, pixel / 255 + 0.1) ** 0.9 for pixel in pixels]
    return brighter


class Small(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(SIDE * SIDE, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def test_a_slow_transform_of_each_sample_is_named(tmp_path: Path) -> None:
    recipe = Recipe(name="slow", model=Small, batch_size=64)
    data = {"train": SlowlyMade(256), "test": SlowlyMade(64)}
    result = upshift.profile(recipe, data=data, out=tmp_path / "out", num_steps=6).result
    assert result["breakdown"]["bound_by"] == "data"
    advice = first(result)
    assert advice["cause"] == "data"
    functions = {item["name"]: item for item in result["items"]["functions"]}
    assert max(functions.values(), key=lambda item: item["share"])["name"] in ("brightened", "<listcomp>")
    causes = [item for item in result["advice"] if item["cause"] == "data"]
    assert len(causes) == 2
    assert any("Plan(data_path='worker'" in (item["command"] or "") for item in causes)
    assert any(f"{Path(__file__).name}:" in (item["where"] or "") for item in causes)


# --- reading values back --------------------------------------------------------------------------------


class ReadsValues(nn.Module):
    """Looks at the values of its inputs one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(SIDE * SIDE, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        largest = 0.0
        for row in flat[:, :6].flatten():
            largest = max(largest, abs(row.item()))
        outputs: torch.Tensor = self.classify(flat / (largest + 1))
        return outputs


def test_values_read_back_in_each_step_are_named(images: Path, tmp_path: Path) -> None:
    result = profile_of(ReadsValues, images, tmp_path / "out")
    check(first(result), "synchronization", line_of(ReadsValues.forward, "row.item()"))
    assert "384 values a step" in first(result)["title"]
    names = {row["name"] for row in result["operators"]}
    assert "aten::_local_scalar_dense" in names
    assert result["breakdown"]["synchronization"] > 0


class ReadsOnce(nn.Module):
    """Reads one value of its inputs in each step, which is that of an operator that takes long."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(SIDE * SIDE, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        norm = torch.linalg.matrix_norm(flat, 2).item()
        outputs: torch.Tensor = self.classify(flat / (norm + 1))
        return outputs


def test_a_single_value_read_back_in_each_step_is_named(images: Path, tmp_path: Path) -> None:
    result = profile_of(ReadsOnce, images, tmp_path / "out")
    # On a busy machine another advice may come first: beside the operator, reading its value costs little.
    (advice,) = [advice for advice in result["advice"] if advice["cause"] == "synchronization"]
    check(advice, "synchronization", line_of(ReadsOnce.forward, ".item()"))
    assert advice["title"].startswith("1 value a step is")


# --- float64 ----------------------------------------------------------------------------------------------


class Doubled(nn.Module):
    """Weights that were made from a NumPy array are float64, and all that follows is too."""

    def __init__(self) -> None:
        super().__init__()
        draw = np.random.default_rng(0)
        self.hidden = nn.Parameter(torch.from_numpy(draw.normal(0, 0.05, (SIDE * SIDE, 512))))
        self.classify = nn.Parameter(torch.from_numpy(draw.normal(0, 0.05, (512, CLASSES))))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1).to(self.hidden.dtype)
        return F.relu(flat @ self.hidden) @ self.classify


def test_float64_by_accident_is_named(images: Path, tmp_path: Path) -> None:
    result = profile_of(Doubled, images, tmp_path / "out", batch_size=128)
    check(first(result), "float64", line_of(Doubled.forward, "to(self.hidden.dtype)"))
    assert "2 of 2 weight and buffer tensors are float64" in first(result)["action"]


class Promoted(nn.Module):
    """One buffer in float64 makes a whole chain of features float64."""

    offset: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Linear(SIDE * SIDE, 4096)
        self.classify = nn.Linear(4096, CLASSES)
        self.register_buffer("offset", torch.full((4096,), 0.1, dtype=torch.float64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.widen(images.flatten(1))
        shifted = features + self.offset
        outputs: torch.Tensor = self.classify(torch.softmax(shifted, 1).float())
        return outputs


def test_a_float64_buffer_that_promotes_is_among_the_causes(images: Path, tmp_path: Path) -> None:
    result = profile_of(Promoted, images, tmp_path / "out", batch_size=128)
    (advice,) = [item for item in result["advice"] if item["cause"] == "float64"]
    check(advice, "float64", line_of(Promoted.forward, "features + self.offset"))
    assert "1 of 5 weight and buffer tensors are float64" in advice["action"]


# --- batch size -------------------------------------------------------------------------------------------


class Convolutions(nn.Sequential):
    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1)]
        for _ in range(3):
            layers += [nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


def test_a_tiny_batch_is_named(images: Path, tmp_path: Path) -> None:
    result = profile_of(Convolutions, images, tmp_path / "out", batch_size=2)
    advice = first(result)
    assert advice["cause"] == "small batch", advice
    assert advice["changes_algorithm"] is True and advice["is_bound"] is False
    assert "batch_size=64" in advice["command"]
    assert result["scaling"]["larger_batch_size"] == 64
    assert result["scaling"]["ratio"] < 32


# --- memory layout ----------------------------------------------------------------------------------------


class Permutes(nn.Module):
    """Turns its features around before and after each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Conv2d(1, 48, 1)
        self.scale = nn.Parameter(torch.ones(48))
        self.classify = nn.Linear(48, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.widen(images)
        for _ in range(6):
            features = features.permute(0, 2, 3, 1).contiguous()
            features = (features * self.scale).permute(0, 3, 1, 2).contiguous()
        outputs: torch.Tensor = self.classify(features.mean((2, 3)))
        return outputs


def test_copies_that_only_permute_are_named(images: Path, tmp_path: Path) -> None:
    result = profile_of(Permutes, images, tmp_path / "out")
    advice = first(result)
    assert advice["cause"] == "layout", advice
    lines = [line_of(Permutes.forward, code) for code in ("permute(0, 2, 3, 1)", "self.scale).permute")]
    assert any(advice["where"].endswith(line) for line in lines)
    assert "12 copies a step" in advice["title"]


# --- operators that are not fused -------------------------------------------------------------------------


class OwnActivation(nn.Module):
    """An activation written out, element by element, on large features."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Linear(SIDE * SIDE, 2048)
        self.classify = nn.Linear(2048, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.classify(written_out(self.widen(images.flatten(1))))
        return outputs


def written_out(x: torch.Tensor) -> torch.Tensor:
    for _ in range(4):
        x = 0.5 * x * (1 + x / (1 + x.abs()) + 0.1 * x * x - 0.2 * x)
    return x


def test_a_chain_of_elementwise_operators_is_named(images: Path, tmp_path: Path) -> None:
    result = profile_of(OwnActivation, images, tmp_path / "out")
    check(first(result), "unfused", line_of(written_out, "0.5 * x"))
    assert first(result)["title"].startswith("written_out calls ")
    assert first(result)["plan"] == {"compile": "whole"}


class OverTime(nn.Module):
    """A recurrence written as a loop over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(4, 16)
        self.keep = nn.Linear(16, 16)
        self.classify = nn.Linear(16, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(len(images), 16)
        for part in images.flatten(1).split(4, 1):
            state = torch.tanh(self.read(part) + self.keep(state))
        outputs: torch.Tensor = self.classify(state)
        return outputs


def test_a_loop_over_time_is_named(images: Path, tmp_path: Path) -> None:
    result = profile_of(OverTime, images, tmp_path / "out")
    check(first(result), "unfused", line_of(OverTime.forward, "self.read(part)"))
    assert "of them in loops" in first(result)["title"]
    assert result["breakdown"]["bound_by"] == "overhead"


class OwnFunction(torch.autograd.Function):
    """A custom operator with Python both ways."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        y = x
        for _ in range(12):
            y = y - y * 0.01 + y.abs() * 0.001
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        for _ in range(12):
            gradient = gradient * 0.99 + gradient * x.sign() * 0.001
        return gradient


class UsesOwnFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Linear(SIDE * SIDE, 1024)
        self.classify = nn.Linear(1024, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.classify(OwnFunction.apply(self.widen(images.flatten(1))))
        return outputs


def test_a_custom_function_is_named_forward_and_backward(images: Path, tmp_path: Path) -> None:
    result = profile_of(UsesOwnFunction, images, tmp_path / "out")
    unfused = [item for item in result["advice"] if item["cause"] == "unfused"]
    assert first(result) == unfused[0]
    places = {item["where"].rpartition(":")[2] for item in unfused}
    expected = {
        line_of(OwnFunction.forward, "y.abs()").removeprefix(":"),
        line_of(OwnFunction.backward, "x.sign()").removeprefix(":"),
    }
    assert expected <= places


# --- Python between operators -----------------------------------------------------------------------------


class Thinks(nn.Module):
    """Computes a constant anew in each step, in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(SIDE * SIDE, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        end = time.perf_counter() + 0.02
        while time.perf_counter() < end:
            pass
        flat = images.flatten(1)
        outputs: torch.Tensor = self.classify(flat)
        return outputs


def test_python_between_operators_is_named(images: Path, tmp_path: Path) -> None:
    result = profile_of(Thinks, images, tmp_path / "out")
    check(first(result), "python", line_of(Thinks.forward, "images.flatten(1)"))
    assert "Thinks.forward" in first(result)["title"]


# --- nothing wrong ----------------------------------------------------------------------------------------


def test_a_sound_model_gets_no_cause_that_is_not_there(images: Path, tmp_path: Path) -> None:
    result = profile_of(Convolutions, images, tmp_path / "out")
    causes = {item["cause"] for item in result["advice"]}
    assert causes & {"float64", "layout", "synchronization", "unfused", "small batch"} == set()
    assert result["advice"][-1]["cause"] == "search" and result["advice"][-1]["spared_seconds"] is None
