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
        """One dict for each cell: its row, its column, its value, and its text if it has one."""
        matrix = self.matrix()
        return [
            {matrix.rows_title: row, matrix.columns_title: column, "value": float(matrix.values[i, j])}
            | ({} if matrix.texts is None else {"text": matrix.texts[i, j]})
            for i, row in enumerate(matrix.rows)
            for j, column in enumerate(matrix.columns)
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
        other_title = "the same of another run" if mine.title == its.title else its.title
        texts = None
        if mine.texts is not None and its.texts is not None:
            pairs = zip(mine.texts, its.texts, strict=True)
            texts = tuple(tuple(map(_both, *rows)) for rows in pairs)
        return Difference(
            title=f"{mine.title}, minus {other_title}",
            unit=f"{mine.unit}, difference",
            rows=tuple(mine.rows),
            rows_title=mine.rows_title,
            columns=tuple(map(_both, mine.columns, its.columns)),
            columns_title=mine.columns_title,
            values=mine.values - its.values,
            texts=texts,
        )


def _both(mine: str, its: str) -> str:
    return mine if mine == its else f"{mine} / {its}"


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
    texts : tuple of tuples of str, or None
        What stands in the cells in place of numbers; where the two differ, both.
    """

    kind: ClassVar[str] = "difference"

    title: str
    unit: str
    rows: tuple[str, ...]
    rows_title: str
    columns: tuple[str, ...]
    columns_title: str
    values: Array
    texts: tuple[tuple[str, ...], ...] | None = None

    def _check(self) -> None:
        check_shape(self.values, (len(self.rows), len(self.columns)), "values", float)
        if self.texts is not None:
            check(np.array(self.texts, object).shape == self.values.shape, "texts")
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
            texts=None if self.texts is None else np.array(self.texts, object).reshape(self.values.shape),
        )
