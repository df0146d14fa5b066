"""stdout holds the data that a command was asked for, and nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any


def prepare_streams() -> None:
    """Let a command print whatever its streams are: closed ones swallow text, and no character is unprintable."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Otherwise the next file that is opened would get this number, and what is printed would go into it.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
        elif name == "stdout" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextlib.contextmanager
def kept_for_data() -> Iterator[None]:
    """In this context whatever prints to stdout prints to stderr: the user's code, libraries, child processes."""
    stdout = sys.stdout
    stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            stdout.flush()  # of code that took hold of the stream itself
        _flush_native()
        os.dup2(saved, 1)
        os.close(saved)
        sys.stdout = stdout


def print_text(text: str) -> None:
    """One or more lines of text."""
    sys.stdout.write(text + "\n")


def width() -> int | None:
    """Columns of the window that stdout is read in; None where a file or a program reads it, which want whole lines."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def beside(name: str, indent: int, text: str) -> str:
    """A name and a text in a column beside it, wrapped in a window; below it where the window is narrow."""
    columns = width()
    if columns is None:
        return f"{name:{indent}}{text}"
    if columns < 3 * indent:
        return f"{name}\n{textwrap.fill(text, max(columns, 20), initial_indent='  ', subsequent_indent='  ')}"
    return textwrap.fill(text, columns, initial_indent=f"{name:{indent}}", subsequent_indent=" " * indent)


def print_json(value: Any) -> None:
    """A JSON document on a line of its own, in ASCII where stdout takes no more than some characters."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    text = json.dumps(value, ensure_ascii=not is_unicode, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file's name whose bytes are no text
        text = json.dumps(value, allow_nan=False)
    print_text(text)


def finish() -> None:
    """Flush what was printed; what is printed while Python ends goes to stderr."""
    sys.stdout.flush()
    if sys.stdout is sys.__stdout__:
        os.dup2(2, 1)


def has_refused(error: OSError) -> bool:
    """Whether an error says that the file which stdout leads to is full; errors of other files name them."""
    return error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def discard() -> None:
    """Let go of what stdout could not take, which Python would try to write again at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _flush_native() -> None:
    """Flush what native code printed by C's stdio, which Python does not know of."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)
