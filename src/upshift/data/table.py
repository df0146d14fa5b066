"""Comma-separated rows to features in the order that a model was trained on."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TextIO

import numpy as np
import numpy.typing as npt

from upshift.errors import DataError

MAX_FEATURE = float(np.finfo(np.float32).max)
ROWS_PER_PART = 4096
BYTE_ORDER_MARK = "\ufeff"

POSITION_NOTE = "the model does not know the names of its features: the columns are taken in the order of the file"


class Table:
    """A table that is read a part at a time.

    A first row without any number, or of exactly the features' names, is a header. With a header the columns are found
    by their names, where the model knows them; without one they are in the model's order.

    Attributes:
        notes: What the user should know of it; complete when its header was read.
    """

    def __init__(self, source: TextIO, num_features: int, *, feature_names: tuple[str, ...] = (), name: str) -> None:
        self._source, self._num_features, self._name = source, num_features, name
        self._feature_names = feature_names
        self._order: list[int] | None = None
        self.notes: tuple[str, ...] = ()

    def parts(self) -> Iterator[npt.NDArray[np.float32]]:
        """The rows, float32 (n, F) each.

        Raises:
            DataError: There is no row; the header lacks a feature or names another; or a row has another number of
                values, or one that is no finite number.
        """
        num_rows = 0
        rows = self._rows()
        try:
            while part := list(islice(rows, ROWS_PER_PART)):
                num_rows += len(part)
                yield np.stack(part)
        except csv.Error as error:
            raise DataError(
                "a table must be comma-separated values", received=f"{self._name}: {error}", hint="save it as CSV"
            ) from error
        if not num_rows:
            raise DataError(
                "a table must have rows", received=f"{self._name} without any", hint="give one row a sample"
            )

    def _rows(self) -> Iterator[npt.NDArray[np.float32]]:
        is_first = True
        for line, fields in enumerate(csv.reader(self._source), start=1):
            if line == 1 and fields:
                fields[0] = fields[0].removeprefix(BYTE_ORDER_MARK)  # spreadsheets begin a file in UTF-8 with it
            if not fields:
                continue
            if is_first and self._is_header(fields):
                self._read_header([field.strip() for field in fields])
            else:
                row = self._numbers(fields, f"{self._name} line {line}")
                yield row if self._order is None else row[self._order]
            is_first = False

    def _is_header(self, fields: Sequence[str]) -> bool:
        names = sorted(field.strip() for field in fields)
        return names == sorted(self._feature_names) or not any(map(_is_number, fields))

    def _read_header(self, header: list[str]) -> None:
        wanted = self._feature_names
        if not wanted:
            self.notes = (POSITION_NOTE,)
            return
        missing = [name for name in wanted if name not in header]
        unknown = [name for name in header if name not in wanted]
        twice = sorted({name for name in header if header.count(name) > 1})
        found = [
            f"{what} {', '.join(names)}"
            for what, names in (("without", missing), ("with the unknown", unknown), ("with twice the same", twice))
            if names
        ]
        if found:
            raise DataError(
                f"the header of a table must name the model's {len(wanted)} features, each once",
                received=f"{self._name} {', '.join(found)}",
                hint=f"name the columns {', '.join(wanted)}, in any order, and leave out the label and others",
            )
        self._order = [header.index(name) for name in wanted]

    def _numbers(self, fields: Sequence[str], where: str) -> npt.NDArray[np.float32]:
        if len(fields) != self._num_features:
            raise DataError(
                f"a row must have the model's {self._num_features} features",
                received=f"{where} with {len(fields)} values",
                hint="leave out the label and other columns",
            )
        for column, field in enumerate(fields, start=1):
            if not _is_number(field) or not abs(float(field)) <= MAX_FEATURE:
                raise DataError(
                    "a feature must be a finite number",
                    received=f"{where} column {column}: {field!r}",
                    hint="fill it in",
                )
        return np.array([float(field) for field in fields], dtype=np.float32)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
