"""Attribution patching: what a sweep would find, estimated from two runs and one backward pass.

The change of a metric when an activation is replaced is, to first order, the change of the activation
times the metric's derivative with respect to it, taken on the run patched into (Nanda 2023, "Attribution
Patching: Activation Patching At Industrial Scale"). One backward pass gives the derivative for every
activation at once. Where the model is far from linear, the estimate fails: in the residual stream of
early layers, above all. Averaging the derivative along the way from one run to the other mends much of
that (integrated gradients, Sundararajan et al. 2017, arXiv 1703.01365).
"""

import numbers

import numpy as np

from .backward import backward
from .errors import NanopatchError
from .metrics import metric_gradient
from .patching import DIRECTIONS, as_sweeps, check_lists, make_plan, sweep
from .results import Panels
from .sites import SITES, record
from .stack import reach


def attribute(
    model,
    experiment,
    site="resid_pre",
    axes=None,
    direction="denoise",
    metric="logit_diff",
    align=None,
    *,
    layers=None,
    positions=None,
    heads=None,
    neurons=None,
    window=1,
    steps=1,
):
    """Estimate the grid of `nanopatch.sweep` from derivatives: a `Sweep`, to be compared with it cell by cell.

    Takes the arguments of `sweep`, and gives results of the same kind. `.grid` is the metric of the run
    patched into plus `sum((from - into) * derivative)` over what a cell patches. steps: 1 takes the
    derivative on the run patched into; more take its mean at the middles of so many equal steps from that
    run's activations to the other's, at one layer after another (integrated gradients), which costs
    `steps` runs and backward passes a layer. Several sites share the runs and the derivatives.
    Raises NanopatchError as `sweep` does, and for a metric that has no derivative.
    """
    check_steps(steps)
    choices = dict(layers=layers, positions=positions, heads=heads, neurons=neurons, window=window)
    check_lists(site, direction)
    sites = site if isinstance(site, (list, tuple)) else [site]
    directions = direction if isinstance(direction, (list, tuple)) else [direction]
    # Only a run patched into needs every array, so that three records are the most that is ever held.
    kept = {"clean": {*sites, "resid_post"}, "corrupted": {*sites, "resid_post"}}
    kept |= {DIRECTIONS[d][0]: needed_for_estimate(sites, steps) for d in directions if d in DIRECTIONS}
    runs, results = None, {s: Panels() for s in sites}
    for d in directions:
        plans = []
        for s in sites:
            plans.append(make_plan(model, experiment, s, axes, d, metric, align, choices, kept, runs))
            runs = plans[-1].runs
        plan, patches = plans[0], [edits for plan in plans for edits in plan.patches]
        into, baseline = plan.runs[plan.into], plan.baselines[plan.into]
        values, unchanged = estimate_all(model, into, patches, plan.metrics, plan.target, baseline, steps)
        for s, plan in zip(sites, plans, strict=True):
            here, values = np.split(values, [len(plan.patches)])
            same, unchanged = np.split(unchanged, [len(plan.patches)])
            sweeps = as_sweeps(model, experiment, plan, here, same, remarks(plan.metrics, steps))
            results[s][d] = Panels(sweeps) if isinstance(metric, (list, tuple)) else sweeps[plan.metrics[0].name]
    if not isinstance(direction, (list, tuple)):
        results = {s: of_site[direction] for s, of_site in results.items()}
    return Panels(results) if isinstance(site, (list, tuple)) else results[site]


def check_steps(steps):
    if not isinstance(steps, numbers.Integral) or steps < 1:
        raise NanopatchError(f"steps={steps!r}: a whole number is needed, at least 1")


def needed_for_estimate(sites, steps):
    """What must be recorded of the run patched into, to estimate patches at `sites`."""
    return SITES if steps == 1 else {*sites, "resid_pre", "resid_post"}


def remarks(metrics, steps):
    """What a result must say of itself: that it was estimated, and how."""
    how = "first-order estimate (attribution patching)" if steps == 1 else f"integrated gradients, {steps} steps"
    by_differences = [m.name for m in metrics if hasattr(m.gradient, "by_differences")]
    names = ", ".join(by_differences)
    also = [f"The derivative of {names} was taken by finite differences over the logits."] if names else []
    return [f"Not patched: {how}.", *also]


def estimate_all(model, base, patches, metrics, target, baseline, steps):
    """The metrics after every patch, (n_patches, n_metrics), estimated; and which change nothing, (n_patches,).

    As `patching.measure_all`, which runs the patches, but that base must hold `needed_for_estimate`.
    """
    last_only = all(metric.needs != "all" for metric in metrics)
    patches = [reach(model, edits, base.resid_pre.shape[1], last_only)[0] for edits in patches]
    values = np.tile(np.array(baseline, np.float64), (len(patches), 1))
    sites = {edit.site for edits in patches for edit in edits}
    for i, metric in enumerate(metrics):
        if steps == 1:
            gradient = backward(model, base, metric_gradient(metric, base.logits, target), sites)
        means = {}  # {what would be patched in where: the mean derivative on the way there}
        for number, edits in enumerate(patches):
            for edit in edits:
                if steps == 1:
                    slope = getattr(gradient, edit.site)[edit.layer]
                else:
                    key = edit.site, edit.layer, edit.source.ctypes.data
                    if key not in means:
                        means[key] = mean_gradient(model, base, edit, metric, target, steps)
                    slope = means[key]
                at = edit.index()
                values[number, i] += (change(base, edit, at).astype(np.float64) * slope[at]).sum()
        gradient = None  # before the next metric's is made
    return values, np.array([not edits for edits in patches])


def change(base, edit, at=...):
    """The edit's source minus the base run's array; 0 at the masked entries of scores, where both are -inf."""
    source, here = edit.source[at], getattr(base, edit.site)[edit.layer][at]
    return np.subtract(source, here, where=source != here, out=np.zeros_like(here))


def mean_gradient(model, base, edit, metric, target, steps):
    """The mean derivative at an edit's site and layer on the straight way from the base run's array to its source."""
    difference = change(base, edit)
    total = np.zeros(difference.shape)
    for step in range(steps):
        fraction = (step + 0.5) / steps

        def on_the_way(fraction=fraction):
            for s in model.steps_from(0, base.resid_pre[0]):
                if s.name == edit.site and s.layer == edit.layer:
                    s.array += (fraction * difference).astype(model.dtype)
                yield s

        run = record(on_the_way())
        gradient = backward(model, run, metric_gradient(metric, run.logits, target), edit.site)
        total += getattr(gradient, edit.site)[edit.layer]
    return total / steps


class Comparison:
    """An estimate beside exact patching, cell by cell, of the same arguments.

    exact, estimate: `Sweep`s; correlation: Pearson's, over the cells both have; worst(n): the n cells in
    which they differ most, [(label, exact, estimate)], in units of the metric.
    """

    def __init__(self, exact, estimate):
        if exact.grid.shape != estimate.grid.shape or exact.metric != estimate.metric:
            raise NanopatchError("an estimate is compared with a sweep of the same site, axes and metric")
        self.exact, self.estimate = exact, estimate
        self.cells = np.argwhere(np.isfinite(exact.grid) & np.isfinite(estimate.grid))
        x, y = self.values
        self.correlation = float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) and np.ptp(y) else np.nan

    @property
    def values(self):
        """Both grids' values, flat, in the order of `cells`: two arrays."""
        where = tuple(self.cells.T)
        return self.exact.grid[where], self.estimate.grid[where]

    def worst(self, n=3):
        x, y = self.values
        order = np.argsort(-np.abs(x - y), kind="stable")[:n]
        return [(self._label(self.cells[i]), float(x[i]), float(y[i])) for i in order]

    def _label(self, cell):
        return ", ".join(f"{axis} {self.exact.labels(axis)[i]}" for axis, i in zip(self.exact.axes, cell, strict=True))

    def __str__(self):
        lines = [f"{self.exact.site}: correlation with exact patching {self.correlation:.3f}; worst cells:"]
        lines += [f"  {label}: exact {x:.2f}, estimated {y:.2f}" for label, x, y in self.worst()]
        return "\n".join(lines)

    def plot(self, ax=None):
        """A scatter of estimate against exact, with the identity line and the worst cells named; returns the Axes."""
        from .plot import scatter

        return scatter(self, ax)

    def _repr_png_(self):  # how a notebook shows it
        from .plot import as_bytes

        return as_bytes(self.plot().figure)


def compare(
    model, experiment, site="resid_pre", axes=None, direction="denoise", metric="logit_diff", align=None, steps=1
):
    """Exact patching and its estimate (see `attribute`), side by side: a `Comparison`."""
    exact = sweep(model, experiment, site, axes, direction, metric, align)
    return Comparison(exact, attribute(model, experiment, site, axes, direction, metric, align, steps=steps))
