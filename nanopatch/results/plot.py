"""Pictures of results, with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NanopatchError
from ..types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .comparison import Comparison
    from .sweep import Sweep

#: The picture files that can be written.
FORMATS = ("png", "svg", "pdf")


def heatmap(sweep: Sweep, ax: Axes | None = None, normalised: bool = True) -> Axes:
    """Draw a sweep, layers (or layers and heads) as rows, tokens as columns.

    Normalised values get a sequential map that starts at 0 (values below have the colour of 0, and the colour bar an
    arrow) and ends at 1, or further up if the data do. The raw metric and relative changes have a sign: they get a
    diverging map centred on zero. Columns without a partner stay blank. Where there is no normalised scale the raw
    metric is drawn.
    """
    normalised = normalised and not np.isnan(sweep.normalised).all()
    values, rows, rows_title, columns, columns_title = sweep.as_matrix(sweep.normalised if normalised else sweep.grid)
    n_rows, n_columns = values.shape
    if ax is None:
        ax = new_figure(figsize=(2.4 + 0.52 * n_columns, 3.2 + 0.34 * n_rows)).add_subplot()
    finite = values[np.isfinite(values)]
    signed = not normalised or sweep.donor_value is None
    if signed:
        baselines = [] if normalised else [sweep.base_value, sweep.donor_value or 0]
        high = np.abs([*finite, *baselines]).max(initial=0) or 1.0
        low, colours = -high, "RdBu_r"
    else:
        low, high, colours = 0.0, max(1.0, finite.max(initial=1)), "Blues"
    ax.set_facecolor("0.93")  # what shows where there is nothing
    image = ax.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    blank = np.isnan(values).all(axis=0).nonzero()[0]
    ax.bar(blank, n_rows, width=1, bottom=-0.5, color="none", edgecolor="0.8", hatch="////", linewidth=0)
    ax.set_xlim(-0.5, n_columns - 0.5)
    ax.set_ylim(n_rows - 0.5, -0.5)
    ax.set_xticks(range(n_columns), columns, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    ax.set_yticks(range(n_rows), rows)
    if columns_title == "position":
        columns_title = "token (clean / corrupted where they differ)"
    ax.set_xlabel(columns_title)
    ax.set_ylabel(rows_title)
    ax.set_title(_broken(sweep.title), fontsize=10)
    name = sweep.metric.replace("_", " ")
    bar = ax.figure.colorbar(image, ax=ax, extend="min" if finite.min(initial=low) < low - 0.005 else "neither")
    bar.set_label(f"{name}, {sweep.scale}" if normalised else name, fontsize=9)
    if values.size <= 320:
        _write_values(ax, values, high, signed)
    return ax


def sweep_picture(sweep: Sweep, normalised: bool = True) -> Figure:
    """The whole picture of a sweep: the heatmap, with the prompts below it."""
    figure = figure_of(heatmap(sweep, None, normalised))
    _footer(figure, [sweep])
    return figure


def panels_picture(panels: Mapping[str, Mapping[str, Sweep]], normalised: bool = True) -> Figure:
    """Columns of sweeps side by side, with the prompts below them."""
    shapes = [[sweep.as_matrix(sweep.grid)[0].shape for sweep in column.values()] for column in panels.values()]
    widths = [2.4 + 0.52 * max(n_columns for _, n_columns in column) for column in shapes]
    heights = [
        3.0 + 0.34 * max(column[row][0] for column in shapes if row < len(column))
        for row in range(max(map(len, shapes)))
    ]
    figure = new_figure(figsize=(sum(widths), sum(heights) + 0.6))
    axes = figure.subplots(len(heights), len(widths), width_ratios=widths, height_ratios=heights, squeeze=False)
    for place, (name, column) in enumerate(panels.items()):
        for row, (inner, sweep) in enumerate(column.items()):
            heatmap(sweep, axes[row, place], normalised).set_title(f"{name} {inner}".strip(), fontsize=10)
        for ax in axes[len(column) :, place]:
            ax.remove()
    _footer(figure, [sweep for column in panels.values() for sweep in column.values()])
    return figure


def _footer(figure: Figure, sweeps: Sequence[Sweep]) -> None:
    """Below the picture: the prompts, the metric of the unpatched runs, and the notes. sweeps: all that it shows."""
    sweep = sweeps[0]
    by_metric = {s.metric: s for s in sweeps}
    lines = []
    for name in ("clean", "corrupted"):
        values = [(metric, getattr(s, f"baseline_{name}")) for metric, s in by_metric.items()]
        if values[0][1] is not None:
            shown = ", ".join(f"{metric} {value:.2f}" for metric, value in values)
            own = name == "clean" or sweep.corruption is None
            prompt = _shown(getattr(sweep.experiment, name)) if own else f"the clean prompt with {sweep.corruption}"
            lines.append(f"{name}: {prompt}   {shown}")
    answers = (
        f"answer {sweep.experiment.answer!r}, wrong answer {sweep.experiment.wrong_answer!r}, model {sweep.source.name}"
    )
    scale = "" if sweep.donor_value is None else "; normalised: 0 is the run patched into, 1 the run patched from"
    lines += [answers + scale, *dict.fromkeys(note for s in sweeps for note in s.notes)]
    figure.supxlabel("\n".join(lines), fontsize=8, x=0.01, ha="left", parse_math=False, wrap=True)


def scatter(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """Estimated against exact values, with the identity line, the correlation, and the worst cells named."""
    x, y = comparison.values
    if ax is None:
        ax = new_figure(figsize=(5.5, 5)).add_subplot()
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    ax.plot(ends, ends, color="0.6", linewidth=1, zorder=1)
    ax.scatter(x, y, s=14, color="#2166ac", zorder=2)
    worst = list(enumerate(comparison.worst(), start=1))
    for number, (_, exact, estimate) in worst:
        ax.annotate(str(number), (exact, estimate), (4, -4), textcoords="offset points", fontsize=8, va="top")
    names = "\n".join(f"{number}  {label}" for number, (label, *_) in worst)
    legend: dict[str, Any] = dict(
        transform=ax.transAxes, ha="right", va="bottom", multialignment="left", fontsize=7, parse_math=False
    )
    ax.text(0.98, 0.02, f"worst cells\n{names}", **legend)
    metric = comparison.exact.metric.replace("_", " ")
    ax.set_xlabel(f"{metric}, exact patching")
    ax.set_ylabel(f"{metric}, estimated")
    ax.set_title(
        f"{_broken(comparison.estimate.title)}\ncorrelation {comparison.correlation:.3f}, slope {comparison.slope:.2f}",
        fontsize=9,
    )
    return ax


def bars(values: Array, labels: Sequence[str], ax: Axes | None = None) -> Axes:
    """One horizontal bar for each value, the first on top; red above 0, blue below."""
    if ax is None:
        ax = new_figure(figsize=(6, 1 + 0.25 * len(values))).add_subplot()
    ax.barh(range(len(values)), values, color=["#b2182b" if value > 0 else "#2166ac" for value in values])
    ax.set_yticks(range(len(values)), labels, parse_math=False)
    ax.invert_yaxis()
    ax.axvline(0, color="0.6", linewidth=1)
    return ax


def figure_of(ax: Axes) -> Figure:
    """The figure that axes are in."""
    figure = ax.get_figure(root=True) if hasattr(ax.figure, "get_figure") else ax.figure
    return figure  # type: ignore[return-value]


def as_bytes(figure: Figure, file_format: str = "png") -> bytes:
    """A figure as the content of a picture file."""
    file = io.BytesIO()
    figure.savefig(file, format=file_format, dpi=150)
    return file.getvalue()


def show(figure: Figure) -> None:
    """Show a figure in a window. NanopatchError where there is no display."""
    import matplotlib
    from matplotlib import pyplot

    if matplotlib.get_backend().lower() in ("agg", "pdf", "svg", "ps", "cairo", "template"):
        raise NanopatchError("there is no display to show a picture on: write it to a file with -o FILE.png")
    ax = pyplot.figure(layout="constrained").add_subplot()
    ax.imshow(pyplot.imread(io.BytesIO(as_bytes(figure))))
    ax.axis("off")
    pyplot.show()


def new_figure(figsize: tuple[float, float]) -> Figure:
    """A figure of its own, outside pyplot, which would keep it alive and needs a display on some machines."""
    from matplotlib.figure import Figure

    return Figure(figsize=figsize, layout="constrained")


def _broken(title: str) -> str:
    """A title in two lines, where it begins with how it was estimated."""
    return title.replace(": ", ":\n", 1)


def _write_values(ax: Axes, values: Array, high: float, signed: bool) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            depth = abs(value) / high if signed else value / high  # how dark the cell is
            text = f"{value:.2f}" if abs(value) < 9.995 else f"{value:.1f}"
            colour = "white" if depth > 0.6 else "0.25"
            cell = ax.text(
                column, row, text.replace("-0.00", "0.00"), ha="center", va="center", fontsize=7, color=colour
            )
            cell.set_in_layout(False)  # it lies inside the axes anyway, and measuring it would take time


def _shown(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else f"token ids {np.asarray(prompt).tolist()}"
