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

from ..model.backward import backward
from ..errors import NanopatchError
from ..experiments.metrics import check_slope, metric_gradient
from ..patching.sweep import DIRECTIONS, as_result, check_lists, make_plan, sweep
from ..results.sweep import Panels, Sweep
from ..model.sites import SITES, record
from ..patching.stack import reach


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

    Takes the arguments of `sweep`, but for memory, and gives results of the same kind. `.grid` is the metric of
    the run patched into plus `sum((from - into) * derivative)` over what a cell patches (so that patches of
    several layers in one cell add up, where in a sweep the later overwrite what the earlier did there).

    steps: 1 takes the derivative on the run patched into, from one backward pass for all sites; more take its
    mean at the middles of so many equal steps from that run's activations to the other's, at one layer of one
    site after another (integrated gradients), at `steps` runs and backward passes for each.
    Raises NanopatchError as `sweep` does, and for a metric that has no derivative, or none but 0.
    """
    check_steps(steps)
    choices = dict(layers=layers, positions=positions, heads=heads, neurons=neurons, window=window)
    check_lists(site, direction)
    sites = site if isinstance(site, (list, tuple)) else [site]
    directions = direction if isinstance(direction, (list, tuple)) else [direction]
    # Only a run patched into needs every array, so that three records are the most that is ever held.
    into = {DIRECTIONS[d][0] for d in directions}
    needed = needed_for_estimate(sites, steps)
    kept = {name: needed if name in into else {*sites, "resid_post"} for name in ("clean", "corrupted")}
    runs, results = None, {s: Panels() for s in sites}
    for d in directions:
        plans = []
        for s in sites:
            plans.append(make_plan(model, experiment, s, axes, d, metric, align, choices, kept, runs))
            runs = plans[-1].runs
        all_sites = plans[0]._replace(patches=[edits for plan in plans for edits in plan.patches])
        values, unchanged = estimate_plan(model, all_sites, steps)
        ends = np.cumsum([len(plan.patches) for plan in plans])[:-1]
        for plan, *of_site in zip(plans, np.split(values, ends), np.split(unchanged, ends), strict=True):
            notes = remarks(plan, steps)
            results[plan.site][d] = as_result(model, experiment, plan, metric, *of_site, steps, notes)
    if not isinstance(direction, (list, tuple)):
        results = {s: of_site[direction] for s, of_site in results.items()}
    return Panels(results) if isinstance(site, (list, tuple)) else results[site]


def check_steps(steps):
    if not isinstance(steps, numbers.Integral) or steps < 1:
        raise NanopatchError(f"steps={steps!r}: a whole number is needed, at least 1")


def needed_for_estimate(sites, steps):
    """What must be recorded of the run patched into, to estimate patches at `sites`."""
    return SITES if steps == 1 else {*sites, "resid_pre", "resid_post"}


def remarks(plan, steps):
    """What a result must say of itself: that it was estimated, and how; nothing where steps is None, and it was not."""
    if steps is None:
        return []
    how = "first-order estimate (attribution patching)" if steps == 1 else f"integrated gradients, {steps} steps"
    notes = [f"Not patched: {how}."]
    names = ", ".join(m.name for m in plan.metrics if m.by_differences)
    if names:
        notes.append(f"The derivative of {names} was taken by finite differences over the logits.")
    if any(len({edit.layer for edit in edits}) > 1 for edits in plan.patches):
        notes.append(
            "Cells of several layers add up: what one layer hands on to the next is counted again, where a patch "
            "overwrites it."
        )
    return notes


def estimate_plan(model, plan, steps):
    """As `patching.measure_plan`, which runs every patch, but estimated: (n_patches, n_metrics), and what is unchanged.

    The run patched into must hold `needed_for_estimate`.
    """
    base, metrics, baseline = plan.runs[plan.into], plan.metrics, plan.baselines[plan.into]
    last_only = all(metric.needs != "all" for metric in metrics)
    patches = [reach(model, edits, base.resid_pre.shape[1], last_only)[0] for edits in plan.patches]
    sites = {edit.site for edits in patches for edit in edits}
    values = np.tile(np.array(baseline, np.float64), (len(patches), 1))
    means = {}  # {(site, layer, where its source is in memory): [the mean derivative of each metric on the way there]}
    for i, metric in enumerate(metrics):
        if steps == 1:
            d_logits = metric_gradient(metric, base.logits, plan.target)
            check_slope(metric, baseline[i], d_logits)
            gradient = backward(model, base, d_logits, sites)
        for number, edits in enumerate(patches):
            for edit in edits:
                if steps == 1:
                    slope = getattr(gradient, edit.site)[edit.layer]
                else:
                    key = edit.site, edit.layer, edit.source.ctypes.data
                    if key not in means:
                        means[key] = mean_gradients(model, base, edit, metrics, plan.target, steps)
                    slope = means[key][i]
                at = edit.index()
                values[number, i] += (change(base, edit, at).astype(np.float64) * slope[at]).sum()
        gradient = None  # before the next metric's is made
    return values, np.array([not edits for edits in patches])


def change(base, edit, at=...):
    """The edit's source minus the base run's array; 0 at the masked entries of scores, where both are -inf."""
    source, here = edit.source[at], getattr(base, edit.site)[edit.layer][at]
    return np.subtract(source, here, where=source != here, out=np.zeros_like(here))


def mean_gradients(model, base, edit, metrics, target, steps):
    """Each metric's mean derivative at an edit's site and layer, on the way from the base run's array to its source."""
    difference = change(base, edit)
    totals = [np.zeros(difference.shape) for _ in metrics]
    for step in range(steps):
        fraction = (step + 0.5) / steps

        def on_the_way(fraction=fraction):
            for s in model.steps_from(0, base.resid_pre[0]):
                if s.name == edit.site and s.layer == edit.layer:
                    s.array += (fraction * difference).astype(model.dtype)
                yield s

        run = record(on_the_way())
        for metric, total in zip(metrics, totals, strict=True):
            gradient = backward(model, run, metric_gradient(metric, run.logits, target), edit.site)
            total += getattr(gradient, edit.site)[edit.layer]
    return [total / steps for total in totals]


class Comparison:
    """An estimate beside exact patching, cell by cell, of the same arguments.

    exact, estimate: `Sweep`s; correlation: Pearson's, over the cells both have; slope: of the least-squares line of
    the estimate over the exact values, 1 where the estimate has the right size; worst(n): the n cells in which they
    differ most, [(label, exact, estimate)], in units of the metric.
    """

    def __init__(self, exact, estimate):
        asked = []
        for s in (exact, estimate):
            if not isinstance(s, Sweep):
                raise NanopatchError(f"a comparison takes two sweeps, of one site, direction and metric; not {s!r:.60}")
            asked.append((s.experiment.to_dict(), s.site, s.axes, s.pieces, s.direction, s.metric, s.n_pairs))
        if asked[0] != asked[1]:
            raise NanopatchError("an estimate is compared with a sweep of the same prompts, site, axes and metric")
        self.exact, self.estimate = exact, estimate
        self.cells = np.argwhere(np.isfinite(exact.grid) & np.isfinite(estimate.grid))
        if not len(self.cells):
            raise NanopatchError("the sweep and its estimate have no cell in which both are numbers")
        x, y = (values - values.mean() for values in self.values)
        size, other_size = np.linalg.norm(x), np.linalg.norm(y)
        self.correlation = float(x @ y / (size * other_size)) if size and other_size else np.nan
        self.slope = float(x @ y / size**2) if size else np.nan

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
        lines = [
            f"{self.estimate.title}",
            f"correlation with exact patching {self.correlation:.3f}, slope {self.slope:.2f}",
        ]
        lines += [f"  {label}: exact {x:.2f}, estimated {y:.2f}" for label, x, y in self.worst()]
        return "\n".join(lines)

    def plot(self, ax=None):
        """A scatter of estimate against exact, with the identity line and the worst cells named; returns the Axes."""
        from ..results.plot import scatter

        return scatter(self, ax)

    def _repr_png_(self):  # how a notebook shows it
        from ..results.plot import as_bytes

        return as_bytes(self.plot().figure)


def compare(
    model, experiment, site="resid_pre", axes=None, direction="denoise", metric="logit_diff", align=None, steps=1
):
    """Exact patching and its estimate (see `attribute`), side by side: a `Comparison`."""
    exact = sweep(model, experiment, site, axes, direction, metric, align)
    return Comparison(exact, attribute(model, experiment, site, axes, direction, metric, align, steps=steps))
