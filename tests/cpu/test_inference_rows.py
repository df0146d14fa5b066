"""Test samples reach the candidates as a file, without a copy where they are one."""

from __future__ import annotations

import numpy as np
import pytest

from upshift.data.torch_datasets import RowView
from upshift.inference.rows import write_rows

ROWS = np.arange(3000 * 6, dtype=np.float32).reshape(3000, 2, 3)


def test_rows_in_a_file_of_their_own_are_linked_to(tmp_path) -> None:
    np.save(tmp_path / "stored.npy", ROWS)
    write_rows(tmp_path / "test.npy", np.load(tmp_path / "stored.npy", mmap_mode="c"))
    assert (tmp_path / "test.npy").is_symlink()
    assert np.array_equal(np.load(tmp_path / "test.npy"), ROWS)


@pytest.mark.parametrize(
    "part", [lambda rows: rows[:2000], lambda rows: rows[::-1], lambda rows: rows[:1500].reshape(3000, 3, 1)]
)
def test_a_part_of_a_file_is_written_anew(tmp_path, part) -> None:
    np.save(tmp_path / "stored.npy", ROWS)
    write_rows(tmp_path / "test.npy", part(np.load(tmp_path / "stored.npy", mmap_mode="r")))
    assert not (tmp_path / "test.npy").is_symlink()
    assert np.array_equal(np.load(tmp_path / "test.npy"), part(ROWS))


def test_a_dataset_is_read_a_stretch_at_a_time(tmp_path, monkeypatch) -> None:
    class Dataset:
        def __len__(self) -> int:
            return len(ROWS)

        def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
            return ROWS[row].ravel(), 0

    sizes = []

    class Watched(RowView):
        def __getitem__(self, rows):
            stretch = super().__getitem__(rows)
            sizes.append(len(stretch))
            return stretch

    write_rows(tmp_path / "test.npy", Watched(Dataset()))
    assert np.array_equal(np.load(tmp_path / "test.npy"), ROWS.reshape(3000, 6))
    assert max(sizes) == 1024 and sum(sizes) == 3001
