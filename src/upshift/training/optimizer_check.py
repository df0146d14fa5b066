"""Whether an optimizer of pytorch_optimizer can train a model and be resumed: tried out before any training begins."""

from __future__ import annotations

import json
import warnings

import torch
from torch import nn

from upshift.errors import BadInputError, ConfigError
from upshift.training.builtin_optimizers import BUILTIN
from upshift.training.config import OptimizerConfig
from upshift.training.optimizers import OptimizerSet, build_optimizer
from upshift.training.rng import restore_rng_state, rng_state, seed_everything

NUM_STEPS = 3
"""Before the state is taken, and again after it."""
MAX_SIDE = 6
"""Of a stand-in for a parameter: the try costs milliseconds whatever the model's size."""


class _StandIn(nn.Module):
    """Small parameters of the dimensions that a model's have."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes)


def check_optimizer(model: nn.Module, config: OptimizerConfig) -> None:
    """Refuse an optimizer that fails at its steps, cannot be checkpointed, or goes on otherwise after a resume.

    Args:
        model: Whose parameters' shapes decide; it is left alone, as are the random number generators.
        config: The optimizer; torch's own are known to work.

    Raises:
        BadInputError: It cannot be used.
    """
    if config.name in BUILTIN or config.name == "muon":
        return
    trained = {tuple(min(side, MAX_SIDE) for side in p.shape) for p in model.parameters() if p.requires_grad}
    shapes = sorted(trained, key=lambda shape: (-len(shape), shape))
    generators = rng_state(torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are given when the training makes its own optimizer
        try:
            goes_on = _goes_on_alike(shapes, config)
        except BadInputError:
            raise
        except Exception as error:  # another package's code, which may raise anything
            raise ConfigError(
                "an optimizer must make its steps from gradients alone, for parameters of the model's shapes",
                received=f"{config.name}, which raises {type(error).__name__}: {error}",
                hint="choose another optimizer.name, or change optimizer.options",
            ) from error
        finally:
            restore_rng_state(generators, torch.device("cpu"))
    if not goes_on:
        raise ConfigError(
            "an optimizer must go on after a resume as if it had not been stopped",
            received=f"{config.name}, which keeps a part of its state to itself",
            hint="choose another optimizer.name",
        )


def _goes_on_alike(shapes: list[tuple[int, ...]], config: OptimizerConfig) -> bool:
    """Whether the steps after a reload are bitwise those of an optimizer that was not stopped."""
    first = _StandIn(shapes)
    optimizer = build_optimizer(first, config)
    _make_steps(first, optimizer, seed=1)
    with optimizer.averaged():
        pass
    tensors, rest = optimizer.state()
    saved = {name: tensor.clone() for name, tensor in tensors.items()}
    second = _StandIn(shapes)
    second.load_state_dict(first.state_dict())
    resumed = build_optimizer(second, config)
    resumed.load_state(saved, json.loads(json.dumps(rest, allow_nan=False)))
    _make_steps(first, optimizer, seed=2)
    _make_steps(second, resumed, seed=2)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


def _make_steps(model: _StandIn, optimizer: OptimizerSet, *, seed: int) -> None:
    seed_everything(seed)
    for _ in range(NUM_STEPS):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
