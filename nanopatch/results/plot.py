"""Pictures, with matplotlib: of matrices, of points, of bars.

A picture is made in inches. Each drawing has axes of a fixed size. What stands around them, labels and titles, is
measured. Then drawings are put side by side and below each other, so that nothing is cut off.

All text is drawn as it is: none is read as a formula.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import math
import os
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import NanopatchError, one_line
from ..types import Array
from .matrix import MOST, Matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.transforms import Bbox

#: The picture files that can be written.
FORMATS = ("png", "svg", "pdf")
RED, BLUE = "#b2182b", "#2166ac"
#: Pixels per inch; the most inches of a picture, either way; and the width that is still readable in a column of text.
DPI, LARGEST, READABLE = 150, 24.0, 10.6
#: Matrices with more cells get no numbers; with more marks, a colour in place of marks. No picture has more panels.
MOST_NUMBERS, MOST_MARKS, MOST_PANELS = 320, 4000, 36
#: The same for texts in place of numbers, which no colour shows.
MOST_TEXTS = 2000
#: More rows or columns cannot be told apart, and are drawn several in one.
MOST_LINES = 600
#: More characters of a label or of a line of the footer are left out.
LONGEST_LABEL, LONGEST_LINE = 40, 400
#: More characters of a text in a cell are left out.
LONGEST_CELL = 11
#: Where fewer characters fit into a cell, texts are written smaller.
SHORTEST_CELL = 8
#: More lines at the foot are left out.
MOST_FOOT_LINES = 40
#: What makes a text no formula of matplotlib's or LaTeX's.
PLAIN: dict[str, Any] = {"parse_math": False, "usetex": False}
#: How figures are called in pyplot, and how many of them it keeps.
LABEL, KEPT = "nanopatch figure", 10


class Drawing(NamedTuple):
    """What goes into a picture: the size of its axes in inches, its title, and what draws it.

    draw: is given the axes, and axes for a colour bar if there is one; returns sentences for the foot of the picture.
    """

    width: float
    height: float
    title: Sequence[str]
    draw: Callable[[Axes, Axes | None], list[str]]
    has_bar: bool = False


# ---- kinds of drawings ------------------------------------------------------------------------------


def heatmap(matrix: Matrix, alone: bool = True, scale: float = 1.0) -> Drawing:
    """A drawing of a matrix, with cells as large as there is room for. scale: they are to be so much smaller."""
    n_rows, n_columns = matrix.values.shape
    narrowest = 0.45 if matrix.values.size <= MOST_NUMBERS else 0.22  # of a column, in inches
    if matrix.texts is not None and matrix.values.size <= MOST_TEXTS:
        narrowest = min(0.8, max(19.9 / n_columns, 0.22))  # tokens are longer than numbers
    widest = 20.0 if alone or matrix.texts is not None else 8.0
    wide = min(max(max(0.52, narrowest) * n_columns, 1.0), max(8.0, narrowest * n_columns), widest)
    high = min(max(0.34 * n_rows, 1.3), max(8.0, 0.17 * n_rows), 17.0 if alone else 8.0)

    def draw(ax: Axes, cax: Axes | None) -> list[str]:
        return _draw_heatmap(matrix, ax, cax)

    return Drawing(max(wide * scale, 1.0), max(high * scale, 1.3), [matrix.title], draw, has_bar=True)


def _draw_heatmap(matrix: Matrix, ax: Axes, cax: Axes | None) -> list[str]:
    """Draw a matrix, rows downwards; returns what a reader must know, as sentences.

    Without signs, a sequential map starts at 0. With signs, or with values clearly below 0, a diverging map is centred
    on 0. Blank columns are hatched. cax: where the colour bar goes, by default beside `ax`, which becomes narrower.
    """
    whole, matrix = matrix, matrix.strongest(MOST_LINES)
    values, (low, high) = matrix.values, matrix.scale
    n_rows, n_columns = values.shape
    ax.set_facecolor("0.93")  # the colour of empty cells
    ax.grid(False, which="both")  # which some styles have
    colours = "RdBu_r" if low < 0 else "Blues"  # colour-blind readers can read both
    image = ax.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    bar = figure_of(ax).colorbar(image, ax=ax, cax=cax)
    width, height = size_of(ax) / (n_columns, n_rows)  # of a cell, in inches
    unit = shortened(drawable(matrix.unit), 2 * LONGEST_LABEL)
    bar.set_label(wrapped(unit, size_of(ax)[1], 9, figure_of(ax)), fontsize=9, **PLAIN)
    blank = np.isnan(values).all(axis=0).nonzero()[0]
    ax.bar(blank, n_rows, width=1, bottom=-0.5, color="none", edgecolor="0.8", hatch="////", linewidth=0)

    said = []
    most = int(width / 0.058)  # characters in a cell
    if matrix.texts is None:
        longest = max(map(len, map(matrix.text, values[matrix.moving])), default=0)
        numbers, size = values.size <= MOST_NUMBERS and most >= longest, 7.0
    else:
        size = 7.0 if most >= SHORTEST_CELL else 5.0
        most = min(int(width / 0.064 * 7 / size), LONGEST_CELL)  # letters are wider than digits
        numbers = values.size <= MOST_TEXTS and most >= 4
    numbers = numbers and height > 0.12
    cell = min(width, height) * 72  # in points
    if numbers:
        _write_values(ax, matrix, high, size, most)
    elif low < 0:
        below = (matrix.moving & (values < -0.1 * high)).nonzero()
        if _mark(ax, below, "_", min(5, 0.5 * cell)):
            said.append("– marks values below 0.")
    if matrix.texts is not None and not numbers:
        said.append("The tokens of the cells are left out: there are too many. `to_rows` and files have them all.")
    mark = ""
    if matrix.still.any():
        dots = _mark(ax, matrix.still.nonzero(), ".", min(3, 0.5 * cell))
        if not dots:
            from matplotlib.colors import ListedColormap

            ax.imshow(np.where(matrix.still, 1, np.nan), cmap=ListedColormap(["0.8"]), aspect="auto")
        mark = "·" if dots else "grey"
    said += matrix.legend(mark)
    ax.set_xlim(-0.5, n_columns - 0.5)
    ax.set_ylim(n_rows - 0.5, -0.5)
    slanted: dict[str, Any] = dict(rotation=45, ha="right", rotation_mode="anchor")
    said += _label(ax.set_xticks, matrix.columns, 0.2 / width, "column", **slanted)
    said += _label(ax.set_yticks, matrix.rows, 0.15 / height, "row")
    differ = any(" / " in column for column in matrix.columns)  # a token's own spaces are ␣
    in_words = {"position": f"token ({matrix.both} where they differ)" if differ else "token"}
    ax.set_xlabel(in_words.get(matrix.columns_title, matrix.columns_title), **PLAIN)
    ax.set_ylabel(matrix.rows_title, **PLAIN)
    for name, before, now in zip(("row", "column"), whole.values.shape, values.shape, strict=True):
        said += merged(name, before, now)
    return said


def merged(what: str, before: int, now: int) -> list[str]:
    """A sentence about rows, columns or bars that show several each; none if they do not."""
    if now == before:
        return []
    return [
        f"There are {before} {what}s, too many to see: each {what} here is up to {math.ceil(before / now)} of them, "
        "and shows their value of largest size."
    ]


def mosaic(matrices: Mapping[str, Matrix], in_row: int, title: str) -> Drawing:
    """A drawing of many small heatmaps of one size and one scale, `in_row` beside each other, with one colour bar.

    Rows are labelled at the left of each line of heatmaps, columns at the bottom. What does not fit is left out.
    """
    shown = [matrix.strongest(MOST_LINES) for matrix in Matrix.of_one_scale(list(matrices.values()))]
    n_rows, n_columns = shown[0].values.shape
    gap, head = 0.12, 0.26  # inches beside each heatmap, and above it for its name
    wide = min(max(0.15 * n_columns, 1.0), (8.6 + gap) / in_row - gap)
    high = min(max(0.15 * n_rows, 1.0), wide * max(1.0, n_rows / n_columns))
    n_lines = min(math.ceil(len(shown) / in_row), max(1, int((LARGEST - 4) / (high + head))))
    width, height = in_row * (wide + gap) - gap, n_lines * (high + head)
    left_out = len(shown) - n_lines * in_row

    def draw(ax: Axes, cax: Axes | None) -> list[str]:
        from matplotlib import colormaps

        low, most = shown[0].scale
        colours = colormaps["RdBu_r" if low < 0 else "Blues"].with_extremes(bad="0.93")
        for i, (name, matrix) in enumerate(zip(matrices, shown[: n_lines * in_row], strict=False)):
            left, top = i % in_row * (wide + gap), i // in_row * (high + head) + head
            where = (left, left + wide, top + high, top)
            image = ax.imshow(
                matrix.values, cmap=colours, vmin=low, vmax=most, extent=where, aspect="auto", interpolation="nearest"
            )
            text = name if wide > 0.6 else name.split()[-1]
            written = ax.text(left, top - 0.04, drawable(text), fontsize=8 if wide > 0.6 else 6, va="bottom", **PLAIN)
            for inside in (image, written):
                inside.set_in_layout(False)  # they lie inside the axes anyway, and measuring them would take time
        bar = figure_of(ax).colorbar(image, ax=ax, cax=cax)
        unit = shortened(drawable(shown[0].unit), 2 * LONGEST_LABEL)
        bar.set_label(wrapped(unit, size_of(ax)[1], 9, figure_of(ax)), fontsize=9, **PLAIN)
        scale = size_of(ax)[0] / width  # axes that a user gives have their own size
        slanted: dict[str, Any] = dict(rotation=45, ha="right", rotation_mode="anchor")
        columns, rows, said = shown[0].columns, shown[0].rows, []
        for set_ticks, names, side, n, start, period, look, what in (
            (ax.set_xticks, columns, wide, in_row, 0.0, wide + gap, slanted, "column"),
            (ax.set_yticks, rows, high, n_lines, head, high + head, {}, "row"),
        ):
            every = max(1, math.ceil(0.15 * len(names) / (side * scale) - 1e-6))
            cells = range(0, len(names), every)
            places = [start + i * period + (cell + 0.5) / len(names) * side for i in range(n) for cell in cells]
            texts = [shortened(drawable(names[cell]), LONGEST_LABEL) for cell in cells] * n
            set_ticks(places, texts, fontsize=7, **look, **PLAIN)
            said += [f"One {what} in {every} is labelled."] if every > 1 else []
        ax.set_xlim(0, width)
        ax.set_ylim(height, 0)
        ax.grid(False, which="both")
        ax.set_frame_on(False)
        ax.tick_params(length=0)
        ax.set_xlabel(shown[0].columns_title, **PLAIN)
        ax.set_ylabel(shown[0].rows_title, **PLAIN)
        if left_out > 0:
            said.append(f"{left_out} of the {len(shown)} heatmaps are left out: they do not fit into one picture.")
        for name, before, now in zip(("row", "column"), first.values.shape, (n_rows, n_columns), strict=True):
            said += merged(name, before, now)
        return said

    first = next(iter(matrices.values()))
    return Drawing(width, height, [title], draw, has_bar=True)


def _write_values(ax: Axes, matrix: Matrix, high: float, size: float, most: int) -> None:
    """Write into each cell. size: of the font. most: more characters of a text are left out."""
    for row, column in np.argwhere(matrix.moving):
        value = matrix.values[row, column]
        colour = "white" if abs(value) > 0.6 * high else "0.25"
        text = drawable(matrix.cell(row, column))
        if matrix.texts is not None:  # of a narrow cell, the beginning
            fewer = f"{text[: most - 1]}…" if len(text) > most else text
            text = shortened(text, most) if most == LONGEST_CELL else fewer
        cell = ax.text(column, row, text, ha="center", va="center", fontsize=size, color=colour, **PLAIN)
        cell.set_in_layout(False)  # it lies inside the axes anyway, and measuring it would take time


def _mark(ax: Axes, cells: tuple[Array, ...], marker: str, size: float) -> bool:
    """Mark cells, unless there are too many; returns whether any is marked."""
    if not 0 < len(cells[0]) <= MOST_MARKS:
        return False
    ax.plot(cells[1], cells[0], linestyle="none", marker=marker, markersize=size, color="0.35", markeredgewidth=0.6)
    return True


def _label(set_ticks: Callable[..., Any], names: Sequence[str], step: float, what: str, **look: Any) -> list[str]:
    """Label rows, columns or bars; only one in `step` if they would overlap, and then returns a sentence about that."""
    every = max(1, math.ceil(step - 1e-6))
    places = range(0, len(names), every)
    set_ticks(places, [shortened(drawable(names[i]), LONGEST_LABEL) for i in places], fontsize=9, **look, **PLAIN)
    return [f"One {what} in {every} is labelled."] if every > 1 else []


def panels(columns: Sequence[Sequence[Matrix]], footer: Sequence[str]) -> Figure:
    """Columns of heatmaps side by side, further ones below, with lines of text below them."""
    if max(map(len, columns)) > 4:  # higher than a page
        columns = [[matrix] for column in columns for matrix in column]
    alone = sum(map(len, columns)) == 1
    shown = columns[:MOST_PANELS]
    for scale in (1.0, 0.7, 0.5, 0.3):  # smaller cells, if there are too many for one picture
        drawings = [[heatmap(matrix, alone, scale) for matrix in column] for column in shown]
        if alone or _rough_height(drawings) < LARGEST - 3:
            break
    n_left_out = sum(map(len, columns[MOST_PANELS:]))
    return _compose(drawings, footer, n_left_out)


def _rough_height(columns: Sequence[Sequence[Drawing]]) -> float:
    """About how high a picture of columns is, in inches, with usual labels."""
    left, heights = math.inf, [0.0]
    for column in columns:
        width = 2.2 + max(drawing.width for drawing in column)
        if left + width > READABLE:
            left = 0.0
            heights.append(0.0)
        left += width
        heights[-1] = max(heights[-1], sum(drawing.height + 1.8 for drawing in column))
    return sum(heights)


def scatter(
    x: Array,
    y: Array,
    worst: Sequence[tuple[str, float, float]],
    axis_titles: tuple[str, str],
    title: Sequence[str],
) -> Drawing:
    """A drawing of points, with the line on which both coordinates are equal. worst: the points that have names."""

    def draw(ax: Axes, _: Axes | None) -> list[str]:
        points = np.clip([x, y], -MOST, MOST)
        ends = [points.min(), points.max()]
        ax.plot(ends, ends, color="0.6", linewidth=1, zorder=1)
        ax.scatter(
            points[0], points[1], s=14, color=BLUE, zorder=2, rasterized=len(x) > MOST_MARKS
        )  # a small file, however many
        room = size_of(ax)
        names = (shortened(drawable(name), 2 * LONGEST_LABEL) for name in axis_titles)
        across, up = (wrapped(name, most, 9, figure_of(ax)) for name, most in zip(names, room, strict=True))
        ax.set_xlabel(across, fontsize=9, **PLAIN)
        ax.set_ylabel(up, fontsize=9, **PLAIN)
        _number(ax, [(a, b) for _, a, b in worst])
        cells = (shortened(drawable(name), 2 * LONGEST_LABEL) for name, *_ in worst)
        return ["worst cells:", *(f"{i}  {cell}" for i, cell in enumerate(cells, start=1))]

    return Drawing(4.8, 4.0, title, draw)


def _number(ax: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Write 1, 2, ... beside points: each on the first of four sides where it is over no other number."""
    taken: list[Any] = []
    for number, point in enumerate(points, start=1):
        for right, up in ((4, -4), (4, 4), (-4, 4), (-4, -4)):
            where: dict[str, Any] = dict(ha="left" if right > 0 else "right", va="bottom" if up > 0 else "top")
            text = ax.annotate(
                str(number), point, (right, up), textcoords="offset points", fontsize=8, **where, **PLAIN
            )
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken) or (right, up) == (-4, -4):
                break
            text.remove()
        taken.append(box)


def bars(values: Array, labels: Sequence[str], title: str, unit: str = "") -> Drawing:
    """A drawing of one horizontal bar for each value, the first on top; red above 0, blue below."""
    matrix = Matrix(values[:, None], [*labels], "", [""], "", title, "", signed=True, largest=0.0).strongest(MOST_LINES)
    shown = matrix.values[:, 0]
    finite = np.isfinite(values)

    def draw(ax: Axes, _: Axes | None) -> list[str]:
        lengths = np.clip(np.where(np.isfinite(shown), shown, 0), -MOST, MOST)
        ax.barh(range(len(shown)), lengths, color=[RED if value > 0 else BLUE for value in shown])
        ax.set_ylim(len(shown) - 0.4, -0.6)
        said = _label(ax.set_yticks, matrix.rows, 0.15 * len(shown) / size_of(ax)[1], "bar")
        ax.axvline(0, color="0.6", linewidth=1)
        ax.set_xlabel(unit, fontsize=9, **PLAIN)
        for i in np.flatnonzero(~finite)[:1]:
            more = f", and {(~finite).sum() - 1} more" if (~finite).sum() > 1 else ""
            said.append(f"No bar where the value is not a finite number: {labels[i]} ({values[i]}){more}.")
        return said + merged("bar", len(values), len(shown))

    return Drawing(5.0, min(0.5 + 0.25 * len(shown), 18.0), [title], draw)


def line(values: Array, labels: Sequence[str], title: str, unit: str) -> Drawing:
    """A drawing of values along named points, from left to right, joined by a line."""

    def draw(ax: Axes, _: Axes | None) -> list[str]:
        ax.axhline(0, color="0.6", linewidth=1)
        ax.plot(range(len(values)), np.clip(values, -MOST, MOST), color=BLUE, marker="o", markersize=3)
        ax.set_ylabel(unit, fontsize=9, **PLAIN)
        slanted: dict[str, Any] = dict(rotation=45, ha="right", rotation_mode="anchor")
        return _label(ax.set_xticks, labels, 0.2 * len(labels) / size_of(ax)[0], "point", **slanted)

    return Drawing(min(max(4.8, 0.3 * len(values)), 12.0), 3.4, [title], draw)


# ---- the whole picture ------------------------------------------------------------------------------

SPACE = 0.12  # inches between drawings, and at the edges


def check_no_path(given: object) -> None:
    """NanopatchError where a file's name is given to `plot`."""
    if isinstance(given, (str, os.PathLike)):
        raise NanopatchError(f"plot draws, and writes no file: write result.save({os.fspath(given)!r})")


def drawn(drawing: Drawing, footer: Sequence[str], ax: Axes | None) -> Figure:
    """A drawing alone, in axes that a user gives; without axes, the picture, which pyplot then knows."""
    check_no_path(ax)
    if ax is None:
        return for_pyplot(picture(drawing, footer))
    if getattr(ax, "name", None) != "rectilinear":  # neither polar nor three-dimensional
        raise NanopatchError(
            f"plot draws into plain matplotlib Axes, not into {ax!r:.60}: give plt.subplots()[1], or nothing"
        )
    from .picture import inline, show_once

    said = drawing.draw(ax, None)
    lines = [ax.get_xlabel(), *(wrapped(line, max(1.0, size_of(ax)[0]), 8, figure_of(ax)) for line in said)]
    ax.set_xlabel("\n".join(line for line in lines if line), **PLAIN)
    set_title(ax, drawing.title)
    figure = figure_of(ax)
    if inline():
        figure._ipython_display_ = functools.partial(show_once, figure)  # type: ignore[attr-defined]
    return figure


def picture(drawing: Drawing, footer: Sequence[str] = ()) -> Figure:
    """One drawing, with lines of text below it."""
    return _compose([[drawing]], footer)


def _compose(columns: Sequence[Sequence[Drawing]], footer: Sequence[str], n_left_out: int = 0) -> Figure:
    """As `_composed`, with the numbers on the axes in matplotlib's own font: LaTeX need not be installed."""
    check_matplotlib()
    from matplotlib import rc_context

    with rc_context({"text.usetex": False}):
        return _composed(columns, footer, n_left_out)


def _composed(columns: Sequence[Sequence[Drawing]], footer: Sequence[str], n_left_out: int) -> Figure:
    """Columns of drawings, side by side as far as they are readable, further ones below; and lines of text at the foot.

    What does not fit into the largest picture is left out, and the foot says so. n_left_out: so many were before.
    """
    from matplotlib.transforms import Bbox

    figure, said = new_figure(), []
    # While the figure is one inch wide and high, positions are inches.
    blocks = []  # of each column: [(the axes of each drawing, with their box in inches and what stands around it)]
    for column in columns:
        block = []
        for drawing in column:
            ax = figure.add_axes((0, 0, drawing.width, drawing.height))
            cax = figure.add_axes((drawing.width + 0.12, 0, 0.14, drawing.height)) if drawing.has_bar else None
            said += drawing.draw(ax, cax)
            axes = [own for own in (ax, cax) if own]
            right = Bbox.union([_around(own) for own in axes]).x1 / figure.dpi
            set_title(ax, drawing.title, max(right, 5.4 if len(columns) == 1 else 2.6))
            around = Bbox.union([_around(own) for own in axes])
            block.append((axes, np.array([around.x0, around.y0, around.x1, around.y1]) / figure.dpi))
        blocks.append(block)

    # Rows of columns.
    bands: list[list[Any]] = []
    left, ends = math.inf, []
    for block in blocks:
        width = max(box[2] for _, box in block) - min(box[0] for _, box in block) + 2 * SPACE
        if left + width > READABLE:
            bands.append([])
            left = 0.0
        bands[-1].append((left, block))
        left += width
        ends.append(left)
    total = max(5.6, *ends)
    levels = [[max(_height(k, i) for _, k in band) for i in range(max(len(k) for _, k in band))] for band in bands]

    def text_of(lines: Sequence[str]) -> str:
        whole = (shortened(drawable(line), LONGEST_LINE) for line in _fewer_lines([*dict.fromkeys(lines)]))
        return "\n".join(
            _fewer_lines("\n".join(wrapped(line, total - 2 * SPACE, 8, figure) for line in whole).splitlines())
        )

    foot = figure.supxlabel("", fontsize=8, x=0, y=0, ha="left", va="bottom", **PLAIN)
    while True:
        left_out = [f"{n_left_out} panels are left out: they do not fit into one picture."] if n_left_out else []
        foot.set_text(text_of([*footer, *said, *left_out]))
        foot_height = foot.get_window_extent().height / figure.dpi + SPACE if foot.get_text() else 0.0
        high = sum(map(sum, levels)) + foot_height + SPACE
        if high <= LARGEST or len(bands) == 1:
            break
        levels.pop()
        for axes, _ in itertools.chain(*(block for _, block in bands.pop())):
            n_left_out += 1
            for own in axes:
                own.remove()

    figure.set_size_inches(total, high)
    top = high
    for band, heights in zip(bands, levels, strict=True):
        for x, block in band:
            y, x_body = top, x + SPACE - min(box[0] for _, box in block)
            for (axes, box), height in zip(block, heights, strict=False):
                for own in axes:
                    place = own.get_position(original=True)
                    at = (x_body + place.x0, y - SPACE - box[3] + place.y0, place.width, place.height)
                    own.set_position((at[0] / total, at[1] / high, at[2] / total, at[3] / high))
                y -= height
        top -= sum(heights)
    foot.set_position((SPACE / total, SPACE / high))
    figure.sca(figure.axes[0])  # what plt.title and plt.xlabel are about: no colour bar
    return figure


def _around(ax: Axes) -> Bbox:
    """The axes with everything that stands around them, in pixels."""
    from matplotlib.transforms import Bbox

    labels = [axis.label.get_window_extent() for axis in (ax.xaxis, ax.yaxis) if axis.label.get_text()]
    # matplotlib 3.8 counts labels only as far as the axes are wide.
    return Bbox.union([box for box in (ax.get_tightbbox(), *labels) if box is not None])


def _fewer_lines(lines: list[str]) -> list[str]:
    """At most `MOST_FOOT_LINES` lines: what is too much is left out of the middle."""
    half = MOST_FOOT_LINES // 2
    left_out = ["… (more lines are left out here) …"]
    return lines if len(lines) <= 2 * half else lines[:half] + left_out + lines[len(lines) - half + 1 :]


def _height(block: Sequence[tuple[Any, Array]], level: int) -> float:
    """How high one drawing of a column is, with the space above it; 0 if the column has none there."""
    return float(block[level][1][3] - block[level][1][1]) + 2 * SPACE if level < len(block) else 0.0


def set_title(ax: Axes, lines: Sequence[str], width: float | None = None) -> None:
    """A title that starts at the left edge of the axes, wrapped to a width in inches, by default that of the axes."""
    width = width or max(1.0, size_of(ax)[0])
    text = "\n".join(wrapped(shortened(drawable(line), LONGEST_LINE), width, 10, figure_of(ax)) for line in lines)
    ax.set_title(text, loc="center", fontsize=10, x=0, ha="left", pad=9, **PLAIN)


# ---- text -------------------------------------------------------------------------------------------


def drawable(text: str) -> str:
    """A text with all that cannot be drawn as escapes: control characters, and what the fonts have no glyph for."""
    text = one_line(text)
    if text.isascii():
        return text
    from matplotlib import font_manager, rcParams

    families = (font_manager.FontProperties(family=[family]) for family in rcParams["font.family"])
    # matplotlib takes the first font that has the glyph.
    fonts = [font_manager.get_font(path) for path in dict.fromkeys(map(font_manager.findfont, families))]
    drawn = {c: c.isascii() or any(font.get_char_index(ord(c)) for font in fonts) for c in {*text}}
    return "".join(c if drawn[c] else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters: what is too much is left out of its middle."""
    if len(text) <= most:
        return text
    note = f"… ({len(text) - most} characters more) …" if most > 100 else "…"
    return f"{text[: most // 2]}{note}{text[len(text) - most // 2 + len(note) :]}"


def wrapped(text: str, width: float, size: float, figure: Figure) -> str:
    """A text in lines that are at most `width` inches wide. size: of its font. matplotlib's own wrapping reads `$`."""
    probe = figure.text(0, 0, "", fontsize=size, **PLAIN)
    characters = max(4, int(width * 125 / size))
    while True:
        lines = textwrap.wrap(text, characters, replace_whitespace=False, break_on_hyphens=False)
        probe.set_text("\n".join(lines))
        widest = probe.get_window_extent().width / figure.dpi if lines else 0
        if widest <= width or characters == 4:
            probe.remove()
            return "\n".join(lines)
        characters = max(4, min(characters - 1, int(characters * width / widest)))


# ---- figures ----------------------------------------------------------------------------------------


def new_figure() -> Figure:
    """An empty figure of one inch by one, outside pyplot, which would keep it alive and needs a display at times."""
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.layout_engine import PlaceHolderLayoutEngine

    from .picture import Picture

    figure = Picture(figsize=(1, 1), dpi=DPI)
    # An engine that moves nothing. Without one, `savefig` would install the one that rcParams name.
    figure.set_layout_engine(PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True))
    FigureCanvasAgg(figure)  # which can measure text
    return figure


def check_matplotlib() -> None:
    """NanopatchError if matplotlib does not start because of MPLBACKEND."""
    try:
        import matplotlib  # noqa: F401
    except ValueError:
        name = os.environ.get("MPLBACKEND")
        raise NanopatchError(
            f"no picture can be drawn: MPLBACKEND={name!r} is not a backend of matplotlib; unset it, or set it to agg"
        ) from None


def size_of(ax: Axes) -> Array:
    """Width and height of axes, in inches."""
    box = ax.get_window_extent()
    return np.array([box.width, box.height]) / figure_of(ax).dpi


def figure_of(ax: Axes) -> Figure:
    """The figure that axes are in."""
    parent: Figure | SubFigure = ax.figure
    return parent.figure  # for a subfigure, the figure that it is in


def as_bytes(figure: Figure, file_format: str = "png") -> bytes:
    """A figure as the content of a picture file."""
    file = io.BytesIO()
    figure.savefig(file, format=file_format)
    return file.getvalue()


def for_pyplot(figure: Figure) -> Figure:
    """Make a figure pyplot's current one, if the caller uses pyplot: `plt.show()` and `plt.savefig()` are about it.

    pyplot keeps what it knows alive, so it forgets the oldest of ours; the Figures themselves stay usable. In a
    notebook that shows figures at the end of a cell, the oldest is shown before it is forgotten.
    """
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None or threading.current_thread() is not threading.main_thread():  # windows are the main thread's
        return figure
    ours = [label for label in pyplot.get_figlabels() if label.startswith(f"{LABEL} ")]
    from .picture import inline

    for label in ours[: max(0, len(ours) + 1 - KEPT)]:
        if inline() and pyplot.isinteractive():
            from IPython.display import display

            display(pyplot.figure(label))
        pyplot.close(label)
    number = max(pyplot.get_fignums(), default=0) + 1
    with contextlib.suppress(ImportError):  # the backend needs a display, and there is none: it can still be saved
        pyplot.figure(f"{LABEL} {number}", FigureClass=lambda **_: figure)
    return figure


def show(figure: Figure) -> None:
    """Show a figure of `for_pyplot` in a window. NanopatchError if there is no display."""
    check_matplotlib()
    import matplotlib
    from matplotlib import pyplot

    written = matplotlib.get_backend().lower() in ("agg", "pdf", "svg", "ps", "cairo", "template", "pgf")
    if written or for_pyplot(figure).canvas.manager is None:
        raise NanopatchError("there is no display to show a picture on: write it to a file with -o FILE.png")
    pyplot.show()
