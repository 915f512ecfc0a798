"""Results as text for a terminal."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .sweep import Sweep

SHADES = " ░▒▓█"


def sweep_table(sweep: Sweep, width: int | None = None) -> str:
    """A sweep as a table: a line for each token, a column for each layer, each value shaded by its size.

    It is transposed relative to the picture, so that tokens can be read. width: characters a line may have, by
    default the terminal's; further columns follow in a table below.
    """
    width = width or shutil.get_terminal_size().columns
    normalised = not np.isnan(sweep.normalised).all()
    matrix, columns, columns_title, labels, title = sweep.as_matrix(sweep.normalised if normalised else sweep.grid)
    if title == "receiver":  # names of senders make better lines than columns: as in the picture
        matrix, columns, columns_title, labels, title = matrix.T, labels, title, columns, columns_title
    finite = np.abs(matrix[np.isfinite(matrix)])
    darkest = finite.max(initial=1 if normalised else 0)
    tokens = title in ("position", "query", "key")  # which are numbered; others are numbers already
    labels = [
        f"{i:>3} {label}" if tokens else label if title == "sender" else f"{title} {label}"
        for i, label in enumerate(labels)
    ]
    margin = max(map(len, [*labels, columns_title])) + 1
    column_width = max([7, *(len(column) + 1 for column in columns)])
    columns_a_line = max(1, (width - margin) // column_width)
    unit = sweep.metric
    if normalised:
        unit += (
            ", relative change"
            if sweep.donor_value is None
            else ", normalised: 0 is the run patched into, 1 the run patched from"
        )
    lines = [sweep.title, unit]
    for first in range(0, len(columns), columns_a_line):
        some = range(first, min(first + columns_a_line, len(columns)))
        lines.append(columns_title.rjust(margin) + "".join(f"{columns[column]:>{column_width}}" for column in some))
        for label, values in zip(labels, matrix.T, strict=True):
            lines.append(
                (
                    label.ljust(margin) + "".join(_cell(values[column], darkest).rjust(column_width) for column in some)
                ).rstrip()
            )
    corrupted = "" if sweep.baseline_corrupted is None else f", corrupted {sweep.baseline_corrupted:.2f}"
    lines.append(f"unpatched: clean {sweep.baseline_clean:.2f}{corrupted} ({sweep.metric})")
    lines[-1] += f"; answer {sweep.experiment.answer!r}, wrong answer {sweep.experiment.wrong_answer!r}"
    if sweep.standard_error is not None:
        lines.append(f"standard error of the mean, before normalising: at most {np.nanmax(sweep.standard_error):.2f}")
    return "\n".join([*lines, *sweep.notes])


def _cell(value: float, darkest: float) -> str:
    """Seven characters: a shade, and the value to two decimals."""
    if not np.isfinite(value):
        return " " * 7 if np.isnan(value) else f"{value:>7}"
    shade = SHADES[min(4, round(abs(value) / darkest * 4))] if darkest else " "
    text = f"{value:.2f}" if abs(value) < 99.995 else f"{value:.0f}"
    return f" {shade}{text.replace('-0.00', '0.00'):>5}"
