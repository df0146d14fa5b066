"""The words of each cause: what takes time, what to do about it, and what its prediction rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from upshift.core import units
from upshift.tuning.profiling.cause import Cause
from upshift.tuning.profiling.job import Job
from upshift.tuning.profiling.measure import Measurement


@dataclass(frozen=True, kw_only=True)
class Words:
    """What is said of a cause.

    Attributes:
        title: What takes time.
        action: What to do.
        basis: What the prediction rests on.
        where: "file:line" to look at, if not the cause's own.
        command: The command that does it, or that trains with it; one that profiles again where code is to be changed.
        plan: Fields of the plan that the command's plan file has.
        plan_name: What the plan file is called.
        spared_seconds: Predicted to be spared, if not what the cause says.
        changes_algorithm: Whether it changes what is learnt.
    """

    title: str
    action: str
    basis: str
    where: str | None = None
    command: str
    plan: Mapping[str, Any] | None = None
    plan_name: str | None = None
    spared_seconds: float | None = None
    changes_algorithm: bool = False


def words_for(cause: Cause, measured: Measurement, job: Job) -> Iterator[Words]:
    """One or more ways to act on a cause."""
    return _WORDS[cause.kind](cause, measured, job)


def _data(cause: Cause, measured: Measurement, job: Job) -> Iterator[Words]:
    waiting = measured.breakdown.data_wait
    items = cause.facts["items"]
    if items is None:
        yield from _packed_data(cause, job)
        return
    if items.functions:
        slowest = items.functions[0]
        yield Words(
            title=f"Training waits for its data: each sample takes {units.duration(items.seconds)}, "
            f"{units.percent(slowest.share)} of it in {slowest.name}",
            action="Make the function faster (NumPy or torch on the whole sample instead of a Python loop), or make "
            "the samples once and keep them as arrays: an .npz file is packed and read without Python for each sample.",
            basis="the time that the function takes of a sample, off the time that training waits",
            command=job.profile(),
            where=slowest.place,
            spared_seconds=waiting * slowest.share,
        )
    if job.plan.num_workers < job.num_cores:
        # Samples and steps share the cores: together they take no less than their work divided among them.
        loading, step = items.seconds * measured.breakdown.batch_size, measured.breakdown.seconds - waiting
        shared = max(step, (loading + step) / job.num_cores)
        changes = {"data_path": "worker", "num_workers": job.num_cores}
        yield Words(
            title="Training waits for its data: samples are made in "
            f"{units.counted(job.plan.num_workers or 1, 'process', 'processes')}",
            action=f"Make them in {units.counted(job.num_cores, 'worker process', 'worker processes')}.",
            basis="the time of samples and of the step, divided among the cores",
            command=job.train_with("workers", changes),
            plan=changes,
            plan_name="workers",
            spared_seconds=max(0.0, measured.breakdown.seconds - shared),
        )


def _packed_data(cause: Cause, job: Job) -> Iterator[Words]:
    operators = cause.facts["operators"]
    title = "Training waits for its data" + (f": {', '.join(operators)} take most of it" if operators else "")
    if job.data_path == "mmap":
        changes = {"data_path": "resident"}
        yield Words(
            title=title,
            action="Keep the data in memory instead of reading them from the disk.",
            basis="the time that training waits",
            command=job.train_with("resident", changes),
            plan=changes,
            plan_name="resident",
        )
    elif job.augments:
        yield Words(
            title=title,
            action="Augment less, or smaller images: the stored samples lie in memory already.",
            basis="the time that training waits",
            command=job.profile(),
        )


def _synchronization(cause: Cause, measured: Measurement, job: Job) -> Iterator[Words]:
    number = cause.facts["number"]
    yield Words(
        title=f"{units.counted(number, 'value')} a step {'is' if number == 1 else 'are'} read back to Python",
        action="Keep them tensors: compute on whole tensors, collect with .detach(), and read values once in many "
        "steps. .item(), float(), bool() and .tolist() each hold the next operator up; an accelerator idles meanwhile.",
        basis="the time of the lines that read values back",
        command=job.profile(),
    )


def _float64(cause: Cause, measured: Measurement, job: Job) -> Iterator[Words]:
    few, all_ = cause.facts["num_float64"]
    if few:
        action = (
            f"{few} of {units.counted(all_, 'weight and buffer tensor')} are float64: make them float32 where they "
        )
        action += "are made, or with model.float()."
    else:
        action = (
            "Make the tensor float32 where it is made: NumPy and Python numbers in lists become float64 by default."
        )
    yield Words(
        title=f"{units.counted(cause.facts['number'], 'operator')} a step work in float64",
        action=action,
        basis="each of the operators was run on float32 tensors too",
        command=job.profile(),
    )


def _small_batch(cause: Cause, measured: Measurement, job: Job) -> Iterator[Words]:
    size, larger, ratio = (cause.facts[name] for name in ("batch_size", "larger_batch_size", "ratio"))
    yield Words(
        title=f"A step of {units.counted(larger, 'sample')} takes only {units.significant(ratio, 2)} times as long as "
        f"one of {size}",
        action=f"Take batches of {larger}. It changes what is learnt: scale the learning rate with it (arXiv "
        "1706.02677) and check the accuracy.",
        basis="steps of both sizes were timed in turn; what other advice spares is left out",
        command=job.train_with_setting(f"batch_size={larger}"),
        changes_algorithm=True,
    )


def _layout(cause: Cause, measured: Measurement, job: Job) -> Iterator[Words]:
    copies, slowed = cause.facts["copies"], cause.facts["slowed"]
    parts = [f"{units.counted(copies, 'copy', 'copies')} a step only change the order of memory"] if copies else []
    parts += [f"{units.counted(slowed, 'operator')} read tensors in an unusual order"] if slowed else []
    yield Words(
        title=" and ".join(parts),
        action="Keep tensors in one order: give weights their final layout where they are made, permute inputs once, "
        "and choose operators that take the order at hand instead of permuting around each.",
        basis="the time of the copies, and each of the other operators was run on contiguous tensors too",
        command=job.profile(),
    )


def _memory_format(cause: Cause, measured: Measurement, job: Job) -> Iterator[Words]:
    changes = {"memory_format": "channels_last"}
    if job.plan.memory_format == "contiguous":
        spared = cause.facts["share"]
        yield Words(
            title=f"Operators on images are slow in their order of memory: {cause.facts['operator']} takes "
            f"{units.percent(spared, 100)} less in channels_last",
            action="Lay images and the weights of convolutions out in channels_last.",
            basis="each operator on images was run in channels_last too",
            command=job.train_with("channels-last", changes),
            plan=changes,
            plan_name="channels-last",
        )


def _unfused(cause: Cause, measured: Measurement, job: Job) -> Iterator[Words]:
    number, looped = cause.facts["number"], cause.facts["looped"]
    name = cause.site.function if cause.site else "the model"
    how = f", {looped} of them in loops" if looped else ""
    changes = {"compile": "whole"}
    is_compiled = job.plan.compile != "none"
    yield Words(
        title=f"{name} calls {units.counted(number, 'small operator')} a step{how}",
        action="Use one operator that does the same (torch.nn and torch.nn.functional have fused norms, activations, "
        "attention and recurrent layers), work on whole tensors instead of a loop, or let torch.compile fuse them.",
        basis="one operator for each run of element-wise ones, and one call for each loop",
        command=job.profile() if is_compiled else job.train_with("compile", changes),
        plan=None if is_compiled else changes,
        plan_name=None if is_compiled else "compile",
    )


def _python(cause: Cause, measured: Measurement, job: Job) -> Iterator[Words]:
    name = cause.site.function if cause.site else "the model"
    yield Words(
        title=f"Python code of {name} runs between the operators",
        action="Take it out of the step: compute it once where the model is made, or as operators on whole tensors.",
        basis="the time between operators beyond what the call of one takes",
        command=job.profile(),
    )


_WORDS: dict[str, Callable[[Cause, Measurement, Job], Iterator[Words]]] = {
    "data": _data,
    "synchronization": _synchronization,
    "float64": _float64,
    "small batch": _small_batch,
    "layout": _layout,
    "memory format": _memory_format,
    "unfused": _unfused,
    "python": _python,
}
