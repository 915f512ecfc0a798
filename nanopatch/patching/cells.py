"""From a description of what is patched to the assignments of each cell of the grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ..experiments.corruption import Resample
from ..experiments.patch import Item, Patch, Pieces, axis_sizes, cells
from ..model.gpt2 import Model
from ..model.sites import ATTENTION_SITES
from ..types import Array
from .case import Case, generator
from .stack import Edit

#: Sites that in block 0 depend on their own token and position alone.
BEFORE_ATTENTION = ("resid_pre", "q_input", "k_input", "v_input", "q", "k", "v")


class Cells(NamedTuple):
    """The cells of one grid. batches: lists of cells, each a list of `Edit`, which in turn fill the grid."""

    pieces: dict[str, Any]
    chosen: dict[str, tuple[Any, ...]]
    batches: Iterable[Sequence[Sequence[Edit]]]
    sites: tuple[str, ...]  # that are assigned to


def cells_of_patch(model: Model, patch: Patch, case: Case, resample: Resample | None, number: int) -> Cells:
    """The cells of a `Patch`. resample: draws which donor each cell takes; number: of the experiment among many."""
    axes = tuple(patch.axes or ())
    pieces = patch.pieces(model, len(case.partners))
    donors = case.donors(patch.site)
    random = generator(resample.seed, number) if resample else None
    edits = []
    for piece in cells(pieces, axes):
        draw = int(random.integers(len(donors))) if random else 0
        edits.append(edits_of(patch.site, donors[draw], draw, case, piece))
    along = {axis: tuple(map(tuple, pieces[axis])) for axis in axes}
    return Cells(along, chosen_besides(model, case, axes, pieces), [edits], (patch.site,))


def edits_of(site: str, donor: Array, draw: int, case: Case, piece: dict[str, list[Item]]) -> list[Edit]:
    """One cell's patch. donor: what is put in, (n_layer, ...). piece: what is patched together, by axis."""
    columns = piece["query" if site in ATTENTION_SITES else "position"]
    parts = piece.get("head", piece.get("neuron"))  # heads or neurons; None for all, or where the site has neither
    keys = sorted(set(piece["key"])) if site in ATTENTION_SITES else None
    edits = []
    for layer in dict.fromkeys(piece["layer"]):
        rows = case.own_rows if layer == 0 and site in BEFORE_ATTENTION else case.rows
        positions = sorted({row for column in columns if (row := rows[column]) is not None})
        within = None
        if parts is not None:
            everywhere = {part for part in parts if not isinstance(part, tuple)}
            within = sorted(everywhere | {part[1] for part in parts if isinstance(part, tuple) and part[0] == layer})
        if within != []:
            edits.append(Edit(site, layer, donor[layer], positions, within, keys, draw))
    return edits


def chosen_besides(model: Model, case: Case, axes: Sequence[str], pieces: Pieces) -> dict[str, tuple[Any, ...]]:
    """What was chosen of axes that make no grid: {axis: numbers}, without those of which everything was patched."""
    sizes = axis_sizes(model, len(case.partners))
    chosen = {axis: tuple(sum(pieces[axis], [])) for axis in sorted(pieces.keys() - set(axes))}
    return {axis: items for axis, items in chosen.items() if set(items) != set(range(sizes[axis]))}
