"""What a search is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upshift.core.timing import MIN_ROUNDS
from upshift.core.typed_fields import check_fields
from upshift.errors import BadInputError, ConfigError
from upshift.inference.backend import backend_info
from upshift.inference.defaults import MAX_DROP
from upshift.inference.preprocess import Preprocessing
from upshift.inference.rows import Rows


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How to search for the fastest faithful artifact.

    Attributes:
        max_drop: Accuracy that may be lost, as a share: 0.005 is half a percentage point.
        batch_size: Samples a call when timing; the artifact serves any other too.
        num_rounds: Timing rounds, in the selection and again in the confirmation.
        budget_seconds: No new candidate is begun, and timing is cut to its least, after this long;
            None is no limit.
        candidates: Names of backends; None is all that are usable. Eager is always one.
        time_limit_seconds: For each step of a candidate (build, load, a part of a run).
        memory_limit_bytes: Resident memory of a candidate's process; None is 80 % of what is free.
        num_threads: Cores for each candidate, here and wherever the artifact is loaded. None leaves it to the
            machine where it is loaded; here all candidates then have `num_usable_threads()`.
        seed: Of the order of timing, and of whatever a backend draws.
    """

    max_drop: float = MAX_DROP
    batch_size: int = 1
    num_rounds: int = 30
    budget_seconds: float | None = None
    candidates: tuple[str, ...] | None = None
    time_limit_seconds: float = 300.0
    memory_limit_bytes: int | None = None
    num_threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0.0 <= self.max_drop < 1.0:
            raise ConfigError(
                "max_drop must be at least 0 and below 1",
                received=self.max_drop,
                hint="0.005 allows half a percentage point",
            )
        if self.num_rounds < MIN_ROUNDS:
            raise ConfigError(
                f"num_rounds must be at least {MIN_ROUNDS} for an interval to exist",
                received=self.num_rounds,
                hint="30 takes a few seconds",
            )
        for name in ("batch_size", "time_limit_seconds", "budget_seconds", "memory_limit_bytes", "num_threads"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive", received=value, hint="leave it out for the default")
        for name in self.candidates or ():
            backend_info(name)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Stored samples that a search judges by, all of the layout of the packed store.

    Attributes:
        calibration: For quantization; from the training split.
        selection: For comparing outputs; from the validation split, or from the training split none of `calibration`.
        test: For the proof of the accuracy; from the test split, and of any size.
        test_labels: int64 (N,); None if there are none.
    """

    calibration: NDArray[Any]
    selection: NDArray[Any]
    test: Rows
    test_labels: NDArray[Any] | None = None

    def check(self, preprocessing: Preprocessing, num_labels: int) -> None:
        """Refuse samples that cannot be judged by.

        Raises:
            BadInputError: A part is empty or of another shape or dtype, or the labels do not fit.
        """
        for name in ("calibration", "selection", "test"):
            part = getattr(self, name)
            if len(part) == 0:
                raise BadInputError(
                    f"optimize needs {name} samples", received="none", hint="give at least one; some hundred are better"
                )
            preprocessing.apply(np.array(part[:1]))
        labels = self.test_labels
        if labels is None:
            return
        if labels.shape != (len(self.test),):
            raise BadInputError(
                "there must be one test label for each test sample",
                received=f"{labels.shape} labels for {len(self.test)} samples",
                hint="leave test_labels out if there are none",
            )
        if num_labels and (labels.min() < 0 or labels.max() >= num_labels):
            raise BadInputError(
                f"test labels must be from 0 to {num_labels - 1}",
                received=f"{labels.min()} to {labels.max()}",
                hint="labels are indices into the class names",
            )
