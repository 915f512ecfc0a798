"""What a patch can change, and what it cannot: decided by the tokens and by the causal mask.

Attention looks backwards only. So nothing differs before the first token that differs, a patch changes no earlier
position, and in the last block only the last position reaches the logits after it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..experiments.align import Columns
from ..model.gpt2 import Model
from ..model.sites import BLOCK_SITES
from ..types import Array
from .edit import Edit

#: In block 0, these sites at a position depend only on its own token and position.
BEFORE_ATTENTION = ("resid_pre", "q_input", "k_input", "v_input", "q", "k", "v")
#: Sites of a block that come after the keys and values are read. In the last block they reach the last token's
#: logits only through the last position.
AFTER_KEYS = frozenset(BLOCK_SITES) - {"resid_pre", "k_input", "v_input", "k", "v"}


def reach(model: Model, edits: Sequence[Edit], n_tokens: int, last_only: bool) -> tuple[list[Edit], int]:
    """The edits that can change the logits that will be read, and the first position they change.

    The causal mask decides this: in the last block, sites after the keys and values reach the last
    position's logits only from that position. last_only: only the last position's logits will be read.
    """
    kept = []
    for edit in edits:
        positions = edit.positions
        if edit.keys is not None:  # to a query, later keys are masked
            positions = [position for position in positions if position >= min(edit.keys)]
        if last_only and edit.layer == model.n_layer - 1 and edit.site in AFTER_KEYS:
            positions = [position for position in positions if position == n_tokens - 1]
        if len(positions):
            kept.append(edit._replace(positions=positions))
    return kept, min((edit.positions[0] for edit in kept), default=n_tokens)


def changed_rows(embeddings: Array, donated: Array, partners: Columns) -> tuple[list[int | None], list[int | None]]:
    """The base run's position at each column, or None where both runs hold the same: (anywhere, before attention).

    embeddings, donated: the residual stream entering block 0 of both, (n_tokens, d_model). Attention looks backwards
    only, so before the first difference nothing differs. And before the attention of block 0, a position depends only
    on its own embedding, so it differs only if its embedding does.
    """
    differs = [i is None or j is None or bool((embeddings[i] != donated[j]).any()) for i, j in partners]
    first = differs.index(True) if True in differs else len(partners)
    first_position = sum(i is not None for i, _ in partners[:first])
    rows = [i if i is not None and j is not None and i >= first_position else None for i, j in partners]
    return rows, [i if differ else None for i, differ in zip(rows, differs, strict=True)]
