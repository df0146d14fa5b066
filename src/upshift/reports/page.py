"""The report: one HTML page that needs nothing but itself."""

from __future__ import annotations

from upshift.core import units
from upshift.reports.candidates import backend_title, read_optimization
from upshift.reports.fields import amount, count, number, record, text
from upshift.reports.headline import sample_noun, sentence
from upshift.reports.html import Child, Html, label, separated, tag, unbroken
from upshift.reports.records import RunRecords
from upshift.reports.section_closing import environment, notes, reproduction
from upshift.reports.section_inference import inference
from upshift.reports.section_metrics import final_metrics
from upshift.reports.section_training import how_it_went, time_and_throughput, what_was_trained
from upshift.reports.section_tuning import tuning
from upshift.reports.shell import whole_page


def render(run: RunRecords) -> str:
    """The page as text, the same for the same records."""
    name = text(run.result, "recipe") or "run"
    return whole_page(
        f"{name} · upshift report",
        sentence(run.result),
        _header(run, name),
        what_was_trained(run),
        how_it_went(run),
        final_metrics(run),
        time_and_throughput(run),
        tuning(run),
        inference(run),
        notes(run),
        environment(run),
        reproduction(run),
        footer="Made by upshift from the records of this run. Nothing on this page was loaded from elsewhere.",
    )


def _header(run: RunRecords, name: str) -> Html:
    variant = text(run.result, "variant")
    details = [
        "Training report",
        f"{variant} variant" if variant else "",
        units.date(run.date) if run.date else "",
    ]
    parts: list[Child] = [label(part) for part in details if part]
    return tag(
        "header",
        tag("p", separated(parts), class_="eyebrow"),
        tag("h1", label(name)),
        tag("p", unbroken(sentence(run.result)), class_="lead"),
        tag("dl", [_figure(*figure) for figure in _key_figures(run)], class_="key-figures"),
    )


def _figure(name: str, value: str, details: str) -> Html:
    return tag("div", tag("dt", name), tag("dd", value), tag("dd", details, class_="details") if details else None)


def _key_figures(run: RunRecords) -> list[tuple[str, str, str]]:
    result = run.result
    metrics, num_test = record(result, "metrics"), count(record(result, "data"), "num_test")
    accuracy, loss, seconds = number(metrics, "accuracy"), number(metrics, "loss"), amount(result, "train_seconds")
    figures = []
    if accuracy is not None:
        details = ""
        if num_test and 0 <= accuracy <= 1:
            right = round(accuracy * num_test)
            details = f"{right:,} of {units.counted(num_test, f'test {sample_noun(result)}')}"
        figures.append(("Test accuracy", units.percent(accuracy, num_test), details))
    elif loss is not None:
        figures.append(("Test loss", units.significant(loss), ""))
    if seconds is not None:
        epochs = count(result, "epochs")
        figures.append(("Training time", units.duration(seconds), units.counted(epochs, "epoch") if epochs else ""))
    speed = amount(result, "samples_per_second")
    if speed is not None:
        figures.append(("Throughput", units.significant(speed), f"{sample_noun(result)}s a second"))
    found = read_optimization(result)
    if found is not None and found.speedup is not None and not found.kept_eager:
        latency = found.latency_ms_p50
        details = f"with {backend_title(found.chosen)}"
        details += f", {units.milliseconds(latency)}{units.SPACE}ms" if latency is not None else ""
        speedup = units.factor(found.speedup, found.speedup_interval)
        figures.append(("Inference speedup", "unsteady" if found.unsteady_range else speedup, details))
    parameters = count(result, "num_parameters")
    if parameters is not None and len(figures) < 4:
        figures.append(("Parameters", f"{parameters:,}", ""))
    return figures
