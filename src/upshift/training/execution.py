"""How a model is executed: layout, precision, compiled parts, threads. It can change between two steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from upshift.core.malloc import keep_freed_memory, keeps_freed_memory
from upshift.training.batches import Tree, call, map_tensors
from upshift.training.optimizers import OptimizerSet
from upshift.training.step_graph import StepGraph

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Blocks of one class share compiled code, a variant for each shape; Dynamo's own limit of 8 suits no deep network.
MAX_VARIANTS_OF_A_BLOCK = 64
CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")


class Execution(Protocol):
    """The part of a plan that the trainer acts on."""

    @property
    def precision(self) -> str: ...
    @property
    def memory_format(self) -> str: ...
    @property
    def compile(self) -> str: ...
    @property
    def compile_mode(self) -> str | None: ...
    @property
    def activation_checkpointing(self) -> bool: ...
    @property
    def fused_optimizer(self) -> bool | None: ...
    @property
    def micro_batch_size(self) -> int | None: ...
    @property
    def num_threads(self) -> int | None: ...
    @property
    def keep_freed_memory(self) -> bool: ...


class Executor:
    """Runs a model as an execution says.

    State-dict keys stay the model's own: compiled code is kept beside it, or behind its blocks' `forward`.

    Args:
        model: On its device.
        optimizer: Of its parameters; its state follows their layout.
        device: Where the model lies.
    """

    def __init__(self, model: nn.Module, optimizer: OptimizerSet, device: torch.device, execution: Execution) -> None:
        self._model, self._optimizer, self._device = model, optimizer, device
        self._torch_threads = torch.get_num_threads()
        self._precision = torch.get_float32_matmul_precision()
        self._kept_freed_memory = keeps_freed_memory()
        self._compiler_settings: tuple[bool, int] | None = None
        self._compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._blocks = repeated_blocks(model)
        self._replaced: list[tuple[nn.Module, Callable[..., Any] | None]] = []
        self._layout = torch.contiguous_format
        self.scaler: torch.amp.GradScaler | None = None
        self._fp16_scaler: torch.amp.GradScaler | None = None
        self.apply(execution)

    def apply(self, execution: Execution) -> None:
        """Execute the following calls like this."""
        self.execution = execution
        self._dtype = AUTOCAST_DTYPES.get(execution.precision)
        if execution.precision == "fp16" and self._fp16_scaler is None:
            self._fp16_scaler = torch.amp.GradScaler(self._device.type)
        # Kept while other precisions are in use: its scale took steps to find.
        self.scaler = self._fp16_scaler if execution.precision == "fp16" else None
        torch.set_float32_matmul_precision("high" if execution.precision == "tf32" else "highest")
        threads = execution.num_threads or self._torch_threads
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        if self._device.type == "cpu":
            keep_freed_memory(execution.keep_freed_memory)
        self._optimizer.set_fused(execution.fused_optimizer)
        self._set_layout(execution.memory_format)
        if execution.compile != "none":
            # Compiled dropout would draw other masks than eager dropout: a plan must not change what is learnt.
            limit = torch._dynamo.config.recompile_limit
            if self._compiler_settings is None:
                self._compiler_settings = torch._inductor.config.fallback_random, limit
            torch._inductor.config.fallback_random = True
            torch._dynamo.config.recompile_limit = max(limit, MAX_VARIANTS_OF_A_BLOCK)
        self._whole = self._compile(self._model, execution) if execution.compile == "whole" else None

    def release(self) -> None:
        """Put back the settings of the process that executions changed."""
        if torch.get_num_threads() != self._torch_threads:
            torch.set_num_threads(self._torch_threads)
        torch.set_float32_matmul_precision(self._precision)
        keep_freed_memory(self._kept_freed_memory)
        if self._compiler_settings is not None:
            torch._inductor.config.fallback_random, torch._dynamo.config.recompile_limit = self._compiler_settings

    def forget_compiled(self) -> None:
        """Drop what was compiled for other executions than the present one: it holds memory."""
        kept = (self.execution.compile_mode, self.execution.precision) if self.execution.compile != "none" else None
        self._compiled = {key: made for key, made in self._compiled.items() if key[1:] == kept}

    def _set_layout(self, name: str) -> None:
        # Layouts are for images: converting 2-D weights does nothing, and 3-D data have no such layout.
        layout = torch.channels_last if name == "channels_last" else torch.contiguous_format
        if layout is not self._layout:
            lay_out(self._model, layout)
            self._optimizer.follow_layout()
            self._layout = layout

    def _compile(self, module: nn.Module, execution: Execution) -> Callable[..., Any]:
        key = (id(module), execution.compile_mode, execution.precision)
        if key not in self._compiled:
            # A block's bound method and not the block: its `forward` is replaced by what is compiled here.
            target = module if module is self._model else module.forward
            self._compiled[key] = torch.compile(target, mode=execution.compile_mode, dynamic=False)
        return self._compiled[key]

    def step_graph(self, loss: Callable[[Any, Any], torch.Tensor]) -> StepGraph | None:
        """Model, loss and gradients as one compiled function; None where the execution does not ask for it."""
        execution = self.execution
        if execution.compile != "step":
            return None
        key = ("step", execution.compile_mode, execution.precision)
        if key not in self._compiled:
            self._compiled[key] = StepGraph(
                self._model, loss, mode=execution.compile_mode, autocast=self._autocast, device=self._device
            )
        graph = self._compiled[key]
        assert isinstance(graph, StepGraph)
        return graph

    def prepare(self, inputs: Tree) -> Tree:
        """Images in the layout of the weights; no copy where they have it already."""
        if isinstance(inputs, torch.Tensor):
            return self._laid_out(inputs)
        return map_tensors(self._laid_out, inputs)

    def _laid_out(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous(memory_format=self._layout) if tensor.dim() == 4 else tensor

    def __call__(self, inputs: Tree, *, is_full: bool) -> Any:
        """The model's outputs.

        Args:
            inputs: Model-ready batch (N, …); see `batches.call` for how the model gets it.
            is_full: Whether N is the usual micro-batch: a last, smaller one would make torch.compile build
                everything once more.
        """
        execution = self.execution
        by_block = execution.activation_checkpointing or (execution.compile == "regional" and is_full)
        try:
            if by_block:
                self._replace_blocks(is_full)
            with self._autocast():
                outputs = call(self._whole if self._whole is not None and is_full else self._model, inputs)
            if execution.compile_mode in CUDA_GRAPH_MODES and self._device.type == "cuda":
                # They lie in memory that the next replay of the graph overwrites; metrics keep them for many steps.
                outputs = map_tensors(torch.Tensor.clone, outputs)
            return outputs
        finally:
            if by_block:
                self._restore_blocks()

    def _replace_blocks(self, is_full: bool) -> None:
        for block in self._blocks:
            forward: Callable[..., Any] = block.forward
            own = block.__dict__.get("forward")  # for this block alone, by the user
            if self.execution.compile == "regional" and is_full:
                forward = self._compile(block, self.execution)
            if self.execution.activation_checkpointing and torch.is_grad_enabled():
                forward = recomputed(forward, block)
            self._replaced.append((block, own))
            block.forward = forward

    def _restore_blocks(self) -> None:
        for block, own in self._replaced:
            if own is None:
                del block.__dict__["forward"]
            else:
                block.forward = own
        self._replaced.clear()

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._dtype is None else torch.autocast(self._device.type, self._dtype)


@torch.no_grad()
def lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    """Lay out the 4-D parameters, gradients and buffers of a model: those of 2-D convolutions.

    `Module.to(memory_format=...)` converts 5-D ones too and fails at them, with part of the model converted.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=layout)
            if tensor.grad is not None:
                tensor.grad = tensor.grad.to(memory_format=layout)


def recomputed(forward: Callable[..., Any], block: nn.Module | None = None) -> Callable[..., Any]:
    """Keep a block's inputs alone and compute its activations once more in the backward pass (arXiv 1604.06174).

    Args:
        forward: Of the block.
        block: Whose buffers the second computation must leave alone: batch norm would count the batch twice.
    """
    from torch.utils.checkpoint import checkpoint

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _buffers_kept(block) if block is not None else nullcontext()

    def call(*arguments: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling():  # the compiler updates buffers once by itself, and takes no such context
            return checkpoint(forward, *arguments, use_reentrant=False, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts, **named)

    return call


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    buffers = list(module.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            # Not seen by autograd, which is in the middle of a backward pass that may have saved the buffer.
            buffer.data.copy_(value)


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost composite modules whose class occurs more than once: a ResNet's blocks, a Transformer's layers."""

    def is_block(module: nn.Module) -> bool:
        composite = any(True for _ in module.children()) and not isinstance(module, nn.Sequential | nn.ModuleList)
        return composite and any(parameter.requires_grad for parameter in module.parameters())

    counts = Counter(type(module) for module in model.modules() if module is not model and is_block(module))

    def find(module: nn.Module) -> list[nn.Module]:
        found = []
        for child in module.children():
            if is_block(child) and counts[type(child)] > 1:
                found.append(child)
            else:
                found += find(child)
        return found

    unique = {id(block): block for block in find(model)}
    return list(unique.values())
