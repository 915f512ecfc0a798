"""The grid of a sweep or of an estimate, and what is needed to read it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import NanopatchError
from ..experiments import corruption as corruptions
from ..experiments.corruption import ABLATIONS, Corruption, Mean, Noise, Resample, Zero
from ..experiments.experiment import Experiment
from ..experiments.patch import BETWEEN, SITE_AXES, Paths
from ..files import Source
from ..model.tokenizer import visible
from ..page.document import result_page
from ..page.pack import Question, Shown
from ..types import Array
from . import plot
from .base import Contents, Result, check, check_shape, jsonable
from .matrix import Matrix, no_scale, number, usable_span
from .pairs import Pairs, check_pairs
from .prediction import Prediction
from .table import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .plot import Drawing

#: The run that is patched into (the base), and the run that is patched from (the donor).
DIRECTIONS = {"denoise": ("corrupted", "clean"), "noise": ("clean", "corrupted")}


def check_direction(name: object) -> None:
    if not isinstance(name, str) or name not in DIRECTIONS:
        raise NanopatchError(f'unknown direction {name!r}: "denoise" (clean into corrupted) or "noise" is expected')


@dataclass(frozen=True, eq=False, repr=False)
class Sweep(Result):
    """A grid of patching results, with everything needed to read it.

    Attributes
    ----------
    grid : ndarray
        The metric after each patch, float64, with the axes `axes`; NaN where nothing can be patched.
    site : str
        The array that was patched; "path" for path patching.
    axes : tuple of str
        What the axes of the grid are: "layer", "head", "position", "neuron", "query", "key", "sender", "receiver".
    pieces : dict
        {axis: for each entry, a tuple of what was patched together there}.
    direction : str
        "denoise" (clean into corrupted) or "noise" (corrupted into clean); see `base` and `donor`.
    metric : str
        The metric's name.
    experiment : Experiment
        Prompts and answers.
    columns : tuple
        (position in the clean prompt, position in the corrupted prompt) of each column of the aligned prompts; None
        if a token has no partner. The axis "position" counts columns.
    clean_tokens, corrupted_tokens : tuple of str
        The text of each token.
    clean_ids, corrupted_ids : tuple of int
        Its id; empty in older files.
    prediction : Prediction or None
        What the clean run predicts, and how it rates the answer: of several pairs, of the first whose answer it does
        not predict, if there is one. None in older files.
    baseline_clean, baseline_corrupted : float
        The metric of the two unpatched runs. baseline_corrupted is None for an ablation, which has no such run.
    rounding : float
        Baselines closer than this count as equal.
    source : Source
        The model's name and, as `source.sha256`, the hash of the file it was read from; None if that is not known.
    corruption : Zero, Mean, Resample, Noise or None
        What took the place of the experiment's corrupted prompt; None if nothing did.
    steps : int or None
        None if every cell was run. For an estimate (see `nanopatch.attribute`): 1 for attribution patching, more for
        integrated gradients.
    between : str or None
        For path patching: what happens to the nodes between sender and receiver.
    chosen : dict
        {axis: what was patched}, for axes that are not in the grid, if not everything was patched.
    finite_differences, adds_layers : bool
        For an estimate: whether the metric's derivative was taken by finite differences, and whether some cell adds
        up the estimates of several layers.
    unchanged : ndarray or None
        Like grid. True if the tokens and the causal mask show that a patch changes nothing that is measured: before
        the first token that differs, for example, or at a token's residual stream in block 0 if it does not differ.
    n_pairs : int
        How many experiments the grid and the baselines are means over. Tokens and experiment are the first one's. A
        token that not all share ends in ….
    standard_error : ndarray or None
        The standard error of the mean in each cell of the grid; None for one experiment.
    skipped : tuple
        ((where, reason), ...) of the experiments left out.
    pairs : Pairs or None
        What each of several pairs gave; None for one.
    remarks : tuple of str
        Sentences of an older file that have no field of their own.
    """

    kind: ClassVar[str] = "sweep"
    averaged: ClassVar[tuple[str, ...]] = ("grid", "baseline_clean", "baseline_corrupted")
    derived: ClassVar[tuple[str, ...]] = ("normalised", "notes")

    grid: Array
    site: str
    axes: tuple[str, ...]
    pieces: Mapping[str, Sequence[Sequence[Any]]]
    direction: str
    metric: str
    experiment: Experiment
    columns: tuple[tuple[int | None, int | None], ...]
    clean_tokens: tuple[str, ...]
    corrupted_tokens: tuple[str, ...]
    baseline_clean: float
    baseline_corrupted: float | None
    rounding: float
    source: Source
    corruption: Corruption | None = None
    steps: int | None = None
    between: str | None = None
    chosen: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    finite_differences: bool = False
    adds_layers: bool = False
    unchanged: Array | None = None
    n_pairs: int = 1
    standard_error: Array | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()
    clean_ids: tuple[int, ...] = ()
    corrupted_ids: tuple[int, ...] = ()
    prediction: Prediction | None = None
    pairs: Pairs | None = None

    # ---- what it is -----------------------------------------------------------------------------

    @property
    def base(self) -> str:
        """The run that was patched into, "clean" or "corrupted"."""
        return DIRECTIONS[self.direction][0]

    @property
    def donor(self) -> str:
        """Where the values came from: "clean" or "corrupted"; for an ablation "zero", "mean" or "resample"."""
        return self.corruption.name if isinstance(self.corruption, ABLATIONS) else DIRECTIONS[self.direction][1]

    @property
    def method(self) -> str:
        """How each cell was computed: "patching", or an estimate by "attribution" or "integrated gradients"."""
        return {None: "patching", 1: "attribution"}.get(self.steps, "integrated gradients")

    @property
    def base_value(self) -> float:
        """The metric of the run that was patched into: 0 on the normalised scale."""
        return self.baseline_clean if self.base == "clean" else self.baseline_corrupted  # type: ignore[return-value]

    @property
    def donor_value(self) -> float | None:
        """The metric of the run that was patched from: 1 on the normalised scale. None for an ablation."""
        return self.baseline_corrupted if self.base == "clean" else self.baseline_clean

    @property
    def scale(self) -> str:
        """What `normalised` is: "normalised", or for an ablation, which has no run to patch from, "relative change"."""
        return "relative change" if self.donor_value is None else "normalised"

    @property
    def normalised(self) -> Array:
        """The grid, scaled so that 0 is the run patched into and 1 the run patched from.

        For an ablation, the change relative to the size of the unpatched metric. All NaN if there is no such scale,
        because the baselines are equal, or not finite (or the unpatched metric is 0). `notes` then says so.
        """
        with np.errstate(invalid="ignore"):  # a metric may be infinite: inf - inf is NaN
            return (self.grid - self.base_value) / self._span

    @property
    def _span(self) -> float:
        """What is 1 on the normalised scale, in units of the metric; NaN if there is no scale."""
        span = abs(self.base_value) if self.donor_value is None else self.donor_value - self.base_value
        return usable_span(span, self.rounding)

    @property
    def has_scale(self) -> bool:
        """Whether any cell of `normalised` is a number."""
        return not np.isnan(self.normalised).all()

    @property
    def title(self) -> str:
        """What was put where, in one line, and whether that was estimated."""
        how = {None: "", 1: "attribution: "}.get(self.steps, f"integrated gradients, {self.steps} steps: ")
        what = self.site if self.between is None else f"{self.site} ({self.between} between)"
        done = f"patched from {self.donor} into {self.base} ({'denoising' if self.base == 'corrupted' else 'noising'})"
        if isinstance(self.corruption, ABLATIONS):
            done = f"replaced by {self.corruption} (ablation)"
        mean = f", mean of {self.n_pairs} pairs" if self.n_pairs > 1 else ""
        return f"{how}{what} {done}, {self.source.name}{mean}"

    @property
    def notes(self) -> list[str]:
        """What a reader of the grid must know, as sentences; usually none."""
        notes = list(self.remarks)
        if self.steps is not None:
            how = "first-order estimate (attribution patching)" if self.steps == 1 else self.method
            notes.append(f"Not patched: {how}{'' if self.steps == 1 else f', {self.steps} steps'}.")
            if self.finite_differences:
                notes.append(f"The derivative of {self.metric} was taken by finite differences over the logits.")
            if self.adds_layers:
                notes.append(
                    "Cells of several layers add up: a change that one layer passes on to the next is counted again; "
                    "a patch would overwrite it."
                )
        if isinstance(self.corruption, Noise):
            notes.append(f"Corrupted by {self.corruption}.")
            notes.append(
                "Noise makes activations that no prompt gives, and the result depends on the size of the noise; "
                "another prompt is the safer corruption (Zhang & Nanda 2023, arXiv 2309.16042)."
            )
        for axis, items in self.chosen.items():
            notes.append(
                f"Only {axis} {'+'.join(map(_item, items))} was patched; `{axis}` is not an axis of this grid."
            )
        if self.site == "path" and np.isnan(self.grid).any():
            notes.append("Cells are blank where the receiver does not come after its sender.")
        strange = np.argwhere(~np.isfinite(self.grid) & ~self.blank())
        if len(strange):
            first = ", ".join(
                f"{axis} {'+'.join(map(_item, self.pieces[axis][i]))}"
                for axis, i in zip(self.axes, strange[0], strict=True)
            )
            notes.append(
                f"{self.metric} is not a finite number after {len(strange)} of the patches; the first is at {first}."
            )
        if self.n_pairs > 1:
            notes.append(f"Mean of {self.n_pairs} pairs. Tokens are the first pair's; … means that others differ.")
        notes += left_out(self.skipped)
        if np.isnan(self._span) and self.donor_value is None:
            value = 0 if abs(self.base_value) <= self.rounding else self.base_value
            notes.append(f"No relative change: {self.metric} of the unpatched run is {value}.")
        elif np.isnan(self._span):
            ends = self.baseline_clean, self.baseline_corrupted or 0.0
            notes.append(f"Not normalised: {no_scale(self.metric, *ends)}, so there is no scale.")
        if any(None in pair for pair in self.columns):
            notes.append("Tokens without a partner in the other prompt cannot be patched; their columns are blank.")
        if any(None not in pair and pair[0] != pair[1] for pair in self.columns):
            notes.append(
                "The prompts are aligned by their tokens: where positions differ, a patch also carries the position "
                "embedding (wpe) of the other position."
            )
        return notes + (self.prediction.notes(self.source.name, self.n_pairs) if self.prediction else [])

    def blank(self) -> Array:
        """Like grid: True if nothing can be patched, because no token of the piece has a partner, or no path exists."""
        if self.site == "path":
            return np.isnan(self.grid)
        return without_partner(self.axes, self.pieces, self.columns)

    def __repr__(self) -> str:
        shape = " x ".join(f"{n} {axis}s" for n, axis in zip(self.grid.shape, self.axes, strict=True)).replace(
            "querys", "queries"
        )
        return f"<Sweep: {self.title}; {self.metric}, {shape}>"

    # ---- how it is shown ------------------------------------------------------------------------

    @property
    def column_labels(self) -> list[str]:
        """One label per column: the token, or `clean / corrupted` where they differ; ␣ is a space, – no token."""
        labels = []
        for clean, corrupted in self.columns:
            pair = [
                "–" if position is None else visible(tokens[position])
                for position, tokens in ((clean, self.clean_tokens), (corrupted, self.corrupted_tokens))
            ]
            labels.append(pair[0] if pair[0] == pair[1] else " / ".join(pair))
        return labels

    def labels(self, axis: str) -> list[str]:
        """The labels along one axis: tokens for positions, numbers for layers and heads; groups joined by +."""
        names: Sequence[str] | None = None
        if axis == "position":
            names = self.column_labels
        elif axis in ("query", "key"):
            names = [visible(t) for t in (self.clean_tokens if self.base == "clean" else self.corrupted_tokens)]
        return [
            "+".join(names[i] if names and isinstance(i, int) else _item(i) for i in piece)
            for piece in self.pieces[axis]
        ]

    @property
    def _column_axis(self) -> str:
        """The axis that makes the columns when the grid is laid out flat."""
        return next((axis for axis in ("key", "query", "position") if axis in self.axes), self.axes[-1])

    def flat(self, array: Array) -> Array:
        """An array shaped as the grid, laid out as `matrix` lays the grid out: (n_rows, n_columns)."""
        moved: Array = np.moveaxis(array, self.axes.index(self._column_axis), -1)
        return moved.reshape(-1, moved.shape[-1])

    def matrix(self, normalised: bool = True) -> Matrix:
        """The grid laid out flat. Tokens make the columns if there are any, else the last axis does.

        All other axes make the rows. The values are the raw metric if `normalised` is False, or has no scale.
        """
        column = self._column_axis
        others = [axis for axis in self.axes if axis != column]
        normalised = normalised and self.has_scale
        values, name = self.normalised if normalised else self.grid, self.metric.replace("_", " ")
        columns = self.labels(column)
        baselines = [b for b in (self.baseline_clean, self.baseline_corrupted or 0, 0) if np.isfinite(b)]

        return Matrix(
            values=self.flat(values),
            rows=[".".join(labels) for labels in itertools.product(*map(self.labels, others))],
            rows_title=".".join(others),
            columns=columns,
            columns_title=column,
            title=self.title,
            unit=f"{name}, {self.scale}" if normalised else name,
            signed=not normalised or self.donor_value is None,
            largest=max(map(abs, baselines)) if not normalised else 1.0 if self.donor_value is not None else 0.0,
            noise=self.rounding / abs(self._span) if normalised else self.rounding,
            unchanged=None if self.unchanged is None else self.flat(self.unchanged),
        )

    def text(self) -> str:
        matrix = self.matrix()
        unit = self.metric
        if self.has_scale:
            ends = "" if self.donor_value is None else ": 0 is the run patched into, 1 the run patched from"
            unit = f"{self.metric}, {self.scale}{ends}"
        tokens = matrix.columns_title in ("position", "query", "key")
        named = any(isinstance(item, str) for piece in self.pieces.get("position", ()) for item in piece)
        if matrix.columns_title != "receiver":  # tokens make better lines than columns
            matrix = matrix.transposed
            if not tokens:
                matrix = matrix._replace(rows=[f"{matrix.rows_title} {row}" for row in matrix.rows])
        corrupted = "" if self.baseline_corrupted is None else f", corrupted {number(self.baseline_corrupted)}"
        lines = [
            self.title,
            unit,
            *table(matrix, numbered=tokens and not named),
            f"unpatched: clean {number(self.baseline_clean)}{corrupted} ({self.metric}); "
            f"{answers(self.experiment, self.n_pairs)}",
        ]
        if self.standard_error is not None:
            lines.append(
                f"standard error of the mean, before normalising: at most {number(np.nanmax(self.standard_error))}"
            )
        return "\n".join([*lines, *self.notes])

    def plot(self, ax: Axes | None = None, normalised: bool = True) -> Figure:
        """Draw the grid as a heatmap, with the prompts below it; returns the matplotlib Figure (see `Result.plot`).

        ax: draw the heatmap alone, into these axes. normalised: False draws the raw metric.
        """
        return plot.drawn(*self._parts(normalised), ax)

    def _parts(self, normalised: bool = True) -> tuple[Drawing, list[str]]:
        return plot.heatmap(self.matrix(normalised)), footer({"": self}, normalised)

    def reply(self) -> Shown:
        """What the page's heatmap shows: the grid laid out flat, raw and normalised, and each cell's number in it."""
        raw, normalised = self.matrix(normalised=False), self.matrix()
        values = {
            **{
                name: getattr(self, name)
                for name in ("title", "metric", "scale", "base", "donor", "notes", "has_scale")
            },
            **{"base_value": self.base_value, "donor_value": self.donor_value, "unit": raw.unit},
            **{"rows": raw.rows, "rows_title": raw.rows_title},
            **{"columns": raw.columns, "columns_title": raw.columns_title},
            "ends": {"raw": raw.scale, "normalised": normalised.scale},
        }
        arrays = {
            "values": raw.values,
            "normalised": self.flat(self.normalised),
            "unchanged": raw.still,
            "blank": self.flat(self.blank()),
            "cell": self.flat(np.arange(self.grid.size).reshape(self.grid.shape)),
        }
        return Shown(values, arrays)

    def page(self) -> bytes:
        asked = {
            "site": self.site,
            "axes": list(self.axes),
            "window": 1,
            "direction": self.direction,
            "metric": self.metric,
        }
        tokens = {
            "clean": {"tokens": self.clean_tokens, "ids": self.clean_ids or range(len(self.clean_tokens))},
            "corrupted": {
                "tokens": self.corrupted_tokens,
                "ids": self.corrupted_ids or range(len(self.corrupted_tokens)),
            },
            "columns": self.columns,
        }
        replies: list[tuple[Question, Shown]] = [
            ({"view": "prompts"}, Shown(tokens, {})),
            ({"view": "sweep", **asked}, self.reply()),
        ]
        return result_page(["prompts", "grid"], self.source.name, replies, asked)

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict for each patch: where it was (positions and tokens of both prompts), the metric and `normalised`."""
        normalised = self.normalised
        rows = []
        for index, value in np.ndenumerate(self.grid):
            pieces = {axis: self.pieces[axis][i] for axis, i in zip(self.axes, index, strict=True)}
            row: dict[str, Any] = {
                axis: piece[0] if len(piece) == 1 else "+".join(map(str, piece)) for axis, piece in pieces.items()
            }
            if "position" in row and not isinstance(pieces["position"][0], str):  # which is a name
                del row["position"]
                pairs = [self.columns[column] for column in pieces["position"] if None not in self.columns[column]]
                if not pairs:
                    continue
                for side, name in enumerate(("clean", "corrupted")):
                    tokens, ids = getattr(self, f"{name}_tokens"), getattr(self, f"{name}_ids")
                    positions: Any = [pair[side] for pair in pairs]
                    row[f"{name}_position"] = "+".join(map(str, positions))
                    row[f"{name}_token"] = "+".join(tokens[position] for position in positions)
                    if ids:
                        row[f"{name}_id"] = "+".join(str(ids[position]) for position in positions)
            if self.unchanged is not None:
                row["unchanged"] = bool(self.unchanged[index])
            row[self.metric] = float(value)
            row[f"{self.metric}_{self.scale.replace(' ', '_')}"] = float(normalised[index])
            if self.standard_error is not None:
                row[f"{self.metric}_standard_error"] = float(self.standard_error[index])
            rows.append(row)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The whole result as JSON can hold it, with `normalised` and `notes`."""
        return super().to_dict() | {"normalised": jsonable(self.normalised), "notes": self.notes}

    @classmethod
    def _known_format(cls, contents: Contents) -> Contents:
        old = contents["format"] == "nanopatch sweep 1"
        return _from_format_1(contents) if old else super()._known_format(contents)

    def _check(self) -> None:
        known = (*Paths.axes, "position") if self.between is not None else SITE_AXES.get(self.site, ())
        items = {axis: {*range(len(self.columns))} for axis in ("position", "query", "key")}
        shape = tuple(len(self.pieces.get(axis, ())) for axis in self.axes)
        n_tokens = {"clean": len(self.clean_tokens), "corrupted": len(self.corrupted_tokens)}
        ids = {"clean": self.clean_ids, "corrupted": self.corrupted_ids}
        check_direction(self.direction)
        check(self.axes and len(set(self.axes)) == len(self.axes) and set(self.axes) <= set(known), "axes")
        check(self.between is None or (self.between in BETWEEN and self.site.endswith("path")), "between")
        check(set(self.axes) <= set(self.pieces) <= set(known), "pieces")
        for axis, pieces in self.pieces.items():
            for piece in pieces:
                check(piece and all(_is_item(item, axis) for item in piece), f"pieces of {axis}")
                numbers = {item for item in piece if not isinstance(item, str)}
                check(axis not in items or numbers <= items[axis], f"pieces of {axis}")
        check(all(axis in known and axis not in self.axes for axis in self.chosen), "chosen")
        check(all(part and all(_is_item(item, axis) for item in part) for axis, part in self.chosen.items()), "chosen")
        check_shape(self.grid, shape, "grid", float)
        check(self.grid.size, "grid")
        check_shape(self.unchanged, shape, "unchanged", bool)
        check_shape(self.standard_error, shape, "standard_error", float)
        check((self.standard_error is not None) == (self.n_pairs > 1), "standard_error")
        for side, name in enumerate(("clean", "corrupted")):
            positions = [pair[side] for pair in self.columns if pair[side] is not None]
            check(positions == list(range(n_tokens[name])), "columns")
            check(len(ids[name]) in (0, n_tokens[name]) and all(i >= 0 for i in ids[name]), f"{name}_ids")
        check(all(pair != (None, None) for pair in self.columns), "columns")
        check((self.baseline_corrupted is None) == isinstance(self.corruption, ABLATIONS), "baseline_corrupted")
        check(not self.rounding < 0, "rounding")
        check(self.steps is None or self.steps >= 1, "steps")
        check(self.n_pairs >= 1, "n_pairs")
        check_pairs(self.pairs, self.n_pairs, shape)

    def _shared(self, of: Sequence[tuple[Sweep, Sweep]]) -> dict[str, Any]:
        unchanged = [common.unchanged for _, common in of if common.unchanged is not None]
        shared = super()._shared(of) | {"unchanged": np.all(unchanged, axis=0) if unchanged else None}
        for side in ("clean", "corrupted"):
            tokens, ids = f"{side}_tokens", f"{side}_ids"
            known = [(getattr(first, ids), getattr(first, tokens), getattr(common, tokens)) for first, common in of]
            shared[tokens] = tuple(
                token
                if all(
                    i[n : n + 1] == known[0][0][n : n + 1] and own[n : n + 1] == told[n : n + 1]
                    for i, own, told in known
                )
                else f"{token}…"
                for n, token in enumerate(getattr(self, tokens))
            )
        return shared


def without_partner(axes: Sequence[str], pieces: Mapping[str, Sequence[Any]], columns: Sequence[Any]) -> Array:
    """Shaped as the grid: True where no token of a piece has a partner in the other prompt."""
    blank = np.zeros([len(pieces[axis]) for axis in axes], bool)
    if "position" in axes:
        alone = [
            all(not isinstance(column, str) and None in columns[column] for column in piece)
            for piece in pieces["position"]
        ]
        np.moveaxis(blank, axes.index("position"), 0)[np.array(alone)] = True
    return blank


def footer(sweeps: Mapping[str, Sweep], normalised: bool) -> list[str]:
    """The lines below a picture of sweeps: the prompts, the metrics of the unpatched runs, and the notes.

    normalised: whether the picture shows normalised values where there are any.

    Sweeps of different questions, which a user may have put together, are told apart by their names.
    """
    questions: dict[str, dict[str, Sweep]] = {}
    for name, s in sweeps.items():
        asked = jsonable([s.experiment, s.source.name, s.corruption, s.n_pairs])
        questions.setdefault(str(asked), {})[name] = s
    lines = []
    for group in questions.values():
        first = next(iter(group.values()))
        lines += [f"{', '.join(group)}:"] if len(questions) > 1 else []
        lines += about(first, list({s.metric: s for s in group.values()}.values()), first.corruption)
    scaled = normalised and any(s.donor_value is not None and s.has_scale for s in sweeps.values())
    scale = ["normalised: 0 is the run patched into, 1 the run patched from"] if scaled else []
    return [*lines, *scale, *dict.fromkeys(n for s in sweeps.values() for n in s.notes)]


def about(result: Any, metrics: Sequence[Any], corruption: Corruption | None = None) -> list[str]:
    """The prompts, answers and model of a result, and the metrics of its unpatched runs: those of `metrics`."""
    lines, means = [], []
    mean = result.n_pairs > 1
    for name in ("clean", "corrupted"):
        values = [(s.metric, getattr(s, f"baseline_{name}")) for s in metrics]
        if values[0][1] is not None:
            prompt = getattr(result.experiment, name)
            prompt = prompt if isinstance(prompt, str) else f"token ids {np.asarray(prompt).tolist()}"
            if name == "corrupted" and corruption:
                prompt = f"the clean prompt with {corruption}"
            measured = ", ".join(f"{metric} {number(value)}" for metric, value in values)
            lines.append(f"first pair, {name}: {prompt}" if mean else f"{name}: {prompt}   {measured}")
            means.append(f"{name} {measured}")
    if mean:  # of all pairs, so not what the first pair's prompts give
        lines.append(f"mean of {result.n_pairs} pairs: {'; '.join(means)}")
    return [*lines, f"{answers(result.experiment, result.n_pairs)}, model {result.source.name}"]


def left_out(skipped: Sequence[tuple[str, str]]) -> list[str]:
    """A sentence about the experiments that a mean leaves out; none if there are none."""
    more = f"; and {len(skipped) - 1} more" if len(skipped) > 1 else ""
    return [f"Left out: {where}: {reason}{more}." for where, reason in skipped[:1]]


def answers(experiment: Experiment, n_pairs: int) -> str:
    if experiment.answer is None:
        return "no answers"
    whose = "the first pair's " if n_pairs > 1 else ""
    wrong = "" if experiment.wrong_answer is None else f", wrong answer {experiment.wrong_answer!r}"
    return f"{whose}answer {experiment.answer!r}{wrong}"


def _is_item(item: Any, axis: str) -> bool:
    """Whether it is what can be patched along an axis: a name, a number, or a (layer, number) pair."""
    if axis in Paths.axes or (axis == "position" and isinstance(item, str)):
        return isinstance(item, str)
    pair = axis in ("head", "neuron") and isinstance(item, tuple) and len(item) == 2
    return all(type(number) is int and number >= 0 for number in (item if pair else (item,)))


def _item(item: Any) -> str:
    return ".".join(map(str, item)) if isinstance(item, tuple) else str(item)


def _defaults(kind: type) -> dict[str, Any]:
    """The fields of a dataclass that have a default, which older files may lack, as a file holds them."""
    found = {}
    for known in fields(kind):
        if known.default is not MISSING:
            found[known.name] = jsonable(known.default)
        elif known.default_factory is not MISSING:
            found[known.name] = jsonable(known.default_factory())
    return found


def _from_format_1(old: Contents) -> Contents:
    """The header of a file that version 0.1.0 wrote, in today's fields."""
    new = {name: value for name, value in old.items() if name not in ("format", "model", "model_sha256")}
    new = {**_defaults(Sweep), **new}
    new["experiment"] = {**_defaults(Experiment), **old["experiment"]}
    new |= {"kind": Sweep.kind, "source": {"name": old["model"], "sha256": old["model_sha256"]}}
    renamed = {"destination": "query", "source": "key"}
    new["axes"] = [renamed.get(axis, axis) for axis in old["axes"]]
    new["pieces"] = {renamed.get(axis, axis): pieces for axis, pieces in old["pieces"].items()}
    ablation = re.fullmatch(r"replaced by (zero|the mean|another).*\(ablation\)", old["direction"])
    if ablation:
        replaced: Any = {"zero": Zero(), "the mean": Mean(()), "another": Resample(())}[ablation[1]]
        new |= {"direction": "noise", "corruption": corruptions.to_dict(replaced)}
    path = re.fullmatch(r"(.*) path \((.*) between\)", old["site"])
    if path:
        new |= {"site": "path" if path[1] == "exact" else f"{path[1]} path", "between": path[2]}
    if any(None in pair or pair[0] != pair[1] for pair in old["columns"]):
        new["experiment"]["align"] = "diff"
    new["remarks"] = []
    for remark in old["remarks"]:  # most are fields today; the seeds of noise were not kept, only their number
        noise = re.match(
            r"Corrupted by Gaussian noise of (\S+) .* positions ([\d, ]+), averaged over (\d+) seeds", remark
        )
        if noise:
            positions = list(map(int, noise[2].split(",")))
            new["corruption"] = corruptions.to_dict(Noise(positions, float(noise[1]), tuple(range(int(noise[3])))))
        elif remark.startswith("Cells of several layers"):
            new["adds_layers"] = True
        elif remark.startswith("The derivative of"):
            new["finite_differences"] = True
        elif not re.match("Not patched|Noise takes|Blank where|.* is no finite number", remark):
            new["remarks"].append(remark)
    check_direction(new["direction"])
    return new
