"""Many experiments: in this process, by workers, and in a folder that remembers what is done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

from ..errors import NanopatchError
from ..experiments.experiment import Experiment
from ..files import Source
from ..model.gpt2 import Model
from ..progress import counting
from ..types import PathLike
from .average import (
    Given,
    Part,
    Standard,
    Task,
    arranged,
    carry_out_part,
    checked,
    cut,
    listed,
    means_of_parts,
    standard_of,
)


class Share(NamedTuple):
    """A folder of a run, of which only a share is to be computed: of 100 jobs, each takes one share.

    The jobs may run at any time and on any computers that see the folder. A call returns None as long as other shares
    are missing; the last one, or `nanopatch.merge(folder)`, returns the result.

    Attributes
    ----------
    folder : str or path
    number : int
        From 1 to `of`.
    of : int
        How many shares there are.

    Examples
    --------
    >>> import nanopatch, tempfile
    >>> model, pairs, run = nanopatch.load("nano"), nanopatch.tasks.capitals(6), tempfile.mkdtemp()
    >>> nanopatch.sweep(model, pairs, folder=nanopatch.Share(run, 1, 2))  # None
    >>> nanopatch.sweep(model, pairs, folder=nanopatch.Share(run, 2, 2)).n_pairs
    6
    """

    folder: PathLike
    number: int
    of: int


class Where(NamedTuple):
    """Where many experiments are computed, and where what is done is kept.

    executor: of `concurrent.futures`' kind. workers: a number of processes instead. folder: remembers the run.
    """

    executor: Any = None
    workers: Any = None
    folder: PathLike | Share | None = None


#: In this process, and nothing is kept.
HERE = Where()


def over(model: Model, experiments: Any, task: Task, where: Where = HERE) -> Any:
    """The results of a task on one experiment, or the means of its results on many."""
    experiments = checked(model, experiments)
    check_where(where)
    if isinstance(experiments, Experiment):
        task.structure(model, experiments)  # raises if it cannot be used
        if where.folder is None:
            return arranged(task.names, task.lists, task.one(model, experiments, 0))
    given, source = listed(experiments), model.source or Source("unnamed")
    standard = standard_of(model, task, given)
    parts = dict(enumerate(cut(given)))
    if where.folder is None:
        done = dict(compute(model, task, parts, standard, where))
        means = means_of_parts((done.pop(number) for number in sorted(done)), len(given), source)
        return arranged(task.names, task.lists, means)
    from .folder import RunFolder

    share = where.folder if isinstance(where.folder, Share) else Share(where.folder, 1, 1)
    folder = RunFolder.open(share.folder, model, task, given)
    with folder.lock(f"{share.number}-of-{share.of}"):
        missing = {number: parts[number] for number in folder.missing() if number % share.of == share.number - 1}
        try:
            for number, part in compute(model, task, missing, standard, where):
                folder.write(number, part)
        except NanopatchError as error:
            raise NanopatchError(f"{error} ({folder.progress})") from None
    if share.of > 1 and folder.missing():
        return None
    return folder.result(source)


def compute(
    model: Model, task: Task, parts: Mapping[int, Sequence[Given]], standard: Standard, where: Where
) -> Iterator[tuple[int, Part]]:
    """Each part with its number, as it gets done."""
    from . import workers as on

    with contextlib.ExitStack() as stack:
        executor = where.executor
        if executor is None and where.workers is not None and parts:
            executor = stack.enter_context(on.pool(min(int(where.workers), len(parts))))
        done = stack.enter_context(counting(sum(map(len, parts.values())), "pairs"))
        if executor is None:
            for number, given in parts.items():
                yield number, carry_out_part(model, task, given, standard, done)
            return
        for number, part in on.compute(executor, model, task, parts, standard):
            done(len(parts[number]))
            yield number, part


def check_where(where: Where) -> None:
    from concurrent.futures import Executor

    executor, workers, folder = where
    if executor is not None and not isinstance(executor, Executor):
        raise NanopatchError(
            f"executor={executor!r:.60}: an Executor of concurrent.futures' kind is expected, such as "
            "ProcessPoolExecutor(4), or Dask's client.get_executor()"
        )
    if workers is not None and (not isinstance(workers, Integral) or isinstance(workers, bool) or workers < 1):
        raise NanopatchError(f"workers={workers!r:.60}: a number of processes is expected, at least 1")
    if executor is not None and workers is not None:
        raise NanopatchError("give an executor, or a number of workers, not both")
    if isinstance(folder, Share):
        whole = all(isinstance(n, Integral) for n in folder[1:])
        if not whole or not 1 <= folder.number <= folder.of:
            raise NanopatchError(f"share {folder.number!r} of {folder.of!r}: of 100, the first is 1 and the last 100")
