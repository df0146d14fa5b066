"""Writing a `.npy` file row by row, when the number of rows is known only at the end."""

from __future__ import annotations

import io
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt


class NpyWriter:
    """Appends rows to a `.npy` file; the header is set right on closing.

    Args:
        path: The file to make.
        row_shape: Shape of one row.
        dtype: Type of the elements.
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self.num_rows = 0
        self._row_shape, self._dtype = row_shape, np.dtype(dtype)
        self._stream = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._stream.write(self._header())

    def _header(self) -> bytes:
        # NumPy pads this header so that the first axis may grow without moving the data.
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            buffer,
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self.num_rows, *self._row_shape),
            },
        )
        return buffer.getvalue()

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Append rows of shape (n, *row_shape).

        Raises:
            ValueError: The rows are of another shape or type.
        """
        if rows.shape[1:] != self._row_shape or rows.dtype != self._dtype:
            raise ValueError(f"rows of {rows.dtype} {rows.shape[1:]} in a file of {self._dtype} {self._row_shape}")
        self._stream.write(np.ascontiguousarray(rows).data.cast("B") if rows.size else b"")
        self.num_rows += len(rows)

    def close(self) -> None:
        """Write the number of rows into the header and close the file."""
        if self._stream.closed:
            return
        try:
            self._stream.seek(0)
            self._stream.write(self._header())
        finally:
            self._stream.close()

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._stream.close()
