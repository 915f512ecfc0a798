"""What is patched: a site, in pieces along its axes.

The grid of a result has an axis for each name in `axes`, and along it an entry for each *piece*: the list of layers,
positions, heads or neurons that are patched together there.
"""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import NanopatchError
from ..model.graph import Node, find_nodes, listing
from ..model.sites import ATTENTION_SITES, HEAD_SITES, quoted

if TYPE_CHECKING:
    from ..model.gpt2 import Model

#: The axes along which a site can be patched piece by piece. The first two make the grid unless others are named.
SITE_AXES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"), ("layer", "position")),
    **dict.fromkeys(("q_input", "k_input", "v_input", "mlp_in"), ("layer", "position")),
    **dict.fromkeys(("mlp_pre", "mlp_post"), ("layer", "position", "neuron")),
    **dict.fromkeys(HEAD_SITES, ("layer", "head", "position")),
    **dict.fromkeys(ATTENTION_SITES, ("layer", "head", "query", "key")),
}

#: The field of `Patch` that chooses entries of an axis. `positions` of scores and pattern are those of the queries.
CHOICES = {"layer": "layers", "position": "positions", "query": "positions", "head": "heads", "neuron": "neurons"}

#: A number; or a (layer, head) or (layer, neuron) pair of numbers.
Item = Any
#: {axis: for each entry, what is patched together there}.
Pieces = dict[str, list[list[Item]]]


@dataclass(frozen=True)
class Patch:
    """What is patched in each cell of a grid: a site, cut into pieces along its axes.

    Attributes
    ----------
    site : str
        The named array.
    axes : str or sequence of str, optional
        What makes the grid: "layer" for all sites; "query" and "key" for scores and pattern, "position" for the
        others; "head" for z, q, k, v, scores and pattern; "neuron" for mlp_pre and mlp_post. The site's first two
        by default. Along an axis that is not named, everything is patched at once.
    layers, positions, heads, neurons : list, optional
        Which of them, all by default. An entry is a number, or several to be patched together: {0, 1}, a set, or a
        list. Positions count columns of the aligned prompts; for scores and pattern they are those of the queries.
        Heads and neurons may be (layer, head) pairs where "layer" is no axis. Rows of two numbers are such pairs, as
        `np.argwhere` or JSON gives them, so two heads that are patched together in every layer are a set. neurons may
        be a number n: the n neurons whose activations differ most between the runs, as (layer, neuron) pairs.
        Positions may all be negative (from the end) or names, such as "last subject": then prompts of different lengths
        can be averaged. See `nanopatch.experiments.ground`.
    window : int or {axis: int}
        How many neighbouring entries of an axis are patched together; a number is for "layer". Entry i is in the
        middle of its window (the first of the two middle ones if it is even). Windows are cut off at both ends.

    Raises
    ------
    NanopatchError
        If the site or an axis is unknown.

    Examples
    --------
    >>> import nanopatch
    >>> model, michelle = nanopatch.load("nano"), nanopatch.experiments.MICHELLE
    >>> nanopatch.sweep(model, michelle, nanopatch.Patch("z", axes=("layer", "head", "position"))).grid.shape
    (4, 4, 11)
    >>> nanopatch.sweep(model, michelle, nanopatch.Patch("resid_pre", layers=[1, [2, 3]])).grid.shape
    (2, 11)
    """

    site: str = "resid_pre"
    axes: str | Sequence[str] | None = None
    layers: Sequence[Any] | None = None
    positions: Sequence[Any] | None = None
    heads: Sequence[Any] | None = None
    neurons: Sequence[Any] | int | None = None
    window: int | Mapping[str, int] = 1

    def __post_init__(self) -> None:
        if not isinstance(self.site, str) or self.site not in SITE_AXES:
            raise NanopatchError(f"cannot patch {quoted(self.site)}; sites are {', '.join(SITE_AXES)}")
        known = SITE_AXES[self.site]
        if self.axes is not None and not np.iterable(self.axes):
            raise NanopatchError(f"axes={self.axes!r}: names are expected, of {', '.join(known)}")
        axes = known[:2] if self.axes is None else (self.axes,) if isinstance(self.axes, str) else tuple(self.axes)
        if not axes or not all(axis in known and axes.count(axis) == 1 for axis in axes):
            asked = ", ".join(map(repr, axes)) or "none"
            raise NanopatchError(f"{self.site} has the axes {', '.join(known)}, each at most once; not {asked}")
        object.__setattr__(self, "axes", axes)
        for choice in set(CHOICES.values()):
            if isinstance(getattr(self, choice), Iterator):  # which could be read only once
                object.__setattr__(self, choice, list(getattr(self, choice)))
            if getattr(self, choice) is not None and choice not in [CHOICES.get(axis) for axis in known]:
                raise NanopatchError(f"{self.site} has no {choice} to choose among; its axes are {', '.join(known)}")

    def pieces(self, model: Model, n_columns: int) -> Pieces:
        """What is patched together at each entry of each axis of the site.

        Heads or neurons are left out if they are not an axis and none are chosen: all of them are patched.
        Raises NanopatchError if an entry does not exist, or a choice would have no effect.
        """
        axes, known = tuple(self.axes or ()), SITE_AXES[self.site]
        sizes = axis_sizes(model, n_columns)
        pieces: Pieces = {axis: [[number] for number in range(sizes[axis])] for axis in known}
        for axis, choice in CHOICES.items():
            chosen = getattr(self, choice)
            if axis in known and chosen is not None:
                pieces[axis] = [_piece(items, axis, sizes) for items in _entries(chosen, axis)]
        for axis in {"head", "neuron"} & set(known):
            pairs = any(isinstance(number, tuple) for piece in pieces[axis] for number in piece)
            if pairs and ("layer" in axes or self.layers is not None):
                raise NanopatchError(
                    f'(layer, {axis}) pairs name their layers: give axes without "layer", such as '
                    f"Patch({self.site!r}, axes={axis!r}, {CHOICES[axis]}=[(0, 1)]), and no layers=; or, for {axis}s 0 "
                    f"and 1 of every layer together, {CHOICES[axis]}=[{{0, 1}}]"
                )

        windows = self.window if isinstance(self.window, Mapping) else {"layer": self.window}
        for axis, width in windows.items():
            if width == 1 and not isinstance(self.window, Mapping):
                continue
            if axis not in axes:
                raise NanopatchError(f"window names {axis!r}; the axes of this grid are {', '.join(axes)}")
            n_entries = len(pieces[axis])
            if not isinstance(width, numbers.Integral) or not 1 <= width <= n_entries:
                raise NanopatchError(
                    f"window={width!r}: the axis {axis} has {n_entries} entries, so give 1 to {n_entries}"
                )
            before = (width - 1) // 2  # entry i is the middle one, or the first of two middle ones
            pieces[axis] = [sum(pieces[axis][max(0, i - before) : i - before + width], []) for i in range(n_entries)]
        whole = {axis for axis in ("head", "neuron") if axis not in axes and getattr(self, CHOICES[axis]) is None}
        return {axis: entries for axis, entries in pieces.items() if axis not in whole}


#: The sites that keep the values of the base run while a sender's change travels to a receiver.
BETWEEN: dict[str, frozenset[str]] = {
    "frozen": frozenset({"z", "mlp_out"}),
    "free mlps": frozenset({"z"}),
    "free": frozenset(),
}


@dataclass(frozen=True)
class Paths:
    """What path patching patches: in each cell, the paths from a sender to a receiver (see `nanopatch.path_patch`).

    senders, receivers: a name ("head 2.1", "logits"; see `nanopatch.model.graph`), the beginning of names, which means
    all of them ("head", "head 2", "q 3"), or a list of these. A list in the list is a group: its members are
    replaced together, and it is one row or column. between: one of `BETWEEN`. positions: where the receivers' inputs
    are replaced, from the end if below 0; all by default.
    """

    senders: Any = ("embed", "head", "mlp")
    receivers: Any = "logits"
    between: str = "frozen"
    positions: Sequence[int] | None = None
    site: ClassVar[str] = "path"
    axes: ClassVar[tuple[str, ...]] = ("sender", "receiver")

    def __post_init__(self) -> None:
        if self.between not in list(BETWEEN):
            raise NanopatchError(f"unknown between {self.between!r}: give one of {', '.join(map(repr, BETWEEN))}")
        if self.positions is not None:
            object.__setattr__(self, "positions", whole_numbers(self.positions))

    def groups(self, what: str, known: Iterable[Node]) -> list[tuple[tuple[str, ...], list[Node]]]:
        """The senders, or the receivers, entry by entry: [(what was asked, nodes)]. known: all that exist."""
        asked = getattr(self, f"{what}s")
        entries: list[tuple[tuple[str, ...], list[Node]]] = []
        for item in asked if isinstance(asked, (list, tuple)) and not isinstance(asked, Node) else [asked]:
            if isinstance(item, (list, tuple)) and not isinstance(item, Node):
                entries.append((tuple(map(str, item)), [n for part in item for n in find_nodes(part, known, what)]))
            else:
                entries += [((str(n),), [n]) for n in find_nodes(item, known, what)]
        if not entries or not all(nodes for _, nodes in entries):
            raise NanopatchError(f"no {what} was given; {what}s are {listing(known)}")
        return entries


def whole_numbers(positions: Any) -> tuple[int, ...]:
    """Positions as a tuple of int. NanopatchError if they are anything else, or none."""
    given = positions.tolist() if isinstance(positions, np.ndarray) else positions
    numbers_only = np.iterable(given) and all(
        isinstance(n, numbers.Integral) and not isinstance(n, bool) for n in given
    )
    if not numbers_only or not list(given):
        raise NanopatchError(f"positions={positions!r:.60}: a list of whole numbers is expected, with at least one")
    return tuple(dict.fromkeys(map(int, given)))


def counted(positions: Sequence[int] | None, n_tokens: int) -> list[int]:
    """Positions from 0, those below 0 from the end; None is all. NanopatchError if the prompt has no such position."""
    if positions is None:
        return list(range(n_tokens))
    for position in positions:
        if not -n_tokens <= position < n_tokens:
            raise NanopatchError(f"position {position} does not exist: the prompt has {n_tokens} tokens")
    return sorted({position % n_tokens for position in positions})


def axis_sizes(model: Model, n_columns: int) -> dict[str, int]:
    """How many entries each axis has where none are chosen."""
    sizes = dict(layer=model.n_layer, head=model.n_head, neuron=model.d_mlp)
    return sizes | dict.fromkeys(("position", "query", "key"), n_columns)


def cells(pieces: Pieces, axes: Sequence[str]) -> Iterator[dict[str, list[Item]]]:
    """Each cell's piece of every axis, in the order of the grid. Axes that are not in the grid are taken whole."""
    whole = {axis: sum(entries, []) for axis, entries in pieces.items()}
    for entries in itertools.product(*(pieces[axis] for axis in axes)):
        yield whole | dict(zip(axes, entries, strict=True))


def _entries(chosen: Any, axis: str) -> list[Any]:
    """The entries of a choice: what is patched together at each, as a list of numbers or of pairs.

    Rows of two numbers are (layer, head) or (layer, neuron) pairs, whether they are tuples, lists or rows of an array.
    A tuple of arrays is what `np.nonzero` gives: a column of such rows each.
    """
    if isinstance(chosen, tuple) and {type(column) for column in chosen} == {np.ndarray}:
        chosen = np.array(list(zip(*chosen, strict=False)))
    if isinstance(chosen, np.ndarray):
        if chosen.size and chosen.shape[1:] not in [(), (1,), *[(2,)] * (axis in ("head", "neuron"))]:
            rows = f" or rows of (layer, {axis})" if axis in ("head", "neuron") else ""
            raise NanopatchError(
                f"{CHOICES[axis]}: an array of shape {chosen.shape} is not a list of numbers{rows}; give lists of what "
                "is patched together"
            )
        chosen = (chosen.ravel() if chosen.shape[1:] == (1,) else chosen).tolist()
    if isinstance(chosen, (str, dict, numbers.Number)) or not np.iterable(chosen) or not len(list(chosen)):
        raise NanopatchError(
            f"{CHOICES[axis]}={chosen!r}: a list is expected, such as [0, 2] or, for both at once, [{{0, 2}}]"
        )
    entries = [entry.tolist() if isinstance(entry, np.ndarray) else entry for entry in chosen]
    if axis in ("head", "neuron") and all(map(_is_pair, entries)):
        return [[tuple(entry)] for entry in entries]
    return [together(entry) for entry in entries]


def together(entry: Any) -> list[Any]:
    """What one entry of a choice patches together: a list, a set or a range; or one thing alone."""
    return list(entry) if isinstance(entry, (list, set, frozenset, range)) else [entry]


def _is_pair(item: Any) -> bool:
    """Whether it is a row of two whole numbers."""
    return isinstance(item, (list, tuple)) and len(item) == 2 and all(isinstance(n, numbers.Integral) for n in item)


def _piece(items: list[Any], axis: str, sizes: dict[str, int]) -> list[Item]:
    """One entry of an axis as a list of int, or of (layer, head) or (layer, neuron) pairs of int."""
    piece: list[Item] = []
    for item in items:
        pair = axis in ("head", "neuron") and _is_pair(item)
        if not pair and (not isinstance(item, numbers.Integral) or isinstance(item, bool)):
            raise NanopatchError(
                f"{CHOICES[axis]} are whole numbers, or for heads and neurons (layer, number) pairs; not {item!r}"
            )
        layer, number = map(int, item) if pair else (0, int(item))
        if not 0 <= number < sizes[axis] or not 0 <= layer < sizes["layer"]:
            layers = f" of the layers 0 to {sizes['layer'] - 1}" if pair else ""
            raise NanopatchError(f"{axis} {item} does not exist: there are 0 to {sizes[axis] - 1}{layers}")
        piece.append((layer, number) if pair else number)
    if not piece or len(set(piece)) < len(piece):
        raise NanopatchError(f"{CHOICES[axis]}: {items} are patched together, so give at least one, and each once")
    return piece
