"""The sections that make the model and carry out the plan on it: layout, compiled parts, recomputed blocks."""

from __future__ import annotations

from collections.abc import Sequence

from upshift.core.malloc import can_keep_freed_memory
from upshift.training.execution import MAX_VARIANTS_OF_A_BLOCK, recomputed, repeated_blocks
from upshift.tuning.emit.carry import Carried
from upshift.tuning.emit.job import Job
from upshift.tuning.emit.source import call, keywords, lines, literal, when


def model_sections(job: Job, carried: Carried, *, to_device: bool) -> list[str]:
    """The function `make_model`, after the model's class, which is copied or imported.

    Args:
        job: What is emitted.
        carried: What is copied.
        to_device: Move the model to DEVICE; where a library does that, only its layout is set.
    """
    factory = carried.add_reference(job.model.factory, job.model.file)
    made = call(factory, keywords(job.model.args, indent=4), indent=4, used=12)
    channels_last = job.plan.memory_format == "channels_last"
    arguments = [*when(to_device, "DEVICE"), *when(channels_last, "memory_format=torch.channels_last")]
    if not arguments:
        made = call(factory, keywords(job.model.args, indent=4), indent=4, used=11)
        return [carried.take(), lines("def make_model() -> nn.Module:", f"    return {made}")]
    return [
        carried.take(),
        lines(
            "def make_model() -> nn.Module:",
            f"    model = {made}",
            f"    return model.to({', '.join(arguments)})",
        ),
    ]


def compile_arguments(job: Job) -> str:
    """The keyword arguments of torch.compile, with a comma before."""
    mode = "" if job.plan.compile_mode is None else f", mode={literal(job.plan.compile_mode)}"
    return f"{mode}, dynamic=False"


def settings(job: Job) -> list[str]:
    """Statements that set up torch for the plan, to be executed first."""
    plan = job.plan
    rows = []
    if plan.num_threads is not None:
        rows.append(f"torch.set_num_threads({plan.num_threads})")
    if keeps_freed_memory(job):
        rows.append("keep_freed_memory()")
    if plan.precision == "tf32":
        rows.append('torch.set_float32_matmul_precision("high")')
    if plan.compile != "none":
        rows.append("# Compiled dropout draws what eager dropout would.")
        rows.append("torch._inductor.config.fallback_random = True")
    if plan.compile == "regional":
        rows.append("# Blocks of one class share compiled code, a variant for each shape.")
        rows.append(f"torch._dynamo.config.recompile_limit = {MAX_VARIANTS_OF_A_BLOCK}")
    return rows


def keeps_freed_memory(job: Job) -> bool:
    """Whether the C library is told to keep memory; not where the plan's device has memory of its own."""
    return job.plan.keep_freed_memory and job.plan.device in ("auto", "cpu")


def memory_section(job: Job, carried: Carried) -> Sequence[str]:
    """The function `keep_freed_memory`, if the plan has use for it, after what it asks first."""
    if not keeps_freed_memory(job):
        return []
    may_keep = carried.add(can_keep_freed_memory)
    section = lines(
        "def keep_freed_memory() -> None:",
        '    """Have glibc keep the memory that a step frees for the next one: see mallopt(3)."""',
        f'    if DEVICE.type == "cpu" and {may_keep}():',
        "        mallopt = ctypes.CDLL(None).mallopt",
        "        # M_MMAP_THRESHOLD: only larger blocks are given back; older glibc takes at most 32 MiB",
        "        mallopt(-3, 2**30) or mallopt(-3, 2**25)",
        "        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: no free memory at the end is given back",
    )
    return [carried.take(), section]


def replaces_blocks(job: Job) -> bool:
    """Whether the plan has the blocks that repeat in the model executed in another way."""
    return job.plan.compile == "regional" or job.plan.activation_checkpointing


def missing_of_blocks(job: Job) -> Sequence[str]:
    """What `prepare_blocks` leaves out."""
    return when(
        job.plan.compile == "regional",
        "eager blocks for a smaller last batch and for evaluation: they are compiled once more",
    )


def block_sections(job: Job, carried: Carried) -> list[str]:
    """The function `prepare_blocks`, which sets how the blocks that repeat are executed from then on; maybe none."""
    if not replaces_blocks(job):
        return []
    is_regional, recomputes = job.plan.compile == "regional", job.plan.activation_checkpointing
    carried.add(repeated_blocks)
    if recomputes:
        carried.add(recomputed)
    what = " and ".join([*when(is_regional, "compiled each by itself"), *when(recomputes, "recomputed when needed")])
    prepare = lines(
        "def prepare_blocks(model: nn.Module) -> None:",
        f'    """The blocks that repeat in the model, {what}."""',
        "    for block in repeated_blocks(model):",
        when(is_regional, f"        block.forward = torch.compile(block.forward{compile_arguments(job)})"),
        when(recomputes, "        block.forward = recomputed(block.forward, block)"),
    )
    return [carried.take(), prepare]
