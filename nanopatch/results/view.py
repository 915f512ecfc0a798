"""Results that are one matrix of a run, such as a lens or an attention pattern; and the difference of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import NanopatchError
from ..types import Array
from . import plot
from .base import Result, check, check_shape
from .matrix import Matrix
from .table import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .plot import Drawing


class View(Result):
    """A result that is one matrix. Two of one kind can be subtracted: `view(patched) - view(corrupted)`."""

    @property
    def notes(self) -> list[str]:
        """What a reader must know, as sentences; usually none."""
        return []

    def matrix(self) -> Matrix:
        """Its numbers, laid out flat with their labels."""
        raise NotImplementedError

    def plot(self, ax: Axes | None = None) -> Figure:
        """Draw it as a heatmap; returns the matplotlib Figure (see `Result.plot`)."""
        return plot.drawn(*self._parts(), ax)

    def _parts(self) -> tuple[Drawing, list[str]]:
        return plot.heatmap(self.matrix()), self.notes

    def text(self) -> str:
        matrix = self.matrix()
        return "\n".join([matrix.title, f"({matrix.unit})", *table(matrix), *self.notes])

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict for each cell: its row, its column, its value."""
        matrix = self.matrix()
        return [
            {matrix.rows_title: row, matrix.columns_title: column, "value": float(value)}
            for row, values in zip(matrix.rows, matrix.values, strict=True)
            for column, value in zip(matrix.columns, values, strict=True)
        ]

    def __sub__(self, other: View) -> Difference:
        """This minus another of the same kind, rows and columns. The labels are this one's."""
        if not isinstance(other, View):
            raise NanopatchError(f"only two results of one kind can be subtracted, not {other!r:.60}")
        mine, its = self.matrix(), other.matrix()
        if mine.values.shape != its.values.shape or (mine.unit, mine.rows) != (its.unit, its.rows):
            raise NanopatchError(
                f"{mine.title!r:.80} and {its.title!r:.80} cannot be subtracted: they have other rows, columns or units"
            )
        columns = [a if a == b else f"{a} / {b}" for a, b in zip(mine.columns, its.columns, strict=True)]
        return Difference(
            title=f"{mine.title}, minus the same of another run",
            unit=f"{mine.unit}, difference",
            rows=tuple(mine.rows),
            rows_title=mine.rows_title,
            columns=tuple(columns),
            columns_title=mine.columns_title,
            values=mine.values - its.values,
        )


@dataclass(frozen=True, eq=False, repr=False)
class Difference(View):
    """The difference of two views.

    Attributes
    ----------
    title, unit : str
    rows, columns : tuple of str
        Labels; where the two runs have other tokens, both.
    rows_title, columns_title : str
    values : ndarray, (n_rows, n_columns)
        float64.
    """

    kind: ClassVar[str] = "difference"

    title: str
    unit: str
    rows: tuple[str, ...]
    rows_title: str
    columns: tuple[str, ...]
    columns_title: str
    values: Array

    def _check(self) -> None:
        check_shape(self.values, (len(self.rows), len(self.columns)), "values", float)
        check(self.rows_title != self.columns_title, "rows_title")

    def __repr__(self) -> str:
        return f"<Difference: {self.title}>"

    def matrix(self) -> Matrix:
        return Matrix(
            values=self.values,
            rows=list(self.rows),
            rows_title=self.rows_title,
            columns=list(self.columns),
            columns_title=self.columns_title,
            title=self.title,
            unit=self.unit,
            signed=True,
            largest=float(np.nanmax(np.abs(self.values), initial=0.0)),
        )
