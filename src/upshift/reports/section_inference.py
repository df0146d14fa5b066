"""The report's section on inference: every candidate, the choice, and how to use it."""

from __future__ import annotations

from collections.abc import Sequence

from upshift.core import units
from upshift.reports.candidates import Candidate, Optimization, backend_title, read_optimization
from upshift.reports.candidates_chart import candidates_chart, reach_beyond
from upshift.reports.fields import amount, count, record, sequence, text
from upshift.reports.headline import accuracy_change
from upshift.reports.html import Child, Html, escape, label, scrolling_table, separated, tag
from upshift.reports.records import RunRecords

VERDICTS = {
    "chosen": "the artifact",
    "accepted": "verified, but not the fastest proven",
    "refused": "measured, and not proven good enough",
    "failed": "could not be built or run",
}
FIGURES = ("Latency, ms", "Speedup", "Accuracy", "Drop, points")


def inference(run: RunRecords) -> Html | None:
    """The candidates and the artifact; None where the run was not optimized."""
    found = read_optimization(run.result)
    if found is None:
        return None
    drawn = None
    if any(candidate.speedup is not None for candidate in found.candidates):
        drawn = tag(
            "figure",
            candidates_chart(found.candidates, found.max_drop),
            tag("figcaption", _chart_caption(found)),
            class_="explained",
        )
    return tag(
        "section",
        tag("h2", "Inference"),
        tag("p", _outcome(found)),
        drawn,
        _verdict_table(found.candidates, run),
        _cost_table(found.candidates),
        _use(found, run) if found.artifact else None,
    )


def _outcome(found: Optimization) -> list[Child]:
    batch = f" for a batch of {found.batch_size:,.0f}" if found.batch_size else ""
    if found.kept_eager:
        return [
            "No candidate was proven faster than eager PyTorch within the accuracy budget, so eager PyTorch is kept."
        ]
    parts: list[Child] = [tag("strong", label(backend_title(found.chosen))), " is the fastest candidate that passed"]
    if found.latency_ms_p50 is not None and found.eager_latency_ms_p50 is not None:
        parts.append(
            f": {units.milliseconds(found.latency_ms_p50)}{units.SPACE}ms{batch} where eager PyTorch takes"
            f" {units.milliseconds(found.eager_latency_ms_p50)}{units.SPACE}ms (medians)"
        )
    if found.unsteady_range:
        rounds = units.factor_range(*found.unsteady_range)
        parts.append(f", but timing was unsteady: single rounds gave {rounds}, so that the factor is not known")
    change = accuracy_change(found.drop)
    if change:
        parts.append(f"; {change}")
    parts.append(f", with a budget of {units.budget(found.max_drop)}." if found.max_drop is not None else ".")
    return parts


def _chart_caption(found: Optimization) -> str:
    said = [
        "Speed and accuracy of every candidate that ran.",
        f"Left: speedup over eager PyTorch, with its {units.CONFIDENCE} interval.",
    ]
    if reach_beyond(found.candidates):
        said.append("An arrow at the right edge says that the interval goes on beyond it, as the table tells.")
    if any(candidate.drop is not None for candidate in found.candidates):
        said.append(
            "Right: the accuracy drop that was measured, and a line to the bound below which it is proven to lie."
        )
    if found.max_drop is not None:
        said.append(
            "A candidate passes where that bound stays within the budget, or where its outputs are eager"
            " PyTorch's within float32 round-off and every prediction is the same"
        )
        by_round_off = any(candidate.proven_by_round_off(found.max_drop) for candidate in found.candidates)
        said[-1] += ": the bound is then drawn faintly." if by_round_off else "."
    return " ".join(said)


def _verdict_table(candidates: Sequence[Candidate], run: RunRecords) -> Html:
    num_test = count(record(run.result, "data"), "num_test")
    names = ("Candidate", "Verdict", *FIGURES, "Reason")
    align = {name: "number" for name in FIGURES}
    head = tag("tr", [tag("th", name, scope="col", class_=align.get(name)) for name in names])
    rows = [_verdict_row(candidate, num_test) for candidate in candidates]
    return scrolling_table("Every candidate and its verdict", head, rows, name="Candidates", class_="candidates")


def _verdict_row(candidate: Candidate, num_test: int | None) -> Html:
    """One candidate. Each figure carries its column's name, for where a phone shows the row as a card."""
    is_eager, accuracy, drop = candidate.name == "eager", candidate.accuracy, candidate.drop
    interval = None if is_eager else candidate.speedup_interval
    upper = None if is_eager else candidate.drop_upper
    speedup = units.MISSING if candidate.speedup is None else units.factor(candidate.speedup, interval)
    if candidate.unsteady_range:
        speedup, interval = "unsteady", candidate.unsteady_range
    figures: list[list[Child]] = [
        _latency(candidate),
        [speedup, tag("small", units.factor_range(*interval)) if interval else None],
        [units.MISSING if accuracy is None else units.percent(accuracy, num_test)],
        [
            units.MISSING if drop is None else units.bare_points(drop),
            tag("small", f"at most {units.bare_points(units.rounded_up(upper))}") if upper is not None else None,
        ],
    ]
    return tag(
        "tr",
        tag("th", label(candidate.title), scope="row"),
        tag("td", _verdict(candidate)),
        [tag("td", figure, class_="number", data_label=name) for name, figure in zip(FIGURES, figures, strict=True)],
        tag("td", label(candidate.reason or VERDICTS.get(candidate.verdict, "")), class_="reason"),
        class_=candidate.verdict if candidate.verdict in VERDICTS else None,
    )


def _verdict(candidate: Candidate) -> Html:
    known = candidate.verdict if candidate.verdict in VERDICTS else None
    sign = tag("span", candidate.sign, aria_hidden="true", class_="sign")
    return tag("span", sign, " ", candidate.verdict, class_=f"verdict {known or ''}".strip())


def _latency(candidate: Candidate) -> list[Child]:
    if candidate.latency_ms_p50 is None:
        return [units.MISSING]
    tails: list[Child] = [
        tag("span", f"p{share} {units.milliseconds(value)}", class_="unbroken")
        for share in (90, 99)
        if (value := amount(candidate.record, f"latency_ms_p{share}")) is not None
    ]
    return [units.milliseconds(candidate.latency_ms_p50), tag("small", separated(tails)) if tails else None]


def _cost_table(candidates: Sequence[Candidate]) -> Html | None:
    """What a candidate costs before its first answer, and how near its outputs are to eager's."""
    columns = (
        ("build_seconds", "Build", units.duration),
        ("load_seconds", "Load", units.duration),
        ("first_call_ms", "First call", lambda value: units.duration(value / 1000)),
        ("size_bytes", "Size on disk", lambda value: units.size(int(value))),
        ("max_abs_error", "Largest error", lambda value: units.significant(value, 2)),
        ("max_rel_error", "Relative error", lambda value: units.significant(value, 2)),
        ("top1_agreement", "Same top class", units.percent),
    )
    used = [column for column in columns if any(amount(item.record, column[0]) is not None for item in candidates)]
    measured = [item for item in candidates if any(amount(item.record, key) is not None for key, _, _ in used)]
    if not measured:
        return None
    rows = []
    for candidate in measured:
        cells = []
        for key, title, written in used:
            value = amount(candidate.record, key)
            shown = units.MISSING if value is None else written(value)
            cells.append(tag("td", shown, class_="number", data_label=title))
        rows.append(tag("tr", tag("th", label(candidate.title), scope="row"), cells))
    head = tag("tr", [tag("th", name, scope="col") for name in ("Candidate", *(title for _, title, _ in used))])
    caption = "What each costs before its first answer, and how its outputs compare with eager PyTorch"
    return scrolling_table(caption, head, rows, name="Costs and fidelity", class_="numbers candidates figures")


def _use(found: Optimization, run: RunRecords) -> list[Child]:
    data = record(run.result, "data")
    shape = ", ".join(["N", *(str(side) for side in sequence(data, "input_shape"))])
    kind = {"image": "images: uint8", "text": "texts: uint8 bytes", "tabular": "rows: float32"}.get(text(data, "kind"))
    what, _, dtype = (kind or "inputs").partition(": ")
    comment = f"  # {what}: {dtype} of shape ({shape}); any N" if dtype else ""
    own_code = bool(run.model_spec.get("file")) or not text(run.model_spec, "factory").startswith("upshift.")
    trust = ", trust_code=True" if own_code and found.chosen in ("eager", "compile") else ""
    code = f"import upshift\nmodel = upshift.load({found.artifact!r}{trust})\noutputs = model({what}){comment}"
    return [tag("h3", "Use it"), tag("pre", tag("code", escape(code)), tabindex=0)]
