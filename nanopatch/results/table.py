"""Numbers as text for a terminal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .matrix import Matrix

SHADES = " ░▒▓█"


def table(matrix: Matrix, numbered: bool = False, width: int | None = None) -> list[str]:
    """A matrix as lines of text: a heading, then a line for each row, each value shaded by its size.

    numbered: put numbers before the names of rows. width: the most characters of a line, by default the terminal's.
    Columns that do not fit follow in a table below. A patch that can change nothing is a dot.
    """
    from shutil import get_terminal_size  # here, because it loads four compression libraries

    width = width or get_terminal_size().columns
    darkest = matrix.scale[1]
    still, text = matrix.still, matrix.text
    texts = matrix.texts if matrix.texts is not None else np.full(matrix.values.shape, None)
    labels = [f"{i:>3} {label}" if numbered else label for i, label in enumerate(matrix.rows)]
    margin = max(map(len, [*labels, matrix.columns_title])) + 1
    shown = [
        ["·" if dot else _cell(value, text, darkest, given) for value, dot, given in zip(*row, strict=True)]
        for row in zip(matrix.values, still, texts, strict=True)
    ]
    column_width = max(
        [7, *(len(column) + 1 for column in matrix.columns), *(len(cell) for row in shown for cell in row)]
    )
    columns_a_line = max(1, (width - margin) // column_width)
    lines = []
    for first in range(0, len(matrix.columns), columns_a_line):
        some = slice(first, first + columns_a_line)
        lines.append(matrix.columns_title.rjust(margin) + "".join(f"{c:>{column_width}}" for c in matrix.columns[some]))
        for cells, label in zip(shown, labels, strict=True):
            lines.append((label.ljust(margin) + "".join(cell.rjust(column_width) for cell in cells[some])).rstrip())
    return lines + matrix.legend()


def _cell(value: float, text: Callable[[float], str], darkest: float, given: str | None = None) -> str:
    """A space, a shade, and the value, or a text given in its place."""
    if not np.isfinite(value):
        return "" if np.isnan(value) else str(value)
    shade = SHADES[min(4, round(abs(value) / darkest * 4))]
    return f" {shade}{text(value) if given is None else given:>5}"
