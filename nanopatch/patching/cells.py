"""From a description of what is patched to the assignments of each cell of the grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ..experiments.ground import is_common, names_of, on_ground
from ..experiments.patch import Item, Patch, axis_sizes, cells
from ..model.sites import ATTENTION_SITES
from ..results.sweep import without_partner
from ..types import Array
from .case import Case
from .edit import Edit
from .reach import BEFORE_ATTENTION


class Cells(NamedTuple):
    """The cells of one grid.

    pieces: {axis: what is patched together at each entry}. chosen: what was chosen of axes that are not in the grid.
    batches: lists of cells, each a list of `Edit`, that fill the grid one after the other. sites: those assigned to.
    blank: like the grid, True if nothing can be patched. adds_layers: whether a cell has edits of several layers.
    """

    pieces: dict[str, tuple[tuple[Any, ...], ...]]
    chosen: dict[str, tuple[Any, ...]]
    batches: Iterable[Sequence[Sequence[Edit]]]
    sites: tuple[str, ...]
    blank: Array
    adds_layers: bool


def cells_of_patch(patch: Patch, case: Case) -> Cells:
    """The cells of a `Patch`."""
    axes, n_columns = tuple(patch.axes or ()), len(case.partners)
    names = names_of(patch) if is_common(patch) else None
    if names is not None:
        patch = on_ground(patch, case.model, case.runs.experiment, case.runs.columns)
    pieces = patch.pieces(case.model, n_columns)
    donors, of_cells = case.donors(patch.site), list(cells(pieces, axes))
    draws = case.runs.draws(patch.site, len(of_cells))
    edits = [edits_of(patch.site, donors[draw], draw, case, piece) for draw, piece in zip(draws, of_cells, strict=True)]
    sizes = axis_sizes(case.model, n_columns)
    besides = {axis: tuple(sum(pieces[axis], [])) for axis in sorted(pieces.keys() - set(axes))}
    shown: dict[str, tuple[tuple[Any, ...], ...]] = {axis: tuple(map(tuple, pieces[axis])) for axis in axes}
    if names is not None and "position" in axes:
        shown["position"] = names
    elif names is not None:
        besides["position"] = sum(names, ())
    return Cells(
        pieces=shown,
        chosen={axis: items for axis, items in besides.items() if set(items) != set(range(sizes[axis]))},
        batches=[edits],
        sites=(patch.site,),
        blank=without_partner(axes, pieces, case.partners),
        adds_layers=any(len({edit.layer for edit in of_cell}) > 1 for of_cell in edits),
    )


def edits_of(site: str, donor: Array, draw: int, case: Case, piece: dict[str, list[Item]]) -> list[Edit]:
    """One cell's patch. donor: what is put in, (n_layer, ...). piece: what is patched together, by axis."""
    columns = piece["query" if site in ATTENTION_SITES else "position"]
    parts = piece.get("head", piece.get("neuron"))  # heads or neurons; None for all, or where the site has neither
    keys = sorted(set(piece["key"])) if site in ATTENTION_SITES else None
    edits = []
    for layer in dict.fromkeys(piece["layer"]):
        rows = case.rows_before_attention if layer == 0 and site in BEFORE_ATTENTION else case.rows
        positions = sorted({row for column in columns if (row := rows[column]) is not None})
        within = None
        if parts is not None:
            everywhere = {part for part in parts if not isinstance(part, tuple)}
            within = sorted(everywhere | {part[1] for part in parts if isinstance(part, tuple) and part[0] == layer})
        if within != []:
            edits.append(Edit(site, layer, donor[layer], positions, within, keys, draw))
    return edits
