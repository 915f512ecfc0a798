"""Results that are one matrix of a run, such as a lens or an attention pattern; and the difference of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import NanopatchError
from ..files import Source
from ..types import Array
from . import plot
from .base import Result, check, check_shape
from .matrix import Matrix
from .table import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .plot import Drawing

#: Matrices with more rows are printed several rows, and columns, in one.
MOST_PRINTED = 100


class View(Result):
    """A result that is one matrix, or several alike. Two of a kind can be subtracted: `view(patched) - view(clean)`."""

    @property
    def notes(self) -> list[str]:
        """What a reader must know, as sentences; usually none."""
        return []

    def about(self) -> list[str]:
        """The prompt and the model, as lines below the picture; none if what is shown is of no run."""
        return []

    def _title(self) -> str:
        """What it is, in one line."""
        return self.matrix().title

    def matrix(self) -> Matrix:
        """Its numbers, laid out flat with their labels. NanopatchError if it has several matrices."""
        matrices = self.matrices()
        if len(matrices) > 1:
            raise NanopatchError(f"{self._title()} has {len(matrices)} matrices: take one of `matrices()`, by name")
        return next(iter(matrices.values()))

    def matrices(self) -> dict[str, Matrix]:
        """Its matrices by name. One alone needs no name."""
        return {"": self.matrix()}

    def _in_row(self) -> int:
        """How many of several matrices stand side by side in the picture."""
        return 4

    def plot(self, ax: Axes | None = None) -> Figure:
        """Draw it as a heatmap, or as several small ones; returns the matplotlib Figure (see `Result.plot`)."""
        return plot.drawn(*self._parts(), ax)

    def _parts(self) -> tuple[Drawing, list[str]]:
        matrices = self.matrices()
        if len(matrices) == 1:
            return plot.heatmap(self.matrix()), [*self.about(), *self.notes]
        return plot.mosaic(matrices, self._in_row(), self._title()), [*self.about(), *self.notes]

    def text(self) -> str:
        lines = []
        matrices = list(self.matrices().values())
        for matrix in matrices[: plot.MOST_PANELS]:
            n_rows, shown = len(matrix.rows), matrix
            if n_rows > MOST_PRINTED:
                shown = matrix.strongest(MOST_PRINTED)
            lines += [matrix.title, f"({matrix.unit})", *table(shown), *plot.merged("row", n_rows, len(shown.rows))]
            lines += plot.merged("column", len(matrix.columns), len(shown.columns))
        if len(matrices) > plot.MOST_PANELS:
            lines.append(
                f"{len(matrices) - plot.MOST_PANELS} more are left out here; `to_rows` and files have them all."
            )
        return "\n".join([*lines, *self.notes])

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict for each cell: its matrix, if there are several, its row, its column, its value, its text if any."""
        matrices = self.matrices()
        return [
            {
                **({"panel": name} if len(matrices) > 1 else {}),
                matrix.rows_title: row,
                matrix.columns_title: column,
                "value": float(matrix.values[i, j]),
                **({} if matrix.texts is None else {"text": matrix.texts[i, j]}),
            }
            for name, matrix in matrices.items()
            for i, row in enumerate(matrix.rows)
            for j, column in enumerate(matrix.columns)
        ]

    def __sub__(self, other: View) -> Difference:
        """This minus another of the same kind, rows and columns. Where labels differ, both stand there."""
        if not isinstance(other, View):
            raise NanopatchError(f"only two results of one kind can be subtracted, not {other!r:.60}")
        ours, theirs = self.matrices(), other.matrices()
        pairs = list(zip(ours.values(), theirs.values(), strict=False))
        alike = type(self) is type(other) and list(ours) == list(theirs)
        if not alike or any(_question(a) != _question(b) for a, b in pairs):
            raise NanopatchError(
                f"{self._title()!r:.80} and {other._title()!r:.80} cannot be subtracted: "
                f"{_size(ours)} and {_size(theirs)} differ in rows, columns or units"
            )
        mine, its = pairs[0]
        texts = None
        if len(pairs) == 1 and mine.texts is not None and its.texts is not None:
            texts = tuple(_both(a, b) for a, b in zip(mine.texts, its.texts, strict=True))
        other_title = "the same of another run" if self._title() == other._title() else other._title()
        return Difference(
            title=f"{self._title()}, minus {other_title}",
            unit=f"{mine.unit}, difference",
            rows=_both(mine.rows, its.rows),
            rows_title=mine.rows_title,
            columns=_both(mine.columns, its.columns),
            columns_title=mine.columns_title,
            values=np.array([a.values - b.values for a, b in pairs]) if len(pairs) > 1 else mine.values - its.values,
            panels=tuple(ours) if len(pairs) > 1 else (),
            in_row=self._in_row(),
            texts=texts,
            runs=tuple(f"{whose}: {line}" for whose, run in (("this", self), ("other", other)) for line in run.about()),
        )


def of_run(tokens: Sequence[str], source: Source) -> str:
    """The prompt and the model of a result, in one line."""
    numbers = all(token.lstrip("#").isdigit() for token in tokens)  # of a model that has no text
    return f"prompt: {(' ' if numbers else '').join(tokens)}   model {source.name}"


def _size(matrices: Mapping[str, Matrix]) -> str:
    first = next(iter(matrices.values()))
    return f"{len(matrices)} x {len(first.rows)} x {len(first.columns)} ({first.unit})"


def _question(matrix: Matrix) -> tuple[object, ...]:
    """What two matrices must share to be subtracted."""
    return matrix.values.shape, matrix.unit, matrix.rows_title, matrix.columns_title


def _both(ours: Sequence[str], theirs: Sequence[str]) -> tuple[str, ...]:
    """Labels of two runs; where they differ, both, with a number that stands before both only once."""
    pairs = [(a, b, b.partition(" ")) for a, b in zip(ours, theirs, strict=True)]
    return tuple(
        a if a == b else f"{a} / {token if token and a.startswith(f'{number} ') else b}"
        for a, b, (number, _, token) in pairs
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
    values : ndarray, (n_rows, n_columns) or (n_panels, n_rows, n_columns)
        float64.
    panels : tuple of str
        The names of several matrices; empty for one.
    in_row : int
        How many of them stand side by side in the picture.
    texts : tuple of tuples of str, or None
        What stands in the cells in place of numbers; where the two differ, both.
    runs : tuple of str
        The prompts and models of both.
    """

    kind: ClassVar[str] = "difference"

    title: str
    unit: str
    rows: tuple[str, ...]
    rows_title: str
    columns: tuple[str, ...]
    columns_title: str
    values: Array
    panels: tuple[str, ...] = ()
    in_row: int = 4
    texts: tuple[tuple[str, ...], ...] | None = None
    runs: tuple[str, ...] = ()

    def _check(self) -> None:
        several = (len(self.panels),) if self.panels else ()
        check_shape(self.values, (*several, len(self.rows), len(self.columns)), "values", float)
        check(len(set(self.panels)) == len(self.panels) != 1, "panels")
        check(self.in_row > 0, "in_row")
        if self.texts is not None:
            check(np.array(self.texts, object).shape == self.values.shape, "texts")
        check(self.rows_title != self.columns_title, "rows_title")

    def about(self) -> list[str]:
        return [*self.runs]

    def __repr__(self) -> str:
        return f"<Difference: {self.title}>"

    def _title(self) -> str:
        return self.title

    def _in_row(self) -> int:
        return self.in_row

    def matrices(self) -> dict[str, Matrix]:
        return {
            name: Matrix(
                values=values,
                rows=list(self.rows),
                rows_title=self.rows_title,
                columns=list(self.columns),
                columns_title=self.columns_title,
                title=name or self.title,
                unit=self.unit,
                signed=True,
                largest=float(np.nanmax(np.abs(self.values), initial=0.0)),
                texts=None if self.texts is None else np.array(self.texts, object).reshape(values.shape),
                both="this / other",
            )
            for name, values in zip(self.panels or [""], self.values if self.panels else [self.values], strict=True)
        }
