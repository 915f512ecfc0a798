"""The assignment that is a patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..model.sites import ATTENTION_SITES
from ..types import Array


class Edit(NamedTuple):
    """One assignment: at a site of a layer, `array[positions, within] = donor[positions, within]`.

    donor: an array shaped as the site's own for one prompt. positions: a list of the prompt's positions,
    increasing; for `scores` and `pattern`, of the queries. within: a list of heads of q, k, v, z, scores
    and pattern, or of columns of the others; None for all. keys: a list of key positions, for `scores`
    and `pattern`; None for all. draw: where several donors are drawn from, the number of this one.
    """

    site: str
    layer: int
    donor: Array
    positions: Sequence[int]
    within: Sequence[int] | None = None
    keys: Sequence[int] | None = None
    draw: int = 0

    def where(self, first_position: int = 0) -> tuple[Array, ...]:
        """Where it writes, as an index into one run's array whose row 0 is `first_position`."""
        rows = np.array(self.positions, int) - first_position
        if self.site in ATTENTION_SITES:
            n_head, _, n_key = self.donor.shape
            heads = np.arange(n_head) if self.within is None else np.array(self.within, int)
            return np.ix_(heads, rows, np.arange(n_key) if self.keys is None else np.array(self.keys, int))
        return (rows,) if self.within is None else np.ix_(rows, np.array(self.within, int))

    def assign(self, array: Array, first_position: int) -> None:
        """The patch itself: assign into one run's array whose row 0 is `first_position`."""
        array[self.where(first_position)] = self.donor[self.where()]
