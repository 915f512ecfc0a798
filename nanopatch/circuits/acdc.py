"""Exact pruning: leave out one edge after another, and keep each whose loss is felt (ACDC).

Conmy, Mavor-Parker, Lynch, Heimersheim & Garriga-Alonso 2023, arXiv 2304.14997: from the logits backwards, each edge
into a receiver is patched to the corrupted run. If the metric gets worse by less than a threshold, it stays patched.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from ..errors import NanopatchError
from ..experiments.corruption import Corruption
from ..experiments.metrics import as_metric
from ..gradients.edges import check_edges_asked
from ..model.gpt2 import Model
from ..model.graph import Edge, edge_table, graph
from ..model.sites import Run
from ..patching.average import Experiments, all_usable, checked
from ..patching.case import Case
from ..progress import look
from ..results.edges import connected
from ..types import Array
from .run import CircuitTask, circuit_case, kept_metrics, run_of_others

#: Metrics that grow as the circuit gets worse. All others fall.
DISTANCES = ("kl_divergence", "cross_entropy", "rank")
#: How many edges are tried in one batch, each with those before it left out.
AT_ONCE = 16


def acdc(
    model: Model,
    experiments: Experiments,
    threshold: float,
    *,
    metric: Any = "kl_divergence",
    corruption: Corruption | None = None,
    prune: bool = True,
) -> list[Edge]:
    """The edges whose loss makes the metric worse by at least `threshold`: a circuit, made by exact runs.

    It takes about one run of a circuit for each edge of the model; edges are tried in batches, which changes nothing.

    Parameters
    ----------
    model, experiments, metric, corruption
        As for `nanopatch.faithfulness`; for several experiments the mean metric counts.
    threshold : float
        In units of the metric. An edge stays patched if the metric gets worse by less.
    prune : bool
        As for `nanopatch.circuit`.

    Returns
    -------
    list of Edge
        In the order in which they were tried, from the logits backwards. The score of each is how much worse the metric
        got without it.

    Raises
    ------
    NanopatchError
        If prompts have different lengths, or the threshold is not a number above 0.

    Examples
    --------
    >>> import nanopatch
    >>> model, michelle = nanopatch.load("nano"), nanopatch.experiments.MICHELLE
    >>> edges = nanopatch.acdc(model, michelle, 0.5, metric="logit_diff")
    >>> nanopatch.faithfulness(model, michelle, edges).normalised > 0.8
    True
    """
    if not isinstance(threshold, Real) or not threshold > 0:
        raise NanopatchError(f"threshold={threshold!r:.60}: a number above 0 is expected, in units of the metric")
    check_edges_asked(None, corruption)
    measured = as_metric(metric)
    task = CircuitTask([], measured, corruption, ([],), (False,))
    used = all_usable(model, task, checked(model, experiments))
    cases = [circuit_case(model, one.experiment, one.number, measured, corruption) for one in used]
    runs = [(case, run_of_others(model, case)) for case in cases]
    sign = 1 if measured.name in DISTANCES else -1
    senders, receivers = map(list, graph(model))
    kept = edge_table(model).T.astype(model.dtype)  # (n_receivers, n_senders)
    order = np.argwhere(kept).tolist()[::-1]  # the last receiver first, and of its senders the last one
    (loss,) = losses(model, runs, kept[:, None], sign)
    found: list[Edge] = []
    while order:
        look()
        some = order[:AT_ONCE]
        tried = np.repeat(kept[:, None], len(some), axis=1)  # (n_receivers, n_tried, n_senders)
        for number, (i, j) in enumerate(some):
            tried[i, number:, j] = 0  # each is left out beside all those before it
        for (i, j), next_loss in zip(some, losses(model, runs, tried, sign), strict=True):
            order.pop(0)
            if next_loss - loss >= threshold:  # this one stays, so those after it were tried without it: once more
                found.append(Edge(senders[j], receivers[i], next_loss - loss))
                break
            kept[i, j], loss = 0, next_loss
    return connected(found) if prune else found


def losses(model: Model, runs: Sequence[tuple[Case, Run]], kept: Array, sign: int) -> list[float]:
    """How bad each circuit is: its mean metric, or minus that. kept: (n_receivers, n_circuits, n_senders)."""
    values = [kept_metrics(model, case, others, kept) for case, others in runs]
    means: list[float] = (sign * np.mean(values, axis=0)).tolist()
    return means
