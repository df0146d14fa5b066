"""The target "accelerate": the script's loop with Hugging Face Accelerate."""

from __future__ import annotations

from upshift.tuning.emit.assemble import assemble
from upshift.tuning.emit.carry import Carried
from upshift.tuning.emit.constants import recipe_constants, seed_everything
from upshift.tuning.emit.data import data_constants, data_sections
from upshift.tuning.emit.job import Emission, Job
from upshift.tuning.emit.loop import Words, loop_sections, missing_of_a_loop
from upshift.tuning.emit.model import block_sections, memory_section, model_sections
from upshift.tuning.emit.optimizer import has_schedule, learning_rate_factor, loss_sections, make_optimizer
from upshift.tuning.emit.source import call, lines, literal, when
from upshift.tuning.emit.step_graph import step_graph_section


def emit_accelerate(job: Job) -> Emission:
    """A training loop whose device, precision and compilation are settings of an `Accelerator`."""
    carried = Carried()
    constants = lines(
        data_constants(job),
        'WEIGHTS = Path(__file__).with_suffix(".safetensors")',
        "",
        "# What is learned: the recipe.",
        recipe_constants(job),
        "",
        "# How fast: the plan.",
        f"accelerator = {call('Accelerator', _settings(job), used=14)}",
        "DEVICE = accelerator.device",
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
        "It needs accelerate, numpy and safetensors, and the arrays beside it; upshift need not be installed. The plan "
        "is in `accelerator`, which can be taken into another loop, as can `make_optimizer` and `Batches`. As it is, "
        "the file is a script that trains, prints a line of JSON for each logged step, and writes the weights beside "
        "itself."
    ]
    return Emission(assemble(job, "Settings and a loop of Accelerate", about, missing, sections, carried), missing)


def _settings(job: Job) -> list[str]:
    """Arguments of `Accelerator`."""
    plan = job.plan
    mode = ["mode=" + literal(plan.compile_mode)] if plan.compile_mode is not None else []
    plugin = call("TorchDynamoPlugin", ['backend="inductor"', *mode, "dynamic=False"])
    precision = "no" if plan.precision in ("fp32", "tf32") or _cannot_scale(job) else plan.precision
    return [
        *when(plan.device == "cpu", "cpu=True"),
        f"mixed_precision={literal(precision)}",
        *when(plan.compile == "whole", f"dynamo_plugin={plugin}"),
    ]


def _cannot_scale(job: Job) -> bool:
    return job.plan.precision == "fp16" and job.plan.device == "cpu"


def _words(job: Job) -> Words:
    compiles = job.plan.compile == "whole"
    names = [*when(has_schedule(job), "schedule")]
    model = "compiled" if compiles else "model"
    return Words(
        prepare=[
            *when(compiles, "# `compiled` is for batches of the usual size: a smaller one would be compiled anew."),
            f"{', '.join([model, 'optimizer', *names])} = accelerator.prepare("
            f"{', '.join(['model', 'optimizer', *names])})",
        ],
        compiles=compiles,
        backward="accelerator.backward({loss})",
        clip=when(
            job.config.clip_grad_norm is not None,
            f"accelerator.clip_grad_norm_(model.parameters(), {literal(job.config.clip_grad_norm)})",
        ),
    )


def _missing(job: Job) -> tuple[str, ...]:
    plan = job.plan
    return (
        "several processes: the batches are not shared out among them",
        *when(_cannot_scale(job), "fp16 on a CPU, which Accelerate refuses: it trains in fp32"),
        *when(plan.precision == "fp16" and plan.device == "auto", "fp16 on a CPU, which Accelerate refuses"),
        *when(plan.precision in ("bf16", "fp16"), f"evaluation in fp32: Accelerate evaluates in {plan.precision} too"),
        *when(
            plan.device in ("cuda", "mps"),
            f"the device {plan.device}: Accelerate takes what accelerator it finds, and else the CPU",
        ),
        "checkpoints: see `accelerator.save_state`",
        *missing_of_a_loop(job),
        "TensorBoard, the run folder and the report",
    )
