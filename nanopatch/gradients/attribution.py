"""Attribution patching: what a sweep would find, estimated from two runs and one backward pass.

The change of a metric when an activation is replaced is, to first order, the change of the activation times the
metric's derivative with respect to it, taken on the base run (Nanda 2023, "Attribution Patching: Activation Patching
At Industrial Scale"). One backward pass gives the derivative for every activation at once. The estimate fails where
the model is far from linear, above all in the residual stream of early layers. The mean derivative along the line
from one run to the other is much better (integrated gradients, Sundararajan et al. 2017, arXiv 1703.01365).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import NanopatchError
from ..experiments.corruption import Corruption
from ..experiments.metrics import check_slope, metric_gradient
from ..model.backward import backward
from ..model.gpt2 import Model
from ..model.sites import SITES, Run, Site, record
from ..patching.average import Experiments
from ..patching.case import Case
from ..patching.cells import Cells
from ..patching.edit import Edit
from ..patching.many import Share, Where
from ..patching.question import Values, What, ask, carry_out
from ..patching.reach import reach
from ..progress import progress
from ..results.sweep import Sweep
from ..types import Array, PathLike

if TYPE_CHECKING:
    from concurrent.futures import Executor


def attribute(
    model: Model,
    experiments: Experiments,
    site: What | Sequence[What] = "resid_pre",
    *,
    direction: str | Sequence[str] | None = None,
    metric: Any = "logit_diff",
    corruption: Corruption | None = None,
    steps: int = 1,
    executor: Executor | None = None,
    workers: int | None = None,
    folder: PathLike | Share | None = None,
) -> Sweep | Any:
    """Estimate the grid of `nanopatch.sweep` from derivatives. `Comparison(exact, estimate)` sets the two side by side.

    The grid is the metric of the base run plus `sum((donor - base) * derivative)` over what a cell patches. So
    patches of several layers in one cell add up. In a sweep, a later patch overwrites what an earlier one did there.

    Parameters
    ----------
    model, experiments, site, direction, metric, corruption, executor, workers, folder
        As for `nanopatch.sweep`. The metric needs a derivative.
    steps : int
        1 takes the derivative on the base run, from one backward pass for all sites. More steps take the mean
        derivative along the line from the base run's activations to the donor's, at the middles of equal steps
        (integrated gradients). Each layer of each site then needs `steps` runs and backward passes.

    Returns
    -------
    Sweep or Panels
        As for `nanopatch.sweep`.

    Raises
    ------
    NanopatchError
        As for `nanopatch.sweep`; also if the metric has no derivative, or the estimate would be rounding error.

    Examples
    --------
    >>> import nanopatch
    >>> model, michelle = nanopatch.load("nano"), nanopatch.experiments.MICHELLE
    >>> nanopatch.attribute(model, michelle, "z")
    <Sweep: attribution: z patched from clean into corrupted (denoising), nano; logit_diff, 4 layers x 4 heads>
    >>> exact, estimate = nanopatch.sweep(model, michelle, "z"), nanopatch.attribute(model, michelle, "z")
    >>> nanopatch.Comparison(exact, estimate).correlation > 0.9
    True
    """
    check_steps(steps)
    where = Where(executor, workers, folder)
    return carry_out(model, experiments, ask(site, direction, metric, corruption), Estimating(steps), where)


def check_steps(steps: Any) -> None:
    if not isinstance(steps, Integral) or steps < 1:
        raise NanopatchError(f"steps={steps!r}: a whole number is needed, at least 1")


class Estimating(NamedTuple):
    """The method of `attribute`: every cell is estimated."""

    steps: int

    def needs(self, sites: Iterable[str]) -> Iterable[str]:
        return SITES if self.steps == 1 else {*sites, "resid_pre", "resid_post"}

    def values(self, case: Case, grids: Sequence[Cells]) -> list[Values]:
        sites = {site for cells in grids for site in cells.sites}
        means: dict[tuple[str, int, int], list[Array]] = {}  # {(site, layer, draw): each metric's mean derivative}
        of_metrics = []  # for each metric, for each grid: [(estimate, whether nothing is reached) of each patch]
        for number in range(len(case.metrics)):
            gradient = base_gradient(case, number, sites) if self.steps == 1 else None

            def slope(edit: Edit, gradient: Run | None = gradient, number: int = number) -> Array:
                """The derivative with respect to the array that is edited, with its shape."""
                if gradient is not None:
                    return np.asarray(getattr(gradient, edit.site)[edit.layer])
                key = edit.site, edit.layer, edit.draw
                if key not in means:
                    means[key] = mean_gradients(case, edit, self.steps)
                return means[key][number]

            of_metrics.append([[estimate(case, number, edits, slope) for edits in each(cells)] for cells in grids])
            gradient = None  # before the next metric's is made
        results = []
        for of_grid in zip(*of_metrics, strict=True):  # [each metric's list]
            values = np.array([[value for value, _ in patches] for patches in of_grid], np.float64).T
            results.append((values, np.array([unchanged for _, unchanged in of_grid[0]])))
        return results


def each(cells: Cells) -> Iterator[Sequence[Edit]]:
    """The edits of each cell, in the order of the grid."""
    return itertools.chain.from_iterable(cells.batches)


def estimate(case: Case, number: int, edits: Sequence[Edit], slope: Callable[[Edit], Array]) -> tuple[float, bool]:
    """Metric `number` after one cell's patch, to first order; and whether the patch changes nothing measured."""
    value = case.baseline[number]
    reached, _ = reach(case.model, edits, case.n_tokens, case.last_only)
    for edit in reached:
        at = edit.where()
        value += float((change(case.base, edit, at).astype(np.float64) * slope(edit)[at]).sum())
    return value, not reached


def base_gradient(case: Case, number: int, sites: Iterable[str]) -> Run:
    """The derivatives of metric `number` on the base run."""
    metric = case.metrics[number]
    d_logits = metric_gradient(metric, case.base.logits, case.target)
    check_slope(metric, np.abs(d_logits).max(), case.baseline[number])
    return backward(case.model, case.base, d_logits, sites)


def change(base: Run, edit: Edit, at: Any = ...) -> Array:
    """The edit's donor minus the base run's array; 0 at the masked entries of scores, where both are -inf."""
    donor, here = edit.donor[at], getattr(base, edit.site)[edit.layer][at]
    return np.subtract(donor, here, where=donor != here, out=np.zeros_like(here))


def mean_gradients(case: Case, edit: Edit, steps: int) -> list[Array]:
    """Each metric's mean derivative with respect to an edit's array, on the line from the base run's to the donor's."""
    model, difference = case.model, change(case.base, edit)
    totals = [np.zeros(difference.shape) for _ in case.metrics]
    slopes: list[list[Any]] = [[] for _ in case.metrics]  # the largest |derivative| of each metric at each step
    for step in progress(range(steps), "steps"):
        fraction = (step + 0.5) / steps

        def on_the_line(fraction: float = fraction) -> Iterator[Site]:
            for s in model.steps_from(0, case.base.resid_pre[0]):
                if s.name == edit.site and s.layer == edit.layer:
                    s.array += (fraction * difference).astype(model.dtype)
                yield s

        run = record(on_the_line())
        for metric, total, slope in zip(case.metrics, totals, slopes, strict=True):
            d_logits = metric_gradient(metric, run.logits, case.target)
            slope.append(np.abs(d_logits).max())
            total += getattr(backward(model, run, d_logits, edit.site), edit.site)[edit.layer]
    for metric, slope in zip(case.metrics, slopes, strict=True):
        check_slope(metric, max(slope))
    return [total / steps for total in totals]
