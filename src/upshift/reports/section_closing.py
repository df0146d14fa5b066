"""The report's last sections: notes, environment, and how to make the run again."""

from __future__ import annotations

import shlex

from upshift.core import units
from upshift.reports.fields import count, record, seed, sequence, text
from upshift.reports.html import Child, Html, label, tag
from upshift.reports.records import RunRecords
from upshift.reports.section_training import definitions


def notes(run: RunRecords) -> Html | None:
    """What a reader must know besides: warnings of the run."""
    noted = [*sequence(run.result, "notes"), *sequence(record(run.result, "optimize"), "notes")]
    said = [note for note in noted if isinstance(note, str)]
    if not said:
        return None
    items = [tag("li", label(note)) for note in said]
    return tag("section", tag("h2", "Notes"), tag("ul", items), class_="notes closing")


def environment(run: RunRecords) -> Html | None:
    """The machine and the versions that the numbers were measured on."""
    facts = record(run.result, "environment")
    accelerator, packages = record(facts, "accelerator"), record(facts, "packages")
    memory, video = count(facts, "memory_bytes"), count(accelerator, "memory_bytes")
    cores, threads = count(facts, "num_cores"), count(facts, "num_threads")
    flags = ", ".join(str(flag) for flag in sequence(facts, "cpu_flags"))
    processor: list[Child] = [label(text(facts, "cpu"))] if text(facts, "cpu") else []
    counts = [units.counted(cores, "usable core")] if cores else []
    counts += [units.counted(threads, "thread")] if threads else []
    processor += [", " if processor and counts else "", ", ".join(counts), f" ({flags})" if flags else ""]
    versions = [
        tag("span", label(name), " ", tag("b", label(version)), " ", class_="setting")
        for name, version in (("Python", text(facts, "python")), *packages.items())
        if version
    ]
    name = text(accelerator, "name")
    rows: list[tuple[str, Child]] = [
        ("Processor", processor if any(processor) else None),
        ("Accelerator", [label(name), f", {units.size(video)}" if video else ""] if name else None),
        ("Memory", units.size(memory) if memory else None),
        ("System", label(text(facts, "system")) if text(facts, "system") else None),
        ("Versions", versions),
    ]
    if not any(value for _, value in rows):
        return None
    return tag("section", tag("h2", "Environment"), definitions(rows), class_="closing")


def reproduction(run: RunRecords) -> Html:
    """The command, the seed, and where the records lie."""
    words = sequence(run.result, "command")
    command = shlex.join(words) if all(isinstance(word, str) for word in words) else ""
    from_python = "It was started from a Python program, with objects of its own that no command can name."
    folder = text(run.result, "run_dir") or str(run.folder)
    return tag(
        "section",
        tag("h2", "How to reproduce"),
        tag("pre", tag("code", command), tabindex=0) if command else None,
        tag("p", from_python) if run.result.get("command") == [] else None,
        definitions(
            [
                ("Seed", seed(run.result)),
                ("Records", tag("code", label(folder))),
            ]
        ),
        tag(
            "p",
            "The seed fixes the initial weights, the order of samples and their augmentation. Times vary with what else"
            " the machine does; the intervals say by how much they did here.",
        ),
        class_="closing",
    )
