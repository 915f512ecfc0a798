"""One experiment, or the mean over many with its standard error.

One pair of prompts shows what happens in one prompt. The mean over pairs that differ in names and places shows what
belongs to the task. (The arithmetic of the mean is `nanopatch.results.pairs.mean`.)

Many pairs are cut into parts of consecutive pairs. A part is computed in this process, or by a worker; see
`nanopatch.patching.workers` and `nanopatch.patching.folder`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import NanopatchError
from ..experiments.align import Columns
from ..experiments.experiment import NAMED, Experiment
from ..experiments.pairs import PairFile
from ..files import Source
from ..model.gpt2 import Model
from ..progress import look
from ..results.pairs import Gathered, gather, mean, shared
from ..results.panels import Panels
from ..types import Array

Known = Experiment | Sequence[Experiment] | PairFile
#: One experiment, its name, a list of experiments, or what `nanopatch.read_pairs` returns.
Experiments = Known | str
#: Of one result among several: the names of its panels, such as ("z", "denoise", "logit_diff").
Key = tuple[str, ...]

#: The most pairs in a part, and the number of parts that fewer pairs are cut into.
MOST_PAIRS, N_PARTS = 64, 128
#: In a folder, what all pairs gave stays in memory up to this size of an array, in bytes; larger ones are mapped files.
IN_MEMORY = 2**24


class Task(Protocol):
    """What is done with each experiment. With workers, it is pickled.

    names: those of the panels at each level. lists: for each level, whether there are panels, or one result.
    """

    @property
    def names(self) -> Sequence[Sequence[str]]: ...

    @property
    def lists(self) -> Sequence[bool]: ...

    def structure(self, model: Model, experiment: Experiment) -> Columns:
        """The columns that experiments must have in common. NanopatchError if this one cannot be used."""

    def one(self, model: Model, experiment: Experiment, number: int) -> Mapping[Key, Any]:
        """The results of one experiment, which is the one of this number among many."""

    def to_dict(self) -> dict[str, Any]:
        """All that decides the results besides the model and the experiments, as JSON can hold it."""


class Given(NamedTuple):
    """One of many experiments: its number, where it stands ("line 3"); or why it cannot be read."""

    number: int
    where: str
    experiment: Any
    reason: str | None = None


class Standard(NamedTuple):
    """What the first experiment that can be used asks of the others: where it stands, and its columns."""

    where: str
    columns: Columns


class Part(NamedTuple):
    """What some consecutive experiments gave. results: empty if none of them can be used."""

    results: dict[Key, Gathered[Any]]
    skipped: list[tuple[str, str]]


# ---- which experiments ------------------------------------------------------------------------------


def checked(model: Any, experiments: Any) -> Known:
    """The experiments, of which one may be a name ("michelle"). NanopatchError for what is no model or experiment."""
    check_model(model)
    if isinstance(experiments, str):
        if experiments not in NAMED:
            raise NanopatchError(f"no experiment is named {experiments!r:.60}; named are {', '.join(NAMED)}")
        return NAMED[experiments]
    if not isinstance(experiments, (Experiment, PairFile)) and not np.iterable(experiments):
        raise NanopatchError(
            f"an Experiment, a list of them or a name ({', '.join(NAMED)}) is expected, not {experiments!r:.60}"
        )
    return experiments  # type: ignore[return-value]


def check_model(model: Any) -> None:
    if not isinstance(model, Model):
        raise NanopatchError(
            f"first the model, as nanopatch.load gives it, then the experiment; not {model!r:.60} as the model"
        )


def listed(experiments: Known) -> list[Given]:
    """Every experiment with its number, also those that cannot be read."""
    if isinstance(experiments, PairFile):
        return [Given(number, *row) for number, row in enumerate(experiments.numbered)]
    given = [experiments] if isinstance(experiments, Experiment) else experiments
    named = (NAMED.get(one, one) if isinstance(one, str) else one for one in given)
    return [Given(number, f"pair {number}", one) for number, one in enumerate(named)]


def columns_of(model: Model, task: Task, given: Given, standard: Standard | None) -> Columns:
    """The columns of an experiment. NanopatchError if it cannot be used, or not be averaged with the standard."""
    if given.reason is not None:
        raise NanopatchError(given.reason)
    if not isinstance(given.experiment, Experiment):
        raise NanopatchError(f"not an Experiment: {given.experiment!r:.60}")
    columns = task.structure(model, given.experiment)
    if standard is not None and columns != standard.columns:
        raise NanopatchError(_difference(columns, *standard))
    return columns


def standard_of(model: Model, task: Task, given: Sequence[Given]) -> Standard:
    """The first experiment that can be used. NanopatchError if there is none."""
    skipped = []
    for one in given:
        try:
            return Standard(one.where, columns_of(model, task, one, None))
        except NanopatchError as error:
            skipped.append((one.where, str(error)))
    if not skipped:
        raise NanopatchError("there are no pairs: give at least one Experiment")
    more = f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else ""
    raise NanopatchError(f"no pair can be used; {skipped[0][0]}{more}: {skipped[0][1]}")


def usable(model: Model, task: Task, given: Iterable[Given], standard: Standard) -> Iterator[Given]:
    """Those that can be averaged."""
    for one in given:
        try:
            columns_of(model, task, one, standard)
        except NanopatchError:
            continue
        yield one


def all_usable(model: Model, task: Task, experiments: Known) -> list[Given]:
    """Those that can be averaged, of all that were given. NanopatchError if there is none."""
    given = listed(experiments)
    return list(usable(model, task, given, standard_of(model, task, given)))


def _difference(columns: Columns, where: str, standard: Columns) -> str:
    """Why a pair with these columns cannot be averaged with the pair at `where`."""
    ours, theirs = ([sum(pair[side] is not None for pair in pairs) for side in (0, 1)] for pairs in (columns, standard))
    if ours == theirs:
        return f"its tokens are aligned differently from those of {where}, so they cannot be averaged"
    return (
        f"its prompts have {ours[0]} and {ours[1]} tokens, those of {where} have {theirs[0]} and {theirs[1]}, so they "
        "cannot be averaged"
    )


# ---- part by part -----------------------------------------------------------------------------------


def part_size(n: int) -> int:
    """How many experiments a part has: it depends on their number alone, so that everybody cuts alike."""
    return max(1, min(MOST_PAIRS, -(-n // N_PARTS)))


def cut(given: Sequence[Given]) -> list[Sequence[Given]]:
    """All experiments in parts."""
    size = part_size(len(given))
    return [given[start : start + size] for start in range(0, len(given), size)]


def carry_out_part(
    model: Model, task: Task, given: Iterable[Given], standard: Standard, done: Callable[[int], Any] = lambda n: None
) -> Part:
    """The results of consecutive experiments. done: called after each with 1."""
    results: list[tuple[int, Mapping[Key, Any]]] = []
    skipped = []
    for one in given:
        look()
        try:
            columns_of(model, task, one, standard)
        except NanopatchError as error:
            skipped.append((one.where, str(error)))
        else:
            results.append((one.number, task.one(model, one.experiment, one.number)))
        done(1)
    keys = results[0][1] if results else ()
    return Part({key: gather([(number, found[key]) for number, found in results]) for key in keys}, skipped)


def means_of_parts(parts: Iterable[Part], n: int, source: Source | None, folder: Path | None = None) -> dict[Key, Any]:
    """The means over all `n` experiments of all parts, which come in order. Of a part, only its numbers are kept.

    source: the model's, as its user names it; None keeps what the parts say. folder: where many numbers may be kept in
    files; without one they stay in memory.
    """
    stores: dict[Key, dict[str, Rows]] = {}
    together: dict[Key, tuple[Any, Any]] = {}  # the first pair's result, and what all pairs share
    skipped: list[tuple[str, str]] = []
    for part in parts:
        skipped += part.skipped
        for key, gathered in part.results.items():
            rows = {"numbers": gathered.numbers, **gathered.values}
            its = gathered.first, gathered.common
            if key in together:
                together[key] = together[key][0], shared([together[key], its])
            else:
                together[key] = its
                number = len(stores)
                stores[key] = {
                    name: Rows(n, like, folder and folder / f"result-{number}-{name}.npy")
                    for name, like in rows.items()
                }
            for name, store in stores[key].items():
                store.add(rows[name])
    means = {}
    for key, (first, common) in together.items():
        values = {name: store.whole for name, store in stores[key].items()}
        result = mean(Gathered(first, common, values.pop("numbers"), values), skipped)
        means[key] = result if source is None else replace(result, source=source)
    return means


class Rows:
    """The rows of an array that come part by part, at most `most`. file: if they are many, kept there, and mapped."""

    def __init__(self, most: int, like: Array, file: Path | None) -> None:
        self.n, shape = 0, (most, *like.shape[1:])
        if file and most * like[0].nbytes > IN_MEMORY:
            self.all: Array = np.lib.format.open_memmap(file, "w+", like.dtype, shape)
        else:
            self.all = np.empty(shape, like.dtype)

    def add(self, rows: Array) -> None:
        self.all[self.n : self.n + len(rows)] = rows
        self.n += len(rows)

    @property
    def whole(self) -> Array:
        return np.asarray(self.all[: self.n])


def arranged(names: Sequence[Sequence[str]], lists: Sequence[bool], results: Mapping[Key, Any]) -> Any:
    """A result; or `Panels` of results at each level that is a list."""

    def below(key: Key = ()) -> Any:
        """The panels of every result whose key begins with `key`."""
        if len(key) == len(names):
            return results[key]
        inside = {name: below((*key, name)) for name in names[len(key)]}
        return Panels(inside) if lists[len(key)] else next(iter(inside.values()))

    return below()
