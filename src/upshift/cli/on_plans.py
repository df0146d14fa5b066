"""The verbs that take a plan: plan emit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upshift.cli import stdout
from upshift.cli.options import (
    DataDirOption,
    JsonOption,
    QuietOption,
    SeedOption,
    SetOption,
    SkipBadOption,
    VariantOption,
)
from upshift.cli.verb import Show, answer, field_overrides
from upshift.terminal import Terminal


def emit(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="baseline, or a plan file.")],
    recipe: Annotated[str, typer.Option("--recipe", metavar="RECIPE", help="As `upshift train` takes it.")],
    target: Annotated[
        str, typer.Option("--as", metavar="TARGET", help="script, lightning, accelerate or hf (Transformers).")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The .py file; its data go beside it [default: print it].")
    ] = None,
    variant: VariantOption = None,
    set_: SetOption = None,
    seed: SeedOption = 0,
    data_dir: DataDirOption = None,
    skip_bad: SkipBadOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> Show:
    """Write a plan and a recipe as source code for another loop."""
    from upshift.workflows.emit import emit as emit_workflow

    emitted = emit_workflow(
        plan,
        recipe,
        target,
        out=out,
        variant=variant,
        overrides=field_overrides(set_, None),
        seed=seed,
        data_dir=data_dir,
        skip_bad=skip_bad,
        on_data_progress=Terminal(quiet=quiet).on_data,
    )

    def told() -> None:
        if out is None:
            stdout.print_text(emitted.text.removesuffix("\n"))
            return
        for file in emitted.files:
            stdout.print_text(str(file))
        stdout.print_text("\nWhat it leaves out:")
        for sentence in emitted.inexpressible:
            stdout.print_text(f"- {sentence}")

    return answer(emitted.to_json(), as_json, told)
