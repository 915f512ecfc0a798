"""How a metric depends on each token of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..files import Source
from ..model.tokenizer import visible
from ..types import Array
from . import plot
from .base import Result, check, check_shape
from .matrix import number
from .prediction import Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .plot import Drawing


@dataclass(frozen=True, eq=False, repr=False)
class Saliency(Result):
    """How a metric depends on each token's embedding; arrays are float64 (n_tokens,).

    Attributes
    ----------
    tokens : tuple of str
    ids : tuple of int
        Of the tokens.
    metric : str
    value : float
        The metric of the run.
    norm : ndarray
        Length of the metric's derivative with respect to `resid_pre` of block 0 at each position (Simonyan et al.
        2013, arXiv 1312.6034).
    product : ndarray
        That derivative times the token's embedding, summed ("gradient x input"; Shrikumar et al. 2016, arXiv
        1605.01713).
    source, prediction
        As in a `Sweep`.
    """

    kind: ClassVar[str] = "saliency"

    tokens: tuple[str, ...]
    metric: str
    value: float
    norm: Array
    product: Array
    source: Source
    ids: tuple[int, ...] = ()
    prediction: Prediction | None = None

    @property
    def notes(self) -> list[str]:
        """What a reader must know, as sentences; usually none."""
        return self.prediction.notes(self.source.name) if self.prediction else []

    def _check(self) -> None:
        shape = (len(self.tokens),)
        check_shape(self.norm, shape, "norm", float)
        check_shape(self.product, shape, "product", float)
        check(len(self.ids) == len(self.tokens) > 0 and all(i >= 0 for i in self.ids), "ids")

    def __repr__(self) -> str:
        return f"<Saliency: {self.metric} {number(self.value, 3)}, {len(self.tokens)} tokens>"

    def text(self) -> str:
        margin = max(len(visible(token)) for token in self.tokens) + 5
        lines = [f"{self.metric} {number(self.value, 3)}", f"{'':{margin}}      norm  gradient x embedding"]
        for i, token in enumerate(self.tokens):
            lines.append(
                f"{i:>3} {visible(token):{margin - 4}}{number(self.norm[i], 3):>10}{number(self.product[i], 3):>22}"
            )
        return "\n".join([*lines, *self.notes])

    def plot(self, ax: Axes | None = None) -> Figure:
        """Bars of gradient x embedding, one for each token; returns the matplotlib Figure (see `Result.plot`)."""
        return plot.drawn(*self._parts(), ax)

    def _parts(self) -> tuple[Drawing, list[str]]:
        labels = [f"{i} {visible(token)}" for i, token in enumerate(self.tokens)]
        title = f"{self.metric} {number(self.value, 3)}: gradient x embedding of each token"
        return plot.bars(self.product, labels, title), self.notes

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict for each token: position, token, id, norm, product."""
        rows = zip(self.tokens, self.ids, self.norm, self.product, strict=True)
        return [
            dict(position=i, token=t, id=token_id, norm=float(n), product=float(p))
            for i, (t, token_id, n, p) in enumerate(rows)
        ]
