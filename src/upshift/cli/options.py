"""Arguments and options that several commands share: one wording and one type each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A built-in name (see `upshift recipes`), a .py file, or package.module:RECIPE."
    ),
]
ModelArgument = Annotated[Path, typer.Argument(metavar="PATH", help="A run folder or an artifact.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")]
VariantOption = Annotated[str | None, typer.Option(help="A variant of the recipe, such as fast.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, as optimizer.lr=0.1. Repeatable."),
]
TargetOption = Annotated[
    list[str] | None,
    typer.Option("--target", metavar="METRIC=GOAL", help="Stop where it is reached, as accuracy=0.99."),
]
PlanOption = Annotated[
    str,
    typer.Option(
        metavar="auto|baseline|FILE", help="How to execute: tuned while training, the plain loop, or a plan file."
    ),
]
SeedOption = Annotated[int, typer.Option(help="Of weights, order, augmentation and dropout.")]
ModelSeedOption = Annotated[int, typer.Option("--seed", help="Of what the model itself draws.")]
UnusedSeedOption = Annotated[int, typer.Option("--seed", help="As every command takes it; nothing is drawn here.")]
OutOption = Annotated[Path | None, typer.Option(metavar="DIR", help="The run folder [default: runs/RECIPE-TIME].")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
DataDirOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where named datasets lie, as DIR/mnist/*.parquet.")
]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Leave bad rows of the data out, and report them.")]
MaxDropOption = Annotated[float, typer.Option(help="Largest loss of test accuracy for faster inference.")]
TrustOption = Annotated[
    bool, typer.Option("--trust-code", help="Let a run or an artifact import code that you have not trained with here.")
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="algorithm",
        help="Let upshift change what is learnt: a larger batch where that is faster, with its learning rate.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
