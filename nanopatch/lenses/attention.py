"""Attention: where each head looks, and how much it moves from there.

n_head, d_head, n_query, n_key  as in `nanopatch.model.gpt2`
"""

from __future__ import annotations

import numpy as np

from ..errors import NanopatchError
from ..files import Source
from ..model.gpt2 import Model
from ..model.sites import Run
from ..results.attention import Attention
from ..types import Array
from .direct import w_o
from .given import check_head, check_layer, check_run


def attention(
    model: Model, run: Run, layer: int | None = None, head: int | None = None, weighted: bool = False
) -> Attention:
    """The attention pattern of one head, of all heads of a layer, or of all heads of the model.

    Parameters
    ----------
    model : Model
    run : Run
        Of one prompt: clean, corrupted or patched. It holds pattern, and, for `weighted`, v.
    layer, head : int, optional
        By default all layers, and all heads.
    weighted : bool
        Multiply the attention to each key by the norm of v[key] @ W_O of that head: the size of what the head moves
        from there. A head that looks at a token may move next to nothing from it.

    Returns
    -------
    Attention
        `plot` draws one head large, and several small, side by side. Two can be subtracted.

    Raises
    ------
    NanopatchError
        If the run does not hold these arrays (it says which sites to record), or a layer or head does not exist.

    References
    ----------
    Value-weighted: Kobayashi et al. 2020, "Attention is Not Only a Weight", arXiv 2004.10102.

    Examples
    --------
    >>> import nanopatch
    >>> model = nanopatch.load("nano")
    >>> run = model.run("Michelle Jones was a top-notch student. Michelle")
    >>> head = nanopatch.attention(model, run, layer=1, head=0)
    >>> int(head.values[0, -1].argmax())  # the last token, " Michelle", looks at position 1, " Jones"
    1
    """
    tokens = check_run(model, run, ("pattern", "v") if weighted else ("pattern",), "attention")
    if head is not None and layer is None:
        raise NanopatchError(f"head {head!r:.40} of which layer? Give layer= too")
    layers = range(model.n_layer) if layer is None else [check_layer(model.n_layer, layer)]
    heads = range(model.n_head) if head is None else [check_head(model.n_head, head)]
    shown = [(layer, head) for layer in layers for head in heads]
    return Attention(
        tokens=tuple(model.token_strings(tokens)),
        ids=tuple(map(int, tokens)),
        heads=tuple(shown),
        values=np.array([_values(model, run, layer, head, weighted) for layer, head in shown]),
        weighted=bool(weighted),
        source=model.source or Source("unnamed"),
    )


def _values(model: Model, run: Run, layer: int, head: int, weighted: bool) -> Array:
    """One head's pattern, (n_query, n_key), with NaN where the causal mask lets nothing through."""
    pattern = run.pattern[layer, head].astype(np.float64)
    masked = np.triu(pattern == 0, k=1)  # an edit may have put something behind the mask: that is shown
    if weighted:
        moved = run.v[layer][:, head].astype(np.float64) @ w_o(model, layer, head).astype(np.float64)
        pattern = pattern * np.linalg.norm(moved, axis=-1)  # (n_key, d_model) to (n_key,)
    return np.where(masked, np.nan, pattern)
