"""An emitted file as a whole: its docstring, its imports, what is copied, and its own sections."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from upshift import __version__
from upshift.tuning.emit.carry import Carried
from upshift.tuning.emit.imports import module
from upshift.tuning.emit.job import Job
from upshift.tuning.emit.source import LINE_LENGTH, lines, prose

_SIGNATURE = "and a plan, written by upshift"


def is_emitted(first_line: str) -> bool:
    """Whether a file that begins with this line was made here."""
    return first_line.startswith('"""') and _SIGNATURE in first_line


def assemble(
    job: Job, kind: str, about: Sequence[str], missing: Sequence[str], sections: Sequence[str], carried: Carried
) -> str:
    """The text of a file.

    Args:
        job: What is emitted.
        kind: What the file is, as "A training script".
        about: Paragraphs of its docstring; one that begins with a space is code.
        missing: What the file leaves out of the plan, the recipe, or what upshift does with them.
        sections: Its code, what is copied included; the first has its constants.
        carried: What is copied.

    Raises:
        ConfigError: Copied code has a name that the file has itself.
    """
    own = [section for section in sections if section not in carried.sections]
    carried.check_free("\n\n\n".join(own))
    docstring = lines(
        f'{kind} for the recipe "{prose(job.name)}" {_SIGNATURE} {__version__}.',
        "",
        [row for paragraph in about for row in (*_wrapped(paragraph), "")],
        "What it leaves out:",
        "",
        [_item(sentence) for sentence in missing],
    )
    return module(docstring, sections, carried.imports)


def device_lines(job: Job) -> list[str]:
    """The constant DEVICE."""
    if job.plan.device != "auto":
        return [f'DEVICE = torch.device("{job.plan.device}")']
    return ['DEVICE = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")']


def _wrapped(paragraph: str) -> list[str]:
    return (
        paragraph.split("\n")
        if paragraph.startswith(" ")
        else textwrap.wrap(paragraph, LINE_LENGTH - 4, break_on_hyphens=False)
    )


def _item(sentence: str) -> str:
    return textwrap.fill(
        sentence,
        LINE_LENGTH - 4,
        initial_indent="- ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
