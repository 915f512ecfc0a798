"""Curves: how faithful circuits are as they grow, and checks of one circuit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NanopatchError
from ..experiments.corruption import Corruption
from ..model.gpt2 import Model
from ..model.graph import Edge, all_edges
from ..patching.average import Experiments, check_model
from ..patching.many import Share
from ..results.curves import FRACTIONS, CircuitCurves
from ..results.edges import BY, EdgeScores
from ..types import PathLike
from .run import check_scores, edge_pairs, faithfulness, kept_edges

if TYPE_CHECKING:
    from concurrent.futures import Executor


def circuit_curves(
    model: Model,
    experiments: Experiments,
    scores: EdgeScores | Mapping[str, EdgeScores],
    *,
    by: str | Sequence[str] = "size",
    fractions: Sequence[float] = FRACTIONS,
    n_random: int = 0,
    metric: Any = "logit_diff",
    corruption: Corruption | None = None,
    executor: Executor | None = None,
    workers: int | None = None,
    folder: PathLike | Share | None = None,
) -> CircuitCurves:
    """Run circuits of more and more of the best edges, for each ranking of the edges.

    Parameters
    ----------
    model, experiments, metric, corruption, executor, workers, folder
        As for `nanopatch.faithfulness`. All circuits of a pair run as batches.
    scores : EdgeScores, or dict of EdgeScores by name
    by : str or list of str
        "size", "signed" or both; see `nanopatch.circuit`.
    fractions : list of float
        How many of all edges are chosen, rounded down; by default those of the benchmark that defines CPR and CMD.
    n_random : int
        How many random rankings are measured too. "random" is their mean.

    Raises
    ------
    NanopatchError
        If scores are of another model's graph, or an argument is unknown.

    Examples
    --------
    >>> import nanopatch
    >>> model, michelle = nanopatch.load("nano"), nanopatch.experiments.MICHELLE
    >>> scores = nanopatch.edge_attribution(model, michelle, steps=2)
    >>> curves = nanopatch.circuit_curves(model, michelle, scores, n_random=3)
    >>> curves.cpr["EAP-IG, 2 steps"] > 0.8 > curves.cpr["random"]
    True
    """
    named = {scores.method: scores} if isinstance(scores, EdgeScores) else scores
    if not isinstance(named, Mapping) or not named:
        raise NanopatchError(f"scores are what edge_attribution gives, or a dict of them; not {scores!r:.60}")
    for one in named.values():
        check_scores(model, one)
    fractions = list(fractions) if np.iterable(fractions) else []
    if not fractions or not all(isinstance(f, Real) and 0 < f <= 1 for f in fractions):
        raise NanopatchError(f"fractions={fractions!r:.60}: numbers above 0, up to 1, are expected")
    if not isinstance(n_random, Integral) or n_random < 0:
        raise NanopatchError(f"n_random={n_random!r:.60}: a number of rankings is expected, 0 or more")
    fractions = sorted(set(map(float, fractions)))
    ways = [by] if isinstance(by, str) or not np.iterable(by) else list(by)
    if not ways:
        raise NanopatchError(f"by={by!r}: {' or '.join(map(repr, BY))} is expected, or both")
    rankings = {
        (name if len(ways) == 1 else f"{name}, {way}"): (one, way) for name, one in named.items() for way in ways
    }
    first = next(iter(named.values()))
    drawn = [(first.shuffled(seed), "size") for seed in range(n_random)]
    circuits: dict[str, list[Edge]] = {}
    for number, (one, way) in enumerate([*rankings.values(), *drawn]):
        n_all = int(np.isfinite(one.scores).sum())
        for fraction in fractions:
            n = int(fraction * n_all)
            circuits[f"{number} {fraction}"] = one.circuit(n, by=way) if n else []
    where: dict[str, Any] = dict(executor=executor, workers=workers, folder=folder)
    found = faithfulness(model, experiments, circuits, metric=metric, corruption=corruption, **where)
    if found is None:  # a share of a run: others are missing
        return found
    measured = list(found.values())
    shape = (len(rankings) + n_random, len(fractions))

    def table(values: Iterable[Any]) -> Any:  # (n_rankings, n_fractions); the random rankings as one
        rows = np.array(list(values), np.float64).reshape(shape)
        drawn_rows = rows[len(rankings) :].mean(axis=0, keepdims=True) if n_random else rows[:0]
        return np.concatenate([rows[: len(rankings)], drawn_rows])

    any_of = measured[0]
    errors = [one.standard_error for one in measured]
    return CircuitCurves(
        names=(*rankings, *(["random"] if n_random else [])),
        fractions=np.array(fractions),
        n_edges=table(one.n_edges for one in measured),
        values=table(one.value for one in measured),
        standard_error=None if errors[0] is None else table(errors),
        **{
            name: getattr(any_of, name)
            for name in ("metric", "baseline_clean", "baseline_corrupted", "rounding", "source", "corruption")
        },
        n_pairs=any_of.n_pairs,
        skipped=any_of.skipped,
    )


def without_each(edges: Iterable[Any]) -> dict[str, list[tuple[Any, Any]]]:
    """A circuit with each of its edges left out in turn, by the name of that edge: a check of minimality.

    `faithfulness` of this dict shows which edges the circuit can do without (Wang et al. 2022, arXiv 2211.00593).

    Examples
    --------
    >>> import nanopatch
    >>> list(nanopatch.without_each([("embed", "mlp 0"), ("mlp 0", "logits")]))
    ['without embed -> mlp 0', 'without mlp 0 -> logits']
    """
    pairs: list[tuple[Any, Any]] = list(edge_pairs(edges))
    return {f"without {s} -> {r}": [*pairs[:i], *pairs[i + 1 :]] for i, (s, r) in enumerate(pairs)}


def complement(model: Model, edges: Iterable[Any]) -> list[tuple[Any, Any]]:
    """All edges of the model but these: a check of completeness. A complete circuit leaves it little to do.

    Examples
    --------
    >>> import nanopatch
    >>> model = nanopatch.load("nano")
    >>> len(nanopatch.complement(model, [("embed", "logits")]))
    478
    """
    check_model(model)
    pairs = edge_pairs(edges)
    kept_edges(model, [pairs])  # raises if the model has no such edge
    left = set(pairs)
    return [edge for edge in all_edges(model) if edge not in left]
