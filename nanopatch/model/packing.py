"""Which rows of a block's matrices attend to which.

Everything in a block but attention acts on rows, each by itself, so the rows of many runs can stand in
one tall matrix and every weight is read once for all of them. Only attention must know which rows
belong together. It asks a *part*, which cuts queries, keys and values out of the block's arrays:

    queries(x)           the rows of `x` (q or z) that attend, (..., n_query, n_head, d_head), a view
    keys(k), values(v)   what they may attend to, (..., n_key, n_head, d_head); the last query's own
                         position is the last key
"""

from typing import NamedTuple

import numpy as np


class QueryBlock(NamedTuple):
    """Neighbouring queries of one run, or of each run of a batch, with the keys up to the last of them."""

    begin: int
    end: int
    n_key: int

    def queries(self, x):
        return x[..., self.begin : self.end, :, :]

    def keys(self, k):
        return k[..., : self.n_key, :, :]

    values = keys


def query_blocks(n_query, n_key, size):
    """Parts of at most `size` queries. Keys behind a part's last query are masked for all of it: left out."""
    before = n_key - n_query  # keys that stand before the first query
    ends = [*range(size, n_query, size), n_query]
    return [QueryBlock(begin, end, before + end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


class Segment(NamedTuple):
    """Runs of one length in a matrix of packed rows, each going on from the same known first positions.

    runs: their numbers. rows: where they stand, one after the other, in the matrix of keys and values.
    query_rows: where they stand among the rows that attend. past_k, past_v: keys and values of the
    known positions, (start, n_head, d_head).
    """

    runs: range
    rows: slice
    query_rows: slice
    past_k: np.ndarray
    past_v: np.ndarray

    def queries(self, x):
        return self._apart(x[self.query_rows])

    def keys(self, k):
        return self._after(self.past_k, self._apart(k[self.rows]))

    def values(self, v):
        return self._after(self.past_v, self._apart(v[self.rows]))

    def _apart(self, rows):
        return rows.reshape(len(self.runs), -1, *rows.shape[1:])

    def _after(self, past, new):
        return np.concatenate([np.broadcast_to(past, (len(self.runs), *past.shape)), new], axis=1) if len(past) else new


def causal_mask(n_query, n_key, dtype):
    """0 where a query may look (its own position and earlier), -inf where not; the last query is the last key."""
    return np.triu(np.full((n_query, n_key), -np.inf, dtype), k=1 + n_key - n_query)
