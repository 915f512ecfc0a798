"""Attention patterns: where each head looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..files import Source
from ..model.tokenizer import visible
from ..page.document import result_page
from ..page.pack import Shown, half, pooled
from ..types import Array
from .base import check, check_shape
from .matrix import Matrix
from .view import View, of_run

#: On the page, patterns of more tokens are drawn in fewer cells.
MOST_TOKENS = 64


@dataclass(frozen=True, eq=False, repr=False)
class Attention(View):
    """The attention of one head or of several, from each position (the query) to those up to it (the keys).

    Attributes
    ----------
    tokens, ids : tuple of str, tuple of int
        The prompt.
    heads : tuple of (int, int)
        (layer, head) of each pattern.
    values : ndarray, (n_heads, n_query, n_key)
        float64; NaN where the key comes after the query.
    weighted : bool
        Whether the attention is multiplied by the size of what the head moves from each key.
    source : Source
        Where the weights came from.
    """

    kind: ClassVar[str] = "attention"

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    heads: tuple[tuple[int, int], ...]
    values: Array
    weighted: bool
    source: Source

    def _check(self) -> None:
        check(len(self.ids) == len(self.tokens) > 0, "ids")
        check(self.heads and len(set(self.heads)) == len(self.heads) and min(map(min, self.heads)) >= 0, "heads")
        check_shape(self.values, (len(self.heads), len(self.tokens), len(self.tokens)), "values", float)

    def _title(self) -> str:
        size = " times the size of what is moved" if self.weighted else ""
        layer, head = self.heads[0]
        of = f"head {layer}.{head}" if len(self.heads) == 1 else f"{len(self.heads)} heads"
        return f"attention of {of}{size}"

    def _in_row(self) -> int:
        """A line of the picture is a layer; the heads of one layer alone make several lines."""
        of_first = sum(layer == self.heads[0][0] for layer, _ in self.heads)
        return of_first if of_first < len(self.heads) else min(4, len(self.heads))

    def about(self) -> list[str]:
        return [of_run(self.tokens, self.source)]

    def __repr__(self) -> str:
        return f"<Attention: {self._title()}, {len(self.tokens)} tokens>"

    def matrices(self) -> dict[str, Matrix]:
        labels = [f"{i} {visible(token)}" for i, token in enumerate(self.tokens)]
        return {
            f"head {layer}.{head}": Matrix(
                values=values,
                rows=labels,
                rows_title="query",
                columns=labels,
                columns_title="key",
                title=self._title() if len(self.heads) == 1 else f"head {layer}.{head}",
                unit="attention x size of what is moved" if self.weighted else "attention",
                signed=False,
                largest=0.0 if self.weighted else 1.0,
            )
            for (layer, head), values in zip(self.heads, self.values, strict=True)
        }

    def reply(self) -> Shown:
        """What the page shows: every pattern; of many tokens in fewer cells, each the largest of its neighbours."""
        values, n = self.values, 1
        for axis in (1, 2):
            values, n = pooled(values, MOST_TOKENS, axis)
        about = {"tokens": self.tokens, "heads": self.heads, "exact": n == 1, "pooled": n, "weighted": self.weighted}
        return Shown(about, {"values": half(values)})

    def page(self) -> bytes:
        (layer, head), *_ = self.heads
        replies = [({"view": "attention", "run": "clean"}, self.reply())]
        return result_page(["attention"], self.source.name, replies, {"layer": layer, "head": head})

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict for each head, query and key that is not after the query."""
        return [
            {
                "layer": layer,
                "head": head,
                "query": query,
                "query_token": self.tokens[query],
                "query_id": self.ids[query],
                "key": key,
                "key_token": self.tokens[key],
                "key_id": self.ids[key],
                "value": float(value),
            }
            for (layer, head), values in zip(self.heads, self.values, strict=True)
            for query, row in enumerate(values)
            for key, value in enumerate(row)
            if key <= query or value == value  # what an edit put behind the mask is shown too
        ]
