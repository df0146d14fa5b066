"""The state of any optimizer as named tensors and a JSON value, and back.

pytorch_optimizer's optimizers keep more than a tensor a parameter: lists and queues of tensors, preconditioners that
are objects, totals under keys that are no parameter. All of that is kept as data.
"""

from __future__ import annotations

import enum
import importlib
import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

from upshift.errors import ArtifactError, ConfigError

PACKAGE = "pytorch_optimizer"


def pack(optimizer: torch.optim.Optimizer, prefix: str) -> tuple[dict[str, torch.Tensor], Any]:
    """What the `state_dict` of an optimizer holds.

    Args:
        optimizer: Any.
        prefix: What the tensors' names begin with.

    Raises:
        ConfigError: It keeps something that is no data, as a function.
    """
    tensors: dict[str, torch.Tensor] = {}
    packed = _encode(optimizer.state_dict(), tensors, prefix)
    return tensors, packed


def unpack(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], packed: Any) -> None:
    """Give an optimizer that was made for the same parameters what `pack` took."""
    device = next(parameter.device for group in optimizer.param_groups for parameter in group["params"])
    optimizer.load_state_dict(_decode(packed, tensors, device))


def _encode(value: Any, tensors: dict[str, torch.Tensor], prefix: str) -> Any:
    """A JSON value: numbers, texts and lists as they are, all else as an object that says what it is."""
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, torch.Tensor):
        name = f"{prefix}/{len(tensors)}"
        tensors[name] = value.detach()
        # A file has no strides, but kernels round by them.
        stride = None if value.is_contiguous() else list(torch.empty_like(value).stride())
        return {"tensor": name, "on_cpu": value.device.type == "cpu", "stride": stride}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, list | tuple | deque):
        items = [_encode(item, tensors, prefix) for item in value]
        if isinstance(value, deque):
            return {"deque": items, "length": value.maxlen}
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        return {
            "mapping": [[_encode(key, tensors, prefix), _encode(item, tensors, prefix)] for key, item in value.items()]
        }
    kind = type(value)
    if kind.__module__.startswith(f"{PACKAGE}."):
        name = f"{kind.__module__}:{kind.__qualname__}"
        if isinstance(value, enum.Enum):
            return {"member": name, "name": value.name}
        if hasattr(value, "__dict__"):
            return {"object": name, "attributes": _encode(vars(value), tensors, prefix)}
    raise ConfigError(
        "an optimizer's state must be tensors and numbers, to be checkpointed",
        received=f"one that keeps a {kind.__name__}",
        hint="choose another optimizer.name",
    )


def _decode(value: Any, tensors: Mapping[str, torch.Tensor], device: torch.device) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors, device) for item in value]
    if not isinstance(value, dict):
        return value
    kind = next(iter(value))
    content = value[kind]
    if kind == "tensor":
        tensor = tensors[content] if value["on_cpu"] else tensors[content].to(device)
        if value["stride"] is None:
            return tensor
        return torch.empty_strided(tensor.shape, value["stride"], dtype=tensor.dtype, device=tensor.device).copy_(
            tensor
        )
    if kind == "float":
        return float(content)
    if kind == "dtype":
        return getattr(torch, content)
    if kind == "tuple":
        return tuple(_decode(content, tensors, device))
    if kind == "deque":
        return deque(_decode(content, tensors, device), maxlen=value["length"])
    if kind == "mapping":
        return {_decode(key, tensors, device): _decode(item, tensors, device) for key, item in content}
    if kind == "member":
        return _class(content)[value["name"]]
    if kind == "object":
        made = object.__new__(_class(content))
        vars(made).update(_decode(value["attributes"], tensors, device))
        return made
    raise ArtifactError("an optimizer's state must be of known kinds", received=repr(kind), hint="upgrade upshift")


def _class(reference: str) -> Any:
    """A class of pytorch_optimizer: a checkpoint names no other, and nothing of it is called."""
    module, _, name = reference.partition(":")
    found = getattr(importlib.import_module(module), name, None) if module.startswith(f"{PACKAGE}.") else None
    if not isinstance(found, type) or found.__module__ != module:
        raise ArtifactError(
            f"an optimizer's state may name classes of {PACKAGE}",
            received=reference,
            hint="go on with the versions that the run began with",
        )
    return found
