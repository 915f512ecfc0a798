"""Scores of attention heads: from what they attend to, and from their weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import NanopatchError
from ..files import Source
from ..types import Array
from . import plot
from .base import Result, check, check_shape
from .matrix import Matrix, number
from .sweep import Sweep, footer
from .table import table
from .view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The scores of a head, in the order in which they are shown.
SCORES = ("induction", "previous_token", "duplicate_token", "first_token", "current_token")


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores(Result):
    """What each head attends to, and beside it what patching or ablating that head does.

    The five scores are shares of attention from 0 to 1, float64 (n_layer, n_head): means over prompts. NaN where no
    prompt has a query that counts.

    Attributes
    ----------
    induction : ndarray
        Attention to the tokens that followed the query's token earlier in the prompt.
    previous_token : ndarray
        Attention to the token before the query.
    duplicate_token : ndarray
        Attention to the same token as the query's, earlier in the prompt.
    first_token : ndarray
        Attention to the first token of the prompt.
    current_token : ndarray
        Attention to the query itself.
    spread : dict
        {name of a score: its standard deviation over the prompts, (n_layer, n_head)}; NaN where fewer than two count.
    prompts : tuple of tuple of int
        The token ids of each prompt.
    seeds : tuple of int or None
        The seed of each prompt, if they are repeated random tokens. Then the queries of the second copy count.
    effects : dict
        {name: a `Sweep` over layers and heads}.
    source : Source
        Where the weights came from.
    """

    kind: ClassVar[str] = "head scores"

    induction: Array
    previous_token: Array
    duplicate_token: Array
    first_token: Array
    current_token: Array
    spread: Mapping[str, Array]
    prompts: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...] | None
    source: Source
    effects: Mapping[str, Sweep] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n_layer, n_head = self.induction.shape
        heads = {"layer": [(i,) for i in range(n_layer)], "head": [(i,) for i in range(n_head)]}
        for effect in self.effects.values():
            own = {axis: [tuple(piece) for piece in effect.pieces[axis]] for axis in effect.axes}
            if effect.axes != ("layer", "head") or own != heads:
                raise NanopatchError(
                    f"beside the scores stand sweeps of every layer and head, {n_layer} x {n_head}, one by one, such "
                    f"as Patch({effect.site!r:.60}, axes=('layer', 'head')); not {effect!r:.160}"
                )
            if effect.source is not self.source and effect.source.to_dict() != self.source.to_dict():
                raise NanopatchError(
                    f"{effect!r:.160} is of another model than the scores, which are of {self.source.name}: give a "
                    "sweep of the same model"
                )

    def _check(self) -> None:
        shape = self.induction.shape
        check(len(shape) == 2 and self.induction.size, "induction")
        check(set(self.spread) == {*SCORES}, "spread")
        for name in SCORES:
            check_shape(getattr(self, name), shape, name, float)
            check_shape(self.spread[name], shape, f"spread of {name}", float)
        check(self.prompts and all(len(ids) > 1 and min(ids) >= 0 for ids in self.prompts), "prompts")
        check(self.seeds is None or len(self.seeds) == len(self.prompts), "seeds")

    @property
    def scores(self) -> dict[str, Array]:
        """{name: the score}, all five."""
        return {name: getattr(self, name) for name in SCORES}

    @property
    def title(self) -> str:
        """Whose scores these are, and over what they are means."""
        n = len(self.prompts)
        over = "1 prompt" if n == 1 else f"{n} prompts"
        if self.seeds is not None:
            draws, n_tokens = "seed" if n == 1 else "seeds", len(self.prompts[0]) // 2
            bos = " after a first token" if len(self.prompts[0]) % 2 else ""
            over = f"{n_tokens} random tokens, repeated{bos} ({draws} {', '.join(map(str, self.seeds))})"
        return f"attention of each head of {self.source.name}, mean over {over}"

    @property
    def notes(self) -> list[str]:
        """What a reader must know, as sentences; usually none."""
        notes = []
        unused = sum(len(set(ids)) == len(ids) for ids in self.prompts)
        if unused:
            notes.append(
                f"No token is there twice in {unused} of {len(self.prompts)} prompts: they do not count for induction "
                "and duplicate_token."
            )
        return [*notes, *dict.fromkeys(note for effect in self.effects.values() for note in effect.notes)]

    def __repr__(self) -> str:
        n_layer, n_head = self.induction.shape
        return f"<HeadScores: {self.title}; {n_layer} layers x {n_head} heads>"

    # ---- how it is shown ------------------------------------------------------------------------

    def matrices(self) -> list[Matrix]:
        """Each score, then each effect, laid out flat: layers by heads."""
        n_layer, n_head = self.induction.shape
        scores = [
            Matrix(
                values=values,
                rows=[str(layer) for layer in range(n_layer)],
                rows_title="layer",
                columns=[str(head) for head in range(n_head)],
                columns_title="head",
                title=name.replace("_", " "),
                unit="share of attention",
                signed=False,
                largest=1.0,
            )
            for name, values in self.scores.items()
        ]
        return [*scores, *(effect.matrix()._replace(title=name) for name, effect in self.effects.items())]

    def _picture(self) -> Figure:
        columns = [[matrix] for matrix in Matrix.of_one_scale(self.matrices())]
        return plot.panels(columns, [self.title, *self._spread_line(), *footer(self.effects, True), *self.notes])

    def text(self) -> str:
        """A line for each head. A value is shaded by its share of the largest of its unit."""
        matrices = Matrix.of_one_scale(self.matrices())
        n_layer, n_head = self.induction.shape
        whole = Matrix(
            values=np.array([(matrix.values / matrix.scale[1]).ravel() for matrix in matrices]).T,
            rows=[f"{layer}.{head}" for layer in range(n_layer) for head in range(n_head)],
            rows_title="head",
            columns=[*(name.removesuffix("_token").replace("_", " ") for name in SCORES), *self.effects],
            columns_title="",
            title=self.title,
            unit="",
            signed=True,
            largest=1.0,
            noise=np.inf,  # each column has a scale of its own
            texts=np.array([[*map(matrix.text, matrix.values.ravel())] for matrix in matrices], object).T,
        )
        units = [f"{name}: {m.unit}" for name, m in zip(self.effects, matrices[len(SCORES) :], strict=True)]
        return "\n".join([self.title, *units, *table(whole), *self._spread_line(), *self.notes])

    def _spread_line(self) -> list[str]:
        known = [spread[np.isfinite(spread)].max(initial=0.0) for spread in self.spread.values()]
        over = "prompts" if self.seeds is None else "seeds"
        return [f"standard deviation over {over}: at most {number(max(known))}"] if len(self.prompts) > 1 else []

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict for each head: layer, head, each score and its spread, and each effect, raw and normalised."""
        rows = []
        for layer, head in np.ndindex(self.induction.shape):
            row: dict[str, Any] = {"layer": layer, "head": head}
            for name, score in self.scores.items():
                row |= {name: float(score[layer, head]), f"{name}_spread": float(self.spread[name][layer, head])}
            for name, s in self.effects.items():
                metric, scaled = f"{name}: {s.metric}", s.scale.replace(" ", "_")
                row |= {metric: float(s.grid[layer, head]), f"{metric}_{scaled}": float(s.normalised[layer, head])}
            rows.append(row)
        return rows


@dataclass(frozen=True, eq=False, repr=False)
class WeightScores(View):
    """What the weights alone say about heads, or about pairs of heads.

    Attributes
    ----------
    name : str
        "OV copying", or "Q-composition", "K-composition" or "V-composition".
    values : ndarray
        float64. Copying: (n_layer, n_head). Composition: (n_layer, n_head, n_layer, n_head), the earlier head first;
        NaN where the second is not in a later layer.
    source : Source
        Where the weights came from.
    """

    kind: ClassVar[str] = "weight scores"

    name: str
    values: Array
    source: Source

    def _check(self) -> None:
        shape = self.values.shape
        pairs = len(shape) == 4 and shape[:2] == shape[2:] and shape[0] > 1
        check_shape(self.values, shape, "values", float)
        check(self.values.size and (len(shape) == 2 or pairs), "values")

    def __repr__(self) -> str:
        return f"<WeightScores: {self.name}, {self.source.name}, {' x '.join(map(str, self.values.shape))}>"

    def matrix(self) -> Matrix:
        """Copying: layers by heads. Composition: earlier heads by later heads, without those that have no partner."""
        n_layer, n_head = self.values.shape[:2]
        pairs = self.values.ndim == 4
        values, rows, columns = self.values, [*map(str, range(n_layer))], [*map(str, range(n_head))]
        if pairs:
            heads = [f"{layer}.{head}" for layer in range(n_layer) for head in range(n_head)]
            values = values[:-1, :, 1:].reshape(len(heads) - n_head, len(heads) - n_head)
            rows, columns = heads[:-n_head], heads[n_head:]
        return Matrix(
            values=values,
            rows=rows,
            rows_title="earlier head" if pairs else "layer",
            columns=columns,
            columns_title="later head" if pairs else "head",
            title=f"{self.name}, {self.source.name}, from the weights alone",
            unit="ratio of norms" if pairs else "copying score",
            signed=not pairs,
            largest=0.0 if pairs else 1.0,
        )
