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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import NanopatchError
from ..experiments.patch import BETWEEN, Paths, counted
from ..model.graph import (
    Place,
    comes_after,
    head_output,
    listing,
    mlp_input,
    mlp_output,
    qkv_weights,
    receivers_of,
    senders_of,
)
from ..model.layers import affine, layer_norm
from ..progress import progress
from ..types import Array
from .case import Case
from .cells import Cells
from .edit import Edit

#: The sites that senders write, that receivers read, and that may be held at the base run's values.
PATH_SITES = ("resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "mlp_pre", "mlp_out", "resid_post")


#: Bytes that the changed streams of the senders of one batch may take.
BATCH = 2**26


@dataclass(eq=False, repr=False)
class PathCells:
    """The cells of a matrix of senders and receivers, some rows at a time: each keeps what its receivers read."""

    case: Case
    between: str
    rows: list[list[Place]]
    columns: list[list[Place]]
    draws: list[int]
    positions: list[int]

    def __iter__(self) -> Iterator[list[list[Edit]]]:
        wanted = {(place.site, place.layer) for column in self.columns for place in column}
        numbered = list(enumerate(self.rows))
        size = self.batch_size()
        for start in progress(range(0, len(numbered), size), "senders"):
            some = numbered[start : start + size]
            cells = []
            for (number, senders), read in zip(some, self.readings(some, wanted), strict=True):
                cells += [
                    [self.edit(r, read, number) for r in receivers if comes_after(r, senders)]
                    for receivers in self.columns
                ]
            yield cells

    def batch_size(self) -> int:
        """How many senders share step 1."""
        model, n_tokens = self.case.model, self.case.n_tokens
        widths = 12 * model.d_model + 2 * model.d_mlp + (2 * model.n_head * n_tokens if self.between == "free" else 0)
        return max(1, BATCH // (n_tokens * widths * model.dtype.itemsize))

    def readings(self, some: Sequence[tuple[int, list[Place]]], wanted: set[tuple[str, int]]) -> list[Any]:
        """Step 1 for some senders: what can be read then, {(site, layer): array}."""
        senders, draws = [row for _, row in some], [self.draws[number] for number, _ in some]
        step_1 = replace_senders if self.between == "free" else add_changes
        return step_1(self.case, senders, draws, self.between, wanted)

    def edit(self, receiver: Place, read: Any, number: int) -> Edit:
        """Step 2: what the receiver reads, put in."""
        positions = [row for row in self.case.rows if row is not None and row in self.positions]
        site, layer, head, _ = receiver
        return Edit(site, layer, read[site, layer], positions, None if head is None else [head], draw=number)


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
    positions = counted(paths.positions, case.n_tokens)
    return Cells(
        pieces={"sender": row_names, "receiver": column_names},
        chosen={} if not paths.positions else {"position": tuple(n if n >= 0 else str(n) for n in paths.positions)},
        batches=PathCells(case, paths.between, rows, columns, case.runs.draws("z", len(rows)), positions),
        sites=PATH_SITES,
        blank=blank,
        adds_layers=any(len({place.layer for place in column}) > 1 for column in columns),
    )


def add_changes(
    case: Case, rows: Sequence[Sequence[Place]], draws: Sequence[int], between: str, wanted: set[tuple[str, int]]
) -> list[dict[tuple[str, int], Array]]:
    """Step 1 where all heads keep the base run's values: for each group of senders, {(site, layer): array} as wanted.

    Without attention nothing goes from one position to another. So the residual stream is the base run's plus what the
    senders have changed, at the positions where anything can change, and only MLPs, if they are free, are run. Other
    rows of the arrays are 0.
    """
    model, base = case.model, case.base
    at = [row for row in case.rows if row is not None]
    if wanted == {("resid_post", model.n_layer - 1)} and case.last_only:
        at = [row for row in at if row == case.n_tokens - 1]
    if not at:  # nothing can change, so no edit is made
        return [dict.fromkeys(wanted, np.zeros((case.n_tokens, 1), model.dtype)) for _ in rows]
    n, shape = len(rows), (len(rows), len(at), model.d_model)
    change = np.zeros(shape, model.dtype)  # (n_groups, n_rows, d_model)
    found: list[dict[tuple[str, int], Array]] = [{} for _ in range(n)]
    first = [min(sender.point for sender in senders) for senders in rows]

    def at_point(point: int) -> list[int]:
        """The groups that have written something by then."""
        return [i for i in range(n) if first[i] <= point]

    def keep(site: str, layer: int, groups: list[int], values: Array) -> None:
        for i, of_group in zip(groups, values, strict=True):
            whole = np.zeros((case.n_tokens, *of_group.shape[1:]), model.dtype)
            whole[at] = of_group
            found[i][site, layer] = whole

    def donated(i: int, site: str, layer: int) -> Array:
        return np.asarray(case.donors(site)[draws[i]][layer][at])

    for i, senders in enumerate(rows):
        if any(sender.site == "resid_pre" for sender in senders):
            change[i] = donated(i, "resid_pre", 0) - base.resid_pre[0][at]
    for layer, block in enumerate(model.h):
        groups = at_point(2 * layer)
        resid_pre = base.resid_pre[layer][at] + change[groups]
        asked = [site for site in "qkv" if (site, layer) in wanted and groups]
        if asked:
            normed = layer_norm(resid_pre, *block.ln_1, model.config.layer_norm_epsilon)
            for site in asked:
                made = affine(normed, *qkv_weights(model, site, layer))
                keep(site, layer, groups, made.reshape(*made.shape[:2], model.n_head, model.d_head))
        if ("resid_pre", layer) in wanted:
            keep("resid_pre", layer, groups, resid_pre)
        for i, senders in enumerate(rows):
            here = [sender for sender in senders if sender.layer == layer]
            if any(sender.site == "attn_out" for sender in here):  # whatever its heads write
                change[i] += donated(i, "attn_out", layer) - base.attn_out[layer][at]
                continue
            for head in {sender.head for sender in here if sender.site == "z" and sender.head is not None}:
                moved = donated(i, "z", layer)[:, head] - base.z[layer][at][:, head]
                change[i] += head_output(model, moved, layer, head)
        groups = at_point(2 * layer + 1)
        resid_mid = base.resid_mid[layer][at] + change[groups]
        if ("mlp_pre", layer) in wanted and groups:
            keep("mlp_pre", layer, groups, mlp_input(model, resid_mid, layer))
        of_mlp = np.zeros_like(change)
        if between == "free mlps" and groups:
            of_mlp[groups] = mlp_output(model, resid_mid, layer) - base.mlp_out[layer][at]
        for i, senders in enumerate(rows):
            if any((sender.site, sender.layer) == ("mlp_out", layer) for sender in senders):  # whatever it reads
                of_mlp[i] = donated(i, "mlp_out", layer) - base.mlp_out[layer][at]
        change += of_mlp
        if layer == model.n_layer - 1 and ("resid_post", layer) in wanted:
            keep("resid_post", layer, list(range(n)), base.resid_post[layer][at] + change)
    return found


def replace_senders(
    case: Case, rows: Sequence[Sequence[Place]], draws: Sequence[int], between: str, wanted: set[tuple[str, int]]
) -> list[dict[tuple[str, int], Array]]:
    """Step 1 by whole runs, one for each group of senders, in one batch: {(site, layer): array} as wanted.

    The arrays begin at the earliest sender's layer. Earlier ones are as in the base run.
    """
    first, held = min(sender.layer for senders in rows for sender in senders), BETWEEN[between]
    start = case.base.resid_pre[first]  # (n_tokens, d_model)
    found: list[dict[tuple[str, int], Array]] = [{} for _ in rows]
    left = {(site, layer) for site, layer in wanted if layer >= first}
    steps = case.model.steps_from(first, np.broadcast_to(start, (len(rows), *start.shape)), sites=PATH_SITES)
    while left:
        site = next(steps)
        assert site.layer is not None
        if site.name in held:
            site.array[...] = getattr(case.base, site.name)[site.layer]
        for of_run, senders, draw in zip(site.array, rows, draws, strict=True):
            for sender in senders:
                if (site.name, site.layer) == (sender.site, sender.layer):
                    heads = slice(None) if sender.head is None else np.s_[:, sender.head]
                    of_run[heads] = case.donors(site.name)[draw][site.layer][heads]
        if (site.name, site.layer) in left:
            left.remove((site.name, site.layer))
            for of_group, of_run in zip(found, site.array, strict=True):
                of_group[site.name, site.layer] = of_run
    return found
