"""Head scores: which heads look at the previous token, at a duplicate token, or at the token after a duplicate."""

from __future__ import annotations

from numbers import Integral

import numpy as np

from ..errors import NanopatchError
from ..types import Array


def head_scores(pattern: Array, period: int) -> dict[str, Array]:
    """Mean attention of each head, from the second copy of repeated tokens to three places.

    Parameters
    ----------
    pattern : ndarray, (n_layer, n_head, n_query, n_key)
        The attention pattern of a run whose last 2 * period tokens are `period` random tokens and the same tokens
        again. `<|endoftext|>` may stand before them. A batch may add an axis.
    period : int
        The number of tokens that are repeated, at least 2.

    Returns
    -------
    dict of str to ndarray, (n_layer, n_head) each
        `previous_token`: attention to the token before the query.
        `duplicate_token`: attention to the query's own token in the first copy.
        `induction`: attention to the token after that one, which is the token to predict.

    Raises
    ------
    NanopatchError
        If the period is below 2, the pattern has fewer than 2 * period tokens, or it is not a pattern.

    References
    ----------
    Olsson et al. 2022, arXiv 2209.11895.

    Examples
    --------
    >>> import nanopatch, numpy as np
    >>> from nanopatch.lenses.heads import head_scores
    >>> tokens = np.random.default_rng(0).permutation(50256)[:25].tolist()
    >>> run = nanopatch.load("nano").run(tokens + tokens)
    >>> (head_scores(run.pattern, 25)["induction"] > 0.5).nonzero()
    (array([1, 1, 1, 1]), array([0, 1, 2, 3]))
    """
    if (
        not isinstance(pattern, np.ndarray) or pattern.ndim < 2 or pattern.min(initial=0) < 0
    ):  # scores are masked by -inf
        raise NanopatchError(f"a run's pattern is expected, (n_layer, n_head, n_query, n_key), not {pattern!r:.60}")
    n_query, n_key = pattern.shape[-2:]
    if not isinstance(period, Integral) or period < 2 or n_query != n_key or n_query < 2 * period:
        raise NanopatchError(
            f"period is {period!r} and the pattern is {n_query} x {n_key}: give a period of 2 or more, and the pattern "
            "of at least twice as many tokens"
        )
    queries = np.arange(n_query - period, n_query)  # the second copy
    distances = {"previous_token": 1, "duplicate_token": period, "induction": period - 1}
    return {name: pattern[..., queries, queries - distance].mean(-1) for name, distance in distances.items()}
