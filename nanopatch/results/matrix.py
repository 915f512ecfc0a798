"""Numbers laid out flat, with their labels: what pictures and tables show."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..types import Array

#: The largest size of a number that is drawn: matplotlib can still add and multiply a little.
MOST = 1e300


class Matrix(NamedTuple):
    """Values (n_rows, n_columns), and everything a reader needs beside them.

    unit: what the values are. signed: whether their sign matters; if so, colours are centred on 0. largest: the scale
    reaches this size, unless all values are much smaller. noise: smaller values are rounding. unchanged: like values;
    True where a patch can change nothing. texts: like values, and written into the cells in place of numbers. both:
    what the two tokens of one label are of.
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
    noise: float = 0.0
    unchanged: Array | None = None
    texts: Array | None = None
    both: str = "clean / corrupted"

    @property
    def scale(self) -> tuple[float, float]:
        """The values at the two ends of the colours; equally far from 0 if there are signs, or values clearly below 0.

        Small effects are made visible: if all values are below a quarter of `largest`, the scale ends at their largest.
        """
        finite = self.values[np.isfinite(self.values)]
        size = min(float(np.abs(finite).max(initial=0)), MOST)
        high = size if self.noise < size < self.largest / 4 else max(size, min(self.largest, MOST)) or 1.0
        below = self.signed or finite.min(initial=0) < -0.02 * high
        return -high if below else 0.0, high

    @property
    def still(self) -> Array:
        """Like values: True where a patch can change nothing."""
        return np.isfinite(self.values) & (False if self.unchanged is None else self.unchanged)

    @property
    def moving(self) -> Array:
        """Like values: True where there is a number that a patch has made."""
        return np.isfinite(self.values) & ~self.still

    def legend(self, mark: str = "·") -> list[str]:
        """Sentences about how cells look. mark: that of `still` cells."""
        said = [f"{mark}: a patch there cannot change the metric."] if self.still.any() else []
        high = self.scale[1]
        if high < self.largest:
            said.append(f"All effects are small: the darkest colour is {number(high)}, not {number(self.largest)}.")
        return said

    @classmethod
    def of_one_scale(cls, matrices: Sequence[Matrix]) -> list[Matrix]:
        """Matrices that are shown together: those of one unit get the same colours."""
        shared = []
        scales = [(matrix.unit, *matrix.scale) for matrix in matrices]
        ends = {
            unit: (min(low for u, low, _ in scales if u == unit), max(high for u, _, high in scales if u == unit))
            for unit in {matrix.unit for matrix in matrices}
        }
        for matrix in matrices:
            low, high = ends[matrix.unit]
            shared.append(matrix._replace(signed=low < 0, largest=high, noise=math.inf))  # no scale of its own
        return shared

    def strongest(self, most: int) -> Matrix:
        """With at most so many rows and columns: of several neighbours, each cell has the value of largest size."""
        matrix = self
        for _ in range(2):
            matrix = matrix._fewer_rows(most).transposed
        return matrix

    def _fewer_rows(self, most: int) -> Matrix:
        n = len(self.values)
        starts = np.arange(0, n, math.ceil(n / most)) if n else np.arange(0)
        if len(starts) == n:
            return self
        sizes = np.where(np.isnan(self.values), -1, np.abs(self.values))
        best = [start + sizes[start:end].argmax(axis=0) for start, end in zip(starts, [*starts[1:], n], strict=True)]
        return self._replace(
            values=np.take_along_axis(self.values, np.array(best), axis=0),
            rows=[self.rows[start] for start in starts],
            unchanged=np.logical_and.reduceat(self.still | np.isnan(self.values), starts, axis=0),
            texts=None if self.texts is None else np.take_along_axis(self.texts, np.array(best), axis=0),
        )

    @property
    def transposed(self) -> Matrix:
        return self._replace(
            values=self.values.T,
            rows=self.columns,
            rows_title=self.columns_title,
            columns=self.rows,
            columns_title=self.rows_title,
            unchanged=None if self.unchanged is None else self.unchanged.T,
            texts=None if self.texts is None else self.texts.T,
        )

    def cell(self, row: int, column: int) -> str:
        """What is written into a cell: its text, or its number."""
        return str(self.texts[row, column]) if self.texts is not None else self.text(self.values[row, column])

    @property
    def text(self) -> Callable[[float], str]:
        """What writes a value of it, in six to eight characters; with an exponent if it is huge or all are small."""
        finite = self.values[np.isfinite(self.values)]
        largest = np.abs(finite).max(initial=0)
        counts = largest > 1 and (finite == np.rint(finite)).all()  # such as ranks

        def text(value: float) -> str:
            if (0 < largest < 0.0095 and value) or abs(value) >= 999999.5:
                return f"{value:.1e}"
            if counts:
                return f"{value:.0f}"
            if 0 < largest < 0.0995:
                return f"{value:.3f}".replace("-0.000", "0.000")
            decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
            return f"{value:.{decimals}f}".replace("-0.00", "0.00")

        return text


def number(value: float, decimals: int = 2) -> str:
    """A number as text, to so many decimals; a small one to two digits, so that it is not shown as 0.

    A huge one, of which no one reads all digits, has an exponent.
    """
    if 1e9 <= abs(value) < math.inf:
        return f"{value:.4g}"
    return f"{value:.2g}" if 0 < abs(value) < 10.0 ** (1 - decimals) else f"{value:.{decimals}f}"


def usable_span(span: float, rounding: float) -> float:
    """The difference of two baselines as the unit of a scale; NaN if it is rounding, or no finite number."""
    return span if rounding < abs(span) < math.inf else math.nan


def no_scale(metric: str, clean: float, corrupted: float) -> str:
    """Why two unpatched runs make no scale."""
    if math.isfinite(clean - corrupted) or str(clean) == str(corrupted):  # nan is not nan
        return f"{metric} is {clean:.4g} in both unpatched runs"
    return f"{metric} is {clean:.4g} in the clean run and {corrupted:.4g} in the corrupted run"
