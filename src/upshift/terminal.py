"""What a person sees on the terminal while something runs: progress, notes and events. All of it goes to stderr."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from upshift.core import units

PLAIN_SECONDS = 10.0
REDRAW_SECONDS = 0.4  # drawing a bar takes milliseconds that the training step would have
NUM_RECENT = 60
"""Redraws that the time left is estimated from, about half a minute: a pace of long ago is no forecast."""

SHOWN_IN_ORDER = ("what", "bar", "steps", "left", "loss", "accuracy", "evaluated", "rate")
BAR_WIDTHS = (8, 12, 20)


class Terminal:
    """Shows what goes on: one line that redraws on a terminal, few plain lines elsewhere, nothing when quiet.

    It observes a training (see `upshift.training.trainer.Observer`), the packing of data, and the search for an
    inference artifact.
    """

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console

        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        # A terminal that cannot move its cursor, and a file that is only to be coloured, get plain lines.
        self._live = not quiet and sys.stderr.isatty() and not self._console.is_dumb_terminal
        self._line: Any = None
        self._recent: deque[tuple[float, int]] = deque(maxlen=NUM_RECENT)
        self._figures: dict[str, str] = {}
        self._unsaid: dict[str, Any] | None = None
        self._said_at = self._drawn_at = 0.0

    def on_data(self, description: str, done: int, total: int) -> None:
        """Progress of packing or downloading data."""
        if self._quiet or total == 0:
            return
        if self._live:
            self._draw(description, done, total)
            if done >= total:
                self._close()
                self._recent.clear()
        elif done == 0 or done >= total:
            self._say(f"{description}: {done:,} of {total:,}")

    def on_event(self, text: str) -> None:
        """A line about the search for an inference artifact."""
        self._close()
        self._say(text)

    def on_start(self, *, steps_per_epoch: int, epochs: int, total_steps: int, step: int) -> None:
        """A training of at most `total_steps` begins, maybe after a resume at `step`."""
        self._close()
        # An epoch that the last step falls into is one of those to come, though it is not made to its end.
        self._epochs, self._total_steps = min(epochs, -(-total_steps // steps_per_epoch)), total_steps
        self._figures, self._unsaid = {}, None
        self._said_at = time.monotonic()
        self._recent.clear()
        self._recent.append((self._said_at, step))
        if not self._live and step == 0:
            steps = units.counted(steps_per_epoch, "step")
            end = f", {total_steps:,} in all" if total_steps < epochs * steps_per_epoch else ""
            self._say(f"training: {units.counted(self._epochs, 'epoch')} of {steps}{end}")

    def on_progress(self, *, step: int, epoch: int, batch: int) -> None:
        """A step was done; called at most twice a second."""
        if self._live:
            self._draw(self._epoch(epoch), step, self._total_steps)

    def on_record(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl was written."""
        self._figures |= training_figures(record)
        if self._quiet or self._live:
            return
        self._unsaid = record
        is_last = record["epoch"] + 1 == self._epochs and "eval_accuracy" in record
        if is_last or time.monotonic() - self._said_at >= PLAIN_SECONDS:
            self._say_record(record)

    def on_note(self, note: str) -> None:
        """A warning."""
        self._say(f"warning: {note}", style="yellow")

    def on_end(self) -> None:
        """The training is over, or was interrupted."""
        self._close()
        if self._unsaid is not None:
            self._say_record(self._unsaid)

    def _epoch(self, epochs_done: int) -> str:
        return f"epoch {min(epochs_done + 1, self._epochs)}/{self._epochs}"

    def _say_record(self, record: dict[str, Any]) -> None:
        self._said_at, self._unsaid = time.monotonic(), None
        step, total = record["step"], self._total_steps
        left = _clock(self._seconds_left(step, total))
        parts = {"what": self._epoch(record["epoch"]), "steps": f"step {step:,}/{total:,}", "left": left}
        self._say(_joined(parts | self._figures))

    def _seconds_left(self, done: int, total: int) -> float | None:
        """At the pace of the last half minute; None where nothing tells."""
        now = time.monotonic()
        if done >= total or not self._recent or done <= self._recent[0][1]:
            return None
        then, done_then = self._recent[0]
        return (now - then) * (total - done) / (done - done_then)

    def _draw(self, what: str, done: int, total: int) -> None:
        if self._line is None:
            from rich.live import Live

            self._line = Live(console=self._console, transient=True, auto_refresh=False)
            self._line.start()
            self._drawn_at = 0.0
        now = time.monotonic()
        if now - self._drawn_at < REDRAW_SECONDS and done < total:
            return
        from rich.text import Text

        self._drawn_at = now
        left = self._seconds_left(done, total)
        self._recent.append((now, done))
        marks = "━╌" if (self._console.encoding or "").lower().startswith("utf") else "=-"
        drawn = Text(
            progress_line(what, done, total, self._console.width, left=left, figures=self._figures, marks=marks),
            no_wrap=True,
            overflow="crop",
        )
        drawn.highlight_regex(f"{marks[0]}+", "green")
        drawn.highlight_regex(f"{marks[1]}{{2,}}", "dim")
        self._line.update(drawn, refresh=True)

    def _close(self) -> None:
        if self._line is not None:
            self._line.stop()
            self._line = None

    def _say(self, text: str, *, style: str | None = None) -> None:
        if not self._quiet:
            self._console.print(units.plain(text), style=style, markup=False, soft_wrap=True)


def training_figures(record: Mapping[str, Any]) -> dict[str, str]:
    """The figures of a line of metrics.jsonl as words, by what they are."""
    figures = {}
    if "loss" in record:
        loss = "not finite" if record["loss"] is None else units.significant(record["loss"])
        figures = {"loss": f"loss {loss}"}
    if record.get("accuracy") is not None:
        figures["accuracy"] = f"accuracy {units.percent(record['accuracy'])}"
    if "eval_accuracy" in record:
        figures["evaluated"] = f"{record['eval_split']} {units.percent(record['eval_accuracy'])}"
    if "samples_per_second" in record:
        figures["rate"] = units.rate(record["samples_per_second"])
    return figures


def progress_line(
    what: str,
    done: int,
    total: int,
    width: int,
    *,
    left: float | None = None,
    figures: Mapping[str, str] | None = None,
    marks: str = "━╌",
) -> str:
    """One line of at most `width` columns: what is most worth knowing first, the rest where there is room.

    Args:
        what: What goes on, such as "epoch 3/20".
        done: Steps (rows, bytes) done.
        total: Of how many.
        width: Columns of the terminal.
        left: Seconds left; None if not known.
        figures: From `training_figures`.
        marks: The bar's full and empty characters.
    """
    figures = dict(figures or {})
    rate = figures.get("rate", "")
    wishes = [
        ("what", what),
        ("steps", f"{done:,}/{total:,}"),
        ("left", _clock(left)),
        ("loss", figures.get("loss", "")),
        # One accuracy is essential: that of other samples than the training's, once there is one.
        *[(name, figures[name]) for name in ("evaluated", "accuracy") if name in figures][:1],
        ("rate", rate.replace(f"{units.SPACE}samples", "")),
        ("bar", _bar(done, total, BAR_WIDTHS[0], marks)),
        ("accuracy", figures.get("accuracy", "")),
        ("rate", rate),
        *[("bar", _bar(done, total, size, marks)) for size in BAR_WIDTHS[1:]],
    ]
    shown: dict[str, str] = {}
    for name, text in wishes:
        if len(_joined(shown | {name: text})) <= width:
            shown[name] = text
    return _joined(shown)


def _joined(parts: Mapping[str, str]) -> str:
    return units.plain("  ".join(parts[name] for name in SHOWN_IN_ORDER if parts.get(name)))


def _bar(done: int, total: int, size: int, marks: str) -> str:
    full = min(size, size * done // max(total, 1))
    return marks[0] * full + marks[1] * (size - full)


def _clock(seconds: float | None) -> str:
    """A time left that does not change its width every second ("0:07 left", "1:02:05 left")."""
    if seconds is None:
        return ""
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{whole:02} left" if hours else f"{minutes}:{whole:02} left"


def print_error(text: str) -> None:
    """One line on stderr, whatever it holds."""
    sys.stderr.write("error: " + " ".join(text.split()) + "\n")
