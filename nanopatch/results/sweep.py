"""What patching returns: a grid of numbers that knows what it is, and shows, saves and loads itself."""

import csv
import io
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..model.checkpoint import Source
from ..errors import NanopatchError
from ..experiments.experiment import Experiment
from ..files import write_whole

#: The arrays of a sweep; in a file, all else is in the header.
ARRAYS = ("grid", "standard_error", "unchanged")


@dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """A grid of patching results, with everything needed to read it.

    grid: the metric after each patch, float64, an axis for each of `axes`; NaN where a position has no
    partner. pieces: {axis: for each entry, the list of what was patched together there}. columns:
    (position in the clean prompt, position in the corrupted prompt) of each column of the aligned
    prompts, which the axis "position" counts; None where a token has no partner. clean_tokens,
    corrupted_tokens: the text of each token. baseline_clean, baseline_corrupted: the metric of the two
    unpatched runs (None for an ablation, which has no corrupted run). rounding: baselines closer than
    this are equal. source: the model's name and, as `source.sha256`, the hash of its file. remarks:
    sentences that belong to `notes`. unchanged: like grid, True where a patch could change nothing that
    is measured, by the tokens and the causal mask (before the first differing token, say, or in block 0 the residual
    stream of a token that does not differ); None where that was not asked. steps: None where every cell was patched
    and run; of an estimate (see `nanopatch.attribute`) 1 for attribution patching, more for integrated gradients.

    Of a mean over pairs (`nanopatch.pairs`): n_pairs: how many; standard_error: of the mean in each cell
    of the grid, None for one pair; skipped: ((where, reason), ...) of the pairs left out; tokens and
    experiment are the first pair's, tokens that others do not share ending in ….
    """

    grid: np.ndarray
    site: str
    axes: tuple
    pieces: dict
    direction: str
    metric: str
    experiment: Experiment
    columns: tuple
    clean_tokens: tuple
    corrupted_tokens: tuple
    baseline_clean: float
    baseline_corrupted: float
    rounding: float
    source: Source
    remarks: tuple = ()
    unchanged: np.ndarray = None
    n_pairs: int = 1
    standard_error: np.ndarray = None
    skipped: tuple = ()
    steps: int = None

    @property
    def baseline_into(self):
        """The metric of the run that is patched into: 0 of the normalised scale."""
        return self.baseline_corrupted if self.direction == "denoise" else self.baseline_clean

    @property
    def baseline_from(self):
        """The metric of the run that is patched from: 1 of the normalised scale. None for an ablation."""
        return self.baseline_clean if self.direction == "denoise" else self.baseline_corrupted

    @property
    def scale(self):
        """What `normalised` is: "normalised", or for an ablation, which has no run to patch from, "relative change"."""
        return "relative change" if self.baseline_from is None else "normalised"

    @property
    def normalised(self):
        """The grid on the scale on which 0 is the run patched into and 1 the run patched from.

        For an ablation, the change relative to the size of the unpatched metric. NaN throughout where
        there is no such scale, because the baselines are equal (or the unpatched metric is 0); `notes`
        then says so.
        """
        span = abs(self.baseline_into) if self.baseline_from is None else self.baseline_from - self.baseline_into
        return (self.grid - self.baseline_into) / (span if abs(span) > self.rounding else np.nan)

    @property
    def notes(self):
        """What a reader of the grid must know, as sentences; usually none."""
        notes = list(self.remarks)
        if self.n_pairs > 1:
            notes.append(f"Mean of {self.n_pairs} pairs; the first is shown, with … after a token that not all have.")
        if self.skipped:
            where, reason = self.skipped[0]
            more = f"; and {len(self.skipped) - 1} more" if len(self.skipped) > 1 else ""
            notes.append(f"Left out: {where}: {reason}{more}.")
        if self.baseline_from is None:
            if abs(self.baseline_into) <= self.rounding:
                notes.append(f"No relative change: {self.metric} of the unpatched run is 0.")
        elif abs(self.baseline_from - self.baseline_into) <= self.rounding:
            notes.append(
                f"Not normalised: {self.metric} is {self.baseline_clean:.4g} in both unpatched runs, so there is no "
                "scale."
            )
        if any(None in pair for pair in self.columns):
            notes.append("Tokens without a partner in the other prompt cannot be patched; their columns are blank.")
        if any(None not in pair and pair[0] != pair[1] for pair in self.columns):
            notes.append(
                "The prompts are aligned by their tokens: where positions differ, a patch carries the position "
                "embedding (wpe) of another position with it."
            )
        return notes

    @property
    def column_labels(self):
        """One label a column: the token, or `clean / corrupted` where they differ; ␣ is a space, – no token."""
        labels = []
        for clean, corrupted in self.columns:
            pair = [
                "–" if position is None else visible(tokens[position])
                for position, tokens in ((clean, self.clean_tokens), (corrupted, self.corrupted_tokens))
            ]
            labels.append(pair[0] if pair[0] == pair[1] else " / ".join(pair))
        return labels

    def labels(self, axis):
        """The labels along one axis: tokens for positions, numbers for layers and heads; groups joined by +."""
        if axis == "position":
            names = self.column_labels
        elif axis in ("destination", "source"):
            names = [visible(t) for t in (self.corrupted_tokens if self.direction == "denoise" else self.clean_tokens)]
        else:
            names = None

        def label(item):
            return ".".join(map(str, item)) if isinstance(item, (tuple, list)) else names[item] if names else str(item)

        return ["+".join(map(label, piece)) for piece in self.pieces[axis]]

    def as_matrix(self, values):
        """The grid, or values shaped like it, flat: (matrix, row labels, row title, column labels, column title).

        Tokens make the columns if there are any, else the last axis does; all other axes make the rows.
        """
        column = next((axis for axis in ("source", "destination", "position") if axis in self.axes), self.axes[-1])
        others = [axis for axis in self.axes if axis != column]
        columns = self.labels(column)
        matrix = np.moveaxis(values, self.axes.index(column), -1).reshape(-1, len(columns))
        rows = [".".join(labels) for labels in itertools.product(*map(self.labels, others))]
        return matrix, rows, ".".join(others), columns, column

    @property
    def title(self):
        """What was copied where, in one line, and whether that was estimated."""
        ways = {
            "denoise": "patched from clean into corrupted (denoising)",
            "noise": "patched from corrupted into clean (noising)",
        }
        how = {None: "", 1: "attribution: "}.get(self.steps, f"integrated gradients, {self.steps} steps: ")
        mean = f", mean of {self.n_pairs} pairs" if self.n_pairs > 1 else ""
        return f"{how}{self.site} {ways.get(self.direction, self.direction)}, {self.source.name}{mean}"

    def __repr__(self):
        shape = " x ".join(f"{n} {axis}s" for n, axis in zip(self.grid.shape, self.axes, strict=True))
        return f"<Sweep: {self.title}; {self.metric}, {shape}>"

    def __str__(self):
        from .table import sweep_table

        return sweep_table(self)

    def plot(self, ax=None, normalised=True):
        """Draw the grid as a heatmap with matplotlib; returns its Axes. normalised=False draws the raw metric."""
        from .plot import heatmap

        return heatmap(self, ax, normalised)

    def _repr_png_(self):  # how a notebook shows it
        from .plot import as_bytes, picture

        return as_bytes(picture(self))

    # ---- files ----------------------------------------------------------------------------------

    def to_rows(self):
        """One dict a patch: where it was (positions and tokens of both prompts), the metric, and it normalised."""
        normalised = self.normalised
        rows = []
        for index, value in np.ndenumerate(self.grid):
            pieces = {axis: self.pieces[axis][i] for axis, i in zip(self.axes, index, strict=True)}
            row = {axis: piece[0] if len(piece) == 1 else "+".join(map(str, piece)) for axis, piece in pieces.items()}
            if "position" in row:
                del row["position"]
                pairs = [self.columns[column] for column in pieces["position"] if None not in self.columns[column]]
                if not pairs:
                    continue
                for name, side, tokens in (("clean", 0, self.clean_tokens), ("corrupted", 1, self.corrupted_tokens)):
                    row[f"{name}_position"] = "+".join(str(pair[side]) for pair in pairs)
                    row[f"{name}_token"] = "+".join(tokens[pair[side]] for pair in pairs)
            if self.unchanged is not None:
                row["unchanged"] = bool(self.unchanged[index])
            row[self.metric] = float(value)
            row[f"{self.metric}_{self.scale.replace(' ', '_')}"] = float(normalised[index])
            if self.standard_error is not None:
                row[f"{self.metric}_standard_error"] = float(self.standard_error[index])
            rows.append(row)
        return rows

    def to_csv(self, path):
        """Write `to_rows()` as CSV, UTF-8, with a header line."""
        write_csv(path, self.to_rows())

    def header(self):
        """All but the grid, as what JSON can hold."""
        return {
            "format": "nanopatch sweep 1",
            "model": self.source.name,
            "model_sha256": self.source.sha256,
            "experiment": self.experiment.to_dict(),
            "site": self.site,
            "axes": self.axes,
            "pieces": self.pieces,
            "direction": self.direction,
            "metric": self.metric,
            "columns": self.columns,
            "clean_tokens": self.clean_tokens,
            "corrupted_tokens": self.corrupted_tokens,
            "baseline_clean": self.baseline_clean,
            "baseline_corrupted": self.baseline_corrupted,
            "rounding": self.rounding,
            "remarks": self.remarks,
            "n_pairs": self.n_pairs,
            "skipped": self.skipped,
            "steps": self.steps,
        }

    def save(self, path):
        """Write it to `path` as .npz: its arrays, and all else as JSON in the array `header`. Lossless."""
        file = io.BytesIO()
        arrays = {name: getattr(self, name) for name in ARRAYS if getattr(self, name) is not None}
        np.savez(file, **arrays, header=json.dumps(self.header(), ensure_ascii=False))
        write_whole(path, file.getvalue())

    @classmethod
    def load(cls, path):
        """Read what `save` wrote. NanopatchError if the file is not such a one."""
        try:
            with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ARRAYS if name in file}
                header = json.loads(str(file["header"]))
            if header.pop("format") != "nanopatch sweep 1":
                raise ValueError("another format")
            return cls(
                **arrays,
                skipped=tuple(tuple(pair) for pair in header.pop("skipped", ())),
                experiment=Experiment(**header.pop("experiment")),
                columns=tuple(tuple(pair) for pair in header.pop("columns")),
                pieces={
                    axis: [[_pair(i) for i in piece] for piece in pieces]
                    for axis, pieces in header.pop("pieces").items()
                },
                source=Source(header.pop("model"), known_sha256=header.pop("model_sha256")),
                **{name: tuple(value) if isinstance(value, list) else value for name, value in header.items()},
            )
        except OSError as error:
            raise NanopatchError(f"cannot read {path}: {error.strerror or error}") from None
        except Exception as error:  # zip, JSON, NumPy and missing names each raise their own
            raise NanopatchError(f"{path} does not hold a saved sweep ({type(error).__name__}: {error})") from None


class Panels(dict):
    """Sweeps by name, drawn side by side."""

    def plot(self, normalised=True):
        """Draw them side by side; returns the matplotlib Figure."""
        from .plot import panels

        return panels(self, normalised)

    def __str__(self):
        return "\n\n".join(map(str, self.values()))

    def _repr_png_(self):
        from .plot import as_bytes, picture

        return as_bytes(picture(self))

    def sweeps(self):
        """All sweeps in it, those of panels inside panels too: {name, or "name name": sweep}."""
        flat = {}
        for name, item in self.items():
            inside = item.sweeps() if isinstance(item, Panels) else {"": item}
            flat |= {f"{name} {inner}".strip(): sweep for inner, sweep in inside.items()}
        return flat

    def to_rows(self):
        """One dict a patch. Metrics of the same patches share a row; otherwise the key "panel" tells sweeps apart."""
        sweeps = self.sweeps()
        tables = [sweep.to_rows() for sweep in sweeps.values()]
        if len({(sweep.site, sweep.direction) for sweep in sweeps.values()}) == 1:
            return [
                dict(itertools.chain.from_iterable(row.items() for row in rows)) for rows in zip(*tables, strict=True)
            ]
        return [{"panel": name, **row} for name, table in zip(sweeps, tables, strict=True) for row in table]

    def to_csv(self, path):
        """Write `to_rows()` as CSV, UTF-8, with a header line."""
        write_csv(path, self.to_rows())

    def save(self, path):
        """Write each sweep as .npz (see `Sweep.save`) under its own name: heads.npz becomes heads-z.npz, ...

        Returns the paths written.
        """
        path = Path(path)
        paths = {name: path.with_name(f"{path.stem}-{name.replace(' ', '-')}{path.suffix}") for name in self.sweeps()}
        for name, sweep in self.sweeps().items():
            sweep.save(paths[name])
        return list(paths.values())


def write_csv(path, rows):
    """Write dicts as CSV, a column for each key that any of them has."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode("utf-8"))


def _pair(item):
    """JSON has lists where Python had pairs."""
    return tuple(item) if isinstance(item, list) else item


def visible(token):
    """A token's text with what would not be seen made visible: a space as ␣, control characters escaped."""
    return "".join("␣" if c == " " else c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)
