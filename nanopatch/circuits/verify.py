"""Estimated edges, measured exactly within a time that is given."""

from __future__ import annotations

import time
from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np

from ..errors import NanopatchError
from ..experiments.metrics import Metric, as_metric
from ..experiments.patch import counted
from ..gradients.edges import EdgeTask, edge_case
from ..model.gpt2 import Model
from ..model.graph import Edge, receivers_of, senders_of
from ..patching.average import Experiments, all_usable, checked
from ..patching.case import Case
from ..patching.paths import PATH_SITES, PathCells
from ..patching.sweep import measure_patches
from ..progress import look
from ..results.curves import VerifiedEdges
from ..results.edges import EdgeScores
from .run import check_scores

#: How many edges are measured between two looks at the clock.
AT_ONCE = 16


def verify_edges(
    model: Model,
    experiments: Experiments,
    scores: EdgeScores,
    k: int = 100,
    *,
    seconds: float = 60,
    by: str = "size",
    metric: Metric | str | None = None,
) -> VerifiedEdges:
    """Measure the k best edges of a ranking exactly, the best first, until the time is over.

    What is measured is what a score estimates: the change of the metric when this edge alone carries what it carries in
    the other run, and everything after its receiver is recomputed (`path_patch(..., between="frozen")`).

    Parameters
    ----------
    model, experiments
        As for `nanopatch.edge_attribution`, which made `scores`.
    k, by
        How many edges, and what they are ranked by; see `nanopatch.circuit`.
    seconds : float
        No further edges are begun after this time. At least some are measured.
    metric : str or Metric, optional
        A metric of your own that `scores` was made with; by default the metric of its name.

    Examples
    --------
    >>> import nanopatch
    >>> model, michelle = nanopatch.load("nano"), nanopatch.experiments.MICHELLE
    >>> scores = nanopatch.edge_attribution(model, michelle)
    >>> verified = nanopatch.verify_edges(model, michelle, scores, 40)
    >>> len(verified.edges)
    40
    """
    check_scores(model, scores)
    if not isinstance(seconds, Real) or not seconds > 0:
        raise NanopatchError(f"seconds={seconds!r:.60}: a number above 0 is expected")
    if not isinstance(k, Integral) or k < 1:
        raise NanopatchError(f"k={k!r:.60}: a number of edges is expected, at least 1")
    if scores.absolute:
        raise NanopatchError("these scores are means of absolute values, which no single effect is compared with")
    end = time.monotonic() + seconds
    measured = as_metric(scores.metric if metric is None else metric)
    wanted = scores.top(min(int(k), len(scores.edges)), by)
    task = EdgeTask(scores.direction, measured, 1, scores.corruption, False)
    cases = [
        edge_case(model, one.experiment, one.number, scores.direction, measured, scores.corruption, PATH_SITES)
        for one in all_usable(model, task, checked(model, experiments))
    ]
    exact: list[float] = []
    done: list[Edge] = []
    while len(done) < len(wanted) and (not done or time.monotonic() < end):
        look()
        some = wanted[len(done) : len(done) + AT_ONCE]
        exact += np.mean([effects_of_edges(case, some, scores.positions) for case in cases], axis=0).tolist()
        done += some
    return VerifiedEdges(
        senders=tuple(edge.sender for edge in done),
        receivers=tuple(edge.receiver for edge in done),
        estimates=np.array([edge.score for edge in done]),
        exact=np.array(exact),
        n_asked=len(wanted),
        direction=scores.direction,
        metric=measured.name,
        source=scores.source,
        corruption=scores.corruption,
        positions=scores.positions,
        n_pairs=len(cases),
    )


def effects_of_edges(case: Case, edges: Sequence[Edge], at: Sequence[int] | None = None) -> list[float]:
    """How the metric changes when each edge alone carries what it carries in the other run, exactly.

    All else keeps the base run's values up to the receiver, and is recomputed after it (`between="frozen"`). at: the
    positions where it carries that; all by default.
    """
    senders, receivers = senders_of(case.model), receivers_of(case.model)
    names = list(dict.fromkeys(edge.sender for edge in edges))
    rows, draw = [[senders[name]] for name in names], case.runs.draws("z", 1)[0]
    cells = PathCells(case, "frozen", rows, [], [draw] * len(rows), counted(at, case.n_tokens))
    wanted = {(receivers[edge.receiver].site, receivers[edge.receiver].layer) for edge in edges}
    read = dict(zip(names, cells.readings(list(enumerate(rows)), wanted), strict=True))
    patches = [[cells.edit(receivers[edge.receiver], read[edge.sender], draw)] for edge in edges]
    effects = [0.0] * len(edges)
    for number, values in measure_patches(case, patches):
        effects[number] = values[0] - case.baseline[0]
    return effects
