"""How a model is made again in another process: a factory by name, and its weights as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from upshift.core.reference import CodeReference, makes_a_module
from upshift.core.typed_fields import dataclass_from_json
from upshift.errors import ArtifactError, BadInputError, ConfigError, UpshiftError


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model as data.

    Attributes:
        factory: "package.module:name", or "name" within `file`.
        file: Python file of the user's that holds the factory; None for an importable module.
        file_sha256: Its hash; a file that has changed since is refused.
        args: Keyword arguments of the factory, JSON values.
    """

    factory: str
    file: str | None = None
    file_sha256: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ModelSpec:
        """A spec from JSON.

        Raises:
            ArtifactError: A field is missing, unknown or of the wrong type.
        """
        try:
            spec: ModelSpec = dataclass_from_json(value, ModelSpec, "model")
        except BadInputError as error:
            raise ArtifactError(error.rule, received=error.received, hint=error.hint) from error
        return spec

    @property
    def reference(self) -> CodeReference:
        """The factory's code."""
        return CodeReference(name=self.factory, file=self.file, file_sha256=self.file_sha256)

    def find_factory(self) -> Callable[..., Any]:
        """The factory, as another process finds it.

        Raises:
            ArtifactError: It cannot be found, or does not say that it makes a model.
        """
        factory: Callable[..., Any] = self.reference.resolve()
        if not makes_a_module(factory):
            raise ArtifactError(
                "a model factory must be a torch.nn.Module class, or a function annotated to return one",
                received=self.factory,
                hint="annotate it: def factory(...) -> nn.Module",
            )
        return factory

    def make(self, factory: Callable[..., Any] | None = None) -> nn.Module:
        """A new model in training mode, its weights drawn from torch's global generator.

        Args:
            factory: The factory if it is at hand; it is found by its name when None.

        Raises:
            ArtifactError: The factory cannot be found, or does not say that it makes a model.
            ConfigError: The factory refuses its arguments or makes something else.
        """
        factory = factory or self.find_factory()
        try:
            module = factory(**self.args)
        except UpshiftError:
            raise
        except Exception as error:  # a factory is the user's code, which may raise anything
            raise ConfigError(
                f"{self.factory} must accept its model_args",
                received=f"{dict(self.args)}: {type(error).__name__}: {error}",
                hint="change model_args, or the factory's parameters",
            ) from error
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"{self.factory} must return a torch.nn.Module",
                received=type(module).__name__,
                hint="return the model itself",
            )
        return module

    def build(self, weights: Path) -> nn.Module:
        """The model in evaluation mode, with weights from a safetensors file.

        Raises:
            ArtifactError: The factory or the weights are missing or changed, or do not fit each other.
        """
        module = self.make()
        try:
            state = load_file(weights)
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                "the weights must be a whole safetensors file",
                received=f"{weights}: {str(error).splitlines()[0]}",
                hint=f"put the file back; --resume --out {weights.parent} makes it again from a run's checkpoint",
            ) from error
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise ArtifactError(
                "the weights must fit the model that the recipe makes",
                received=str(error).splitlines()[0],
                hint="use the recipe that the run was trained with",
            ) from error
        return module.eval()


def state_dict_on_cpu(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's state under the user's own names, contiguous on the CPU, shared tensors copied apart."""
    prefix = "_orig_mod."
    return {
        name.replace(prefix, ""): tensor.detach().cpu().contiguous().clone()
        for name, tensor in module.state_dict().items()
    }
