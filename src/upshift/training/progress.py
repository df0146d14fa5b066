"""Where a training stands, and its clocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from upshift.core import clock

DISPLAY_SECONDS = 0.5


@dataclass
class Progress:
    """Where a training stands; what a checkpoint keeps beside tensors.

    Attributes:
        step: Optimizer steps done, skipped ones included.
        epoch: Epochs done.
        batch: Batches of the current epoch done.
        train_seconds: Wall time in training steps, over all resumes; evaluations and checkpoints apart.
        evaluation_seconds: Wall time in evaluations.
        seconds: Wall time of the loop in all.
        num_samples: Samples trained on.
        total_steps: Steps to the end, as planned when this was saved; 0 where that was not noted.
        last_evaluation: Metrics of the monitored split; None for those that are not finite.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    seconds: float = 0.0
    num_samples: int = 0
    total_steps: int = 0
    time_to_target_seconds: float | None = None
    best_accuracy: float = -1.0
    best_epoch: int = 0
    last_evaluation: dict[str, float | None] = field(default_factory=dict)
    stopped: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingResult:
    """What a training came to; the model has its final weights.

    Attributes:
        progress: Counts and times.
        num_skipped_steps: Steps left out because their loss or gradient was not finite.
        micro_batch_size: Samples of one forward and backward at the end.
        largest_batch: Samples that are known to fit in memory at a time, after running out of it; else None.
        resumed_from_step: The checkpoint that this process went on from.
    """

    progress: Progress
    num_skipped_steps: int
    micro_batch_size: int
    largest_batch: int | None
    resumed_from_step: int | None


class Clock:
    """The times of a training: in steps, in all, and since things that happen every so often."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._training_since: float | None = None
        self._seen_training_seconds = 0.0

    def start(self) -> None:
        """The loop begins, maybe after a resume."""
        now = clock.now()
        self._began = now - self._progress.seconds
        self._checkpoint_at = self._progress_at = now
        self._seen_training_seconds = self._progress.train_seconds

    def start_training(self) -> None:
        self._training_since = clock.now()

    def stop_training(self) -> None:
        self._progress.train_seconds = self._training_seconds()
        self._training_since = None

    def seconds(self) -> float:
        """Wall time of the loop in all, over all resumes."""
        return clock.now() - self._began

    def seconds_since_checkpoint(self) -> float:
        return clock.now() - self._checkpoint_at

    def checkpointed(self) -> None:
        self._checkpoint_at = clock.now()

    def progress_is_due(self) -> bool:
        """Whether the display may be redrawn; true at most twice a second."""
        now = clock.now()
        if now - self._progress_at < DISPLAY_SECONDS:
            return False
        self._progress_at = now
        return True

    def training_seconds_since_last_call(self) -> float:
        """Time in training steps since the last call."""
        total = self._training_seconds()
        seconds = total - self._seen_training_seconds
        self._seen_training_seconds = total
        return max(seconds, 1e-9)

    def _training_seconds(self) -> float:
        running = 0.0 if self._training_since is None else clock.now() - self._training_since
        return self._progress.train_seconds + running
