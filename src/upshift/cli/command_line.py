"""The command `upshift`: its verbs, its exit codes, and what a person reads when something is wrong."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from upshift.cli import stdout, usage
from upshift.cli.on_plans import emit
from upshift.cli.on_recipes import profile, recipes, run, train, tune
from upshift.cli.on_runs import evaluate, optimize, predict, report
from upshift.cli.verb import Verb
from upshift.errors import BadInputError, Interrupted, StorageError, UpshiftError
from upshift.terminal import print_error

app = typer.Typer(
    name="upshift",
    help="Train PyTorch models faster and run them faster, measured on this machine, with proof that nothing was lost.",
    no_args_is_help=False,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
plan_verbs = typer.Typer(help="Do something with a plan.", rich_markup_mode=None)

for verb in (run, recipes, train, tune, profile, evaluate, predict, optimize, report):
    app.command(cls=Verb)(verb)
plan_verbs.command(cls=Verb)(emit)
app.add_typer(plan_verbs, name="plan")

USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""click's UsageError, wherever typer keeps click."""


@app.callback(invoke_without_command=True)
def _upshift(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from upshift import __version__

        stdout.print_text(f"upshift {__version__}")
    elif context.invoked_subcommand is None:
        stdout.print_text(context.get_help())


@plan_verbs.callback(invoke_without_command=True)
def _plan(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        stdout.print_text(context.get_help())


def main() -> None:
    """The command `upshift`."""
    stdout.prepare_streams()
    try:
        code = app(standalone_mode=False) or 0
        stdout.finish()
        sys.exit(code)
    except USAGE_ERROR as error:
        print_error(usage.explanation(error, typer.main.get_group(app), sys.argv[1:]))
        sys.exit(2)
    except Interrupted as stop:
        sys.stderr.write(f"{stop}\n")
        sys.exit(stop.exit_code)
    except BadInputError as error:
        print_error(usage.in_options(error, typer.main.get_group(app), sys.argv[1:]))
        sys.exit(error.exit_code)
    except UpshiftError as error:
        print_error(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print_error("interrupted")
        sys.exit(Interrupted.exit_code)
    except BrokenPipeError:  # the reader of stdout has gone (`upshift recipes | head`)
        stdout.discard()
        sys.exit(1)
    except OSError as error:
        if not stdout.has_refused(error):
            raise
        stdout.discard()
        print_error(f"stdout must take what is printed; received {error.strerror}; hint: redirect it to another file")
        sys.exit(StorageError.exit_code)
