"""Activation patching: which activation carries the difference between two prompts?

A patch copies some activations of one run into another run, and the metric says how far the prediction moved.
Denoising copies clean into corrupted, and shows what is enough to bring the answer back. Noising copies corrupted into
clean, and shows what is needed to keep it (Zhang & Nanda 2023, Heimersheim & Nanda 2024: arXiv 2309.16042, 2404.15255).

The grid is that of a plain loop over `model.steps`, which runs the model once for each patch and makes one assignment.
`nanopatch.patching.stack` computes the same in less time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import NanopatchError
from ..experiments.corruption import ABLATIONS, Corruption, Noise, Zero
from ..experiments.patch import Paths
from ..model.gpt2 import Model
from ..progress import progress
from ..results.sweep import Sweep
from ..types import PathLike
from .average import Experiments
from .case import Case
from .cells import Cells
from .edit import Edit
from .many import Share, Where
from .question import Values, What, ask, carry_out
from .stack import BASE_SITES, MEMORY, patched_resids

if TYPE_CHECKING:
    from concurrent.futures import Executor


def sweep(
    model: Model,
    experiments: Experiments,
    site: What | Sequence[What] = "resid_pre",
    *,
    direction: str | Sequence[str] | None = None,
    metric: Any = "logit_diff",
    corruption: Corruption | None = None,
    memory: int = MEMORY,
    executor: Executor | None = None,
    workers: int | None = None,
    folder: PathLike | Share | None = None,
) -> Sweep | Any:
    """Patch a site piece by piece, one patched run for each piece, and measure every run.

    Parameters
    ----------
    model : Model
        From `nanopatch.load`.
    experiments : Experiment, its name, list of Experiment, or PairFile
        The prompts and answers. Each of several is measured with its own answers, and the result is the mean, with
        its standard error. Experiments that cannot be used, or whose token counts or alignment differ from the first
        usable one's, are listed in `skipped`.
    site : str, Patch or Paths
        What is patched: the name of an array, along its first two axes; or a `Patch`, which also says the axes,
        layers, positions, heads, neurons and windows; or `Paths`.
    direction : str, optional
        "denoise" (clean into corrupted, the default) or "noise" (corrupted into clean, the default of an ablation).
    metric : str, Metric or callable
        A name (`nanopatch.experiments.metrics.METRICS`) or a function of the logits (n_tokens, n_vocab).
    corruption : Zero, Mean, Resample or Noise, optional
        What takes the place of the corrupted prompt.
    memory : int
        Bytes to compute in, besides the model. Less memory takes more time. Each worker takes as much.
    executor : Executor, optional
        Computes many experiments: any one of `concurrent.futures`' kind, also Dask's `client.get_executor()`. Its
        workers load the model themselves, by the name that it was loaded by.
    workers : int, optional
        A number of processes instead, each with one thread. A script needs `if __name__ == "__main__":` around it.
    folder : str, path or Share, optional
        Remembers what is done. Started again with the same arguments, the run goes on where it stopped. The workers and
        their number may change; the result is the same to the bit (`nanopatch.merge` reads it again).

    Returns
    -------
    Sweep or Panels
        Several sites, directions or metrics, as lists, give `Panels`: a dict of sweeps by name. They are measured
        on the same runs.

    Raises
    ------
    NanopatchError
        If a name is unknown, or the prompts or answers cannot be used.

    Examples
    --------
    >>> import nanopatch
    >>> model, michelle = nanopatch.load("nano"), nanopatch.experiments.MICHELLE
    >>> result = nanopatch.sweep(model, michelle)
    >>> result
    <Sweep: resid_pre patched from clean into corrupted (denoising), nano; logit_diff, 4 layers x 11 positions>
    >>> round(float(result.normalised[0, 1]), 2)  # layer 0, position 1: the surname
    1.0
    """
    if not isinstance(memory, Real) or not memory > 0:
        raise NanopatchError(f"memory={memory!r}: a number of bytes is expected, above 0")
    where = Where(executor, workers, folder)
    return carry_out(model, experiments, ask(site, direction, metric, corruption), Running(memory), where)


def ablate(
    model: Model,
    experiments: Experiments,
    site: What | Sequence[What] = "attn_out",
    by: Corruption = Zero(),  # noqa: B008 (a frozen value)
    *,
    metric: Any = "logit_diff",
    executor: Executor | None = None,
    workers: int | None = None,
    folder: PathLike | Share | None = None,
) -> Sweep | Any:
    """Replace a site of the clean run piece by piece, and measure every run. `normalised` has relative changes.

    It is `sweep(..., corruption=by)`. by: `Zero()` by default, `Mean(prompts)` or `Resample(prompts)`. Only the clean
    prompts and the answers of the experiments are used. executor, workers, folder: as for `sweep`.
    `nanopatch.attribute(..., corruption=by)` estimates an ablation. The estimate is bad if the whole residual stream
    goes to zero: LayerNorm sees only its direction, so nearly all of the change comes in the last step.

    Examples
    --------
    >>> import nanopatch
    >>> model, michelle = nanopatch.load("nano"), nanopatch.experiments.MICHELLE
    >>> nanopatch.ablate(model, michelle, "z")
    <Sweep: z replaced by zero (ablation), nano; logit_diff, 4 layers x 4 heads>
    """
    if not isinstance(by, ABLATIONS):
        raise NanopatchError(f"by={by!r:.60}: Zero(), Mean(prompts) or Resample(prompts) is expected")
    where: dict[str, Any] = dict(executor=executor, workers=workers, folder=folder)
    return sweep(model, experiments, site, metric=metric, corruption=by, **where)


def trace(
    model: Model,
    experiments: Experiments,
    noised: Sequence[int],
    site: What | Sequence[What] = "resid_pre",
    *,
    metric: Any = "probability",
    sigma: float = 3.0,
    seeds: Sequence[int] = range(10),
    executor: Executor | None = None,
    workers: int | None = None,
    folder: PathLike | Share | None = None,
) -> Sweep | Any:
    """Causal tracing: noise on token embeddings, a site restored piece by piece, averaged over seeds.

    It is `sweep(..., corruption=Noise(noised, sigma, seeds))`. noised: the positions whose embeddings get noise.
    sigma: its standard deviation, in standard deviations of the entries of wte. Only the clean prompts and the answers
    of the experiments are used. executor, workers, folder: as for `sweep`. The result lists the known objections.
    (Meng et al. 2022, arXiv 2202.05262.)

    Examples
    --------
    >>> import nanopatch
    >>> model, michelle = nanopatch.load("nano"), nanopatch.experiments.MICHELLE
    >>> nanopatch.trace(model, michelle, [1], seeds=[0]).grid.shape
    (4, 11)
    """
    where: dict[str, Any] = dict(executor=executor, workers=workers, folder=folder)
    return sweep(model, experiments, site, metric=metric, corruption=Noise(noised, sigma, seeds), **where)


def path_patch(
    model: Model,
    experiments: Experiments,
    senders: Any,
    receivers: Any,
    *,
    between: str = "frozen",
    positions: Sequence[int] | None = None,
    direction: str | Sequence[str] | None = None,
    metric: Any = "logit_diff",
    executor: Executor | None = None,
    workers: int | None = None,
    folder: PathLike | Share | None = None,
) -> Sweep | Any:
    """Patch every path from one of `senders` to one of `receivers`, at all positions: sender x receiver.

    It is `sweep` of `Paths(senders, receivers, between, positions)`; `nanopatch.patching.paths` says what is computed.

    Parameters
    ----------
    model, experiments, direction, metric, executor, workers, folder
        As for `sweep`. The prompts need one length.
    senders, receivers : str or list
        A name ("head 2.1", "logits"; see `nanopatch.model.graph`), the beginning of names, which means all of them
        ("head", "head 2", "q 3"), or a list of these. A list in the list is a group: its members are replaced
        together, and it is one row or column. (In a group, a later q, k, v, MLP or residual stream is set to what it
        read in step 1. So it overwrites what reaches it through earlier members in step 2.)
    between : str
        What happens to everything else in step 1. "frozen": attention heads and MLPs keep the values of the base
        run, so only the direct path through the residual stream counts. "free mlps": heads keep theirs, MLPs are
        recomputed (Wang et al. 2022). "free": heads and MLPs are recomputed.
    positions : list of int, optional
        Where the receivers' inputs are replaced; below 0, from the end; all by default. (With heads frozen, what
        arrives at a position was sent there.)

    Returns
    -------
    Sweep or Panels
        A receiver that does not come after its sender is NaN.

    Examples
    --------
    >>> import nanopatch
    >>> model, pair = nanopatch.load("nano"), nanopatch.experiments.INDIRECT_OBJECT
    >>> nanopatch.path_patch(model, pair, "head 3", "logits").labels("sender")
    ['head 3.0', 'head 3.1', 'head 3.2', 'head 3.3']
    """
    paths = Paths(senders, receivers, between, positions)
    where: dict[str, Any] = dict(executor=executor, workers=workers, folder=folder)
    return sweep(model, experiments, paths, direction=direction, metric=metric, **where)


class Running(NamedTuple):
    """The method of `sweep`: every cell is run."""

    memory: float
    steps: int | None = None

    def needs(self, sites: Iterable[str]) -> Iterable[str]:
        return BASE_SITES

    def values(self, case: Case, grids: Sequence[Cells]) -> list[Values]:
        """A patch that can change nothing is not run: its metrics are those of the base run."""
        results = []
        for cells in grids:
            values, unchanged = [], []
            for batch in cells.batches:
                values.append(np.tile(np.array(case.baseline, np.float64), (len(batch), 1)))
                unchanged.append(np.ones(len(batch), bool))
                for number, measured in measure_patches(case, batch, self.memory):
                    values[-1][number], unchanged[-1][number] = measured, False
            results.append((np.concatenate(values), np.concatenate(unchanged)))
        return results


def measure_patches(
    case: Case, patches: Sequence[Sequence[Edit]], memory: float = MEMORY
) -> Iterator[tuple[int, list[float]]]:
    """Run every patch and measure it: yields (number of the patch, [value of each metric])."""
    runs = patched_resids(case.model, case.base, patches, last_only=case.last_only, memory=memory)
    runs = iter(progress(runs, "patches", len(patches)))
    while some := list(itertools.islice(runs, 64 if case.last_only else 1)):  # the vocabulary is read once for all
        numbers, starts, resids = zip(*some, strict=True)
        logits = case.model.unembed(np.concatenate(resids), case.answers)
        if case.last_only:
            for number, row in zip(numbers, logits, strict=True):
                yield number, case.measure(row[None])
        else:  # before `start` nothing has changed
            yield numbers[0], case.measure(np.concatenate([case.base_logits[: starts[0]], logits]))
