"""Path patching: along which path does the difference between two prompts travel?

Activation patching replaces what a component writes, for everything that reads it. Path patching replaces it for one
reader only: from a *sender* to a *receiver*. (Goldowsky-Dill et al. 2023, arXiv 2304.05969; Wang et al. 2022, arXiv
2211.00593, section 3.1 and appendix B.) It takes two runs:

1. Run the base prompt with the sender's output replaced by the donor's. `between` says which nodes in between keep
   the base run's values. Keep what the receiver then reads, and discard the rest.
2. Run the base prompt again, replace only what the receiver reads, and measure.

The second run is a patch like any other; this module makes its assignments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import NanopatchError
from ..experiments.patch import BETWEEN, Paths
from ..model.graph import Place, comes_after, listing, receivers_of, senders_of
from ..progress import progress
from ..types import Array
from .case import Case
from .cells import Cells
from .edit import Edit

#: The sites that senders write, that receivers read, and that may be held at the base run's values.
PATH_SITES = ("resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "mlp_pre", "mlp_out", "resid_post")


@dataclass(eq=False, repr=False)
class PathCells:
    """The cells of a matrix of senders and receivers, one row at a time, because a row keeps all of step 1."""

    case: Case
    between: str
    rows: list[list[Place]]
    columns: list[list[Place]]
    draws: list[int]

    def __iter__(self) -> Iterator[list[list[Edit]]]:
        positions = [row for row in self.case.rows if row is not None]
        for number, senders in enumerate(progress(self.rows, "senders")):
            readings = replace_senders(self.case, senders, self.draws[number], self.between)

            def edit(receiver: Place, readings: Any = readings, number: int = number) -> Edit:
                site, layer, head, _ = receiver
                return Edit(
                    site, layer, readings[site, layer], positions, None if head is None else [head], draw=number
                )

            yield [[edit(r) for r in receivers if comes_after(r, senders)] for receivers in self.columns]


def cells_of_paths(paths: Paths, case: Case) -> Cells:
    """The cells of `Paths`, sender x receiver. NanopatchError if no receiver comes after any sender."""
    senders, receivers = senders_of(case.model), receivers_of(case.model)
    row_names, row_nodes = zip(*paths.groups("sender", senders), strict=True)
    column_names, column_nodes = zip(*paths.groups("receiver", receivers), strict=True)
    rows = [[senders[n] for n in nodes] for nodes in row_nodes]
    columns = [[receivers[n] for n in nodes] for nodes in column_nodes]
    blank = np.array([[not any(comes_after(r, row) for r in column) for column in columns] for row in rows])
    if blank.all():
        later = listing(n for n, place in receivers.items() if comes_after(place, rows[0]))
        sender, receiver = "+".join(row_names[0]), "+".join(column_names[0])
        raise NanopatchError(f"{receiver} does not come after {sender}; receivers after {sender} are {later}")
    return Cells(
        pieces={"sender": row_names, "receiver": column_names},
        chosen={},
        batches=PathCells(case, paths.between, rows, columns, case.runs.draws("z", len(rows))),
        sites=PATH_SITES,
        blank=blank,
        adds_layers=any(len({place.layer for place in column}) > 1 for column in columns),
    )


def replace_senders(case: Case, senders: list[Place], draw: int, between: str) -> dict[tuple[str, int], Array]:
    """Step 1: the base run with the senders' outputs replaced by the donor's: {(site, layer): array}.

    The arrays begin at the earliest sender's layer. Earlier ones are as in the base run.
    """
    first, held = min(sender.layer for sender in senders), BETWEEN[between]
    readings = {}
    for site in case.model.steps_from(first, case.base.resid_pre[first], sites=PATH_SITES):
        assert site.layer is not None
        if site.name in held:
            site.array = getattr(case.base, site.name)[site.layer]
        for sender in senders:
            if (site.name, site.layer) == (sender.site, sender.layer):
                heads = slice(None) if sender.head is None else np.s_[:, sender.head]
                site.array[heads] = case.donors(site.name)[draw][site.layer][heads]
        readings[site.name, site.layer] = site.array
    return readings
