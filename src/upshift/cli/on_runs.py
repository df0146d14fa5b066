"""The verbs that take what a training made: evaluate, predict, optimize, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from upshift.cli import stdout
from upshift.cli.options import (
    DataDirOption,
    JsonOption,
    MaxDropOption,
    ModelArgument,
    ModelSeedOption,
    QuietOption,
    RunArgument,
    SeedOption,
    SkipBadOption,
    TrustOption,
    UnusedSeedOption,
)
from upshift.cli.verb import Show, answer, print_lines
from upshift.terminal import Terminal
from upshift.workflows.defaults import MAX_DROP


def evaluate(
    path: ModelArgument,
    source: Annotated[str | None, typer.Option(metavar="DATA", help="Other data to evaluate on.")] = None,
    split: Annotated[str, typer.Option(help="Which split.")] = "test",
    data_dir: DataDirOption = None,
    skip_bad: SkipBadOption = False,
    trust_code: TrustOption = False,
    seed: ModelSeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> Show:
    """Evaluate a run or an artifact on labelled data."""
    from upshift.workflows.evaluate import evaluate as evaluate_workflow
    from upshift.workflows.report import evaluation_lines

    record = evaluate_workflow(
        path,
        source=source,
        split=split,
        data_dir=data_dir,
        skip_bad=skip_bad,
        trust_code=trust_code,
        seed=seed,
        on_data_progress=Terminal(quiet=quiet).on_data,
    )

    return answer(record, as_json, lambda: print_lines(evaluation_lines(record)))


def predict(
    path: ModelArgument,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Images, folders, .npz or .csv; - reads stdin.")
    ],
    top: Annotated[int, typer.Option(help="How many classes to name.")] = 3,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: input,rank,label,probability.")] = False,
    trust_code: TrustOption = False,
    seed: ModelSeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> Show:
    """Classify files with a run or an artifact."""
    from upshift.workflows.predict import predict as predict_workflow
    from upshift.workflows.report import prediction_line

    terminal = Terminal(quiet=quiet)
    predictions = predict_workflow(path, files, top_k=top, trust_code=trust_code, seed=seed, on_note=terminal.on_note)

    def rows() -> None:
        import csv

        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["input", "rank", "label", "probability"])
        for prediction in predictions:
            for rank, item in enumerate(prediction["top"], start=1):
                writer.writerow([prediction["input"], rank, item["label"], repr(item["probability"])])

    def lines() -> None:
        print_lines([prediction_line(prediction) for prediction in predictions])

    return answer(predictions, as_json, rows if as_csv else lines)


def optimize(
    path: RunArgument,
    max_drop: MaxDropOption = MAX_DROP,
    batch_size: Annotated[int, typer.Option(help="Samples a call while timing.")] = 1,
    budget: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Begin no further backend after this long.")
    ] = None,
    candidate: Annotated[
        list[str] | None, typer.Option(help="A backend to try. Repeatable [default: all usable].")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The artifact's folder [default: RUN/artifact].")
    ] = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = 0,
    trust_code: TrustOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> Show:
    """Find the fastest verified inference artifact of a run."""
    from upshift.workflows.optimize import optimize as optimize_workflow
    from upshift.workflows.report import optimize_lines

    terminal = Terminal(quiet=quiet)
    found = optimize_workflow(
        path,
        max_drop=max_drop,
        batch_size=batch_size,
        budget_seconds=budget,
        candidates=candidate,
        out=out,
        data_dir=data_dir,
        seed=seed,
        trust_code=trust_code,
        on_event=terminal.on_event,
    )
    return answer(found, as_json, lambda: print_lines(optimize_lines(found, width=stdout.width())))


def report(
    path: RunArgument,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page [default: RUN/report.html].")] = None,
    seed: UnusedSeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> Show:
    """Write the report of a run: one self-contained HTML page."""
    from upshift.workflows.report import report as report_workflow

    page = report_workflow(path, out=out)
    return answer({"report": str(page)}, as_json, lambda: stdout.print_text(str(page)))
