"""Common ground: positions that prompts of different lengths share, by name, so that their results can be averaged.

    -1, -2            the last position, the one before it
    "subject"         all tokens of what an experiment marks as its subject, patched together
    "first subject"   its first token; "last subject" its last one
    "before subject"  the token before it; "after subject" the one after it

Meng et al. (2022, arXiv 2202.05262, section 2) average over such positions, as prompts of facts have different lengths.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import NanopatchError
from .align import Columns
from .patch import Patch, together

if TYPE_CHECKING:
    from ..model.gpt2 import Model
    from .experiment import Experiment

#: Which of a mark's columns, from the first to the last.
PLACES = ("first", "last", "before", "after")


def is_common(patch: Any) -> bool:
    """Whether a patch's positions are all named, so that they exist in prompts of any length."""
    if not isinstance(patch, Patch) or patch.positions is None or isinstance(patch.positions, str):
        return False
    items = [item for entry in patch.positions for item in together(entry)]
    return bool(items) and all(map(_is_named, items))


def on_ground(patch: Patch, model: Model, experiment: Experiment, columns: Columns) -> Patch:
    """The same patch with numbers of columns in place of names. NanopatchError if the experiment lacks one."""
    marks = functools.cache(lambda mark: marked(mark, model, experiment, columns))  # several names may be of one mark
    entries = []
    for entry in patch.positions or ():
        found = [column for item in together(entry) for column in columns_named(item, len(columns), marks)]
        entries.append(sorted(set(found)))
    return replace(patch, positions=entries)


def names_of(patch: Patch) -> tuple[tuple[str, ...], ...]:
    """The names of a patch's positions, entry by entry; those of a set in one order in every process."""
    entries = [sorted(e, key=_order) if isinstance(e, (set, frozenset)) else together(e) for e in patch.positions or ()]
    return tuple(tuple(map(str, entry)) for entry in entries)


def _order(item: Any) -> tuple[bool, Any]:
    return isinstance(item, str), item


def columns_named(name: Any, n: int, marks: Callable[[str], list[int]]) -> list[int]:
    """The columns of one name, of n. marks: those of a mark."""
    if not isinstance(name, str):
        if -n <= name < 0:
            return [n + int(name)]
        raise NanopatchError(f"position {name} does not exist: it has {n} tokens")
    place, _, mark = name.partition(" ")
    if place not in PLACES:
        place, mark = "", name
    of_mark = marks(mark)
    first, last = of_mark[0], of_mark[-1]
    found = {"": of_mark, "first": [first], "last": [last], "before": [first - 1], "after": [last + 1]}[place]
    if not 0 <= found[0] < n:
        raise NanopatchError(f"there is no token {name}")
    return found


def marked(mark: str, model: Model, experiment: Experiment, columns: Columns) -> list[int]:
    """The columns of what an experiment marks: a text that occurs once in its clean prompt, or positions there."""
    marks: Mapping[str, Any] = experiment.marks or {}
    if mark not in marks:
        has = f"; it marks {', '.join(marks)}" if marks else f': give Experiment(..., marks={{"{mark}": ...}})'
        raise NanopatchError(f"it marks no {mark!r:.40}{has}")
    what, tokens = marks[mark], experiment.tokenize(model, experiment.clean)
    if isinstance(what, str):
        clean = experiment.clean
        if not isinstance(clean, str) or clean.count(what) != 1:
            raise NanopatchError(
                f"{mark} is {what!r:.40}, which must occur once in the clean prompt: or give its positions"
            )
        begin = len(model.detokenize(tokens[:1])) if experiment.prepend_bos else 0
        start, end = begin + clean.index(what), begin + clean.index(what) + len(what)
        ends = [len(model.detokenize(tokens[: i + 1])) for i in range(len(tokens))]
        positions = [i for i, (a, b) in enumerate(zip([0, *ends], ends, strict=False)) if a < end and b > start]
    else:
        positions = [int(position) for position in what]
    found = [column for column, (position, _) in enumerate(columns) if position in positions]
    if not found or len(found) < len(positions):
        raise NanopatchError(f"{mark} is at the positions {positions}, and there are 0 to {len(tokens) - 1}")
    return found


def _is_named(item: Any) -> bool:
    whole = isinstance(item, numbers.Integral) and not isinstance(item, bool)
    return isinstance(item, str) or (whole and item < 0)
