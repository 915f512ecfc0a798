"""An estimate beside exact patching, cell by cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import NanopatchError
from ..types import Array
from . import plot
from .base import Result, jsonable
from .matrix import number
from .sweep import Sweep, footer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .plot import Drawing


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result):
    """An estimate beside exact patching of the same question.

    Attributes
    ----------
    exact, estimate : Sweep
        The two sweeps. NanopatchError unless they have the same prompts, site, axes, direction and metric.
    """

    kind: ClassVar[str] = "comparison"

    exact: Sweep
    estimate: Sweep

    def __post_init__(self) -> None:
        for s in (self.exact, self.estimate):
            if not isinstance(s, Sweep):
                raise NanopatchError(f"a comparison takes two sweeps, of one site, direction and metric; not {s!r:.60}")
        if self.exact.steps is not None or self.estimate.steps is None:
            methods = f"{self.exact.method} and {self.estimate.method}"
            raise NanopatchError(f"first the result of sweep, then that of attribute, are expected; not {methods}")
        asked = ("experiment", "site", "axes", "pieces", "chosen", "between", "direction", "metric", "corruption")
        for name in (*asked, "n_pairs", "source"):
            ours, theirs = (jsonable(getattr(s, name)) for s in (self.exact, self.estimate))
            if ours != theirs:
                raise NanopatchError(f"exact and estimate differ in {name}: {ours!r:.60} and {theirs!r:.60}")
        if not len(self.cells):
            raise NanopatchError("the sweep and its estimate have no cell in which both are numbers")

    @property
    def cells(self) -> Array:
        """The cells in which both are numbers: (n_cells, n_axes), indices into the grids."""
        return np.argwhere(np.isfinite(self.exact.grid) & np.isfinite(self.estimate.grid))

    @property
    def values(self) -> tuple[Array, Array]:
        """Both grids' values, flat, in the order of `cells`."""
        where = tuple(self.cells.T)
        return self.exact.grid[where], self.estimate.grid[where]

    @property
    def correlation(self) -> float:
        """Pearson's correlation over `cells`; NaN if one of the two is constant."""
        x, y = (values - values.mean() for values in self.values)
        size, other_size = np.linalg.norm(x), np.linalg.norm(y)
        return float(x @ y / (size * other_size)) if size and other_size else np.nan

    @property
    def slope(self) -> float:
        """The slope of the least-squares line of estimate against exact: 1 if the estimate has the right size."""
        x, y = (values - values.mean() for values in self.values)
        return float(x @ y / (x @ x)) if x.any() else np.nan

    def worst(self, n: int = 3) -> list[tuple[str, float, float]]:
        """The n cells in which they differ most: [(label, exact, estimate)], in units of the metric."""
        x, y = self.values
        order = np.argsort(-np.abs(x - y), kind="stable")[: max(n, 0)]
        return [(self._label(self.cells[i]), float(x[i]), float(y[i])) for i in order]

    def _label(self, cell: Array) -> str:
        return ", ".join(f"{axis} {self.exact.labels(axis)[i]}" for axis, i in zip(self.exact.axes, cell, strict=True))

    def __repr__(self) -> str:
        return f"<Comparison: {self.estimate.title}; correlation {self.correlation:.3f}, slope {self.slope:.2f}>"

    def text(self) -> str:
        lines = [
            self.estimate.title,
            f"correlation with exact patching {self.correlation:.3f}, slope {self.slope:.2f}",
            *(f"  {label}: exact {number(x)}, estimated {number(y)}" for label, x, y in self.worst()),
            *dict.fromkeys([*self.exact.notes, *self.estimate.notes]),
        ]
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Figure:
        """A scatter of estimate against exact, with the identity line and the worst cells named (see `Result.plot`)."""
        return plot.drawn(*self._parts(), ax)

    def _parts(self) -> tuple[Drawing, list[str]]:
        metric, how = self.exact.metric.replace("_", " "), self.estimate.title.removesuffix(self.exact.title)
        title = [how.strip(), self.exact.title] if how != self.estimate.title else [how]
        title.append(f"correlation {self.correlation:.3f}, slope {self.slope:.2f}")
        axis_titles = (f"{metric}, exact patching", f"{metric}, estimated")
        below = dict.fromkeys([*footer({"": self.exact}, normalised=False), *self.estimate.notes])
        return plot.scatter(*self.values, self.worst(), axis_titles, title), list(below)

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict for each patch: the exact sweep's row, and under "estimate" the estimated metric."""
        metric = self.exact.metric
        both = zip(self.exact.to_rows(), self.estimate.to_rows(), strict=True)
        return [{**exact, "estimate": estimate[metric]} for exact, estimate in both]
