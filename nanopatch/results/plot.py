"""Pictures, with matplotlib: of matrices, of points, of bars."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import NanopatchError
from ..types import Array
from .matrix import Matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The picture files that can be written.
FORMATS = ("png", "svg", "pdf")
RED, BLUE = "#b2182b", "#2166ac"


def heatmap(matrix: Matrix, ax: Axes) -> Axes:
    """Draw a matrix, rows downwards.

    Without signs, a sequential map starts at 0 (values below 0 have the colour of 0, and the colour bar has an arrow).
    With signs, a diverging map is centred on 0. Blank columns are hatched.
    """
    values, (low, high) = matrix.values, matrix.scale
    n_rows, n_columns = values.shape
    ax.set_facecolor("0.93")  # the colour of empty cells
    colours = "RdBu_r" if matrix.signed else "Blues"
    image = ax.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    blank = np.isnan(values).all(axis=0).nonzero()[0]
    ax.bar(blank, n_rows, width=1, bottom=-0.5, color="none", edgecolor="0.8", hatch="////", linewidth=0)
    ax.set_xlim(-0.5, n_columns - 0.5)
    ax.set_ylim(n_rows - 0.5, -0.5)
    slanted = dict(rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    ax.set_xticks(range(n_columns), matrix.columns, **slanted)  # type: ignore[arg-type]
    ax.set_yticks(range(n_rows), matrix.rows)
    in_words = {"position": "token (clean / corrupted where they differ)"}
    ax.set_xlabel(in_words.get(matrix.columns_title, matrix.columns_title))
    ax.set_ylabel(matrix.rows_title)
    ax.set_title(matrix.title, fontsize=10)
    below = values[np.isfinite(values)].min(initial=low) < low - 0.005
    bar = figure_of(ax).colorbar(image, ax=ax, extend="min" if below else "neither")
    bar.set_label(matrix.unit, fontsize=9)
    if values.size <= 320:
        _write_values(ax, matrix, high)
    return ax


def panels(columns: Sequence[Sequence[Matrix]], footer: Sequence[str]) -> Figure:
    """Columns of heatmaps side by side, with lines of text below them."""
    widths = [2.4 + 0.52 * max(len(matrix.columns) for matrix in column) for column in columns]
    n_rows = [[len(matrix.rows) for matrix in column] for column in columns]
    heights = [
        3.0 + 0.34 * max(column[row] for column in n_rows if row < len(column)) for row in range(max(map(len, n_rows)))
    ]
    figure = new_figure(figsize=(sum(widths), sum(heights) + 0.4))
    axes = figure.subplots(len(heights), len(widths), width_ratios=widths, height_ratios=heights, squeeze=False)
    for place, column in enumerate(columns):
        for row, matrix in enumerate(column):
            heatmap(matrix, axes[row, place])
        for ax in axes[len(column) :, place]:
            ax.remove()
    figure.supxlabel("\n".join(footer), fontsize=8, x=0.01, ha="left", parse_math=False, wrap=True)
    return figure


def _write_values(ax: Axes, matrix: Matrix, high: float) -> None:
    for (row, column), value in np.ndenumerate(matrix.values):
        if np.isfinite(value):
            depth = abs(value) / high if matrix.signed else value / high  # how dark the cell is
            colour = "white" if depth > 0.6 else "0.25"
            cell = ax.text(column, row, matrix.text(value), ha="center", va="center", fontsize=7, color=colour)
            cell.set_in_layout(False)  # it lies inside the axes anyway, and measuring it would take time


def scatter(x: Array, y: Array, names: Sequence[str], where: Sequence[tuple[float, float]], ax: Axes | None) -> Axes:
    """Points, with the line on which both coordinates are equal. names, where: those of the worst points."""
    ax = ax or new_figure(figsize=(5.5, 5)).add_subplot()
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    ax.plot(ends, ends, color="0.6", linewidth=1, zorder=1)
    ax.scatter(x, y, s=14, color=BLUE, zorder=2)
    for number, point in enumerate(where, start=1):
        ax.annotate(str(number), point, (4, -4), textcoords="offset points", fontsize=8, va="top")
    text = "\n".join(["worst cells", *(f"{number}  {name}" for number, name in enumerate(names, start=1))])
    ax.text(0.98, 0.02, text, transform=ax.transAxes, ha="right", va="bottom", ma="left", fontsize=7, parse_math=False)
    return ax


def bars(values: Array, labels: Sequence[str], ax: Axes | None) -> Axes:
    """One horizontal bar for each value, the first on top; red above 0, blue below."""
    ax = ax or new_figure(figsize=(6, 1 + 0.25 * len(values))).add_subplot()
    ax.barh(range(len(values)), values, color=[RED if value > 0 else BLUE for value in values])
    ax.set_yticks(range(len(values)), labels, parse_math=False)
    ax.invert_yaxis()
    ax.axvline(0, color="0.6", linewidth=1)
    return ax


def new_figure(figsize: tuple[float, float]) -> Figure:
    """A figure of its own, outside pyplot, which would keep it alive and needs a display on some machines."""
    from matplotlib.figure import Figure

    return Figure(figsize=figsize, layout="constrained")


def figure_of(ax: Axes) -> Figure:
    """The figure that axes are in."""
    return ax.figure.figure  # for a subfigure, the figure that it is in


def as_bytes(figure: Figure, file_format: str = "png") -> bytes:
    """A figure as the content of a picture file."""
    file = io.BytesIO()
    figure.savefig(file, format=file_format, dpi=150)
    return file.getvalue()


def show(figure: Figure) -> None:
    """Show a figure in a window. NanopatchError if there is no display."""
    import matplotlib
    from matplotlib import pyplot

    if matplotlib.get_backend().lower() in ("agg", "pdf", "svg", "ps", "cairo", "template"):
        raise NanopatchError("there is no display to show a picture on: write it to a file with -o FILE.png")
    ax = pyplot.figure(layout="constrained").add_subplot()
    ax.imshow(pyplot.imread(io.BytesIO(as_bytes(figure))))
    ax.axis("off")
    pyplot.show()
