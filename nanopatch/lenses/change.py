"""How much each array of a run differs from that of another run: how a patch spreads.

n_layer, n_head, n_tokens  as in `nanopatch.model.gpt2`
"""

from __future__ import annotations

import numpy as np

from ..model.sites import ATTENTION_SITES, FINAL_SITES, Run
from ..types import Array


def relative_change(base: Run, other: Run, name: str) -> Array:
    """The norm of `other - base`, divided by the norm of `base`, for one array at each layer and position.

    Parameters
    ----------
    base, other : Run
        Two runs of one prompt, such as one without and one with a patch. Both hold the array.
    name : str
        The array. Norms go over all its axes but layer and position; of `scores` and `pattern`, the position is the
        query, and only keys that are not masked in both runs count.

    Returns
    -------
    ndarray, (n_layer, n_tokens), or (n_tokens,) for `ln_final` and `logits`
        float64. 0 where nothing changed, 1 where the change is as large as the array itself; inf where the base is zero
        and the other run is not.

    Examples
    --------
    >>> import nanopatch
    >>> model = nanopatch.load("nano")
    >>> clean, corrupted = model.run("The capital of France is"), model.run("The capital of Italy is")
    >>> (relative_change(clean, corrupted, "resid_post") > 0).astype(int)
    array([[0, 0, 0, 1, 1],
           [0, 0, 0, 1, 1],
           [0, 0, 0, 1, 1],
           [0, 0, 0, 1, 1]])
    """
    before, after = np.asarray(getattr(base, name)), np.asarray(getattr(other, name))
    if name in ATTENTION_SITES:  # (n_layer, n_head, n_query, n_key): the query is the position
        before, after = (np.moveaxis(array, 2, 1) for array in (before, after))
    if name == "scores":
        masked = np.isneginf(before) & np.isneginf(after)
        before, after = (np.where(masked, 0, array) for array in (before, after))
    kept = before.shape[: 1 if name in FINAL_SITES else 2]
    size, difference = (_norm(array.reshape(*kept, -1)) for array in (before, after - before))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / size)


def _norm(array: Array) -> Array:
    """The norms of an array's rows, in float64: those along its last axis."""
    norm: Array = np.sqrt(np.einsum("...i,...i->...", array, array).astype(np.float64))
    return norm
