"""A logit, or a difference of logits, as a sum over the parts of the model that wrote it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import NanopatchError
from ..files import Source, write_whole
from ..model.tokenizer import visible
from ..page.document import result_page
from ..page.pack import Shown
from ..types import Array, PathLike
from . import plot
from .base import Result, check, check_shape
from .matrix import Matrix, number
from .pairs import Pairs, check_pairs
from .sweep import left_out
from .view import of_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .plot import Drawing

#: What a picture of the parts can be.
KINDS = ("bars", "heads", "cumulative")
#: Parts of a picture of bars; the smaller ones are summed.
MOST_BARS = 40


@dataclass(frozen=True, eq=False, repr=False)
class DirectAttribution(Result):
    """What each part of a run adds to a logit, or to a difference of two. The parts sum to it.

    Attributes
    ----------
    tokens, ids : tuple of str, tuple of int
        The prompt.
    position : int
        Where the logits are read.
    answer, wrong_answer : str or None
        Whose logits.
    names : tuple of str
        The parts: `embed`, `pos_embed`, `head 2.1`, `attn bias 2`, `mlp 2`, `mlp bias 2`, ..., `ln_f bias`. Where the
        run was patched, an edit is a part of its own: `edit of resid_pre 3`.
    values : ndarray, (n_parts,)
        float64.
    n_layer, n_head : int
    split : str or None
        The part that stands there in pieces: neurons of an MLP, or source positions of a head.
    source : Source
        Where the weights came from.
    n_pairs : int
        How many runs the values are means over. Tokens and answers are the first one's.
    standard_error : ndarray or None
        Like values: the standard error of the mean; None for one run.
    skipped : tuple
        ((where, reason), ...) of the pairs left out.
    pairs : Pairs or None
        What each of several pairs gave; None for one run.
    """

    kind: ClassVar[str] = "direct logit attribution"
    averaged: ClassVar[tuple[str, ...]] = ("values",)
    derived: ClassVar[tuple[str, ...]] = ("total",)

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    position: int
    answer: str
    wrong_answer: str | None
    names: tuple[str, ...]
    values: Array
    n_layer: int
    n_head: int
    split: str | None
    source: Source
    n_pairs: int = 1
    standard_error: Array | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    pairs: Pairs | None = None

    def _check(self) -> None:
        check_shape(self.values, (len(self.names),), "values", float)
        check_shape(self.standard_error, self.values.shape, "standard_error", float)
        check((self.standard_error is not None) == (self.n_pairs > 1) and self.n_pairs >= 1, "n_pairs")
        check_pairs(self.pairs, self.n_pairs, self.values.shape)
        check(len(self.ids) == len(self.tokens) > self.position >= 0, "position")
        check(len(set(self.names)) == len(self.names), "names")
        check(self.n_layer > 0 and self.n_head > 0, "n_layer")

    @property
    def parts(self) -> dict[str, float]:
        """{name of a part: what it adds}, in the order of the forward pass."""
        return dict(zip(self.names, self.values.tolist(), strict=True))

    @property
    def total(self) -> float:
        """The logit, or the difference of logits: the sum of the parts."""
        return float(self.values.sum())

    @property
    def heads(self) -> Array:
        """What each head adds, (n_layer, n_head); a head that is split is the sum of its pieces."""
        grid = np.zeros((self.n_layer, self.n_head))
        for name, value in self.parts.items():
            match = re.match(r"head (\d+)\.(\d+)\b", name)
            if match:
                grid[int(match[1]), int(match[2])] += value
        return grid

    @property
    def cumulative(self) -> dict[str, float]:
        """The sum of the parts up to each point of the stream: after the embedding, each attention, each MLP, ln_f."""
        sums: dict[str, float] = {}
        so_far = 0.0
        for name, value in self.parts.items():
            so_far += value
            sums[_point(name)] = so_far
        return sums

    @property
    def title(self) -> str:
        """What was taken apart, in one line."""
        wrong = "" if self.wrong_answer is None else f" minus {visible(self.wrong_answer)}"
        where = f"after {self.position} {visible(self.tokens[self.position])}"
        mean = f", mean of {self.n_pairs} pairs" if self.n_pairs > 1 else ""
        total = f"{number(self.total, 3)}{mean}"
        return f"logit of {visible(self.answer)}{wrong} {where}: {total}, by the parts that wrote it"

    def about(self) -> list[str]:
        """The prompt and the model, as lines below the picture and the table."""
        first = "first pair's " if self.n_pairs > 1 else ""
        return [f"{first}{of_run(self.tokens, self.source)}"]

    @property
    def notes(self) -> list[str]:
        """What a reader must know, as sentences; usually none."""
        mean = [f"Mean of {self.n_pairs} pairs. Tokens and answers are the first pair's."] if self.n_pairs > 1 else []
        return [*mean, *left_out(self.skipped)]

    def __repr__(self) -> str:
        return f"<DirectAttribution: {len(self.names)} parts, total {number(self.total, 3)}>"

    def text(self) -> str:
        width = max(map(len, self.names))
        errors, said = [""] * len(self.names), []
        if self.standard_error is not None:
            errors = [f" ± {number(error, 3)}" for error in self.standard_error]
            said = ["± is the standard error of the mean."]
        parts = zip(self.names, self.values, errors, strict=True)
        lines = [f"{name:{width}}  {number(value, 3):>9}{error}" for name, value, error in parts]
        return "\n".join([self.title, *self.about(), *lines, *said, *self.notes])

    def plot(self, kind: str = "bars", ax: Axes | None = None) -> Figure:
        """Draw the parts as "bars", the "heads" as layers by heads, or the sum as a "cumulative" line over the layers.

        Returns the matplotlib Figure (see `Result.plot`).
        """
        self._check_kind(kind)
        return plot.drawn(self._drawing(kind), [*self.about(), *self.notes], ax)

    def save(self, path: PathLike, kind: str = "bars") -> None:
        """As `Result.save`; pictures are `plot(kind)`."""
        self._check_kind(kind)
        ending = Path(path).suffix.lower()[1:]
        if ending in plot.FORMATS:
            picture = plot.picture(self._drawing(kind), [*self.about(), *self.notes])
            write_whole(path, plot.as_bytes(picture, ending))
        else:
            super().save(path)

    def _check_kind(self, kind: str) -> None:
        if kind not in KINDS:
            raise NanopatchError(f"kind must be one of {', '.join(KINDS)}, not {kind!r:.60}")

    def _parts(self) -> tuple[Drawing, list[str]]:
        return self._drawing("bars"), [*self.about(), *self.notes]

    def _drawing(self, kind: str) -> Drawing:
        if kind == "heads":
            return plot.heatmap(self.matrix())
        if kind == "cumulative":
            return plot.line(np.array(list(self.cumulative.values())), list(self.cumulative), self.title, "sum so far")
        names, values = list(self.names), self.values
        if len(names) > MOST_BARS:
            large = np.sort(np.argsort(-np.abs(values), kind="stable")[: MOST_BARS - 1])
            rest = np.delete(values, large)
            names = [*(names[i] for i in large), f"the other {len(rest)}, summed"]
            values = np.append(values[large], rest.sum())
        return plot.bars(values, names, self.title, "added to the logit" + (" difference" if self.wrong_answer else ""))

    def matrix(self) -> Matrix:
        """What each head adds, layers by heads."""
        return Matrix(
            values=self.heads,
            rows=[str(layer) for layer in range(self.n_layer)],
            rows_title="layer",
            columns=[str(head) for head in range(self.n_head)],
            columns_title="head",
            title=self.title.replace("the parts that wrote it", "the heads that wrote it"),
            unit="logits",
            signed=True,
            largest=0.0,
        )

    def reply(self) -> Shown:
        """What the page shows: the parts, the heads as a matrix, and the sum after each point of the pass."""
        values = {
            **{"title": self.title, "names": self.names, "total": self.total, "notes": self.notes},
            "cumulative_names": [*self.cumulative],
        }
        cumulative = np.array([*self.cumulative.values()])
        arrays = {"values": self.values, "heads": self.heads, "cumulative": cumulative}
        return Shown(values, {name: array.astype(np.float32) for name, array in arrays.items()})

    def page(self) -> bytes:
        return result_page(["direct"], self.source.name, [({"view": "direct", "run": "clean"}, self.reply())], {})

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict for each part: its name, what it adds; of a mean, its standard error."""
        rows: list[dict[str, Any]] = [{"part": name, "value": value} for name, value in self.parts.items()]
        if self.standard_error is None:
            return rows
        return [{**row, "standard_error": float(e)} for row, e in zip(rows, self.standard_error, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """The whole result as JSON can hold it, with `total`."""
        return super().to_dict() | {"total": self.total}


def _point(name: str) -> str:
    """The point of the residual stream behind which a part is written: "embed", "attn 2", "mlp 2", "ln_f"."""
    match = re.match(r"(head|attn bias|mlp bias|mlp|neuron|edit of \w+) (\d+)", name)
    if match is None:
        return "ln_f" if "ln_f" in name or "ln_final" in name or "logits" in name else "embed"
    kind = "attn" if match[1] in ("head", "attn bias", "edit of attn_out", "edit of resid_mid") else "mlp"
    if match[1] == "edit of resid_pre":
        return f"mlp {int(match[2]) - 1}" if int(match[2]) else "embed"
    return f"{kind} {match[2]}"
