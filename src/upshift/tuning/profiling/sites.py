"""Which line of whose code called an operator."""

from __future__ import annotations

import functools
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

import upshift

_LIBRARIES = tuple(
    str(Path(path).resolve()) + "/"
    for path in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
)
_TORCH = str(Path(torch.__file__).parent.resolve()) + "/"
_UPSHIFT = str(Path(upshift.__file__).parent.resolve()) + "/"
_MODELS = _UPSHIFT + "models/"
_PACKAGES = tuple(
    dict.fromkeys([*(sysconfig.get_path(name) for name in ("purelib", "platlib")), str(Path(_UPSHIFT).parent)])
)
MAX_FRAMES = 200


@dataclass(frozen=True, order=True)
class Site:
    """A line of code.

    Attributes:
        file: Path of the source file, as Python knows it.
        line: Line number, from 1.
        function: The function that it is in.
        first_line: Where that function begins.
    """

    file: str
    line: int
    function: str
    first_line: int

    def __str__(self) -> str:
        return f"{shown_path(self.file)}:{self.line}"


def shown_path(file: str) -> str:
    """A path as short as it is still found: below the folder that packages are installed in, or the working folder."""
    for folder in (*_PACKAGES, None):
        try:
            return str(Path(file).relative_to(folder or Path.cwd()))
        except (ValueError, OSError):
            continue
    return file


def is_upshifts(file: str) -> bool:
    """Whether a file is a part of upshift, which its user does not change."""
    return not file.startswith("<") and str(Path(file).resolve()).startswith(_UPSHIFT)


@functools.cache
def whose(file: str) -> str:
    """Whose code a file is: "own" (the user's, and upshift's models), "library", or "machinery" (torch, upshift)."""
    if file.startswith("<"):
        return "machinery"
    path = str(Path(file).resolve())
    if path.startswith(_MODELS):
        return "own"
    if path.startswith((_TORCH, _UPSHIFT)):
        return "machinery"
    return "library" if path.startswith(_LIBRARIES) else "own"


@dataclass(frozen=True)
class Caller:
    """Who called an operator.

    Attributes:
        site: The innermost line of the user's code on the stack, else of a library's that is not torch; None where
            there is neither.
        frame: Its frame.
        module: Identity of the innermost torch module between the two, as `id` tells it; 0 where there is none.
    """

    site: Site | None = None
    frame: FrameType | None = None
    module: int = 0


def find_caller(frame: FrameType | None, *, up_to: str) -> Caller:
    """Who called what runs in a frame.

    Args:
        frame: Where to begin.
        up_to: The file that the stack is looked at up to: what called it is the program that profiles.
    """
    library: FrameType | None = None
    module = 0
    for _ in range(MAX_FRAMES):
        if frame is None or frame.f_code.co_filename == up_to:
            break
        owner = whose(frame.f_code.co_filename)
        if owner == "own":
            return Caller(_site(frame), frame, module)
        if owner == "library" and library is None:
            library = frame
        if not module and frame.f_code is _CALL_OF_A_MODULE:
            module = id(frame.f_locals["self"])
        frame = frame.f_back
    return Caller() if library is None else Caller(_site(library), library, module)


_CALL_OF_A_MODULE = torch.nn.Module._call_impl.__code__


def _site(frame: FrameType) -> Site:
    code = frame.f_code
    return Site(code.co_filename, frame.f_lineno, code.co_qualname, code.co_firstlineno)


def current_frame(depth: int = 1) -> FrameType:
    """The frame of the caller, or of one of its callers."""
    return sys._getframe(depth + 1)
