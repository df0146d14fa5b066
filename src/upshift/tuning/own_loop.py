"""Training steps of a model that comes without a recipe: its own loss, its own batches, its own optimizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NoReturn, cast

import torch
from torch import nn

from upshift.core import clock
from upshift.errors import BadInputError, ConfigError, DataError, NonFiniteLossError
from upshift.training.batches import Tree, num_samples, shapes
from upshift.training.builtin_optimizers import has_fused_kernels
from upshift.training.conductor import Conductor
from upshift.training.config import TrainingConfig
from upshift.training.interrupt import StoppedAtOnce, StopRequest
from upshift.training.optimizers import OptimizerSet
from upshift.training.step import TrainingStep, is_out_of_memory
from upshift.tuning.candidates import Job, job_of
from upshift.tuning.live import first_line
from upshift.tuning.own_batches import Batch, OwnBatches
from upshift.tuning.own_model import (
    Loss,
    all_parameters,
    checked,
    copies,
    gradients_set_aside,
    loss_of_outputs,
    refuse_what_makes_no_step,
)
from upshift.tuning.plan import Plan

MAX_STEPS = 10_000_000
NUM_LOOKED_AT = 4
"""Batches that are looked at to see whether their shapes change."""


class OwnLoop:
    """Makes training steps of a copy of a model, for as long as it is conducted (see `Conducted`).

    A batch is (inputs, targets), (input, input, …, targets), or one thing that is both: a tensor, a mapping, a
    dataclass. The model is called with the inputs as they are: a tuple or list as positional arguments, a mapping as
    named ones. The loss gets the model's outputs and the targets; without one, the outputs must hold it as `loss`, as
    those of transformers do.

    Args:
        model: It is copied: neither its weights nor its buffers change.
        loss: Of (outputs, targets), a mean over the batch; None takes `outputs.loss`.
        data: Batches; they are gone through again and again.
        optimizer: Of the model's parameters; it is copied with the model. SGD when None.

    Raises:
        ConfigError: Model, loss, data and optimizer do not fit each other, or the model cannot be copied.
        DataError: The data give no batch, or one that cannot be read.
    """

    def __init__(
        self, model: nn.Module, loss: Loss | None, data: Iterable[Any], optimizer: torch.optim.Optimizer | None
    ) -> None:
        self.notes: list[str] = []
        self.steps_made = 0
        refuse_what_makes_no_step(model, loss, optimizer)
        self.model, copied, loss = copies(model, optimizer, loss)
        if not self.model.training:
            self.model.train()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.device = trained[0].device
        optimizers = OptimizerSet(
            [copied if copied is not None else torch.optim.SGD(trained, lr=1e-3)],
            {parameter: name for name, parameter in all_parameters(self.model, loss).items()},
        )
        # Steps take as long as with another rate, and no weight leaves the range in which losses are finite.
        optimizers.set_learning_rate(0.0)
        self._batches = OwnBatches(data, self.device)
        try:
            self._begin(optimizers, checked(loss or loss_of_outputs), model, fused=_is_fused(copied))
        except BaseException:
            self._batches.close()
            raise

    def _begin(self, optimizers: OptimizerSet, loss: Loss, original: nn.Module, *, fused: bool | None) -> None:
        batches = self._batches.look(NUM_LOOKED_AT)
        self.batch_size, self._changes_size = _usual_size(batches)
        self.plan = _plan_of(self.model, self._batches, self.device, fused=fused)
        self.step = TrainingStep(
            self.model,
            loss,
            optimizers,
            TrainingConfig(batch_size=self.batch_size),
            self.plan,
            self.device,
            check=None,
            can_split=False,
        )
        with gradients_set_aside(original):
            self._check(*batches[0])

    def _check(self, inputs: Tree, targets: Tree) -> None:
        """Refuse what cannot make a step, in words that name it."""
        try:
            gradients = self.step.gradients(inputs, targets)
        except Exception as error:  # the user's code may raise anything
            _refuse(error)
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            raise ConfigError(
                "model and loss must have finite gradients on a batch of the data",
                received="some that are NaN or infinite",
                hint="check the data for NaN, normalise the inputs, or give the model as it is after some training",
            )
        if not gradients:
            raise ConfigError(
                "the loss must depend on the parameters that are trained",
                received="a loss that has no gradient of any of them",
                hint="compute it from the outputs, and unfreeze what is to be trained",
            )

    @property
    def remaining_steps(self) -> int:
        """There is no end: the conductor says when it is done."""
        return MAX_STEPS - self.steps_made

    @property
    def loader(self) -> Any:
        """Where batches come from."""
        return self._batches.in_use

    def use_loader(self, loader: Any) -> None:
        """Take the following batches from another loader."""
        self._batches.use(loader)

    def note(self, note: str) -> None:
        """Keep what the user should know."""
        self.notes.append(note)

    def run(self, conductor: Conductor, stop: StopRequest) -> NoReturn:
        """Make steps until the conductor raises.

        Raises:
            StoppedAtOnce: A signal asked for it, and what it raised was lost.
        """
        try:
            while True:
                if stop.signal_name is not None:
                    raise StoppedAtOnce(stop.signal_name)
                start = clock.now()
                inputs, targets = self._next_batch(conductor)
                waited = clock.now() - start
                conductor.before_step(self, inputs, targets)
                start = clock.now()
                self._make_step(conductor, inputs, targets)
                conductor.after_step(self, step_seconds=clock.now() - start, data_seconds=waited)
        finally:
            self.close()

    def close(self) -> None:
        """Let the workers of its loaders end."""
        self._batches.close()

    def _next_batch(self, conductor: Conductor) -> Batch:
        try:
            return self._batches.next()
        except DataError as error:  # of workers that could not start, for one
            if self._batches.are_as_given or not conductor.on_error(self, error):
                raise
        self._batches.go_back()
        return self._batches.next()

    def _make_step(self, conductor: Conductor, inputs: Tree, targets: Tree) -> None:
        while True:
            try:
                self.step(self.step.prepare(inputs), targets)
            except Exception as error:
                if not conductor.on_error(self, error):
                    _refuse(error)
                self.step.abandon()
                continue
            if self.step.skipped and conductor.on_error(self, NonFiniteLossError("the loss was not finite")):
                self.step.forget_skip()
                continue
            self.steps_made += 1
            return

    def job(self, fast_dtypes: Sequence[str] = ()) -> Job:
        """What is trained, for the tuner.

        Args:
            fast_dtypes: Precisions in which this machine is faster; fp16 is left out, whose loss scaling a plan
                cannot bring into a loop.
        """
        return job_of(
            self.model,
            self.device,
            self.batch_size,
            can_split=False,
            can_compile_step=False,
            changes_size=self._changes_size,
            data_paths=("worker",) if self._batches.takes_workers else (),
            data_path=self.plan.data_path,
            fast_dtypes=tuple(name for name in fast_dtypes if name != "fp16"),
        )

    def loader_for(self, plan: Plan) -> Any:
        """The loader of a plan."""
        return self._batches.loader(plan.num_workers)


def _refuse(error: Exception) -> NoReturn:
    """Raise an error of the user's code as one of what was given."""
    if isinstance(error, BadInputError):
        raise error
    if is_out_of_memory(error):
        raise ConfigError(
            "a training step must fit in memory beside the model itself: tuning trains a copy of it",
            received=first_line(error),
            hint="tune with smaller batches, or a smaller model; or free memory first",
        ) from error
    raise ConfigError(
        "model and loss must take each batch of the data",
        received=first_line(error),
        hint="a batch is (inputs, targets) or a mapping of named inputs; the loss takes (outputs, targets)",
    ) from error


def _usual_size(batches: Sequence[Batch]) -> tuple[int, bool]:
    """Samples of a batch as most are, and whether their shapes change."""
    kinds = Counter((num_samples(inputs), shapes(inputs)) for inputs, _ in batches)
    ((size, _), count) = kinds.most_common(1)[0]
    return size, 2 * count < len(batches)


def _is_fused(optimizer: torch.optim.Optimizer | None) -> bool | None:
    """Whether the user's optimizer takes fused kernels; None where there is nothing that could be switched."""
    if optimizer is None or not has_fused_kernels(optimizer):
        return None
    return all(bool(group["fused"]) for group in optimizer.param_groups)


def _plan_of(model: nn.Module, batches: OwnBatches, device: torch.device, *, fused: bool | None) -> Plan:
    """How the user's loop executes now."""
    known = device.type if device.type in ("cpu", "cuda", "mps") else "auto"
    return Plan(
        device=cast(Literal["auto", "cpu", "cuda", "mps"], known),
        precision="tf32" if device.type == "cuda" and torch.get_float32_matmul_precision() != "highest" else "fp32",
        memory_format="channels_last" if _is_channels_last(model) else "contiguous",
        fused_optimizer=fused,
        data_path="worker" if batches.takes_workers else "auto",
        num_workers=batches.num_workers,
    )


def _is_channels_last(model: nn.Module) -> bool:
    kernels = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    return any(not kernel.is_contiguous() for kernel in kernels) and all(
        kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels
    )
