"""What a logit lens shows: what each layer would predict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..errors import NanopatchError
from ..files import Source
from ..model.tokenizer import visible
from ..page.document import result_page
from ..page.pack import Shown, half
from ..types import Array
from .base import check, check_shape
from .matrix import Matrix
from .view import View, of_run

#: What the cells of a lens can show.
SHOWN = ("prediction", "answer_probability", "rank", "logit_diff")


@dataclass(frozen=True, eq=False, repr=False)
class LogitLens(View):
    """The residual stream of a run, read by the unembedding at every layer and position.

    All arrays are float64, (2 n_layer + 1, n_tokens). Row 2 l is the residual stream before block l, row 2 l + 1 that
    between its attention and its MLP, and the last row that after the last block: the model's own prediction.

    Attributes
    ----------
    tokens, ids : tuple of str, tuple of int
        The prompt.
    predicted, predicted_ids : tuples of tuples, of str and of int
        The likeliest next token of each cell.
    probability : ndarray
        Its probability.
    answer, wrong_answer : str or None
    answer_probability, rank : ndarray or None
        Probability of the answer, and how many tokens are likelier. Of several answers: the sum, and the best.
    logit_diff : ndarray or None
        The answer's logit minus the wrong answer's. Of several: of their means.
    source : Source
        Where the weights came from.
    shown : str
        What the cells of its table and picture show: one of "prediction", "answer_probability", "rank", "logit_diff".
    """

    kind: ClassVar[str] = "logit lens"

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    predicted: tuple[tuple[str, ...], ...]
    predicted_ids: tuple[tuple[int, ...], ...]
    probability: Array
    answer: str | None
    wrong_answer: str | None
    answer_probability: Array | None
    rank: Array | None
    logit_diff: Array | None
    source: Source
    shown: str = "prediction"

    def _check(self) -> None:
        shape = (len(self.predicted), len(self.tokens))
        check(len(self.predicted) % 2 == 1, "predicted")
        check(len(self.ids) == len(self.tokens), "ids")
        for name in ("predicted", "predicted_ids"):
            check(np.array(getattr(self, name), object).shape == shape, name)
        for name in ("probability", "answer_probability", "rank", "logit_diff"):
            check_shape(getattr(self, name), shape, name, float)
        check((self.answer is None) == (self.rank is None) == (self.answer_probability is None), "answer")
        check((self.logit_diff is not None) == (self.wrong_answer is not None), "wrong_answer")
        check(self.shown in SHOWN, "shown")

    @property
    def rows(self) -> list[str]:
        """The names of the rows: which array of the run each reads."""
        n_layer = len(self.predicted) // 2
        inside = [f"{name} {layer}" for layer in range(n_layer) for name in ("resid_pre", "resid_mid")]
        return [*inside, f"resid_post {n_layer - 1}"]

    def show(self, what: str) -> LogitLens:
        """The same lens, whose table and picture show something else; see `shown`."""
        if what not in SHOWN:
            raise NanopatchError(f"a lens shows one of {', '.join(SHOWN)}, not {what!r:.60}")
        if what != "prediction" and getattr(self, what) is None:
            needed = "answer=..., wrong_answer=..." if what == "logit_diff" else "answer=..."
            raise NanopatchError(f"this lens has no {what}: make it by logit_lens(model, run, {needed})")
        return replace(self, shown=what)

    def about(self) -> list[str]:
        return [of_run(self.tokens, self.source)]

    def __repr__(self) -> str:
        return f"<LogitLens: {len(self.predicted)} rows, {len(self.tokens)} tokens, showing {self.shown}>"

    @property
    def columns(self) -> list[str]:
        """The positions, as they are labelled."""
        return [f"{i} {visible(token)}" for i, token in enumerate(self.tokens)]

    def matrix(self) -> Matrix:
        values: Any = self.probability if self.shown == "prediction" else getattr(self, self.shown)
        wrong = "" if self.wrong_answer is None else f" minus {visible(self.wrong_answer)}"
        of = "" if self.answer is None else f" of {visible(self.answer)}"
        titles = {
            "prediction": ("the likeliest next token", "its probability"),
            "answer_probability": (f"probability{of}", "probability"),
            "rank": (f"rank{of}", "how many tokens are likelier"),
            "logit_diff": (f"logit{of}{wrong}", "logit difference"),
        }
        what, unit = titles[self.shown]
        texts = [[visible(token) for token in row] for row in self.predicted]
        return Matrix(
            values=values,
            rows=self.rows,
            rows_title="read from",
            columns=self.columns,
            columns_title="position",
            title=f"logit lens: {what}",
            unit=unit,
            signed=self.shown == "logit_diff",
            largest=1.0 if self.shown in ("prediction", "answer_probability") else 0.0,
            texts=np.array(texts, object).reshape(values.shape) if self.shown == "prediction" else None,
        )

    def reply(self) -> Shown:
        """What the page shows: the number of each cell's likeliest token among the different ones, and the numbers."""
        texts = list(dict.fromkeys(text for row in self.predicted for text in row))
        numbers = {text: number for number, text in enumerate(texts)}
        arrays = {"text": np.array([[numbers[text] for text in row] for row in self.predicted], np.uint16)}
        for name in ("probability", "answer_probability", "rank", "logit_diff"):
            array = getattr(self, name)
            if array is not None:
                arrays[name] = half(array) if name == "logit_diff" else array.astype(np.float32)
        values = {
            **{"tokens": self.tokens, "rows": self.rows, "columns": self.columns, "texts": texts},
            **{"answer": self.answer, "wrong_answer": self.wrong_answer, "notes": self.notes},
        }
        return Shown(values, arrays)

    def page(self) -> bytes:
        replies = [({"view": "lens", "run": "clean"}, self.reply())]
        return result_page(["lens"], self.source.name, replies, {"shown": self.shown})

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict for each cell: where it is, the likeliest token, and what is known of the answer."""
        known = [name for name in ("answer_probability", "rank", "logit_diff") if getattr(self, name) is not None]
        return [
            {
                "read_from": name,
                "position": column,
                "token": self.tokens[column],
                "id": self.ids[column],
                "predicted": self.predicted[row][column],
                "predicted_id": self.predicted_ids[row][column],
                "probability": float(self.probability[row, column]),
                **{name: float(getattr(self, name)[row, column]) for name in known},
            }
            for row, name in enumerate(self.rows)
            for column in range(len(self.tokens))
        ]
