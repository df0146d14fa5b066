"""The page of a profile: where the time of a step goes, what to do about it, operators, memory and data."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upshift.core import units
from upshift.reports.bars import StepBar, named, step_bars
from upshift.reports.fields import Record, amount, count, record, records, seed, sequence, text
from upshift.reports.html import Child, Html, label, scrolling_table, separated, tag
from upshift.reports.profile_charts import memory_chart, timeline_chart
from upshift.reports.profile_facts import (
    advices,
    brief,
    ceilings,
    gain,
    memory_sentence,
    parts_of,
    percent,
    prediction,
    share_of_limit,
    verdict,
)
from upshift.reports.records import RunRecords
from upshift.reports.section_closing import environment, notes
from upshift.reports.section_training import definitions
from upshift.reports.shell import whole_page

NUM_OPERATORS = 24


def render_profile(profile: Mapping[str, Any]) -> str:
    """The page as text, the same for the same record.

    Args:
        profile: The content of profile.json.
    """
    name = text(profile, "recipe") or "training"
    closing = RunRecords(folder=Path(text(profile, "run_dir")), result=profile)
    return whole_page(
        f"{name} · upshift profile",
        verdict(profile),
        _header(profile, name),
        _where_time_goes(profile),
        _what_to_do(profile),
        _operators(profile),
        _memory(profile),
        _input_pipeline(profile),
        notes(closing),
        environment(closing),
        _reproduction(profile),
        footer="Made by upshift from profile.json. Nothing on this page was loaded from elsewhere.",
    )


def _header(profile: Record, name: str) -> Html:
    variant, device = text(profile, "variant"), text(profile, "device")
    about: list[Child] = ["Training profile"]
    about += [label(f"{variant} variant")] if variant else []
    about += [label(device)] if device else []
    return tag(
        "header",
        tag("p", separated(about), class_="eyebrow"),
        tag("h1", label(name)),
        tag("p", verdict(profile), class_="lead"),
        tag("dl", [_figure(*figure) for figure in _key_figures(profile)], class_="key-figures"),
    )


def _figure(name: str, value: str, details: str) -> Html:
    return tag("div", tag("dt", name), tag("dd", value), tag("dd", details, class_="details") if details else None)


def _key_figures(profile: Record) -> list[tuple[str, str, str]]:
    breakdown = record(profile, "breakdown")
    speed, seconds, bound = (
        amount(breakdown, "samples_per_second"),
        amount(breakdown, "seconds"),
        text(breakdown, "bound_by"),
    )
    figures = []
    if speed is not None:
        figures.append(("Throughput", units.significant(speed), "samples a second"))
    if seconds is not None:
        size = count(breakdown, "batch_size") or 0
        figures.append(("Step", units.duration(seconds), units.counted(size, "sample")))
    largest = max(parts_of(breakdown), key=lambda part: part.share, default=None)
    if bound and largest is not None:
        figures.append(("Bound by", bound, f"{percent(largest.share)} of the step {largest.title}"))
    best = next((advice for advice in advices(profile) if amount(advice, "speedup") is not None), None)
    if best is not None:
        said = "at most" if best.get("is_bound") is True else "predicted"
        figures.append(("To be gained", gain(amount(best, "speedup") or 1.0), said))
    return figures


def _where_time_goes(profile: Record) -> Html:
    breakdown = record(profile, "breakdown")
    parts = parts_of(breakdown)
    rows: list[tuple[Child, Child]] = [
        (named(part), f"{brief(part.seconds)}, {percent(part.share)}") for part in parts if part.seconds > 0
    ]
    rows += [(title.capitalize(), said) for title, said in ceilings(breakdown)]
    steps = units.counted(count(breakdown, "num_steps") or 0, "step")
    return tag(
        "section",
        tag("h2", "Where a step’s time goes"),
        tag(
            "div",
            tag(
                "figure",
                step_bars([StepBar("", parts)]),
                tag("figcaption", f"One step, of {steps} that were timed."),
            ),
            definitions(rows),
            class_="beside",
        ),
    )


def _what_to_do(profile: Record) -> Html:
    return tag(
        "section",
        tag("h2", "What to do"),
        tag("p", "Ranked by the part of a step that each is predicted to spare. Gains do not add up."),
        [_advice(place, advice) for place, advice in enumerate(advices(profile), start=1)],
    )


def _advice(place: int, advice: Record) -> Html:
    where, command = text(advice, "where"), text(advice, "command")
    changes = advice.get("changes_algorithm") is True
    return tag(
        "article",
        tag("h3", f"{place}. ", label(text(advice, "title"))),
        tag("p", tag("code", label(where))) if where else None,
        tag("p", label(text(advice, "action"))),
        tag("p", tag("small", prediction(advice).capitalize(), ". It changes what is learnt." if changes else ".")),
        tag("pre", tag("code", command), tabindex=0),
    )


def _operators(profile: Record) -> Html | None:
    rows = records(profile, "operators")
    if not rows:
        return None
    names = ("Operator", "Phase", "Calls", "In kernels", "Overhead", "Share", "FLOP/s", "Of the limit", "Where")
    numeric = names[2:8]
    head = tag("tr", [tag("th", name, scope="col", class_="number" if name in numeric else None) for name in names])
    roofline = record(profile, "roofline")
    flops, moved = amount(roofline, "flops_per_second"), amount(roofline, "bytes_per_second")
    limits = ""
    if flops and moved:
        limits = (
            f" This machine reaches {units.significant(flops / 1e9)} GFLOP/s and {units.significant(moved / 1e9)} GB/s;"
            " the limit of an operator is whichever binds it: computing, or the bandwidth of the memory (the roofline)."
        )
    said = f"The operators that take most of a step, of {len(rows)}.{limits}"
    body = [_operator(row) for row in rows[:NUM_OPERATORS]]
    return tag(
        "section", tag("h2", "Operators"), scrolling_table(said, head, body, name="Operators", class_="dense operators")
    )


def _operator(row: Record) -> Html:
    flops = amount(row, "flops_per_second")
    figures = (
        units.setting(round(amount(row, "calls") or 0.0, 1)),
        brief(amount(row, "seconds")),
        brief(amount(row, "overhead_seconds")),
        percent(amount(row, "share") or 0.0),
        f"{units.significant(flops / 1e9)}{units.SPACE}G" if flops else units.MISSING,
        share_of_limit(row).removesuffix(" bandwidth"),  # the caption says of what
    )
    return tag(
        "tr",
        tag("th", label(text(row, "name")), scope="row"),
        tag("td", label(text(row, "phase"))),
        [tag("td", figure, class_="number") for figure in figures],
        tag("td", _place(text(row, "site"))),
    )


def _place(site: str) -> Html | None:
    """A "file:line" that breaks behind slashes, and never before its line."""
    if not site:
        return None
    *folders, file = site.split("/")
    path: list[Child] = [[folder, "/", tag("wbr")] for folder in folders]
    stem, colon, line = file.rpartition(":")
    end = [stem, tag("span", colon, line, class_="unbroken")] if colon else [file]
    return tag("code", tag("bdi", path, end), class_="place")


def _memory(profile: Record) -> Html | None:
    memory = record(profile, "memory")
    chart = memory_chart(memory)
    if chart is None:
        return None
    holders = records(memory, "holders")
    names = ("Made by", "Alive at the peak", "Where")
    head = tag("tr", [tag("th", name, scope="col", class_="number" if name == names[1] else None) for name in names])
    body = [
        tag(
            "tr",
            tag("th", label(text(holder, "name")), scope="row"),
            tag("td", units.size(count(holder, "num_bytes") or 0), class_="number"),
            tag("td", _place(text(holder, "site"))),
        )
        for holder in holders
    ]
    table = scrolling_table("What the step itself made that lives at the peak", head, body, name="Memory at the peak")
    return tag(
        "section",
        tag("h2", "Memory over a step"),
        tag("p", f"{memory_sentence(memory)}."),
        tag(
            "div",
            tag(
                "figure",
                chart,
                tag("figcaption", "Tensors that live; what kernels take for a moment is not among them."),
            ),
            table if holders else None,
            class_="beside",
        ),
    )


def _input_pipeline(profile: Record) -> Html | None:
    chart = timeline_chart(record(profile, "timeline"))
    if chart is None:
        return None
    items = record(profile, "items")
    functions = records(items, "functions")
    made = amount(items, "seconds")
    lines = [
        tag(
            "li",
            tag("code", label(text(function, "place"))),
            " ",
            label(text(function, "name")),
            f": {units.duration(amount(function, 'own_seconds') or 0.0)} of it",
        )
        for function in functions
    ]
    return tag(
        "section",
        tag("h2", "Input pipeline"),
        tag(
            "div",
            tag("figure", chart, tag("figcaption", "The first steps. A loader may make several batches at once.")),
            tag("div", tag("p", f"A sample takes {units.duration(made)} to make."), tag("ul", lines))
            if made is not None
            else None,
            class_="beside",
        ),
    )


def _reproduction(profile: Record) -> Html:
    words = sequence(profile, "command")
    command = shlex.join(words) if words and all(isinstance(word, str) for word in words) else ""
    return tag(
        "section",
        tag("h2", "How to reproduce"),
        tag("pre", tag("code", command), tabindex=0) if command else None,
        definitions(
            [
                ("Seed", seed(profile)),
                ("Records", tag("code", label(text(profile, "run_dir")))),
                ("Trace", "trace.json.gz beside this page: open it at ui.perfetto.dev or chrome://tracing"),
            ]
        ),
        class_="closing",
    )
