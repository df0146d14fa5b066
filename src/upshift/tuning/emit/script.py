"""The target "script": one plain PyTorch training script."""

from __future__ import annotations

from upshift.tuning.emit.assemble import assemble, device_lines
from upshift.tuning.emit.carry import Carried
from upshift.tuning.emit.constants import recipe_constants, seed_everything
from upshift.tuning.emit.data import data_constants, data_sections
from upshift.tuning.emit.job import Emission, Job
from upshift.tuning.emit.loop import Words, loop_sections, missing_of_a_loop
from upshift.tuning.emit.model import block_sections, compile_arguments, memory_section, model_sections
from upshift.tuning.emit.optimizer import has_schedule, learning_rate_factor, loss_sections, make_optimizer
from upshift.tuning.emit.source import lines, literal, when
from upshift.tuning.emit.step_graph import autocast, step_graph_section


def emit_script(job: Job) -> Emission:
    """A script that makes the steps of `upshift train`, and reaches its losses."""
    carried = Carried()
    constants = lines(
        data_constants(job),
        'WEIGHTS = Path(__file__).with_suffix(".safetensors")',
        "",
        "# What is learned: the recipe.",
        recipe_constants(job),
        "",
        "# How fast: the plan.",
        device_lines(job),
        when(job.accumulates, f"MICRO_BATCH_SIZE = {job.micro_batch_size}"),
    )
    sections = [
        constants,
        *model_sections(job, carried, to_device=True),
        *block_sections(job, carried),
        *memory_section(job, carried),
        seed_everything(),
        *data_sections(job, carried),
        make_optimizer(job),
        *when(has_schedule(job), learning_rate_factor(job)),
        *loss_sections(job, carried),
        *step_graph_section(job),
        *loop_sections(job, carried, _words(job)),
    ]
    missing = _missing(job)
    about = [
        "It needs torch, numpy and safetensors, and the arrays beside it; upshift need not be installed. With the same "
        "seed its losses are those of `upshift train` by the same plan. It prints a line of JSON for each logged step, "
        "and writes the weights beside itself."
    ]
    return Emission(assemble(job, "A training script", about, missing, sections, carried), missing)


def _words(job: Job) -> Words:
    compiles = job.plan.compile == "whole"
    is_scaled = job.plan.precision == "fp16"
    norm = literal(job.config.clip_grad_norm)
    return Words(
        prepare=[
            *when(is_scaled, "scaler = torch.amp.GradScaler(DEVICE.type)"),
            *when(
                compiles,
                "# For batches of the usual size: a smaller one would be compiled anew.",
                f"compiled = torch.compile(model{compile_arguments(job)})",
            ),
        ],
        compiles=compiles,
        autocast=autocast(job),
        backward="scaler.scale({loss}).backward()" if is_scaled else "{loss}.backward()",
        clip=[
            *when(is_scaled, "scaler.unscale_(optimizer)"),
            *when(job.config.clip_grad_norm is not None, f"nn.utils.clip_grad_norm_(model.parameters(), {norm})"),
        ],
        update=("scaler.step(optimizer)", "scaler.update()") if is_scaled else ("optimizer.step()",),
    )


def _missing(job: Job) -> tuple[str, ...]:
    return (
        "checkpoints: it cannot be stopped and resumed",
        *missing_of_a_loop(job),
        "TensorBoard, the run folder and the report",
    )
