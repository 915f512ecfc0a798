"""From a question to its answer: what `sweep` and `attribute` both go through.

A question says what is patched (`Patch` or `Paths`), what is put in (the other prompt, or a `Corruption`), in which
direction, what is measured, and over which experiments. A `Method` says how a cell is got: by running it, or by
estimating it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import NanopatchError
from ..experiments.align import Columns
from ..experiments.corruption import ABLATIONS, Corruption, Noise, Resample
from ..experiments.experiment import Experiment
from ..experiments.metrics import Metric, as_metrics
from ..experiments.patch import Patch, Paths
from ..files import Source
from ..model.gpt2 import Model
from ..results.panels import Panels
from ..results.sweep import DIRECTIONS, Sweep, mean_of
from ..types import Array, Sites
from .average import Experiments, over, usable
from .case import Case, make_case, replacement_of, run_both, transplant
from .cells import Cells, cells_of_patch
from .paths import PATH_SITES, cells_of_paths, no_path
from .stack import Edit

What = str | Patch | Paths
#: (values of each metric after each patch, (n_patches, n_metrics); whether a patch can change nothing, (n_patches,))
Values = tuple[Array, Array]


class Method(Protocol):
    """How the cells are got."""

    @property
    def steps(self) -> int | None:
        """As of a `Sweep`."""

    def needs(self, sites: Iterable[str]) -> Sites:
        """What the base run must record, to be patched at `sites`."""

    def values(self, model: Model, case: Case, cells: Sequence[Cells]) -> list[Values]:
        """The values of all cells, grid by grid."""


class Question(NamedTuple):
    """What is asked, checked and spelled out. whats: what is patched, by the name of its panel."""

    whats: dict[str, Patch | Paths]
    directions: tuple[str, ...]
    metrics: list[Metric]
    corruption: Corruption | None

    @property
    def sites(self) -> set[str]:
        return {site for w in self.whats.values() for site in (PATH_SITES if isinstance(w, Paths) else [w.site])}


def answer(
    model: Model,
    experiments: Experiments,
    site: What | Sequence[What],
    direction: str | Sequence[str] | None,
    metric: Any,
    corruption: Corruption | None,
    method: Method,
) -> Sweep | Any:
    """A `Sweep`; or `Panels` where sites, directions or metrics are lists."""
    question = ask(site, direction, metric, corruption)
    structure = functools.partial(columns_of, model, corruption)
    for name, what in question.whats.items():
        if isinstance(what, Patch) and isinstance(what.neurons, Integral):
            chosen = most_different(model, experiments, what, corruption, structure)
            question.whats[name] = replace(what, neurons=chosen)

    def one(experiment: Experiment, number: int) -> dict[tuple[str, str, str], Sweep]:
        return answer_one(model, experiment, number, question, method)

    sweeps = over(experiments, one, mean_of, structure)
    lists = [isinstance(given, (list, tuple)) for given in (site, direction, metric)]
    names = [list(question.whats), list(question.directions), [m.name for m in question.metrics]]

    def arrange(key: tuple[Any, ...]) -> Sweep | Panels:
        """The panels of everything whose key begins so."""
        axis = len(key)
        if axis == len(names):
            return sweeps[key]
        inside = {name: arrange((*key, name)) for name in names[axis]}
        return Panels(inside) if lists[axis] else inside[names[axis][0]]

    return arrange(())


def ask(
    site: What | Sequence[What], direction: str | Sequence[str] | None, metric: Any, corruption: Corruption | None
) -> Question:
    """The question that the arguments of `sweep` ask. NanopatchError for what is unknown, or said twice."""
    if corruption is not None and not isinstance(corruption, (*ABLATIONS, Noise)):
        raise NanopatchError(f"corruption={corruption!r:.60}: Zero(), Mean(), Resample() or Noise() is expected")
    ablation = isinstance(corruption, ABLATIONS)
    sites = as_list(site)
    directions = as_list(("noise" if ablation else "denoise") if direction is None else direction)
    if not sites or not directions:
        raise NanopatchError("a list of sites or directions needs at least one")
    for name in directions:
        if not isinstance(name, str) or name not in DIRECTIONS or directions.count(name) > 1:
            raise NanopatchError(
                f'unknown direction {name!r}: "denoise" (clean into corrupted) or "noise", each at most once'
            )
        if ablation and name != "noise":
            raise NanopatchError(
                f'{corruption} is put into the clean run, which is direction="noise": there is no run to {name} into'
            )
    whats: dict[str, Patch | Paths] = {}
    for what in sites:
        described = Patch(what) if not isinstance(what, (Patch, Paths)) else what
        if ablation and isinstance(described, Patch) and isinstance(described.neurons, Integral):
            raise NanopatchError("an ablation has no second run to rank neurons by: give a list of neurons")
        if any((w.site, w.axes) == (described.site, described.axes) for w in whats.values()):
            raise NanopatchError(f"{described.site} is listed twice: each site, with its axes, at most once")
        name = described.site
        if name in whats:  # cut along other axes
            name = f"{described.site} {','.join(described.axes or ())}"
        whats[name] = described
    return Question(whats, tuple(directions), as_metrics(metric), corruption)


def as_list(given: Any) -> list[Any]:
    """What was given as a list, or one thing alone, as a list."""
    return list(given) if isinstance(given, (list, tuple)) else [given]


def answer_one(
    model: Model, experiment: Experiment, number: int, question: Question, method: Method
) -> dict[tuple[str, str, str], Sweep]:
    """The sweeps of one experiment, by (what is patched, direction, metric). Over seeds of noise, their means."""
    corruption, bases = question.corruption, {DIRECTIONS[d][0] for d in question.directions}
    # Only a base run needs more than what is copied out of it, so that few arrays are held at once.
    donor_sites = {*question.sites, "resid_pre", "resid_post"}
    base_sites = {*donor_sites, *(method.needs(question.sites) or ())}
    kept: dict[str, Sites] = {name: base_sites if name in bases else donor_sites for name in ("clean", "corrupted")}
    samples = []
    for runs in run_both(model, experiment, number, corruption, kept):

        @functools.cache
        def replacements(site: str, clean: Any = runs.clean) -> list[Array]:
            return replacement_of(model, site, clean, corruption, experiment.prepend_bos)

        sweeps = {}
        for direction in question.directions:
            case = make_case(model, runs, direction, question.metrics, corruption, replacements)
            resample = corruption if isinstance(corruption, Resample) else None
            cells = [
                cells_of_paths(model, what, case, resample, number)
                if isinstance(what, Paths)
                else cells_of_patch(model, what, case, resample, number)
                for what in question.whats.values()
            ]
            values = method.values(model, case, cells)
            for (name, what), grid, of_grid in zip(question.whats.items(), cells, values, strict=True):
                for i, metric in enumerate(question.metrics):
                    result = as_sweep(model, experiment, what, question, case, grid, of_grid, i, method.steps)
                    sweeps[name, direction, metric.name] = result
        samples.append(sweeps)
    if len(samples) == 1:
        return samples[0]
    means = {key: mean_of([sweeps[key] for sweeps in samples]) for key in samples[0]}
    return {key: replace(mean, n_pairs=1, standard_error=None) for key, mean in means.items()}


def as_sweep(
    model: Model,
    experiment: Experiment,
    what: Patch | Paths,
    question: Question,
    case: Case,
    cells: Cells,
    values: Values,
    number: int,
    steps: int | None,
) -> Sweep:
    """The `Sweep` of one grid and of metric `number`."""
    axes, tokens, metric = tuple(what.axes or ()), case.runs.tokens, case.metrics[number]
    shape = tuple(len(cells.pieces[axis]) for axis in axes)
    grid = np.ascontiguousarray(values[0][:, number]).reshape(shape)
    if isinstance(what, Paths):
        grid[no_path(cells)] = np.nan
    if "position" in axes:  # blank where nothing of a piece has a partner
        blank = [all(None in case.partners[column] for column in piece) for piece in cells.pieces["position"]]
        np.moveaxis(grid, axes.index("position"), 0)[blank] = np.nan
    return Sweep(
        grid=grid,
        site=what.site,
        axes=axes,
        pieces=cells.pieces,
        direction=case.direction,
        metric=metric.name,
        experiment=experiment,
        columns=tuple(case.runs.columns),
        clean_tokens=tuple(model.token_strings(tokens.clean)),
        corrupted_tokens=tuple(model.token_strings(tokens.corrupted if question.corruption is None else tokens.clean)),
        baseline_clean=case.values["clean"][number],
        baseline_corrupted=case.values["corrupted"][number] if "corrupted" in case.values else None,
        rounding=case.rounding,
        source=model.source or Source("unnamed"),
        corruption=question.corruption,
        steps=steps,
        between=what.between if isinstance(what, Paths) else None,
        chosen=cells.chosen,
        finite_differences=steps is not None and metric.by_differences,
        adds_layers=steps is not None
        and any(len({e.layer for e in edits}) > 1 for batch in _only_lists(cells) for edits in batch),
        unchanged=values[1].reshape(shape),
    )


def _only_lists(cells: Cells) -> Sequence[Sequence[Sequence[Edit]]]:
    return cells.batches if isinstance(cells.batches, list) else ()


def columns_of(model: Model, corruption: Corruption | None, experiment: Experiment) -> Columns:
    """The aligned columns of an experiment; where there is no second prompt, one for each token."""
    if corruption is None:
        return experiment.columns(model)
    return [(position, position) for position in range(len(experiment.tokens(model).clean))]


def most_different(
    model: Model, experiments: Experiments, patch: Patch, corruption: Corruption | None, structure: Any
) -> list[tuple[int, int]]:
    """The (layer, neuron) pairs that differ most between the runs at any position, in the mean over experiments."""
    n = patch.neurons
    used = usable(experiments, structure)[0]
    total = np.zeros((model.n_layer, model.d_mlp))
    if not isinstance(n, Integral) or not 1 <= n <= total.size:
        raise NanopatchError(f"neurons={n}: from 1 to {total.size} can be chosen")
    kept: dict[str, Sites] = dict.fromkeys(("clean", "corrupted"), patch.site)
    for number, experiment in enumerate(used):
        for runs in run_both(model, experiment, number, corruption, kept):
            clean, corrupted = (getattr(run, patch.site) for run in (runs.clean, runs.corrupted))
            moved = transplant(clean, corrupted, runs.columns, patch.site)  # (n_layer, n_tokens, d_mlp)
            total += np.abs(moved - clean).max(axis=1)
    best = np.argsort(-total, axis=None, kind="stable")[: int(n)]
    layers, neurons = np.unravel_index(best, total.shape)
    return list(zip(layers.tolist(), neurons.tolist(), strict=True))
