"""The results as Markdown: printed, or with `--write PAGE` put between the marks of a page."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from record import RESULTS, VERDICTS

BEGIN, END = "<!-- results: made by benchmarks/table.py -->", "<!-- end of results -->"
TITLES = {
    "training-throughput": "Training throughput",
    "training-peers": "Training against all peers",
    "time-to-accuracy": "Time to the baseline's accuracy",
    "overhead": "Overhead over a bare loop",
    "startup": "Start-up",
    "plan-fields": "Single fields of a plan",
    "left-out": "Tried, and left out",
    "tuning": "Tuning while training",
    "inference": "Inference",
}


def main() -> None:
    """Print the results, or write them into a page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    options.add_argument("--write", type=Path, metavar="PAGE", help="a Markdown file with the two marks")
    arguments = options.parse_args()
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(arguments.results.glob("*.json"))]
    text = "\n".join(markdown(results)) if results else "No results yet.\n"
    if arguments.write is None:
        print(text, end="")
        return
    page = arguments.write.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        sys.exit(f"error: {arguments.write} must have the marks {BEGIN} and {END}")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    arguments.write.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def markdown(results: list[dict[str, Any]]) -> list[str]:
    """A section for each claim, with each machine's tables."""
    lines: list[str] = []
    for claim, title in TITLES.items():
        for result in (result for result in results if result["claim"] == claim):
            lines += [f"### {title}", "", f"{_machine(result)}", ""]
            for table in result["tables"]:
                lines += [*_table(table), ""]
            lines += [f"- {VERDICTS[reached]}: {aim}" for aim, reached in result["aims"].items()]
            lines += [f"- {note}" for note in result["notes"]]
            lines += [""]
    return lines


def _machine(result: dict[str, Any]) -> str:
    environment = result["environment"]
    accelerator = f", {environment['accelerator']['name']}" if environment["accelerator"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    commit = (result["commit"] or "unknown").replace("+", " with ")
    return (
        f"{environment['cpu']}, {environment['num_cores']} cores{accelerator}; Python {environment['python']}, "
        f"{versions}; commit {commit[:12]}{commit[40:]}."
    )


def _table(table: dict[str, Any]) -> list[str]:
    aligned = [":---", *["---:"] * (len(table["columns"]) - 1)]
    rows = [table["columns"], aligned, *table["rows"]]
    return [f"**{table['title']}**", "", *(f"| {' | '.join(row)} |" for row in rows)]


if __name__ == "__main__":
    main()
