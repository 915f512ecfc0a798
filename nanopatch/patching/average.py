"""One experiment, or the mean over many with its standard error.

One pair of prompts shows what happens in one prompt. The mean over pairs that differ in names and places shows what
belongs to the task. (The arithmetic of the mean is `nanopatch.results.base.mean_of`.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import NanopatchError
from ..experiments.align import Columns
from ..experiments.experiment import NAMED, Experiment
from ..experiments.pairs import PairFile
from ..model.gpt2 import Model
from ..progress import progress
from ..results.base import R, mean_of

Known = Experiment | Sequence[Experiment] | PairFile
#: One experiment, its name, a list of experiments, or what `nanopatch.read_pairs` returns.
Experiments = Known | str
Skipped = list[tuple[str, str]]


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


def over(
    experiments: Known,
    one: Callable[[Experiment, int], dict[Any, R]],
    structure: Callable[[Experiment], Columns],
) -> dict[Any, R]:
    """The results of one experiment, or the means of the results of many.

    one: (experiment, its number) -> results by any key. structure: the columns that experiments must have in common
    to be averaged.
    """
    if isinstance(experiments, Experiment):
        structure(experiments)  # raises if it cannot be used
        return one(experiments, 0)
    used, skipped = usable(experiments, structure)
    results = [one(experiment, number) for number, experiment in enumerate(progress(used, "pairs"))]
    return {key: mean_of([result[key] for result in results], skipped) for key in results[0]}


def usable(experiments: Known, structure: Callable[[Experiment], Columns]) -> tuple[list[Experiment], Skipped]:
    """Which experiments can be averaged, and (where, reason) of the others.

    An experiment is left out if it cannot be used, or if its columns differ from the first usable one's. Raises
    NanopatchError if no experiment is left.
    """
    if isinstance(experiments, PairFile):
        numbered = list(experiments.numbered)
    else:
        given = [experiments] if isinstance(experiments, Experiment) else list(experiments)
        named = [NAMED.get(one, one) if isinstance(one, str) else one for one in given]
        numbered = [(f"pair {number}", experiment, None) for number, experiment in enumerate(named)]
    used: list[Experiment] = []
    skipped: Skipped = []
    standard: tuple[str, Columns] = ("", [])  # the first usable experiment: where it is, and its columns
    for where, experiment, reason in numbered:
        try:
            if experiment is None:
                raise NanopatchError(reason)
            if not isinstance(experiment, Experiment):
                raise NanopatchError(f"not an Experiment: {experiment!r:.60}")
            columns = structure(experiment)
            if used and columns != standard[1]:
                raise NanopatchError(_difference(columns, *standard))
        except NanopatchError as error:
            skipped.append((where, str(error)))
            continue
        if not used:
            standard = where, columns
        used.append(experiment)
    if not used:
        if not skipped:
            raise NanopatchError("there are no pairs: give at least one Experiment")
        more = f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else ""
        raise NanopatchError(f"no pair can be used; {skipped[0][0]}{more}: {skipped[0][1]}")
    return used, skipped


def _difference(columns: Columns, where: str, standard: Columns) -> str:
    """Why a pair with these columns cannot be averaged with the pair at `where`."""
    ours, theirs = ([sum(pair[side] is not None for pair in pairs) for side in (0, 1)] for pairs in (columns, standard))
    if ours == theirs:
        return f"its tokens are aligned differently from those of {where}, so they cannot be averaged"
    return (
        f"its prompts have {ours[0]} and {ours[1]} tokens, those of {where} have {theirs[0]} and {theirs[1]}, so they "
        "cannot be averaged"
    )
