"""The embedded dataset: scikit-learn's 1,797 real handwritten digits of 8 × 8 pixels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from upshift.data.dataset import Labels
from upshift.data.source import RawInputs, Source, SourceSplit
from upshift.data.splitting import held_out_rows

TEST_FRACTION = 0.2
NUM_ROWS = {"train": 1438, "test": 359}
"""What the split below comes to: known in advance, so that a packed store opens without scikit-learn (1 s)."""


def digits_source() -> Source:
    """The digits as uint8 (1, 8, 8), four fifths for training and a stratified fifth for testing.

    Pixels count ink from 0 to 16; they are scaled by 255 / 16 and rounded, so 0 stays 0 and 16 is 255.
    """
    return Source(
        name="digits",
        description="digits (scikit-learn, embedded)",
        kind="image",
        splits={"train": _split("train"), "test": _split("test")},
        label_names=tuple(str(digit) for digit in range(10)),
    )


def _split(name: str) -> SourceSplit:
    def inputs() -> Iterator[RawInputs]:
        yield _load()[name][0]

    return SourceSplit(num_rows=NUM_ROWS[name], labels=lambda: _load()[name][1], inputs=inputs)


@lru_cache(maxsize=1)
def _load() -> dict[str, tuple[npt.NDArray[np.uint8], Labels]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    is_test = held_out_rows(labels, TEST_FRACTION, seed=0)
    return {"train": (images[~is_test], labels[~is_test]), "test": (images[is_test], labels[is_test])}
