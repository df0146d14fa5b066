"""How long upshift takes to start: wall times of whole, fresh processes, in rounds of random order.

Beside them an interpreter that does nothing, which no Python program can beat, and `import torch`, which upshift
puts off until it is needed. Files are in the page cache, as on any second start.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from arguments import parser
from record import Record, Table
from rounds import contest
from upshift.core.stats import quantile

HELP, MAX_HELP_SECONDS = "upshift --help", 0.3


def main() -> None:
    """Measure and publish."""
    options = parser(__doc__ or "", rounds=20, needs_data=False)
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rounds = 2
    python, script = sys.executable, Path(sys.executable).parent / "upshift"
    upshift = [str(script)] if script.is_file() else [python, "-m", "upshift"]
    commands = {
        "python -c pass": [python, "-c", "pass"],
        'python -c "import upshift"': [python, "-c", "import upshift"],
        "upshift --version": [*upshift, "--version"],
        HELP: [*upshift, "--help"],
        'python -c "import torch"': [python, "-c", "import torch"],
    }
    if arguments.quick:
        del commands['python -c "import torch"']  # seconds each
    result = contest({name: _process(command) for name, command in commands.items()}, rounds=arguments.rounds)
    seconds = {name: result.timings[name].medians() for name in commands}
    medians = {name: result.median(name) for name in commands}
    slow = {name: quantile(values, 0.9) for name, values in seconds.items()}
    rows = [[name, f"{medians[name] * 1e3:.0f}", f"{slow[name] * 1e3:.0f}"] for name in commands]
    Record(
        claim="startup",
        tables=[
            Table(
                title=f"start to end of a process, {arguments.rounds} of each",
                columns=("", "median ms", "9 of 10 within ms"),
                rows=rows,
            )
        ],
        summary={name: {"median_seconds": medians[name], "p90_seconds": slow[name]} for name in commands},
        rounds=result.raw(),
        aims={f"{HELP} under {MAX_HELP_SECONDS} s": None if arguments.quick else medians[HELP] < MAX_HELP_SECONDS},
    ).publish(arguments)


def _process(command: list[str]) -> Callable[[], float]:
    def turn() -> float:
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    return turn


if __name__ == "__main__":
    main()
