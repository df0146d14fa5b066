"""The report's sections on training: what was trained, how it went, how long it took."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from upshift.core import units
from upshift.reports import charts
from upshift.reports.curves import training_curves
from upshift.reports.fields import Record, amount, count, number, record, records, sequence, text
from upshift.reports.headline import sample_noun, target_reached
from upshift.reports.html import Child, Html, label, tag
from upshift.reports.records import RunRecords

STOPPED = {
    "completed": "all epochs were trained",
    "target": "stopped where the target was reached",
    "patience": "stopped early: validation accuracy no longer improved",
}
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "muon": "Muon"}


def definitions(rows: Iterable[tuple[Child, Child]]) -> Html:
    """A list of terms and what they are; rows without content are left out."""
    return tag("dl", [tag("div", tag("dt", term), tag("dd", value)) for term, value in rows if value])


def what_was_trained(run: RunRecords) -> Html | None:
    """Model, data, optimizer, schedule, length and plan; None if nothing is known of them."""
    description = text(run.result, "recipe_description") or text(run.recipe, "description")
    rows: list[tuple[str, Child]] = [
        ("Model", _model(run)),
        ("Data", _data(run)),
        ("Augmentation", _augmentation(record(run.recipe, "augment"))),
        ("Optimizer", _optimizer(record(run.recipe, "optimizer"))),
        ("Schedule", _schedule(record(run.recipe, "schedule"))),
        ("Regularization", _regularization(run.recipe)),
        ("Length", _length(run)),
        ("Stages", _stages(run.recipe)),
        ("Plan", _plan(run)),
    ]
    if not description and not any(value for _, value in rows):
        return None
    about = tag("p", label(description)) if description else None
    return tag("section", tag("h2", "What was trained"), about, definitions(rows))


def how_it_went(run: RunRecords) -> Html | None:
    """The training curves; None where nothing was logged."""
    curves = training_curves(run)
    drawn = [
        chart(curves)
        for chart, shown in (
            (charts.loss_chart, bool(curves.loss or curves.eval_loss)),
            (charts.accuracy_chart, bool(curves.accuracy or curves.eval_accuracy)),
            (charts.learning_rate_chart, bool(curves.learning_rate)),
        )
        if shown
    ]
    if not drawn:
        return None
    said = _how_measured(run.recipe, curves.eval_split)
    if curves.points_per_bucket > 1:
        said.append(
            f"Each point of a training line is the mean of {curves.points_per_bucket} logged values in a row;"
            " the band spans the smallest and the largest of them."
        )
    if curves.resumed_at is not None:
        said.append("The dotted line marks where the run was resumed from a checkpoint.")
    return tag(
        "section",
        tag("h2", "How training went"),
        tag("figure", drawn, tag("figcaption", " ".join(said)), class_=f"charts of-{len(drawn)}"),
    )


def _how_measured(recipe: Record, eval_split: str) -> list[str]:
    """Why the lines of training and evaluation need not agree."""
    if not eval_split:
        return ["Training values are measured on batches while the weights change."]
    said = [
        "Training values are measured on batches while the weights change, the"
        f" {eval_split} split as a whole with the weights at rest: the two need not agree."
    ]
    smoothing = number(recipe, "label_smoothing")
    augmented = bool(_augmentations(record(recipe, "augment")))
    if smoothing:
        said.append(f"The training loss includes label smoothing of {units.setting(smoothing)}, the other does not.")
    if augmented:
        said.append("Training samples are augmented, those that are evaluated are not.")
    if number(recipe, "ema_decay"):
        said.append("What is evaluated are the averaged weights (EMA).")
    return said


def time_and_throughput(run: RunRecords) -> Html | None:
    """How long training and evaluation took, at which rate, and when the target was reached; None if nothing says."""
    result = run.result
    seconds, evaluation = amount(result, "train_seconds"), amount(result, "evaluation_seconds")
    speed, skipped = amount(result, "samples_per_second"), count(result, "num_skipped_steps")
    rows: list[tuple[str, Child]] = [
        ("Device", _device(result)),
        ("Training", None if seconds is None else _training_time(seconds, count(result, "steps"))),
        ("Throughput", None if speed is None else f"{units.rate(speed)} on average"),
        ("Target", target_reached(result)),
        ("Evaluation", None if evaluation is None else _evaluation_time(evaluation, run)),
        ("Skipped steps", f"{skipped:,}, because their loss was not finite" if skipped else None),
    ]
    curves, chart = training_curves(run), None
    if len(curves.samples_per_second.x) > 1:
        chart = tag(
            "figure",
            charts.throughput_chart(curves),
            tag("figcaption", _throughput_caption(curves.samples_per_second.points_per_bucket)),
        )
    if chart is None and not any(value for _, value in rows):
        return None
    return tag("section", tag("h2", "Time and throughput"), tag("div", definitions(rows), chart, class_="beside"))


def _throughput_caption(points_per_bucket: int) -> str:
    if points_per_bucket == 1:
        return "Throughput while training, from each logged line to the next."
    return f"Throughput while training, each point over {points_per_bucket} logged lines in a row."


def _device(result: Record) -> Child:
    """What it was trained on: the kind of device, with the name of the hardware."""
    kind, facts = text(result, "device"), record(result, "environment")
    name = text(facts, "cpu") if kind == "cpu" else text(record(facts, "accelerator"), "name")
    return [kind, f" ({name})" if name else ""] if kind else None


def _training_time(seconds: float, steps: int | None) -> str:
    return units.duration(seconds) + (f", {units.duration(seconds / steps)} a step" if steps else "")


def _evaluation_time(seconds: float, run: RunRecords) -> str:
    """The time of all evaluations, and which these were."""
    num_test, noun = count(record(run.result, "data"), "num_test"), sample_noun(run.result)
    last = f"on {units.counted(num_test, f'test {noun}')}" if num_test else "on the test split"
    evaluated = [line for line in run.metrics if number(line, "eval_accuracy") is not None]
    if not evaluated:
        return f"{units.duration(seconds)} {last}"
    split = text(evaluated[-1], "eval_split")
    return (
        f"{units.duration(seconds)} in all: {len(evaluated):,} on the {split} split while training,"
        f" and the final one {last}"
    )


def _model(run: RunRecords) -> list[Child]:
    factory = text(run.model_spec, "factory") or text(record(run.recipe, "model"), "name")
    arguments = record(run.model_spec, "args") or record(run.recipe, "model_args")
    parameters = count(run.result, "num_parameters")
    name = factory.rpartition(":")[2] or factory
    parts: list[Child] = []
    if name:
        written = ", ".join(f"{key}={_value(value)}" for key, value in arguments.items())
        parts.append(tag("code", label(f"{name}({written})"), title=factory))
    if parameters is not None:
        parts += [", " if parts else "", units.counted(parameters, "parameter")]
    return parts


def _data(run: RunRecords) -> list[Child]:
    data = record(run.result, "data")
    noun = sample_noun(run.result)
    source = text(data, "source") or text(record(run.recipe, "data"), "source")
    splits = [
        f"{amount:,}{units.SPACE}{name}"
        for key, name in (("num_train", "training"), ("num_validation", "validation"), ("num_test", "test"))
        if (amount := count(data, key))
    ]
    parts: list[Child] = [label(source)] if source else []
    if splits:
        parts += [": " if parts else "", ", ".join(splits), f" {noun}s"]
    shape = " × ".join(str(side) for side in sequence(data, "input_shape"))
    parts.append(f" of {shape}" if shape else "")
    classes, bad = count(data, "num_classes"), count(data, "num_bad_rows")
    parts.append(f", {units.counted(classes, 'class', 'classes')}" if classes else "")
    parts.append(f"; {units.counted(bad, 'bad row')} left out" if bad else "")
    return parts if any(parts) else []


def _augmentation(augment: Record) -> str:
    if not augment:
        return ""
    normalized = "inputs normalized per channel" if augment.get("normalize") is True else "inputs not normalized"
    return f"{', '.join(_augmentations(augment)) or 'none'}; {normalized}"


def _augmentations(augment: Record) -> list[str]:
    """What is done to training samples, in words; normalization is done to all and is none of it."""
    done = []
    if padding := number(augment, "crop_padding"):
        done.append(f"random crop with {padding:.0f} px of padding")
    if augment.get("horizontal_flip") is True:
        done.append("horizontal flip")
    if side := number(augment, "cutout"):
        done.append(f"cutout of {side:.0f} px")
    if degrees := number(augment, "rotation_degrees"):
        done.append(f"rotation by up to ±{units.setting(degrees)}°")
    for key, name in (("translate", "shift"), ("scale", "zoom")):
        if share := number(augment, key):
            done.append(f"{name} by up to ±{units.setting(share * 100)}{units.SPACE}%")
    for key in ("brightness", "contrast", "saturation"):
        if share := number(augment, key):
            done.append(f"{key} ±{units.setting(share * 100)}{units.SPACE}%")
    return done


def _optimizer(optimizer: Record) -> str:
    name = text(optimizer, "name")
    if not name:
        return ""
    parts = [OPTIMIZERS.get(name, name)]
    if (rate := number(optimizer, "lr")) is not None:
        parts.append(f"learning rate {units.setting(rate)}")
    momentum = number(optimizer, "momentum")
    if name in ("sgd", "muon") and momentum:
        parts.append(f"{'Nesterov ' if optimizer.get('nesterov') is True else ''}momentum {units.setting(momentum)}")
    if name in ("adam", "adamw"):
        parts.append(f"β {', '.join(_value(beta) for beta in sequence(optimizer, 'betas'))}")
    if decay := number(optimizer, "weight_decay"):
        everywhere = optimizer.get("decay_norm_and_bias") is True
        parts.append(f"weight decay {units.setting(decay)}{'' if everywhere else ' (not on norms and biases)'}")
    if adamw := number(optimizer, "adamw_lr"):
        parts.append(f"AdamW part {units.setting(adamw)}")
    parts += [f"{key} {_value(value)}" for key, value in record(optimizer, "options").items()]
    return ", ".join(parts)


def _schedule(schedule: Record) -> str:
    name, warmup = text(schedule, "name"), number(schedule, "warmup_fraction")
    final = number(schedule, "final_fraction")
    parts = [{"one_cycle": "one-cycle"}.get(name, name)] if name else []
    if parts and warmup:
        parts.append(f"warm-up over {units.setting(warmup * 100)}{units.SPACE}% of the steps")
    if parts and name != "constant" and final is not None:
        parts.append(f"down to {units.setting(final * 100)}{units.SPACE}% of the peak")
    return ", ".join(parts)


def _regularization(recipe: Record) -> str:
    named = (
        ("label_smoothing", "label smoothing"),
        ("clip_grad_norm", "gradients clipped to norm"),
        ("ema_decay", "weights averaged (EMA) with decay"),
    )
    return ", ".join(f"{name} {units.setting(value)}" for key, name in named if (value := number(recipe, key)))


def _length(run: RunRecords) -> str:
    done, planned = count(run.result, "epochs"), count(run.recipe, "epochs")
    steps, batch = count(run.result, "steps"), count(run.recipe, "batch_size")
    parts = []
    if done is not None:
        epochs = units.counted(planned or done, "epoch")
        parts.append(epochs if planned in (None, done) else f"{done:,} of {epochs}")
    parts += [units.counted(steps, "step")] if steps is not None else []
    parts += [f"batch size {batch:,}"] if batch is not None else []
    micro_batch = count(run.result, "micro_batch_size")
    parts += [f"in micro-batches of {micro_batch:,}"] if micro_batch and batch and micro_batch < batch else []
    resumed = count(run.result, "resumed_from_step")
    why = [STOPPED.get(text(run.result, "stopped"), ""), f"resumed from step {resumed:,}" if resumed else ""]
    return "; ".join([", ".join(parts), *filter(None, why)]).removeprefix("; ")


def _stages(recipe: Record) -> str:
    said = []
    for stage in records(recipe, "stages"):
        epochs = count(stage, "epochs")
        size = " × ".join(str(side) for side in sequence(stage, "image_size"))
        frozen = ", ".join(str(name) for name in sequence(stage, "freeze"))
        parts = [units.counted(epochs, "epoch")] if epochs else []
        parts += [f"at {size}"] if size else []
        parts += [f"with {frozen} frozen"] if frozen else []
        said.append(" ".join(parts))
    return ", then ".join(said)


def _plan(run: RunRecords) -> list[Child]:
    """Every plain setting of the plan, under its own name: what it can hold is not for the report to know."""
    written: list[Child] = []
    device = text(run.result, "device")
    for key, value in run.plan.items():
        known = isinstance(value, str | bool) or number(run.plan, key) is not None
        if not known or value == "" or key == "version":
            continue
        chosen = f" ({device})" if key == "device" and value == "auto" and device else ""
        written.append(tag("span", key.replace("_", " "), " ", tag("b", _value(value), chosen), class_="setting"))
        written.append(" ")
    return written


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return units.setting(value)
    if isinstance(value, list | tuple):
        return f"({', '.join(_value(item) for item in value)})"
    return str(value)
