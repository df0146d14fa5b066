"""What may be faster, by what the step is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from upshift.core.environment import num_usable_cores
from upshift.core.limits import Limits
from upshift.core.malloc import can_keep_freed_memory
from upshift.training.execution import repeated_blocks
from upshift.tuning.breakdown import Breakdown
from upshift.tuning.memory import StepMemory
from upshift.tuning.operators import OperatorMix
from upshift.tuning.payback import compile_seconds
from upshift.tuning.plan import Plan

KEPT_WHEN_COMPILED = {"data_path", "num_workers", "fused_optimizer", "keep_freed_memory"}
USUAL_OPERATORS = 500
SMALL_STEP_SECONDS = 0.003
DATA_WAIT_SHARE = 0.05
LEAST_FAULT_SHARE = 0.01
MIN_MICRO_BATCH = 16
MAX_COMPILE_GAIN = 0.6
PAGE_FAULT_SECONDS = 2.5e-6
"""To map a page and fill it with zeros: system time over faults, of four networks on a 2-core AMD EPYC."""
LOADER_SECONDS = 0.05
"""To open data another way, and for the first batches, which others have made already."""
KEEPING_SECONDS = 0.015
"""To find glibc's threshold, for which it gives back all that is free: 12 to 15 ms there, beside a perceptron."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, as far as it decides what to try.

    Attributes:
        device: Where.
        has_convolutions: 2-D ones, for which there is another layout.
        couples_samples: Whether samples of a batch influence each other (batch norm): they then cannot be split.
        num_blocks: Blocks that repeat.
        batch_size: Samples a step.
        num_threads: Of torch's kernels, by default.
        can_split: Whether the loop can take a batch in parts.
        can_compile_step: Whether the loop can have model, loss and gradients as one compiled function.
        changes_size: Whether images change their size while training.
        data_paths: Where its batches can come from.
        data_path: Where they come from by the first plan.
        num_cores: Usable.
        fast_dtypes: Precisions in which this machine multiplies faster than in fp32.
        limits: What this machine can do; None where that was not measured.
        stored_samples_per_second: That this machine turns into the model's inputs at best; None if unknown.
    """

    device: torch.device
    has_convolutions: bool
    couples_samples: bool
    num_blocks: int
    batch_size: int
    num_threads: int
    can_split: bool = True
    can_compile_step: bool = True
    changes_size: bool = False
    data_paths: tuple[str, ...] = ()
    data_path: str = ""
    num_cores: int = field(default_factory=num_usable_cores)
    fast_dtypes: tuple[str, ...] = ()
    limits: Limits | None = None
    stored_samples_per_second: float | None = None


def job_of(model: nn.Module, device: torch.device, batch_size: int, **facts: Any) -> Job:
    """The job of training a model."""
    modules = list(model.modules())
    return Job(
        device=device,
        has_convolutions=any(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in modules),
        couples_samples=any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules),
        num_blocks=len(repeated_blocks(model)),
        batch_size=batch_size,
        num_threads=torch.get_num_threads(),
        **facts,
    )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A change of the plan that may be faster.

    Attributes:
        name: For people.
        changes: Fields of the plan.
        tier: "A": the same mathematics; "B": changed numerics.
        gain: Share of a step's time, its wait for data included, that it is expected to save, if it does as such
            changes mostly do.
        build_seconds: Expected, before its first step.
        reason: Why it is tried.
        is_proven: Whether an earlier run proved it faster on this machine: it is checked and raced however little may
            be lost, as that ends as soon as its steps are seen to be slower.
        built_seconds: That this run spent on building it before, so that it is there.
    """

    name: str
    changes: Mapping[str, Any]
    tier: Literal["A", "B"] = "A"
    gain: float
    build_seconds: float = 0.0
    reason: str
    is_proven: bool = False
    built_seconds: float = 0.0

    def plan(self, base: Plan) -> Plan:
        """The plan with the change."""
        return replace(base, **self.changes)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What the first steps showed.

    Attributes:
        split: Where the time of a step goes.
        mix: The operators of a step; None where the training is too short to look.
        memory: What a step needs of the memory; None where nothing is known of it.
        page_faults: Pages that the system maps anew in a step.
        history: Earlier trials on this machine.
    """

    split: Breakdown
    mix: OperatorMix | None = None
    memory: StepMemory | None = None
    page_faults: float = 0.0
    history: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    @property
    def step_seconds(self) -> float:
        """Of a step, without its wait for data."""
        return self.split.seconds - self.split.data_wait

    def share(self, *parts: str) -> float:
        """The share of a step's time, its wait included, in parts of its split; the most that they can be.

        Where nobody looked into a step, each part of it but the wait may be all of it.
        """
        if self.split.seconds <= 0.0:
            return 0.0
        known = self.mix is not None or set(parts) == {"data_wait"}
        seconds = sum(self.split.parts[part] for part in parts) if known else self.step_seconds
        return seconds / self.split.seconds


def candidates(job: Job, plan: Plan, observed: Observed) -> list[Candidate]:
    """What to try beside a plan. What attacks the largest part of a step promises the most, and is tried first."""
    found = [
        *_data_paths(job, plan, observed),
        *_layouts(job, plan, observed),
        *_threads(job, plan, observed),
        *_freed_memory(job, plan, observed),
        *_optimizers(plan, observed),
        *_micro_batches(job, plan, observed),
        *_checkpointing(job, plan, observed),
        *_precisions(job, plan, observed),
        *_compiled(job, plan, observed),
        *_compiled_step(job, plan, observed),
        *_cuda_graphs(job, plan, observed),
    ]
    found = [candidate for candidate in found if candidate.plan(plan) != plan]
    return found if plan.compile == "none" else [_with_compiling(candidate, plan, observed) for candidate in found]


def _with_compiling(candidate: Candidate, plan: Plan, observed: Observed) -> Candidate:
    """What changes how a compiled step computes has it compiled anew."""
    if set(candidate.changes) <= KEPT_WHEN_COMPILED or "compile" in candidate.changes:
        return candidate
    num_operators = observed.mix.num_calls if observed.mix is not None else USUAL_OPERATORS
    seconds = compile_seconds(plan.compile, num_operators, observed.history)
    return replace(candidate, build_seconds=candidate.build_seconds + seconds)


def _data_paths(job: Job, plan: Plan, observed: Observed) -> list[Candidate]:
    waited = observed.share("data_wait")
    if waited < DATA_WAIT_SHARE:
        return []
    waits = f"the loop waits {waited * 100:.0f} % of its time for data"
    found = []
    if "worker" in job.data_paths:
        for num_workers in sorted({1, max(1, job.num_cores - 1), job.num_cores}):
            found.append(
                Candidate(
                    name=f"{num_workers} data worker{'s' if num_workers > 1 else ''}",
                    changes={"data_path": "worker", "num_workers": num_workers},
                    gain=0.5 * _hidden_share(num_workers, plan, observed),
                    build_seconds=0.5,
                    reason=waits,
                )
            )
    for path, name in (("resident", "data in memory"), ("mmap", "read-ahead from the store")):
        current = job.data_path if plan.data_path == "auto" else plan.data_path
        if path in job.data_paths and path != current:
            found.append(
                Candidate(
                    name=name,
                    changes={"data_path": path, "num_workers": 0},
                    gain=0.4 * _avoidable_share(job, observed),
                    build_seconds=LOADER_SECONDS,
                    reason=waits,
                )
            )
    return found


def _hidden_share(num_workers: int, plan: Plan, observed: Observed) -> float:
    """The share of a step's time, its wait included, that workers take away at best: they load while steps are made."""
    before = observed.split.seconds
    # With workers already, the wait is what they do not keep up with; without, it is the loading itself.
    loading = plan.num_workers * before if plan.num_workers else observed.split.data_wait
    return max(0.0, 1.0 - max(observed.step_seconds, loading / num_workers) / before)


def _avoidable_share(job: Job, observed: Observed) -> float:
    """The share of a step's time that loading otherwise can spare: not what turning bytes into numbers takes at best,
    which the loop does by itself wherever the bytes come from."""
    at_best = job.batch_size / job.stored_samples_per_second if job.stored_samples_per_second else 0.0
    return max(0.0, observed.split.data_wait - at_best) / observed.split.seconds


def _layouts(job: Job, plan: Plan, observed: Observed) -> list[Candidate]:
    if not job.has_convolutions or plan.memory_format == "channels_last":
        return []
    return [
        Candidate(
            name="channels_last",
            changes={"memory_format": "channels_last"},
            gain=0.1 * observed.share("device_compute"),
            reason="the model has 2-D convolutions",
        )
    ]


def _threads(job: Job, plan: Plan, observed: Observed) -> list[Candidate]:
    if job.device.type != "cpu":
        return []
    current = plan.num_threads or job.num_threads
    wanted = set()
    if observed.step_seconds < SMALL_STEP_SECONDS and current > 1:
        wanted.add(1)
    if observed.step_seconds < 10 * SMALL_STEP_SECONDS and current > 3:
        wanted.add(current // 2)
    if job.num_cores > current:
        wanted.add(job.num_cores)
    return [
        Candidate(
            name=f"{threads} thread{'s' if threads > 1 else ''}",
            changes={"num_threads": threads},
            # More threads share the arithmetic; fewer of them wait less for each other at each of many operators.
            gain=0.06 * observed.share("device_compute" if threads > current else "host_overhead"),
            reason=f"a step of {observed.step_seconds * 1e3:.2g} ms on {current} threads",
        )
        for threads in sorted(wanted)
    ]


def _freed_memory(job: Job, plan: Plan, observed: Observed) -> list[Candidate]:
    if job.device.type != "cpu" or plan.keep_freed_memory or not can_keep_freed_memory():
        return []
    share = min(0.5, observed.page_faults * PAGE_FAULT_SECONDS / max(observed.split.seconds, 1e-9))
    if share < LEAST_FAULT_SHARE:
        return []
    return [
        Candidate(
            name="freed memory kept",
            changes={"keep_freed_memory": True},
            gain=share,
            build_seconds=KEEPING_SECONDS,
            reason=f"a step has the system map {observed.page_faults:,.0f} pages of memory anew",
        )
    ]


def _optimizers(plan: Plan, observed: Observed) -> list[Candidate]:
    if plan.fused_optimizer is not False:
        return []
    return [
        Candidate(
            name="fused optimizer",
            changes={"fused_optimizer": True},
            gain=max(0.02, 0.15 * observed.share("host_overhead")),
            reason="one kernel for all parameters in place of several for each",
        )
    ]


def _micro_batches(job: Job, plan: Plan, observed: Observed) -> list[Candidate]:
    # Batch norm's statistics are those of the micro-batch: with it, splitting changes what is learnt.
    if job.device.type != "cpu" or job.couples_samples or not job.can_split:
        return []
    size = (plan.micro_batch_size or job.batch_size) // 2
    was_split = observed.memory is not None and observed.memory.num_parts > 1  # by what memory there is
    if size < MIN_MICRO_BATCH or job.batch_size < 256 or was_split:
        return []
    return [
        Candidate(
            name=f"micro-batches of {size}",
            changes={"micro_batch_size": size},
            gain=0.04 * observed.share("device_compute"),
            reason="activations of fewer samples may stay in the cache",
        )
    ]


def _checkpointing(job: Job, plan: Plan, observed: Observed) -> list[Candidate]:
    memory = observed.memory
    if memory is None or not memory.binds or plan.activation_checkpointing or not job.num_blocks:
        return []
    # Fewer and larger parts would change what batch norm sees: a run must not learn otherwise as it is tuned.
    if memory.num_parts > 1 and job.couples_samples:
        return []
    return [
        Candidate(
            name="activation checkpointing",
            changes={"activation_checkpointing": True},
            gain=min(0.3, 0.05 + 0.05 * math.log2(memory.num_parts)) * (1.0 - observed.share("data_wait")),
            reason=memory.reason,
        )
    ]


def _precisions(job: Job, plan: Plan, observed: Observed) -> list[Candidate]:
    if plan.precision != "fp32":
        return []
    return [
        Candidate(
            name=precision,
            changes={"precision": precision},
            tier="B",
            gain=0.25 * observed.share("device_compute"),
            reason=f"this machine multiplies faster in {precision}",
        )
        for precision in job.fast_dtypes
    ]


def cheapest_compilation(job: Job, plan: Plan) -> Candidate | None:
    """The most that compiling could gain for the least that it could cost, of a step that was not looked at yet; None
    where there is nothing to compile."""
    if not _can_compile(job, plan):
        return None
    scope = "regional" if job.num_blocks > 1 else "whole"
    return Candidate(
        name="compiled blocks" if scope == "regional" else "compiled",
        changes={"compile": scope},
        gain=MAX_COMPILE_GAIN,
        build_seconds=compile_seconds(scope, 0, ()),
        reason="a compiler makes fewer passes over memory",
    )


def _can_compile(job: Job, plan: Plan) -> bool:
    return plan.compile == "none" and not job.changes_size


def _compiled_step(job: Job, plan: Plan, observed: Observed) -> list[Candidate]:
    """Where a part is compiled already, what is left is autograd between the graphs, and what it makes them keep."""
    mix = observed.mix
    is_ruled_out = plan.compile == "step" or plan.activation_checkpointing or plan.precision == "fp16"
    if mix is None or not job.can_compile_step or job.changes_size or is_ruled_out:
        return []
    fused, launched = (0.6, 0.7) if plan.compile == "none" else (0.1, 0.4)
    gain = min(MAX_COMPILE_GAIN, fused * mix.fusible_share + launched * mix.overhead_share)
    return [
        Candidate(
            name="compiled step",
            changes={"compile": "step", "compile_mode": None},
            gain=(1.0 - observed.share("data_wait")) * gain,
            build_seconds=compile_seconds("step", mix.num_calls, observed.history),
            reason="model, loss and gradients as one graph have no autograd in between, and keep less",
        )
    ]


def _compiled(job: Job, plan: Plan, observed: Observed) -> list[Candidate]:
    mix = observed.mix
    if mix is None or not _can_compile(job, plan):
        return []
    step_share = 1.0 - observed.share("data_wait")
    gain = step_share * min(MAX_COMPILE_GAIN, 0.5 * mix.fusible_share + 0.5 * mix.overhead_share)
    shares = f"{mix.fusible_share * 100:.0f} % of the step could be fused, {mix.overhead_share * 100:.0f} % is overhead"
    found = []
    if job.num_blocks > 1:
        found.append(
            Candidate(
                name="compiled blocks",
                changes={"compile": "regional"},
                gain=0.9 * gain,
                build_seconds=compile_seconds("regional", mix.num_calls, observed.history),
                reason=shares,
            )
        )
    found.append(
        Candidate(
            name="compiled",
            changes={"compile": "whole"},
            gain=0.6 * gain if job.can_compile_step else gain,  # as one graph with its gradients it was never slower
            build_seconds=compile_seconds("whole", mix.num_calls, observed.history),
            reason=shares,
        )
    )
    return found


def _cuda_graphs(job: Job, plan: Plan, observed: Observed) -> list[Candidate]:
    mix = observed.mix
    if (
        mix is None
        or job.device.type != "cuda"
        or plan.compile == "step"
        or job.changes_size
        or plan.compile_mode not in (None, "default")
    ):
        return []
    scope = "whole" if plan.compile == "none" else plan.compile
    # Replaying a graph spares most of the launches, beside what compiling does for the kernels.
    spared = 0.8 * mix.overhead_share + (0.5 * mix.fusible_share if plan.compile == "none" else 0.0)
    return [
        Candidate(
            name="CUDA graphs",
            changes={"compile": scope, "compile_mode": "reduce-overhead"},
            gain=(1.0 - observed.share("data_wait")) * min(MAX_COMPILE_GAIN, spared),
            build_seconds=compile_seconds(scope, mix.num_calls, observed.history),
            reason=f"{mix.overhead_share * 100:.0f} % of the step is overhead, which a recorded graph has but once",
        )
    ]
