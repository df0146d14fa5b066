"""The plan: how fast. It never changes what a recipe means."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from upshift.core.files import read_json, write_json
from upshift.core.typed_fields import check_fields, dataclass_from_json, to_json
from upshift.errors import ArtifactError, BadInputError, ConfigError, PlanError, shown
from upshift.training.execution import CUDA_GRAPH_MODES

VERSION = 1
MAX_THREADS_PER_CORE = 4
"""Of torch's CPU kernels, and worker processes: more only wait for each other, far more take the machine down."""
EVIDENCE = ("version", "subject", "environment", "trials")
"""Fields that say nothing of how a recipe is executed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a recipe is executed on a machine, and the evidence for it.

    Attributes:
        device: "auto" takes the accelerator that torch finds, else the CPU.
        precision: "fp32"; "tf32" (CUDA: matrix products and convolutions in TensorFloat-32); "bf16" or
            "fp16" autocast, fp16 with loss scaling.
        memory_format: Layout of images and convolution weights.
        compile: "whole" compiles the model with torch.compile, "regional" the blocks that repeat in it (a ResNet's,
            a Transformer's layers), which takes less time to compile; "step" compiles model, loss and gradients as one
            graph, which a loop has to be written for.
        compile_mode: The mode of torch.compile; None is its default.
        activation_checkpointing: Keep only the inputs of the blocks that repeat, and compute their activations once
            more in the backward pass: less memory for more time.
        fused_optimizer: Use torch's fused optimizer kernels where there are some; None leaves the optimizer of a loop
            of the user's own as it is.
        data_path: Where batches come from: "resident" (the whole store in memory, on the device where
            it fits), "mmap" (the store's file), "worker" (a torch DataLoader); "auto" decides by size.
        num_workers: Worker processes of the data path "worker".
        num_threads: Threads of torch's CPU kernels; None leaves torch's choice.
        keep_freed_memory: Have the C library keep memory that is freed, for the next step: giving it back to the system
            has every page of it cleared and mapped anew. Of the CPU alone, and of glibc.
        micro_batch_size: Samples per forward and backward pass; gradients are accumulated up to the
            recipe's batch size. None takes the whole batch at once.
        version: Version of this format.
        subject: Which model it was found for, as a hash of its modules and parameters; None where nobody has said.
        environment: The machine and library versions that the plan was chosen on.
        trials: The measurements that it was chosen by.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    compile: Literal["none", "whole", "regional", "step"] = "none"
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = None
    activation_checkpointing: bool = False
    fused_optimizer: bool | None = True
    data_path: Literal["auto", "resident", "mmap", "worker"] = "auto"
    num_workers: int = 0
    num_threads: int | None = None
    keep_freed_memory: bool = False
    micro_batch_size: int | None = None
    version: int = VERSION
    subject: str | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    trials: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        try:
            check_fields(self, "plan.")
        except BadInputError as error:
            raise _as_plan_error(error) from error
        for name in ("num_threads", "micro_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PlanError(f"plan.{name} must be at least 1", received=value, hint="leave it out, or null")
        if self.num_workers < 0:
            raise PlanError("plan.num_workers must not be negative", received=self.num_workers, hint="0 uses none")
        if self.num_workers and self.data_path not in ("auto", "worker"):
            raise PlanError(
                'plan.num_workers needs data_path "worker"', received=self.data_path, hint="set num_workers to 0"
            )
        if self.compile_mode is not None and self.compile == "none":
            raise PlanError(
                'plan.compile_mode needs compile "whole", "regional" or "step"',
                received=self.compile_mode,
                hint="leave compile_mode out",
            )
        if self.compile == "step" and (self.activation_checkpointing or self.precision == "fp16"):
            raise PlanError(
                'plan.compile "step" needs activations that are kept, and a loss that is not scaled',
                received="activation_checkpointing=true" if self.activation_checkpointing else 'precision="fp16"',
                hint='set compile to "whole", or leave that out',
            )
        if self.compile == "step" and self.compile_mode in CUDA_GRAPH_MODES:
            raise PlanError(
                'plan.compile "step" needs a compile_mode without CUDA graphs: each would overwrite the last gradients',
                received=self.compile_mode,
                hint='leave compile_mode out, use "max-autotune-no-cudagraphs", or set compile to "whole"',
            )
        if self.precision == "tf32" and self.device in ("cpu", "mps"):
            raise PlanError('plan.precision "tf32" needs a CUDA device', received=self.device, hint='use "fp32"')

    def __repr__(self) -> str:
        """What is not as in the plain loop; evidence is left out, and `...` stands for it."""
        told = [field for field in dataclasses.fields(self) if field.name not in EVIDENCE]
        values = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in told
            if getattr(self, field.name) != field.default
        ]
        return f"Plan({', '.join([*values, *(['...'] if self.subject or self.environment or self.trials else [])])})"

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON object."""
        return typing.cast(dict[str, Any], to_json(self))

    def save(self, path: str | Path) -> None:
        """Write the plan as a JSON file that `load` reads.

        Raises:
            StorageError: The file cannot be written.
        """
        write_json(Path(path), self.to_json())

    @staticmethod
    def load(path: str | Path) -> Plan:
        """The plan of a file, for this machine; see `load_plan`.

        Raises:
            PlanError: The file cannot be read, or is for a device that is not here.
        """
        return load_plan(path)

    def apply(self, model: nn.Module, optimizer: Any = None, loader: Any = None) -> tuple[nn.Module, Any, Any]:
        """Make a loop of your own execute as this plan says.

            model, optimizer, loader = plan.apply(model, optimizer, loader)

        The model stays the object that it is, with its state-dict keys: its layout and the way it is called change.
        Threads and matrix precision are set for the process. A plan that was found for another model is applied all the
        same, with a warning.

        Args:
            model: On its device.
            optimizer: A torch optimizer of its parameters; anything else is given back as it is.
            loader: A torch DataLoader gets the plan's workers; anything else is given back as it is.

        Raises:
            PlanError: The plan needs what only the loop itself can do (loss scaling, parts of a batch), or a
                device that is not here.
        """
        from upshift.tuning.apply import apply_plan

        self.check_device()
        return apply_plan(self, model, optimizer, loader)

    def is_for_this_machine(self) -> bool:
        """Whether its device is here."""
        try:
            self.check_device()
        except PlanError:
            return False
        return True

    def check_device(self) -> None:
        """Refuse a plan that this machine cannot carry out.

        Raises:
            PlanError: Its device is not here, its precision needs another one, or it takes far more threads or
                workers than there are cores.
        """
        num_cores = os.cpu_count() or 1
        for name, taken in (("num_threads", self.num_threads), ("num_workers", self.num_workers)):
            if taken is not None and taken > MAX_THREADS_PER_CORE * num_cores:
                raise PlanError(
                    f"plan.{name} must be at most {MAX_THREADS_PER_CORE} for each of this machine's {num_cores} cores",
                    received=taken,
                    hint=f"make a plan here, or set {name} to at most {MAX_THREADS_PER_CORE * num_cores}",
                )
        available = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}
        if not available[self.device]:
            raise PlanError(
                f"the plan's device {self.device} must be on this machine",
                received=f"a machine whose torch finds no {self.device}",
                hint='make a plan here, or set its "device" to "auto"',
            )
        if self.precision == "tf32" and not available["cuda"]:
            raise PlanError(
                'plan.precision "tf32" needs a CUDA device',
                received="a machine whose torch finds no cuda",
                hint='make a plan here, or set its "precision" to "fp32"',
            )


def _as_plan_error(error: BadInputError) -> PlanError:
    """An error of a field as one of a plan, with numbers of processes that this machine bears as its example."""
    hint = error.hint
    if error.rule.startswith("plan.num_threads"):
        hint = f"for example plan.num_threads={os.cpu_count() or 1}, as many as this machine has cores"
    elif error.rule.startswith("plan.num_workers"):
        hint = "for example plan.num_workers=0, which uses none"
    return PlanError(error.rule, received=error.received, hint=hint)


BASELINE = Plan()
"""The plain loop: fp32, eager, contiguous, data in memory where it fits, fused optimizer where torch has one."""


def load_plan(reference: str | Path | Plan) -> Plan:
    """A plan that this machine can carry out.

    Args:
        reference: "baseline", the path of a JSON file, or a plan.

    Raises:
        PlanError: The file is missing, cut short, of a newer version, has unknown fields or values of
            the wrong type, or is for a device that is not here.
    """
    plan = read_plan(reference)
    plan.check_device()
    return plan


def read_plan(reference: str | Path | Plan) -> Plan:
    """A plan for this machine or another.

    Args:
        reference: "baseline", the path of a JSON file, or a plan.

    Raises:
        PlanError: The file is missing, cut short, of a newer version, or has unknown fields or values of
            the wrong type.
    """
    if isinstance(reference, Plan):
        return reference
    return BASELINE if str(reference) == "baseline" else _read(Path(reference).expanduser())


def _read(path: Path) -> Plan:
    if not path.exists():
        raise PlanError(
            'a plan must be "baseline", the path of a JSON file, or, in training, "auto"',
            received=repr(str(path)),
            hint="check the path",
        )
    try:
        return plan_from_json(read_json(path, kind="a plan"))
    except PlanError as error:
        raise PlanError(f"{path}: {error.rule}", received=error.received, hint=error.hint) from error
    except ArtifactError as error:
        raise PlanError(error.rule, received=error.received, hint=error.hint) from error
    except BadInputError as error:
        raise PlanError(f"{path}: {error.rule}", received=error.received, hint=error.hint) from error


def plan_from_json(document: object) -> Plan:
    """The plan that `Plan.to_json` gave.

    Raises:
        BadInputError: It is no such object, of a newer version, or has unknown fields or values of the wrong type.
    """
    if not isinstance(document, Mapping) or "version" not in document:
        what = "a file without one" if isinstance(document, Mapping) else shown(document)
        raise PlanError('a plan must have a "version"', received=what, hint=f'add "version": {VERSION}')
    version = document["version"]
    if not isinstance(version, int) or isinstance(version, bool):
        raise PlanError(
            "a plan's version must be a whole number", received=shown(version), hint=f'for example "version": {VERSION}'
        )
    if version > VERSION:
        raise PlanError(
            f"a plan must be of a version that this upshift knows, at most {VERSION}",
            received=f"version {version}, which is of a newer upshift",
            hint="update upshift, or make the plan again with this one",
        )
    if version < 1:
        raise PlanError("a plan must be of version 1 or later", received=version, hint="make it again")
    try:
        plan: Plan = dataclass_from_json(document, Plan, "plan")
    except ConfigError as error:
        raise _as_plan_error(error) from error
    return plan
