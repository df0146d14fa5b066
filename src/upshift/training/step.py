"""One optimizer step: precision, accumulation, clipping, and what to do when the loss is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from upshift.errors import ConfigError
from upshift.training.batches import Tree, at_least_single, map_tensors, micro_batch_sizes, num_samples, take
from upshift.training.buffers import Buffers
from upshift.training.config import TrainingConfig
from upshift.training.execution import Execution, Executor
from upshift.training.gradients import GradientCheck
from upshift.training.metrics import check_logits
from upshift.training.optimizers import OptimizerSet, begin_momentum
from upshift.training.rng import restore_rng_state, rng_state

Loss = Callable[[Any, Any], torch.Tensor]


class TrainingStep:
    """Forward, backward and update for one batch.

    Args:
        model: On its device.
        loss: Of (outputs, labels): a mean over the batch.
        optimizer: Of the model's parameters.
        config: Batch size, clipping, and how many losses may not be finite.
        execution: How steps are made, until `execute` says otherwise.
        device: Where.
        check: Refuses outputs that do not fit labels, once; None takes any.
        can_split: Whether a batch of more than `micro_batch_size` samples is taken in parts; else as a whole.

    Attributes:
        micro_batch_size: Samples of one forward and backward; a larger batch is accumulated.
        num_skipped: Steps whose loss or gradient was not finite, and which therefore changed nothing.
        num_overflows: Steps that changed nothing as fp16's scale of the loss was too large, and was made smaller.
        skipped: Whether the last step changed nothing; unknown, and False, where the device itself skips.
        seeks_scale: Whether that was for the scale's sake.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: OptimizerSet,
        config: TrainingConfig,
        execution: Execution,
        device: torch.device,
        *,
        check: Callable[[Any, Any], object] | None = check_logits,
        can_split: bool = True,
    ) -> None:
        self._model, self._loss, self._optimizer, self._device = model, loss, optimizer, device
        self._clip_grad_norm = config.clip_grad_norm
        self._max_nonfinite = config.max_nonfinite_steps
        self._batch_size = config.batch_size
        # That fit in memory, with activations kept and with activations recomputed.
        self._most_samples = {False: config.batch_size, True: config.batch_size}
        self._recomputes = execution.activation_checkpointing
        self._executor = Executor(model, optimizer, device, execution)
        self._skips_on_device = self._can_skip_on_device()
        self.micro_batch_size = min(execution.micro_batch_size or config.batch_size, config.batch_size)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # BatchNorm's running statistics take in a NaN before the loss shows it.
        self._buffers = Buffers(model)
        self._gradients = GradientCheck(self._parameters, device)
        self._skipped_on_device = torch.zeros((), device=device)
        self._in_a_row_on_device = torch.zeros((), device=device)
        self.num_skipped = 0
        self.num_skipped_in_a_row = 0
        self.num_overflows = 0
        self.skipped = self.seeks_scale = False
        self._is_underway = False
        self._has_halved = False
        self._check, self._can_split = check, can_split

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The scaler of the loss, in fp16."""
        return self._executor.scaler

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those that update the parameters."""
        return self._optimizer.optimizers

    @property
    def is_underway(self) -> bool:
        """Whether a step was begun and not made: it raised, and nothing has mended that yet."""
        return self._is_underway

    def _can_skip_on_device(self) -> bool:
        # On an accelerator the fused optimizers skip a step themselves, told by a flag that stays on the device.
        return self._device.type != "cpu" and self._optimizer.supports_found_inf and self.scaler is None

    def execute(self, execution: Execution) -> None:
        """Make the following steps like this."""
        self.synchronize()
        self._executor.apply(execution)
        self._skips_on_device = self._can_skip_on_device()
        self._recomputes = execution.activation_checkpointing
        most = self._most_samples[self._recomputes]
        self.micro_batch_size = min(execution.micro_batch_size or self._batch_size, most)
        self._count_on_device()

    def _count_on_device(self) -> None:
        self._skipped_on_device.fill_(self.num_skipped)
        self._in_a_row_on_device.fill_(self.num_skipped_in_a_row)

    def forget_compiled(self) -> None:
        """Drop what was compiled for other executions than the present one."""
        self._executor.forget_compiled()

    def release(self) -> None:
        """Put back the settings of the process that executions changed: no more steps are made."""
        self._executor.release()

    def prepare(self, inputs: Tree) -> Tree:
        """Inputs in the layout that the model has now."""
        return self._executor.prepare(inputs)

    def gradients(self, inputs: Tree, labels: Tree) -> list[torch.Tensor]:
        """The gradients of a batch, as the next step would have them; nothing else is changed by asking.

        Args:
            inputs: Model-ready batch (N, …) on the device.
            labels: Class indices (N,).

        Returns:
            One float32 tensor for each parameter that is trained and has a gradient.
        """
        buffers = Buffers(self._model)
        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        generators = rng_state(self._device)
        try:
            self._optimizer.zero_grad()
            self._forward_and_backward(self.prepare(inputs), labels)
            return [p.grad.detach().float() / scale for p in self._parameters if p.grad is not None]
        finally:
            self._optimizer.zero_grad()
            restore_rng_state(generators, self._device)
            buffers.restore()

    def __call__(self, inputs: Tree, labels: Tree) -> tuple[torch.Tensor, Any]:
        """Make one step.

        Args:
            inputs: Model-ready batch (N, …) on the device; or several, as a tuple or a mapping.
            labels: Class indices (N,), or whatever the loss takes.

        Returns:
            The mean loss over the batch (scalar) and the outputs, as logits (N, C), detached, on the device.
        """
        if not self._skips_on_device:
            self._buffers.keep()
        self._is_underway, self.skipped, self.seeks_scale = True, False, False
        self._optimizer.zero_grad()
        loss, outputs = self._forward_and_backward(inputs, labels)
        self._update(loss)
        self._is_underway = False
        return loss, outputs

    def _forward_and_backward(self, inputs: Tree, labels: Tree) -> tuple[torch.Tensor, Any]:
        if self._can_split and num_samples(inputs) > self.micro_batch_size:
            return self._accumulate(inputs, labels)
        return self._part(inputs, labels)

    def _part(self, inputs: Tree, labels: Tree, *, share: float = 1.0) -> tuple[torch.Tensor, Any]:
        """Forward and backward of a batch, or of a part of one with its share of the samples."""
        # The first step is plain: what the model gives is looked at before it goes into a loss.
        is_full = num_samples(inputs) == self.micro_batch_size and self._check is None
        graph = self._executor.step_graph(self._loss) if is_full else None
        if graph is not None:
            loss, outputs = graph(inputs, labels, share=share)
            return loss if share == 1.0 else loss * share, outputs
        loss, outputs = self._forward(inputs, labels)
        if share != 1.0:
            loss = loss * share
        self._backward(loss)
        return loss.detach(), outputs

    def _forward(self, inputs: Tree, labels: Tree) -> tuple[torch.Tensor, Any]:
        outputs = self._executor(inputs, is_full=num_samples(inputs) == self.micro_batch_size)
        if self._check is not None:
            self._check(outputs, labels)
            self._check = None
        outputs = at_least_single(outputs)
        return self._loss(outputs, labels), map_tensors(torch.Tensor.detach, outputs)

    def _accumulate(self, inputs: Tree, labels: Tree) -> tuple[torch.Tensor, Any]:
        """Micro-batches weighted by their samples, so that a smaller last one counts for what it is."""
        total = torch.zeros((), device=self._device)
        parts = []
        size, start = num_samples(inputs), 0
        for part in micro_batch_sizes(size, self.micro_batch_size):
            stop = start + part
            loss, outputs = self._part(take(inputs, start, stop), take(labels, start, stop), share=part / size)
            start = stop
            total += loss
            parts.append(outputs)
        together = torch.cat(parts) if isinstance(parts[0], torch.Tensor) else parts
        return total, together

    def _backward(self, loss: torch.Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]

    def _update(self, loss: torch.Tensor) -> None:
        if self.scaler is not None:
            self._update_scaled(self.scaler, loss)
        elif self._skips_on_device:
            self._update_on_device(loss)
        elif self._is_finite(loss):
            self._optimizer.step()
            self.num_skipped_in_a_row = 0
        else:
            self._skip()

    def _is_finite(self, loss: torch.Tensor) -> bool:
        """Whether loss and gradients are, or the norm of these, which is clipped if asked to."""
        if self._clip_grad_norm is None:
            return self._gradients.is_finite(loss)
        if not math.isfinite(loss.item()):
            return False
        return math.isfinite(nn.utils.clip_grad_norm_(self._parameters, self._clip_grad_norm).item())

    def _update_on_device(self, loss: torch.Tensor) -> None:
        finite = torch.isfinite(loss)
        if self._clip_grad_norm is not None:
            finite &= torch.isfinite(nn.utils.clip_grad_norm_(self._parameters, self._clip_grad_norm))
        else:
            finite &= ~self._gradients.nonfinite_at_once()
        found_inf = (~finite).float()
        self._skipped_on_device += found_inf
        self._in_a_row_on_device.add_(1).mul_(found_inf)
        for optimizer in self._optimizer.optimizers:
            optimizer.found_inf = found_inf  # type: ignore[attr-defined] # read by the fused kernels
        self._optimizer.step()

    def _update_scaled(self, scaler: torch.amp.GradScaler, loss: torch.Tensor) -> None:
        """fp16: gradients that overflow at a scale above 1 are part of finding the scale: no fault of the training."""
        if not math.isfinite(loss.item()):
            self._skip()
            return
        for optimizer in self._optimizer.optimizers:
            scaler.unscale_(optimizer)
        if self._clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._clip_grad_norm)
        for optimizer in self._optimizer.optimizers:
            begin_momentum(optimizer)
            scaler.step(optimizer)
        before = scaler.get_scale()
        scaler.update()
        after = scaler.get_scale()
        if after >= before:  # it shrinks where gradients overflowed, and only there
            self.num_skipped_in_a_row = 0
        elif after >= 1:
            self._take_back()
            self.seeks_scale = True
            self.num_overflows += 1
        else:
            self._skip()

    def _skip(self) -> None:
        self._take_back()
        self.num_skipped += 1
        self.num_skipped_in_a_row += 1

    def _take_back(self) -> None:
        self.skipped = True
        self._buffers.restore()
        self._optimizer.zero_grad()

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)

    def weights_are_finite(self) -> bool:
        """Whether every parameter is: an update can overflow though its gradient did not."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self._parameters)

    def synchronize(self) -> None:
        """Bring the device's count of skipped steps to the host, and mend buffers that took in a NaN."""
        if not self._skips_on_device:
            return
        skipped = int(self._skipped_on_device)
        if skipped > self.num_skipped:
            self._buffers.restore_nonfinite()
        self.num_skipped = skipped
        self.num_skipped_in_a_row = int(self._in_a_row_on_device)
        self._buffers.keep()

    @property
    def largest_batch(self) -> int | None:
        """Samples that are known to fit in memory at a time, after running out of it; else None."""
        return min(self.micro_batch_size, self._most_samples[False]) if self._has_halved else None

    @property
    def gave_up(self) -> bool:
        """Whether too many steps in a row had a loss or a gradient that is not finite."""
        return self.num_skipped_in_a_row >= self._max_nonfinite

    def abandon(self) -> None:
        """Forget a step that raised on its way; without one, nothing is done."""
        if not self._is_underway:
            return
        self._is_underway = False
        self._optimizer.zero_grad()
        if not self._skips_on_device:
            self._buffers.restore()

    def forget_skip(self) -> None:
        """Do not count the last step as skipped, as it is made once more; skipping it has changed nothing else."""
        if self.skipped:
            self.skipped = False
            self.num_skipped -= 1
            self.num_skipped_in_a_row -= 1

    def count_skips_anew(self) -> None:
        """Steps are executed otherwise from now on: those skipped before are no longer in a row."""
        self.num_skipped_in_a_row = 0
        self._count_on_device()

    def halve_micro_batch(self) -> None:
        """Take half the samples at a time after running out of memory; the effective batch stays.

        Raises:
            ConfigError: One sample at a time is already too much.
        """
        self.abandon()
        if self.micro_batch_size == 1:
            raise ConfigError(
                "one sample must fit in memory",
                received="out of memory at a micro-batch of 1",
                hint="use a smaller model or image size, or a device with more memory",
            )
        self.micro_batch_size = math.ceil(self.micro_batch_size / 2)
        self._has_halved = True
        self._limit_samples(self.micro_batch_size)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _limit_samples(self, most: int) -> None:
        """Take no more samples at a time than `most`; where activations are kept, they need at least as much memory."""
        self._most_samples[False] = min(self._most_samples[False], most)
        if self._recomputes:
            self._most_samples[True] = most

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        self.synchronize()
        return {
            "micro_batch_size": self.micro_batch_size,
            "has_halved": self._has_halved,
            "num_skipped": self.num_skipped,
            "num_skipped_in_a_row": self.num_skipped_in_a_row,
            "num_overflows": self.num_overflows,
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self._has_halved = state["has_halved"]
        if self._has_halved:  # what memory forced stays; what the plan said then does not
            self.micro_batch_size = min(self.micro_batch_size, state["micro_batch_size"])
            self._limit_samples(self.micro_batch_size)
        self.num_skipped, self.num_skipped_in_a_row = state["num_skipped"], state["num_skipped_in_a_row"]
        self.num_overflows = state.get("num_overflows", 0)
        self._count_on_device()
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an allocation that failed, on an accelerator or the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    # The CPU allocator has no error class of its own (c10/core/impl/alloc_cpu.cpp).
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator: can't allocate memory" in text
        or "DefaultCPUAllocator: not enough memory" in text
        or "could not create a memory object" in text
        or "bad_alloc" in text
    )
