"""Edge attribution and circuits: which connections between components carry the difference between two prompts?

A GPT-2 is a graph here. Its nodes are the embedding, every head, every MLP and the logits. A head has three inputs,
its q, k and v; an MLP and the logits have one each. Every node reads the sum of what all earlier ones have written to
the residual stream, so an edge goes from every node to every later input: a block's heads feed its MLP, but not each
other. `nanopatch.model.graph` names them: an edge goes from a sender ("embed", "head 0.1", "mlp 0") to a receiver
("q 2.1", "k 2.1", "v 2.1", "mlp 2", "logits").

Edge attribution patching (EAP; Syed, Rager & Conmy 2023, arXiv 2310.10348) scores all edges with two runs and one
backward pass. The edges of largest |score| make a circuit. `faithfulness` tests it: the metric of the model when
every other edge carries what it carries in the corrupted run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import NanopatchError
from ..experiments.align import Columns
from ..experiments.experiment import Experiment
from ..experiments.metrics import Metric, as_metric, check_slope, identity, metric_gradient
from ..files import Source
from ..model.backward import backward, layer_norm_backward
from ..model.gpt2 import Model
from ..model.graph import (
    Edge,
    Node,
    Place,
    comes_after,
    head_input,
    head_output,
    listing,
    node,
    receivers_of,
    senders_of,
    written,
)
from ..model.layers import affine, layer_norm
from ..model.sites import Run, record
from ..patching.average import Experiments, Key
from ..patching.case import Case, check_equal_positions, make_case, run_both
from ..patching.many import Share, Where, over
from ..progress import progress
from ..results.edges import EdgeScores, Faithfulness
from ..results.sweep import check_direction
from ..types import Array, PathLike
from .attribution import check_steps

if TYPE_CHECKING:
    from concurrent.futures import Executor


def graph(model: Model) -> tuple[dict[Node, Place], dict[Node, Place]]:
    """The senders and the receivers of a model's graph, in the order of the run."""
    senders = {n: place for n, place in senders_of(model).items() if n.kind != "attn"}
    receivers = {n: place for n, place in receivers_of(model).items() if n.kind != "resid"}
    return senders, receivers


# ---- scores ---------------------------------------------------------------------------------------


def edge_attribution(
    model: Model,
    experiments: Experiments,
    *,
    direction: str = "denoise",
    metric: Any = "logit_diff",
    steps: int = 1,
    executor: Executor | None = None,
    workers: int | None = None,
    folder: PathLike | Share | None = None,
) -> EdgeScores:
    """Score every edge of the graph.

    An edge's score estimates, to first order, how the metric changes when this edge alone carries what it carries
    in the other run: the sum over positions of (the sender's output in the donor run - its output in the base run) .
    (the metric's derivative with respect to the receiver's input).

    Parameters
    ----------
    model, experiments, direction, metric, executor, workers, folder
        As for `nanopatch.sweep`, but one direction and one metric. The metric needs a derivative.
    steps : int
        1 takes the derivative on the base run (EAP). More steps take the mean derivative over `steps` runs. Their
        token embeddings (`resid_pre` of block 0) lie on the straight line from the base run's to the donor's, at the
        middles of equal steps (EAP-IG; Hanna, Pezzelle & Belinkov 2024, arXiv 2403.17806).

    Raises
    ------
    NanopatchError
        If prompts have different lengths, an argument is unknown, or the metric has no derivative.

    Examples
    --------
    >>> import nanopatch
    >>> model, michelle = nanopatch.load("nano"), nanopatch.experiments.MICHELLE
    >>> scores = nanopatch.edge_attribution(model, michelle)
    >>> len(scores.edges), str(scores.top(1)[0].sender)
    (479, 'embed')
    """
    check_direction(direction)
    check_steps(steps)
    task = EdgeTask(direction, as_metric(metric), steps)
    scores: EdgeScores = over(model, experiments, task, Where(executor, workers, folder))
    return scores


class EdgeTask(NamedTuple):
    """All edges scored on each of many experiments: see `nanopatch.patching.average.Task`."""

    direction: str
    metric: Metric
    steps: int
    names: tuple[list[str], ...] = ()
    lists: tuple[bool, ...] = ()

    def structure(self, model: Model, experiment: Experiment) -> Columns:
        return check_one_length(model, experiment, "edge attribution")

    def one(self, model: Model, experiment: Experiment, number: int) -> dict[Key, EdgeScores]:
        case = full_case(model, experiment, self.direction, self.metric)
        return {(): score_edges(model, experiment, case, self.steps)}

    def to_dict(self) -> dict[str, Any]:
        return {"edges": "all", "direction": self.direction, "metric": identity(self.metric), "steps": self.steps}


def full_case(model: Model, experiment: Experiment, direction: str, metric: Any) -> Case:
    """One direction of an experiment, both runs recorded in full."""
    (runs,) = run_both(model, experiment, 0, None, {"clean": None, "corrupted": None})
    return make_case(runs, direction, [as_metric(metric)])


def check_one_length(model: Model, experiment: Experiment, what: str) -> Columns:
    """What experiments must have in common to be averaged: nothing. But the two prompts of each need one length."""
    check_equal_positions(model, experiment, what)
    return []


def score_edges(model: Model, experiment: Experiment, case: Case, steps: int) -> EdgeScores:
    """The scores of one experiment."""
    base, metric = case.base, case.metrics[0]
    senders, receivers = graph(model)
    differences = np.array(
        [
            (written(model, s, case.donors(s.site)[0]) - written(model, s, getattr(base, s.site))).ravel()
            for s in senders.values()
        ],
        np.float64,
    )  # (n_senders, n_tokens * d_model)
    scores, slopes = np.zeros((len(senders), len(receivers))), []
    for step in progress(range(steps), "steps"):
        fraction = (step + 0.5) / steps
        embedding = base.resid_pre[0] + fraction * (case.donors("resid_pre")[0][0] - base.resid_pre[0])
        run = base if steps == 1 else record(model.steps_from(0, embedding))
        d_logits = metric_gradient(metric, run.logits, case.target)
        slopes.append(np.abs(d_logits).max())
        gradients = backward(model, run, d_logits)
        for _, of_layer in itertools.groupby(enumerate(receivers.items()), key=lambda item: item[1][1].point):
            columns, inputs = zip(*of_layer, strict=True)  # in one product: each reads all differences
            slopes_of_inputs = np.array(
                [input_gradient(model, run, gradients, *one).ravel() for one in inputs], np.float64
            )  # (n_receivers, n_tokens * d_model)
            scores[:, list(columns)] += differences @ slopes_of_inputs.T / steps
    check_slope(metric, max(slopes), case.baseline[0] if steps == 1 else None)
    for i, sender in enumerate(senders.values()):
        scores[i, [not comes_after(receiver, [sender]) for receiver in receivers.values()]] = np.nan
    return EdgeScores(
        scores=scores,
        senders=tuple(senders),
        receivers=tuple(receivers),
        direction=case.direction,
        metric=metric.name,
        steps=steps,
        baseline_clean=case.values["clean"][0],
        baseline_corrupted=case.values["corrupted"][0],
        experiment=experiment,
        source=model.source or Source("unnamed"),
        prediction=case.runs.prediction,
    )


def input_gradient(model: Model, run: Run, gradients: Run, receiver: Node, place: Place) -> Array:
    """Derivative with respect to the residual stream as one receiver alone reads it: (n_tokens, d_model)."""
    layer = place.layer
    if receiver.kind == "logits":
        return np.asarray(gradients.resid_post[-1])
    if place.head is None:
        return np.asarray(gradients.mlp_in[layer])
    # `gradients.q_input` is the sum over heads. This head's part of it goes through this head's q alone.
    weight, _ = head_input(model, place.site, layer, place.head)  # (d_model, d_head)
    d_normed = affine(getattr(gradients, place.site)[layer][:, place.head], weight.T)  # (n_tokens, d_model)
    x, eps = getattr(run, f"{place.site}_input")[layer], model.config.layer_norm_epsilon
    return layer_norm_backward(d_normed, x, model.h[layer].ln_1.weight, eps)


# ---- circuits -------------------------------------------------------------------------------------


def circuit(scores: EdgeScores, n: int, prune: bool = True) -> list[Edge]:
    """The n edges of largest absolute score, largest first. See `EdgeScores.top` for ties.

    prune: leave out, as the literature does, edges that are on no path from the embedding to the logits. They carry
    nothing, so the circuit's faithfulness is the same without them. The result may be empty.

    Examples
    --------
    >>> import nanopatch
    >>> model, michelle = nanopatch.load("nano"), nanopatch.experiments.MICHELLE
    >>> edges = nanopatch.circuit(nanopatch.edge_attribution(model, michelle, steps=5), 40)
    >>> nanopatch.faithfulness(model, michelle, edges).normalised > 0.5
    True
    """
    if not isinstance(scores, EdgeScores):
        raise NanopatchError(f"a circuit is made of the scores of edge_attribution, not of {scores!r:.60}")
    return scores.circuit(n, prune)


def faithfulness(
    model: Model,
    experiments: Experiments,
    edges: Iterable[Any],
    *,
    metric: Any = "logit_diff",
    executor: Executor | None = None,
    workers: int | None = None,
    folder: PathLike | Share | None = None,
) -> Faithfulness:
    """Run the clean prompt with all edges but `edges` patched to the corrupted run, and measure.

    Nothing is estimated. All three runs are measured as runs of the clean prompt. This makes a difference only for a
    metric that reads the prompt's own tokens (cross_entropy).

    Parameters
    ----------
    model, experiments, metric, executor, workers, folder
        As for `nanopatch.sweep`, but one metric. For several experiments the result is the mean.
    edges : list
        From `circuit`, or (sender, receiver) pairs of names or nodes. [] gives the corrupted run; all edges give
        the clean run.

    Raises
    ------
    NanopatchError
        If prompts have different lengths, or the model has no such edge.
    """
    task = CircuitTask(edge_pairs(edges), as_metric(metric))
    measured: Faithfulness = over(model, experiments, task, Where(executor, workers, folder))
    return measured


class CircuitTask(NamedTuple):
    """A circuit run on each of many experiments: see `nanopatch.patching.average.Task`."""

    edges: list[tuple[Node, Node]]
    metric: Metric
    names: tuple[list[str], ...] = ()
    lists: tuple[bool, ...] = ()

    def structure(self, model: Model, experiment: Experiment) -> Columns:
        return check_one_length(model, experiment, "faithfulness")

    def one(self, model: Model, experiment: Experiment, number: int) -> dict[Key, Faithfulness]:
        case = full_case(model, experiment, "noise", self.metric)  # the clean run is the base
        return {(): measure_circuit(model, case, self.edges)}

    def to_dict(self) -> dict[str, Any]:
        return {"circuit": sorted([str(s), str(r)] for s, r in self.edges), "metric": identity(self.metric)}


def measure_circuit(model: Model, case: Case, pairs: Sequence[tuple[Node, Node]]) -> Faithfulness:
    """The faithfulness of one experiment. case: of direction "noise", so that the clean run is the base."""
    runs = case.runs
    assert runs.corrupted is not None
    resid = circuit_resid(model, runs.clean.resid_pre[0], runs.corrupted, pairs)  # (n_tokens, d_model)
    logits = model.unembed(resid[-1:] if case.last_only else resid, case.answers)
    return Faithfulness(
        metric=case.metrics[0].name,
        value=case.measure(logits)[0],
        baseline_clean=case.values["clean"][0],
        baseline_corrupted=case.values["corrupted"][0],
        rounding=case.rounding[0],
        n_edges=len(pairs),
        source=model.source or Source("unnamed"),
        prediction=runs.prediction,
    )


def edge_pairs(edges: Any) -> list[tuple[Node, Node]]:
    """Edges as (sender, receiver) pairs of nodes, without repeats. NanopatchError if they are anything else."""
    edges = list(edges) if np.iterable(edges) else [edges]
    for edge in edges:
        if not isinstance(edge, (tuple, list)) or isinstance(edge, Node) or len(edge) < 2:
            raise NanopatchError(f"edges are (sender, receiver) pairs, as `circuit` gives them, not {edge!r:.60}")
    return list(dict.fromkeys((node(edge[0]), node(edge[1])) for edge in edges))


def circuit_resid(model: Model, embedding: Array, corrupted: Run, edges: Sequence[tuple[Node, Node]]) -> Array:
    """What the logits read, (n_tokens, d_model), in a run in which each receiver has an input of its own.

    That input is the residual stream of the corrupted run, plus a change for each sender that has an edge to the
    receiver: what the sender writes in this run minus what it writes in the corrupted run. embedding: the token
    embeddings of this run, (n_tokens, d_model). corrupted: a record with the residual stream, z and mlp_out.
    """
    senders, receivers = graph(model)
    feeding: dict[Node, list[Node]] = {receiver: [] for receiver in receivers}
    for sender, receiver in edges:
        known = sender in senders and receiver in receivers
        if not known or not comes_after(receivers[receiver], [senders[sender]]):
            raise NanopatchError(
                f"no edge goes from {str(sender)!r} to {str(receiver)!r}; senders are {listing(senders)}; receivers "
                f"are {listing(receivers)}; and a receiver comes after its sender"
            )
        feeding[receiver].append(sender)
    # {sender: (n_tokens, d_model)}; 0 for a sender whose inputs are all as in the corrupted run, which is not computed.
    changes: dict[Node, Any] = {Node("embed"): embedding - corrupted.resid_pre[0]}

    def input_of(receiver: Node, stream: Array) -> Array:
        return np.asarray(stream + sum(changes[sender] for sender in feeding[receiver]))

    heads, eps = range(model.n_head), model.config.layer_norm_epsilon
    for layer, block in enumerate(model.h):
        # Inputs that no edge feeds are those of the corrupted run's residual stream; the loop assigns all others.
        stream = corrupted.resid_pre[layer]  # (n_tokens, d_model)
        fed = {head: [site for site in "qkv" if feeding[Node(site, layer, head)]] for head in heads}
        for site in model.block_steps(layer, stream, sites=("q", "k", "v", "z", "mlp_in", "mlp_out")):
            if site.name in ("q", "k", "v"):
                for head in (head for head in heads if site.name in fed[head]):
                    normed = layer_norm(input_of(Node(site.name, layer, head), stream), *block.ln_1, eps)
                    site.array[:, head] = affine(normed, *head_input(model, site.name, layer, head))
            elif site.name == "z":
                for head in heads:
                    change = site.array[:, head] - corrupted.z[layer][:, head]  # (n_tokens, d_head)
                    changed = head_output(model, change, layer, head) if fed[head] else 0.0
                    changes[Node("head", layer, head)] = changed
            elif site.name == "mlp_in":
                site.array = input_of(Node("mlp", layer), corrupted.resid_mid[layer])
            elif site.name == "mlp_out":
                changes[Node("mlp", layer)] = site.array - corrupted.mlp_out[layer]
    return input_of(Node("logits"), corrupted.resid_post[-1])
