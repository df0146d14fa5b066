"""Optimizers by name, as one object whatever they are made of."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from upshift.errors import BadInputError, ConfigError, MissingExtraError, UnknownNameError
from upshift.training.builtin_optimizers import BUILTIN, ParamGroups, builtin_info, fused_or_torchs_choice
from upshift.training.config import OptimizerConfig
from upshift.training.optimizer_state import pack, unpack


class OptimizerSet:
    """One or more torch optimizers that step together, with learning rates set by a common factor.

    Attributes:
        optimizers: The torch optimizers.
        parameter_names: Name of each parameter that any of them updates.
        package_name: What pytorch_optimizer calls it; None for torch's own, and for one that the user has made.
    """

    def __init__(
        self,
        optimizers: list[torch.optim.Optimizer],
        names: dict[nn.Parameter, str],
        *,
        package_name: str | None = None,
    ) -> None:
        self.optimizers = optimizers
        self.package_name = package_name
        self.parameter_names = names
        self._parameters = list(names)
        self._peaks = [[_rate(group) for group in optimizer.param_groups] for optimizer in optimizers]
        self.supports_found_inf = self._all_support_found_inf()

    def set_learning_rate(self, factor: float) -> None:
        """Set each group's rate to `factor` times its peak.

        Raises:
            ConfigError: A group has no rate.
        """
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                if peak is None:
                    raise ConfigError(
                        "an optimizer must have a learning rate that can be set, a number lr in each of its groups",
                        received=f"{type(optimizer).__name__} with lr={group['lr']!r}"
                        if "lr" in group
                        else f"{type(optimizer).__name__} without lr",
                        hint="give it a number, as lr=1e-3, or tune without the optimizer",
                    )
                group["lr"] = peak * factor

    @property
    def learning_rate(self) -> float:
        """The first group's current rate: the one that is logged."""
        return float(self.optimizers[0].param_groups[0]["lr"])

    def step(self) -> None:
        """Update the parameters.

        Raises:
            ConfigError: An optimizer of another package, which upshift made, does not take these gradients.
        """
        try:
            for optimizer in self.optimizers:
                _step(optimizer)
        except Exception as error:  # code of another package, which may raise anything
            if self.package_name is None or _concerns_memory(error):
                raise
            raise ConfigError(
                "an optimizer must make its steps from the gradients of the model",
                received=f"{self.package_name}, which raises {type(error).__name__}: {error}",
                hint="choose another optimizer.name, or change optimizer.options",
            ) from error

    def zero_grad(self) -> None:
        # As torch's own zero_grad(set_to_none=True), without its profiling hooks: 3 % of a step of a small model.
        for parameter in self._parameters:
            parameter.grad = None

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The optimizers' state as named tensors and a JSON value, keyed by parameter name.

        Raises:
            ConfigError: An optimizer keeps something that is neither a tensor nor a JSON value.
        """
        tensors: dict[str, torch.Tensor] = {}
        numbers: dict[str, Any] = {}
        groups: list[list[dict[str, Any]]] = []
        foreign: dict[str, Any] = {}
        for index, optimizer in enumerate(self.optimizers):
            if not _is_own(optimizer):
                more, foreign[str(index)] = pack(optimizer, str(index))
                tensors |= more
                groups.append([])
                continue
            packed = optimizer.state_dict()
            names = self._names_in_order(optimizer)
            for position, entries in packed["state"].items():
                for key, value in entries.items():
                    path = f"{index}/{names[position]}/{key}"
                    if isinstance(value, torch.Tensor):
                        tensors[path] = value
                    else:
                        numbers[path] = _json_value(value, optimizer, key)
            groups.append(
                [
                    {key: _json_value(value, optimizer, key) for key, value in group.items() if key != "params"}
                    for group in packed["param_groups"]
                ]
            )
        return tensors, {"numbers": numbers, "groups": groups} | ({"foreign": foreign} if foreign else {})

    def load_state(self, tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> None:
        """Take back what `state` gave; torch puts each value on its parameter's device."""
        for index, optimizer in enumerate(self.optimizers):
            foreign = rest.get("foreign", {}).get(str(index))
            if foreign is not None:
                unpack(optimizer, tensors, foreign)
                continue
            positions = {name: position for position, name in enumerate(self._names_in_order(optimizer))}
            packed = optimizer.state_dict()
            state: dict[int, dict[str, Any]] = {}
            for path, value in (tensors | rest["numbers"]).items():
                owner, name_and_key = path.split("/", 1)
                name, key = name_and_key.rsplit("/", 1)
                if int(owner) == index:
                    state.setdefault(positions[name], {})[key] = value
            saved = rest["groups"][index]
            # How it is executed is the plan's of now, not that of the checkpoint.
            kept = [{key: value for key, value in then.items() if key not in ("fused", "foreach")} for then in saved]
            groups = [now | then for now, then in zip(packed["param_groups"], kept, strict=True)]
            optimizer.load_state_dict({"state": state, "param_groups": groups})

        self.follow_layout()

    def set_fused(self, fused: bool | None) -> None:
        """Use torch's fused kernels from now on, or not, where an optimizer has them for its parameters.

        Args:
            fused: None leaves every optimizer as it is.
        """
        for optimizer in self.optimizers if fused is not None else ():
            info = builtin_info(optimizer)
            if info is None or all(bool(group["fused"]) == fused for group in optimizer.param_groups):
                continue
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            can = bool(fused) and all(parameter.dtype in info.fused_dtypes for parameter in parameters)
            for group in optimizer.param_groups:
                group["fused"] = fused_or_torchs_choice(can)
            # What the fused kernels and the gradient scaler look for; set by the constructor alone.
            optimizer._step_supports_amp_scaling = can  # type: ignore[attr-defined]
            for told in ("found_inf", "grad_scale"):  # by fused steps; others refuse to step with them
                if hasattr(optimizer, told):
                    delattr(optimizer, told)
            for parameter in parameters if can else ():
                state = optimizer.state.get(parameter, {})
                if isinstance(state.get("step"), torch.Tensor):
                    state["step"] = state["step"].to(parameter.device, torch.float32)
        self.supports_found_inf = self._all_support_found_inf()

    def follow_layout(self) -> None:
        """Lay the state of each parameter out as the parameter is.

        torch's fused CPU kernels walk parameter, gradient and momentum by address alone: with unlike strides they
        would pair the wrong elements, without an error (seen in torch 2.13).
        """
        for optimizer in self.optimizers:
            for parameter, entries in optimizer.state.items():
                # Optimizers of other packages keep totals there too, under names.
                for key, value in entries.items() if isinstance(parameter, torch.Tensor) else ():
                    is_like = isinstance(value, torch.Tensor) and value.shape == parameter.shape
                    if is_like and value.stride() != parameter.stride():
                        entries[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The weights that are meant to be used, within this context.

        Optimizers that average for themselves, as the schedule-free ones (arXiv 2405.15682), train other weights than
        those that they converge with. Afterwards the weights are bitwise as before: nothing depends on when they were
        evaluated.
        """
        with contextlib.ExitStack() as put_back:
            for optimizer in self.optimizers:
                swap_in, swap_out = getattr(optimizer, "eval", None), getattr(optimizer, "train", None)
                if callable(swap_in) and callable(swap_out):
                    parameters = [p for group in optimizer.param_groups for p in group["params"]]
                    put_back.callback(_copy_back, parameters, [p.detach().clone() for p in parameters])
                    put_back.callback(swap_out)
                    swap_in()
            yield

    def _all_support_found_inf(self) -> bool:
        return all(getattr(optimizer, "_step_supports_amp_scaling", False) for optimizer in self.optimizers)

    def _names_in_order(self, optimizer: torch.optim.Optimizer) -> list[str]:
        return [self.parameter_names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


@torch.no_grad()
def _copy_back(parameters: list[nn.Parameter], values: list[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _concerns_memory(error: Exception) -> bool:
    """Whether whoever made the step may mend it, by a smaller micro-batch."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in ("memory", "alloc"))


@torch.no_grad()
def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give parameters that a stage of training has thawed a momentum, where others of their group have one already.

    torch's fused SGD takes the momentum of all parameters of a group or of none (torch 2.13). What they get makes their
    first momentum the gradient, as torch has it.

    Args:
        optimizer: Just before its step; any but torch's SGD is left alone.
    """
    if type(optimizer) is not torch.optim.SGD or not optimizer.state:
        return
    for group in optimizer.param_groups:
        if not (group["fused"] and group["momentum"]):
            continue
        trained = [parameter for parameter in group["params"] if parameter.grad is not None]
        new = [p for p in trained if optimizer.state.get(p, {}).get("momentum_buffer") is None]
        for parameter in new if len(new) < len(trained) else ():
            momentum = torch.zeros_like(parameter)
            if group["dampening"]:
                gradient = -parameter.grad if group["maximize"] else parameter.grad
                gradient = (gradient + group["weight_decay"] * parameter) * (group["dampening"] / group["momentum"])
                # The kernel itself skips a step whose gradient is not finite, and nothing of it may stay.
                momentum.copy_(torch.nan_to_num(gradient, 0.0, 0.0, 0.0))
            optimizer.state[parameter]["momentum_buffer"] = momentum


def _step(optimizer: torch.optim.Optimizer) -> None:
    """Make its step; past torch's wrapper for profilers and hooks, which takes 2 % of a small model's step."""
    kind = type(optimizer)
    begin_momentum(optimizer)
    is_watched = (
        "step" in optimizer.__dict__
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or torch._C._autograd._profiler_enabled()
    )
    if kind.__module__.startswith("torch.optim.") and hasattr(kind.step, "hooked") and not is_watched:
        kind.step.__wrapped__(optimizer)  # type: ignore[attr-defined]
    else:
        optimizer.step()


def _rate(group: dict[str, Any]) -> float | None:
    """The learning rate of a group; None where it has none, as of an optimizer that finds its own."""
    try:
        return float(group["lr"])
    except (KeyError, TypeError):
        return None


def _is_own(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its state is one tensor or number for each name and parameter, as we know of torch's own."""
    return type(optimizer) in (torch.optim.Muon, *(info.type for info in BUILTIN.values()))


def _json_value(value: Any, optimizer: torch.optim.Optimizer, key: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_json_value(item, optimizer, key) for item in value]
    raise ConfigError(
        "an optimizer's state must be tensors and numbers, to be checkpointed",
        received=f"{type(optimizer).__name__} keeps a {type(value).__name__} as {key!r}",
        hint="choose another optimizer.name",
    )


# Fields that not every optimizer takes, with what they are where nobody has set them.
_DEFAULTS = {name: getattr(OptimizerConfig(), name) for name in ("momentum", "nesterov", "betas", "eps", "adamw_lr")}


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, fused: bool | None = None) -> OptimizerSet:
    """The optimizer of a model.

    Args:
        model: Its parameters that require gradients are updated.
        config: Which optimizer and how.
        fused: Use torch's fused kernel where the optimizer has one for the parameters' device and dtype; else, and
            where this is None, torch chooses among its others.

    Raises:
        UnknownNameError: No such optimizer.
        MissingExtraError: It would come from pytorch_optimizer, which is not installed.
        ConfigError: The model has no parameter to train, or the options do not fit the optimizer.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise ConfigError(
            "a model must have parameters to train",
            received=type(model).__name__,
            hint="leave requires_grad on for some of them",
        )
    names: dict[nn.Parameter, str] = {parameter: name for name, parameter in named}
    _refuse_without_effect(config)
    try:
        if config.name == "muon":
            optimizers = _muon(model, named, config, fused)
        elif config.name in BUILTIN:
            info = BUILTIN[config.name]
            can_fuse = bool(fused) and all(parameter.dtype in info.fused_dtypes for _, parameter in named)
            optimizers = [info.make(decay_groups(named, config), config, fused_or_torchs_choice(can_fuse))]
        else:
            optimizers = [_from_pytorch_optimizer(decay_groups(named, config), config)]
        is_own = config.name == "muon" or config.name in BUILTIN
        return OptimizerSet(optimizers, names, package_name=None if is_own else config.name)
    except BadInputError:
        raise
    except Exception as error:  # a constructor of another package, which may raise anything
        raise ConfigError(
            f"the options must fit the optimizer {config.name}",
            received=f"{dict(config.options)}: {type(error).__name__}: {error}",
            hint="change optimizer.options or another optimizer field",
        ) from error


def decay_groups(named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> ParamGroups:
    """Parameters in at most two groups: with weight decay, and norms and biases (1-D) without."""
    named = list(named)
    if config.weight_decay == 0 or config.decay_norm_and_bias:
        return [{"params": [parameter for _, parameter in named], "weight_decay": config.weight_decay}]
    decayed = [parameter for _, parameter in named if parameter.dim() >= 2]
    plain = [parameter for _, parameter in named if parameter.dim() < 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _muon(
    model: nn.Module, named: list[tuple[str, nn.Parameter]], config: OptimizerConfig, fused: bool | None
) -> list[torch.optim.Optimizer]:
    """Muon for hidden 2-D weights and AdamW for the rest: embeddings, the output layer, norms, biases,
    convolutions (Jordan 2024, https://kellerjordan.github.io/posts/muon; torch.optim.Muon is 2-D only)."""
    modules = list(model.modules())
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    excluded = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)}
    excluded |= {id(linears[-1].weight)} if linears else set()
    hidden = [(name, p) for name, p in named if p.dim() == 2 and id(p) not in excluded]
    rest = [(name, p) for name, p in named if not (p.dim() == 2 and id(p) not in excluded)]
    optimizers: list[torch.optim.Optimizer] = []
    if hidden:
        optimizers.append(
            torch.optim.Muon(
                [p for _, p in hidden],
                lr=config.lr,
                momentum=config.momentum,
                nesterov=config.nesterov,
                weight_decay=config.weight_decay,
                **config.options,
            )
        )
    if rest:
        optimizers.append(
            torch.optim.AdamW(
                decay_groups(rest, config),
                lr=config.adamw_lr or config.lr,
                betas=config.betas,
                eps=config.eps,
                fused=fused_or_torchs_choice(fused),
            )
        )
    return optimizers


def _from_pytorch_optimizer(groups: ParamGroups, config: OptimizerConfig) -> torch.optim.Optimizer:
    try:
        import pytorch_optimizer
    except ImportError as error:
        if config.name.isidentifier():
            raise MissingExtraError(
                "pytorch_optimizer", extra="optimizers", purpose=f"the optimizer {config.name!r}"
            ) from error
        raise UnknownNameError("optimizer.name", config.name, (*BUILTIN, "muon")) from error
    supported = pytorch_optimizer.get_supported_optimizers()
    if config.name not in supported:
        raise UnknownNameError(
            "optimizer.name",
            config.name,
            (*BUILTIN, "muon", *supported),
            hint=f"built in: {', '.join(BUILTIN)}, muon; others as pytorch_optimizer names them",
        )
    make = pytorch_optimizer.load_optimizer(config.name)
    optimizer: torch.optim.Optimizer = make(groups, lr=config.lr, **_fields_it_takes(make, config), **config.options)
    if any("lr" not in group for group in optimizer.param_groups):
        raise TypeError(f"{config.name} has no learning rate that a schedule could set")
    return optimizer


def _fields_it_takes(make: Callable[..., Any], config: OptimizerConfig) -> dict[str, Any]:
    """Fields that differ from their defaults; one that the optimizer does not take is refused, not ignored."""
    parameters = tuple(inspect.signature(make).parameters)
    _refuse_others(config, parameters)
    return {name: value for name, value in _changed(config).items() if name in parameters}


def _refuse_without_effect(config: OptimizerConfig) -> None:
    """Refuse a field that a built-in optimizer would ignore."""
    if config.name == "muon":
        _refuse_others(config, tuple(_DEFAULTS))
    elif config.name in BUILTIN:
        _refuse_others(config, BUILTIN[config.name].takes)


def _refuse_others(config: OptimizerConfig, takes: tuple[str, ...]) -> None:
    for name, value in _changed(config).items():
        if name not in takes:
            raise ConfigError(
                f"optimizer.{name} must be one that {config.name} takes",
                received=value,
                hint=f"leave it out, or --set optimizer.{name}={_as_text(_DEFAULTS[name])}; "
                f"{config.name} takes {', '.join(takes)}",
            )


def _as_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()


def _changed(config: OptimizerConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name, value in _DEFAULTS.items() if getattr(config, name) != value}
