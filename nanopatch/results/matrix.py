"""Numbers laid out flat, with their labels: what pictures and tables show."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..types import Array


class Matrix(NamedTuple):
    """Values (n_rows, n_columns), and everything a reader needs beside them.

    unit: what the values are. signed: whether their sign matters; if so, colours are centred on 0. largest: the scale
    reaches at least this size.
    """

    values: Array
    rows: list[str]
    rows_title: str
    columns: list[str]
    columns_title: str
    title: str
    unit: str
    signed: bool
    largest: float

    @property
    def scale(self) -> tuple[float, float]:
        """The values at the two ends of the colours."""
        finite = self.values[np.isfinite(self.values)]
        if self.signed:
            high = float(np.abs(finite).max(initial=self.largest)) or 1.0
            return -high, high
        return 0.0, float(finite.max(initial=self.largest))

    @property
    def transposed(self) -> Matrix:
        return self._replace(
            values=self.values.T,
            rows=self.columns,
            rows_title=self.columns_title,
            columns=self.rows,
            columns_title=self.rows_title,
        )
