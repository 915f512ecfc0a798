"""A question, and how it is carried out: what `sweep` and `attribute` both go through.

A question says what is patched (`Patch` or `Paths`), what is put in (the other prompt, or a `Corruption`), in which
direction, what is measured, and over which experiments. A `Method` says how each cell is computed: by a run, or by
an estimate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import NanopatchError
from ..experiments.align import Columns
from ..experiments.corruption import ABLATIONS, Corruption, Noise
from ..experiments.experiment import Experiment
from ..experiments.ground import is_common, on_ground
from ..experiments.metrics import Metric, as_metrics, identity
from ..experiments.patch import Patch, Paths
from ..files import Source
from ..model.gpt2 import Model
from ..model.sites import ATTENTION_SITES
from ..results.pairs import mean_of
from ..results.sweep import DIRECTIONS, Sweep, check_direction
from ..types import Array
from .average import Experiments, Given, Key, all_usable, checked
from .case import Case, check_equal_positions, make_case, run_both, tokens_of, transplant
from .cells import Cells, cells_of_patch
from .many import HERE, Where, over
from .paths import PATH_SITES, cells_of_paths

What = str | Patch | Paths
#: (values of each metric after each patch, (n_patches, n_metrics); whether a patch can change nothing, (n_patches,))
Values = tuple[Array, Array]


class Method(Protocol):
    """How each cell is computed."""

    @property
    def steps(self) -> int | None:
        """As in a `Sweep`."""

    def needs(self, sites: Iterable[str]) -> Iterable[str]:
        """What the base run must record, to be patched at `sites`."""

    def values(self, case: Case, grids: Sequence[Cells]) -> list[Values]:
        """The values of all cells, grid by grid."""


class Question(NamedTuple):
    """What is asked, checked and spelled out. whats: what is patched, by the name of its panel."""

    whats: dict[str, Patch | Paths]
    directions: list[str]
    metrics: list[Metric]
    corruption: Corruption | None
    lists: tuple[bool, bool, bool]  # whether sites, directions and metrics were lists, and so become panels

    @property
    def sites(self) -> set[str]:
        return {site for w in self.whats.values() for site in (PATH_SITES if isinstance(w, Paths) else [w.site])}


def ask(
    site: What | Sequence[What], direction: str | Sequence[str] | None, metric: Any, corruption: Corruption | None
) -> Question:
    """The question that the arguments of `sweep` ask. NanopatchError if a part is unknown, or listed twice."""
    if corruption is not None and not isinstance(corruption, (*ABLATIONS, Noise)):
        raise NanopatchError(f"corruption={corruption!r:.60}: Zero(), Mean(), Resample() or Noise() is expected")
    ablation = isinstance(corruption, ABLATIONS)
    if direction is None:
        direction = "noise" if ablation else "denoise"
    many_sites, many_directions, many_metrics = (isinstance(x, (list, tuple)) for x in (site, direction, metric))
    sites: list[Any] = list(site) if many_sites else [site]  # type: ignore[arg-type]
    directions: list[Any] = list(direction) if many_directions else [direction]
    if not sites or not directions:
        raise NanopatchError("a list of sites or directions needs at least one")
    for name in directions:
        check_direction(name)
        if directions.count(name) > 1:
            raise NanopatchError(f"direction {name!r} is listed twice: each at most once")
        if ablation and name != "noise":
            raise NanopatchError(
                f'an ablation patches {corruption} into the clean run: its direction is "noise", not "{name}"'
            )
    whats: dict[str, Patch | Paths] = {}
    seen: set[tuple[str, str]] = set()
    for given in sites:
        what = given if isinstance(given, (Patch, Paths)) else Patch(given)
        if ablation and isinstance(what, Patch) and isinstance(what.neurons, Integral):
            raise NanopatchError("an ablation has no second run to rank neurons by: give a list of neurons")
        cut = what.between if isinstance(what, Paths) else ",".join(what.axes or ())
        if (what.site, cut) in seen:
            raise NanopatchError(f"{what.site} is listed twice: each site, with its axes, at most once")
        seen.add((what.site, cut))
        name = what.site if what.site not in whats else f"{what.site} {cut}"
        whats[name] = what
    return Question(whats, directions, as_metrics(metric), corruption, (many_sites, many_directions, many_metrics))


class SweepTask(NamedTuple):
    """A question to be carried out on each of many experiments: see `nanopatch.patching.average.Task`."""

    question: Question
    method: Method

    @property
    def names(self) -> list[list[str]]:
        question = self.question
        return [list(question.whats), question.directions, [metric.name for metric in question.metrics]]

    @property
    def lists(self) -> tuple[bool, ...]:
        return self.question.lists

    def structure(self, model: Model, experiment: Experiment) -> Columns:
        """Those of the prompts. Nothing, if all positions are named, so that prompts of any length have them."""
        corruption, whats = self.question.corruption, self.question.whats.values()
        if corruption is not None:
            columns: Columns = [(i, i) for i in range(len(tokens_of(model, experiment, corruption).clean))]
        else:
            for what in whats:
                if isinstance(what, Paths):
                    check_equal_positions(model, experiment, "path patching")
                elif what.site in ATTENTION_SITES:
                    check_equal_positions(model, experiment, f"patching {what.site}", ": patch z instead")
            columns = experiment.columns(model)
        for what in whats:
            if isinstance(what, Patch) and is_common(what):
                on_ground(what, model, experiment, columns)  # raises if it is not there
        return [] if all(map(is_common, whats)) else columns

    def one(self, model: Model, experiment: Experiment, number: int) -> dict[Key, Sweep]:
        return carry_out_one(model, experiment, number, self.question, self.method)

    def to_dict(self) -> dict[str, Any]:
        question = self.question
        return {
            "patched": dict(question.whats),
            "directions": question.directions,
            "metrics": [identity(metric) for metric in question.metrics],
            "corruption": question.corruption,
            "steps": self.method.steps,
        }


def carry_out(
    model: Model, experiments: Experiments, question: Question, method: Method, where: Where = HERE
) -> Sweep | Any:
    """A `Sweep`; or `Panels` if sites, directions or metrics are lists."""
    experiments = checked(model, experiments)
    whats = dict(question.whats)
    for name, what in whats.items():
        if isinstance(what, Patch) and isinstance(what.neurons, Integral):
            used = all_usable(model, SweepTask(question, method), experiments)
            whats[name] = replace(what, neurons=most_different(model, used, what, question.corruption))
    return over(model, experiments, SweepTask(question._replace(whats=whats), method), where)


def carry_out_one(
    model: Model, experiment: Experiment, number: int, question: Question, method: Method
) -> dict[Key, Sweep]:
    """The sweeps of one experiment, by (what is patched, direction, metric). With noise, the means over its seeds."""
    # A donor run needs only the arrays that are copied out of it. So few arrays are held at once.
    donor_sites = {*question.sites, "resid_pre", "resid_post"}
    base_sites = {*donor_sites, *method.needs(question.sites)}
    bases = {DIRECTIONS[direction][0] for direction in question.directions}
    kept = {name: base_sites if name in bases else donor_sites for name in ("clean", "corrupted")}
    samples = []
    for runs in run_both(model, experiment, number, question.corruption, kept):
        sweeps: dict[Key, Sweep] = {}
        for direction in question.directions:
            case = make_case(runs, direction, question.metrics)
            grids = [
                cells_of_paths(what, case) if isinstance(what, Paths) else cells_of_patch(what, case)
                for what in question.whats.values()
            ]
            values = method.values(case, grids)
            for (name, what), cells, of_cells in zip(question.whats.items(), grids, values, strict=True):
                for i, metric in enumerate(question.metrics):
                    sweeps[name, direction, metric.name] = as_sweep(what, case, cells, of_cells, i, method.steps)
        samples.append(sweeps)
    if len(samples) == 1:
        return samples[0]
    means = {key: mean_of([sweeps[key] for sweeps in samples]) for key in samples[0]}
    one = dict(n_pairs=1, standard_error=None, pairs=None, prediction=samples[0][next(iter(means))].prediction)
    return {key: replace(mean, **one) for key, mean in means.items()}  # type: ignore[arg-type]


def as_sweep(what: Patch | Paths, case: Case, cells: Cells, values: Values, number: int, steps: int | None) -> Sweep:
    """The `Sweep` of one grid and of metric `number`."""
    runs, metric, axes = case.runs, case.metrics[number], tuple(what.axes or ())
    model, tokens = runs.model, runs.tokens
    corrupted = tokens.clean if runs.corruption else tokens.corrupted
    shape = tuple(len(cells.pieces[axis]) for axis in axes)
    grid = np.where(cells.blank, np.nan, values[0][:, number].reshape(shape))
    estimated = steps is not None
    return Sweep(
        grid=grid,
        site=what.site,
        axes=axes,
        pieces=cells.pieces,
        direction=case.direction,
        metric=metric.name,
        experiment=runs.experiment,
        columns=tuple(runs.columns),
        clean_tokens=tuple(model.token_strings(tokens.clean)),
        corrupted_tokens=tuple(model.token_strings(corrupted)),
        clean_ids=tuple(tokens.clean.tolist()),
        corrupted_ids=tuple(corrupted.tolist()),
        prediction=runs.prediction,
        baseline_clean=case.values["clean"][number],
        baseline_corrupted=case.values["corrupted"][number] if "corrupted" in case.values else None,
        rounding=case.rounding[number],
        source=model.source or Source("unnamed"),
        corruption=runs.corruption,
        steps=steps,
        between=what.between if isinstance(what, Paths) else None,
        chosen=cells.chosen,
        finite_differences=estimated and metric.by_differences,
        adds_layers=estimated and cells.adds_layers,
        unchanged=values[1].reshape(shape),
    )


def most_different(
    model: Model, experiments: Sequence[Given], patch: Patch, corruption: Corruption | None
) -> list[tuple[int, int]]:
    """The (layer, neuron) pairs that differ most between the runs at any position, in the mean over experiments."""
    n, total = patch.neurons, np.zeros((model.n_layer, model.d_mlp))
    if not isinstance(n, Integral) or not 1 <= n <= total.size:
        raise NanopatchError(f"neurons={n}: from 1 to {total.size} can be chosen")
    kept = dict.fromkeys(("clean", "corrupted"), {patch.site})
    for given in experiments:
        for runs in run_both(model, given.experiment, given.number, corruption, kept):
            clean, corrupted = (getattr(run, patch.site) for run in (runs.clean, runs.corrupted))
            moved = transplant(clean, corrupted, runs.columns)  # (n_layer, n_tokens, d_mlp)
            total += np.abs(moved - clean).max(axis=1)
    best = np.argsort(-total, axis=None, kind="stable")[: int(n)]
    layers, neurons = np.unravel_index(best, total.shape)
    return list(zip(layers.tolist(), neurons.tolist(), strict=True))
