"""Which rows of a block's matrices attend to which.

Everything in a block except attention acts on each row alone. So the rows of many runs can stand in one tall
matrix, and every weight is read once for all of them. Only attention must know which rows belong together.
It works on one *segment* after another, and each segment cuts its queries, keys and values out of the block's arrays:

    by_head(q, k, v)   the rows that attend, (..., n_head, n_query, d_head), and the rows they may attend to,
                       (..., n_head, n_key, d_head); the last query's own position is the last key
    assign(z, values)  writes what the rows that attend have read, (..., n_head, n_query, d_head), into `z`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..types import Array

#: How many queries attention works on at once if scores and pattern are not handed over. With fewer, products are
#: slower. With more, more masked entries are computed.
BLOCK = 128


class QueryBlock(NamedTuple):
    """Neighbouring queries of one run, or of each run of a batch, with the keys up to the last of them."""

    begin: int
    end: int
    n_key: int

    def by_head(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        return _by_head(q[..., self.begin : self.end, :, :], k[..., : self.n_key, :, :], v[..., : self.n_key, :, :])

    def assign(self, z: Array, values: Array) -> None:
        z[..., self.begin : self.end, :, :] = np.swapaxes(values, -3, -2)


class Segment(NamedTuple):
    """Runs of one length in a matrix of packed rows. All continue the same known first positions.

    runs: their numbers. rows: where they stand, one after the other, in the matrix of keys and values.
    query_rows: where they stand among the rows that attend. past_k, past_v: keys and values of the
    known positions, (start, n_head, d_head).
    """

    runs: range
    rows: slice
    query_rows: slice
    past_k: Array
    past_v: Array

    def by_head(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        return _by_head(self._run_by_run(q[self.query_rows]), self._keys(self.past_k, k), self._keys(self.past_v, v))

    def assign(self, z: Array, values: Array) -> None:
        self._run_by_run(z[self.query_rows])[...] = np.swapaxes(values, -3, -2)

    def _run_by_run(self, rows: Array) -> Array:
        return rows.reshape(len(self.runs), -1, *rows.shape[1:])  # a view

    def _keys(self, past: Array, k: Array) -> Array:
        new = self._run_by_run(k[self.rows])
        return np.concatenate([np.broadcast_to(past, (len(self.runs), *past.shape)), new], axis=1) if len(past) else new


class Continued(NamedTuple):
    """One run whose first positions are known: past_k, past_v, (n_past, n_head, d_head). All its rows attend."""

    past_k: Array
    past_v: Array

    def by_head(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        return _by_head(q, np.concatenate([self.past_k, k]), np.concatenate([self.past_v, v]))

    def assign(self, z: Array, values: Array) -> None:
        z[...] = np.swapaxes(values, -3, -2)


#: What attention works on at once.
AnySegment = QueryBlock | Segment | Continued


class Rows(NamedTuple):
    """that_attend: the index of the rows whose output is needed; segments: what attention works on, one by one."""

    that_attend: slice | Sequence[int]
    segments: Sequence[AnySegment]


def one_run(n_tokens: int, in_blocks: bool) -> Rows:
    """Every row attends to itself and to those before it; in one segment, or in blocks (faster if long)."""
    ends = [*range(BLOCK, n_tokens, BLOCK), n_tokens] if in_blocks else [n_tokens]
    return Rows(slice(None), [QueryBlock(begin, end, end) for begin, end in zip([0, *ends], ends, strict=False)])


def last_row(n_tokens: int) -> Rows:
    """Only the output of the last row is needed. It attends to all rows."""
    return Rows(slice(-1, None), [QueryBlock(0, 1, n_tokens)])


def _by_head(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Head axis first, so that each head's matrices stand together; views, not copies."""
    return np.swapaxes(q, -3, -2), np.swapaxes(k, -3, -2), np.swapaxes(v, -3, -2)
