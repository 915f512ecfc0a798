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

    def text(self, value: float) -> str:
        """A value of it as text, in six or seven characters; with an exponent where all values are small."""
        largest = np.abs(self.values[np.isfinite(self.values)]).max(initial=0)
        if 0 < largest < 0.0995 and value:
            return f"{value:.1e}"
        decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
        return f"{value:.{decimals}f}".replace("-0.00", "0.00")


def number(value: float, decimals: int = 2) -> str:
    """A number as text, to so many decimals; a small one to two digits, so that it is not shown as 0."""
    return f"{value:.2g}" if 0 < abs(value) < 10.0 ** (1 - decimals) else f"{value:.{decimals}f}"
