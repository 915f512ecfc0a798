"""Edge attribution and circuits: which connections between components carry the difference between two prompts?

A GPT-2 is a graph here. Its nodes are the embedding, every head, every MLP and the logits. A head has three inputs,
its q, k and v; an MLP and the logits have one each. Every node reads the sum of what all earlier ones have written to
the residual stream, so an edge goes from every node to every later input: a block's heads feed its MLP, but not each
other. `nanopatch.model.graph` names them: an edge goes from a sender ("embed", "head 0.1", "mlp 0") to a receiver
("q 2.1", "k 2.1", "v 2.1", "mlp 2", "logits").

Edge attribution patching (EAP; Syed, Rager & Conmy 2023, arXiv 2310.10348) scores all edges with two runs and one
backward pass. The edges of largest absolute score make a circuit. `faithfulness` tests it: the metric of the model when
every other edge carries what it carries in the corrupted run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import NanopatchError
from ..experiments.align import Columns
from ..experiments.corruption import ABLATIONS, Corruption, to_dict
from ..experiments.experiment import Experiment
from ..experiments.metrics import Metric, as_metric, check_slope, identity, metric_gradient
from ..experiments.patch import counted, whole_numbers
from ..files import Source
from ..model.backward import blocks_backward, layer_norm_backward, unembedding_backward
from ..model.gpt2 import Model
from ..model.graph import Edge, edge_table, graph, head_inputs, qkv_weights, written
from ..model.layers import affine, causal_mask, layer_norm, softmax
from ..model.sites import BLOCK_SITES, Run, record
from ..patching.average import Experiments, Key
from ..patching.case import SHORT, Case, check_equal_positions, make_case, run_both, tokens_of
from ..patching.many import Share, Where, over
from ..progress import look, progress
from ..results.edges import EdgeScores
from ..results.sweep import DIRECTIONS, check_direction
from ..types import Array, PathLike, Sites
from .attribution import check_steps

if TYPE_CHECKING:
    from concurrent.futures import Executor

#: What the other run needs to record; what the base run needs, for its backward pass; the derivatives that are kept.
DONOR_SITES = ("resid_pre", "z", "mlp_out", "resid_post")
BASE_SITES = tuple(site for site in BLOCK_SITES if site not in ("attn_out", "resid_mid", "mlp_post"))
EDGE_SITES = ("q", "k", "v", "pattern", "mlp_in")


# ---- scores ---------------------------------------------------------------------------------------


def edge_attribution(
    model: Model,
    experiments: Experiments,
    *,
    direction: str | None = None,
    metric: Any = "logit_diff",
    steps: int = 1,
    corruption: Corruption | None = None,
    absolute: bool = False,
    positions: Sequence[int] | None = None,
    qk_fix: bool = False,
    grad_drop: bool = False,
    executor: Executor | None = None,
    workers: int | None = None,
    folder: PathLike | Share | None = None,
) -> EdgeScores:
    """Score every edge of the graph.

    An edge's score estimates, to first order, how the metric changes when this edge alone carries what it carries
    in the other run: the sum over positions of (the sender's output in the donor run - its output in the base run) .
    (the metric's derivative with respect to the receiver's input). `path_patch(..., between="frozen")` from the sender
    to the receiver, minus the base run's metric, is the exact value that it estimates.

    Parameters
    ----------
    model, experiments, metric, executor, workers, folder
        As for `nanopatch.sweep`, but one metric. The metric needs a derivative.
    direction : str, optional
        "denoise" (the default) takes the derivative on the corrupted run: what is enough to restore the answer.
        "noise" takes it on the clean run: what is needed. The published method (Syed et al. 2023) is "noise".
        The two rank edges differently, and a gate of saturated or inactive parts hides edges from one of them.
    steps : int
        1 takes the derivative on the base run (EAP). More steps take the mean derivative over `steps` runs. Their
        token embeddings (`resid_pre` of block 0) lie on the straight line from the base run's to the donor's, at the
        middles of equal steps (EAP-IG; Hanna, Pezzelle & Belinkov 2024, arXiv 2403.17806). The paper takes the ends
        of the steps that are nearer to the clean run, its code the others; with middles, few steps come closest to the
        integral. On `nano` two steps make better circuits than one, and nearly as good ones as twenty; but a ReLU that
        bends between the steps is not seen (docs/circuits.md).
    corruption : Zero, Mean or Resample, optional
        What takes the place of the corrupted prompt: each edge is ablated in the clean run.
    absolute : bool
        For several experiments: True gives the mean of each pair's absolute score, False the mean score, whose size a
        circuit is chosen by. Edges that help in one prompt and hurt in another have a small mean score.
    positions : list of int, optional
        Only what edges carry at these positions counts; below 0, from the end; all by default. The scores of single
        positions add up to those of all.
    qk_fix : bool
        Estimate edges into q and k from the attention pattern that they make, which is computed exactly; only what
        follows the pattern is estimated. A saturated softmax has no slope, and hides such edges. (AtP*; Kramár et al.
        2024, arXiv 2403.00745, section 3.1.1. There each key position is a node; here an edge carries all positions.)
    grad_drop : bool
        The mean absolute score over backward passes of which each passes by the attention and the MLP of one layer.
        Effects that cancel on two paths are then seen, when one of the paths is dropped (AtP*, section 3.1.2). It
        takes one backward pass for each layer.

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
    direction = check_edges_asked(direction, corruption)
    check_steps(steps)
    at = None if positions is None else whole_numbers(positions)
    fixes = Fixes(bool(qk_fix), bool(grad_drop))
    check_fixes(model, fixes, steps)
    task = EdgeTask(direction, as_metric(metric), steps, corruption, bool(absolute), at, fixes)
    scores: EdgeScores = over(model, experiments, task, Where(executor, workers, folder))
    return scores


class Fixes(NamedTuple):
    """What of AtP* is asked for."""

    qk_fix: bool = False
    grad_drop: bool = False


NO_FIXES = Fixes()


def check_fixes(model: Any, fixes: Fixes, steps: int) -> None:
    if fixes.qk_fix and steps > 1:
        raise NanopatchError("qk_fix computes the pattern on the base run: give steps=1 with it")
    if fixes.grad_drop and isinstance(model, Model) and model.n_layer < 2:
        raise NanopatchError("grad_drop drops one layer after another, so the model needs at least two")


def check_edges_asked(direction: str | None, corruption: Any) -> str:
    """The direction in which edges are scored or run. NanopatchError if it or the corruption is unknown."""
    if corruption is not None and not isinstance(corruption, ABLATIONS):
        raise NanopatchError(
            f"corruption={corruption!r:.60}: Zero(), Mean(prompts) or Resample(prompts) is expected for edges"
        )
    if direction is None:
        return "denoise" if corruption is None else "noise"
    check_direction(direction)
    if corruption is not None and direction != "noise":
        raise NanopatchError(f'an ablation changes the clean run, so its direction is "noise", not {direction!r}')
    return direction


class EdgeTask(NamedTuple):
    """All edges scored on each of many experiments: see `nanopatch.patching.average.Task`."""

    direction: str
    metric: Metric
    steps: int
    corruption: Corruption | None
    absolute: bool
    positions: tuple[int, ...] | None = None
    fixes: Fixes = NO_FIXES
    names: tuple[list[str], ...] = ()
    lists: tuple[bool, ...] = ()

    def structure(self, model: Model, experiment: Experiment) -> Columns:
        return check_one_length(model, experiment, "edge attribution", self.corruption)

    def one(self, model: Model, experiment: Experiment, number: int) -> dict[Key, EdgeScores]:
        case = edge_case(model, experiment, number, self.direction, self.metric, self.corruption)
        scores = score_edges(model, case, self.steps, self.positions, self.fixes)
        return {(): replace(scores, scores=np.abs(scores.scores), absolute=True) if self.absolute else scores}

    def to_dict(self) -> dict[str, Any]:
        return {
            "edges": "all",
            "direction": self.direction,
            "metric": identity(self.metric),
            "steps": self.steps,
            "corruption": to_dict(self.corruption),
            "absolute": self.absolute,
            "positions": self.positions,
            **self.fixes._asdict(),
        }


def edge_case(
    model: Model,
    experiment: Experiment,
    number: int,
    direction: str,
    metric: Any,
    corruption: Corruption | None = None,
    base_sites: Sites = BASE_SITES,
    donor_sites: Sites = DONOR_SITES,
) -> Case:
    """One direction of an experiment, with what the edges of both runs carry; by default, ready for a backward pass."""
    base, _ = DIRECTIONS[direction]
    sites: dict[str, Sites] = {name: base_sites if name == base else donor_sites for name in ("clean", "corrupted")}
    (runs,) = run_both(model, experiment, number, corruption, sites)
    return make_case(runs, direction, [as_metric(metric)])


def check_one_length(model: Model, experiment: Experiment, what: str, corruption: Corruption | None = None) -> Columns:
    """What experiments must have in common to be averaged: nothing. But the two prompts of each need one length."""
    if corruption is None:
        check_equal_positions(model, experiment, what)
    else:
        tokens_of(model, experiment, corruption)  # raises if it cannot be used
    return []


def score_edges(
    model: Model, case: Case, steps: int, positions: Sequence[int] | None = None, fixes: Fixes = NO_FIXES
) -> EdgeScores:
    """The scores of one experiment."""
    base, metric, runs = case.base, case.metrics[0], case.runs
    senders, receivers = graph(model)
    donors = {site: case.donors(site)[case.runs.draws(site, 1)[0]] for site in ("resid_pre", "z", "mlp_out")}
    differences = written(
        model, donors["resid_pre"][0] - base.resid_pre[0], donors["z"] - base.z, donors["mlp_out"] - base.mlp_out
    )  # (n_senders, n_tokens, d_model)
    elsewhere = np.setdiff1d(np.arange(case.n_tokens), counted(positions, case.n_tokens))
    differences[:, elsewhere] = 0
    there = edge_table(model)  # (n_senders, n_receivers)
    dropped = range(model.n_layer) if fixes.grad_drop else [None]
    totals = np.zeros((len(dropped), *there.shape))
    slopes = []
    for batch in runs_on_the_line(model, base, donors["resid_pre"][0], steps):
        runs_of_batch = singly(batch)
        of_metric = [metric_backward(model, case, run.resid_post[-1]) for run in runs_of_batch]
        slopes += [slope for _, slope in of_metric]
        d_resids = np.array([d_resid for d_resid, _ in of_metric])  # (n_steps, n_tokens, d_model)
        for total, layer in zip(totals, dropped, strict=True):
            look()
            gradients = singly(blocks_backward(model, batch, d_resids, EDGE_SITES, layer))
            for run, of_run, d_resid in zip(runs_of_batch, gradients, d_resids, strict=True):
                total += step_scores(model, run, of_run, d_resid, differences, there, fixes.qk_fix) / steps
    if fixes.grad_drop:  # the mean over the passes that do not drop the receiver's own layer
        n_passes = [len(dropped) - (receiver.kind != "logits") for receiver in receivers]
        scores = np.abs(totals).sum(axis=0) / n_passes
    else:
        (scores,) = totals
    scores[~there] = np.nan
    check_slope(metric, max(slopes), case.baseline[0] if steps == 1 else None)
    return EdgeScores(
        scores=scores,
        senders=tuple(senders),
        receivers=tuple(receivers),
        direction=case.direction,
        metric=metric.name,
        steps=steps,
        baseline_clean=case.values["clean"][0],
        baseline_corrupted=case.values["corrupted"][0] if "corrupted" in case.values else None,
        experiment=runs.experiment,
        source=model.source or Source("unnamed"),
        corruption=runs.corruption,
        absolute=fixes.grad_drop,
        positions=positions if positions is None else tuple(positions),
        **fixes._asdict(),
        prediction=runs.prediction,
    )


def step_scores(
    model: Model, run: Run, gradients: Run, d_resid: Array, differences: Array, there: Array, qk_fix: bool
) -> Array:
    """The scores by the derivatives of one run: (n_senders, n_receivers), 0 where there is no edge.

    differences: what each sender writes in the donor run, minus in the base run, (n_senders, n_tokens, d_model). there:
    whether there is an edge, as the scores; the senders before a receiver are the first ones.
    """
    flat, scores, done = differences.reshape(len(differences), -1), np.zeros(there.shape), 0
    for slopes in input_gradients(model, run, gradients, d_resid):  # (n_receivers, n_tokens * d_model), at one point
        n_before = int(there[:, done].sum())
        scores[:n_before, done : done + len(slopes)] = flat[:n_before] @ slopes.T
        done += len(slopes)
    if qk_fix:
        for layer in range(model.n_layer):
            first = layer * (3 * model.n_head + 1)  # the block's first receiver
            n_before = int(there[:, first].sum())
            effects = [
                pattern_effects(model, run, gradients, differences[:n_before], layer, site) for site in ("q", "k")
            ]
            scores[:n_before, first : first + 2 * model.n_head] = np.concatenate(effects, axis=1)
    return scores


def pattern_effects(model: Model, run: Run, gradients: Run, differences: Array, layer: int, site: str) -> Array:
    """What senders do through the q or the k of each head, with the exact pattern: (n_senders, n_head).

    It is (the pattern if the head's q, or k, alone reads the sender's change - the run's pattern) . (the metric's
    derivative with respect to the pattern).
    """
    block, scale, found = model.h[layer], model._attention_scale(layer), []
    n_tokens = differences.shape[1]
    own = {name: np.swapaxes(run[name][layer], 0, 1) for name in "qk"}  # (n_head, n_tokens, d_head)
    at_once = max(1, 2**24 // (n_tokens * max(model.d_model, model.n_head * n_tokens)))
    for start in range(0, len(differences), at_once):
        read = run[f"{site}_input"][layer] + differences[start : start + at_once]  # (n, n_tokens, d_model)
        made = affine(layer_norm(read, *block.ln_1, model.config.layer_norm_epsilon), *qkv_weights(model, site, layer))
        changed = np.swapaxes(made.reshape(*made.shape[:2], model.n_head, model.d_head), 1, 2)
        q, k = (changed, own["k"]) if site == "q" else (own["q"], changed)  # (n, n_head, n_tokens, d_head)
        scores = q * scale @ np.swapaxes(k, -2, -1) + causal_mask(n_tokens, n_tokens, model.dtype)
        moved = softmax(scores) - run.pattern[layer]  # (n, n_head, n_query, n_key)
        found.append((moved * gradients.pattern[layer]).sum(axis=(-2, -1)))
    return np.concatenate(found)


def runs_on_the_line(model: Model, base: Run, embedding: Array, steps: int) -> Iterator[Run]:
    """The base run; or `steps` runs whose embeddings lie between the base run's and another, at middles of steps.

    They come in batches, (n_layer, n_runs, n_tokens, ...): of short prompts several runs read the weights once.
    """
    if steps == 1:
        yield Run({name: base[name][:, None] for name in BASE_SITES}, None, model)
        return
    start = base.resid_pre[0]  # (n_tokens, d_model)
    fractions = ((np.arange(steps) + 0.5) / steps).astype(model.dtype)
    at_once = max(1, SHORT * 8 // len(start))
    for some in progress(np.split(fractions, range(at_once, steps, at_once)), "steps"):
        embeddings = start + some[:, None, None] * (embedding - start)  # (n_runs, n_tokens, d_model)
        yield record(model.steps_from(0, embeddings, sites=BASE_SITES), sites=BASE_SITES)


def singly(batch: Run) -> list[Run]:
    """The runs of a batch, or their derivatives, each as a `Run`."""
    n_runs = batch[batch.names[0]].shape[1]
    return [Run({name: batch[name][:, i] for name in batch.names}, None, batch.model) for i in range(n_runs)]


def metric_backward(model: Model, case: Case, resid: Array) -> tuple[Array, np.floating[Any]]:
    """The metric's derivative with respect to what the last block leaves, and its largest one by a logit.

    resid: what a run's last block leaves, (n_tokens, d_model). Only the logits that the metric needs are computed.
    """
    rows = slice(-1, None) if case.last_only else slice(None)
    columns = slice(None) if case.answers is None else case.answers
    logits = np.zeros((len(resid[rows]), model.n_vocab), model.dtype)
    logits[:, columns] = model.unembed(resid[rows], case.answers)
    d_logits = metric_gradient(case.metrics[0], logits, case.target)  # (n_rows, n_vocab)
    d_resid = np.zeros_like(resid)
    d_resid[rows] = layer_norm_backward(
        unembedding_backward(model, d_logits), resid[rows], model.ln_f.weight, model.config.layer_norm_epsilon
    )
    return d_resid, np.abs(d_logits).max()


def input_gradients(model: Model, run: Run, gradients: Run, d_resid: Array) -> Iterator[Array]:
    """The derivatives with respect to the residual stream as each receiver alone reads it, at one point after another.

    Of each block, first those of all q, k and v, then that of the MLP; last that of the logits, d_resid.
    (n_receivers, n_tokens * d_model) each.
    """
    eps = model.config.layer_norm_epsilon
    for layer, block in enumerate(model.h):
        of_heads = []
        for site in "qkv":
            # `gradients.q_input` is the sum over heads. Each head's part of it goes through this head's q alone.
            weights, _ = head_inputs(model, site, layer)  # (n_head, d_model, d_head)
            d_normed = np.swapaxes(gradients[site][layer], 0, 1) @ np.swapaxes(weights, 1, 2)
            x = run[f"{site}_input"][layer]  # (n_tokens, d_model)
            of_heads.append(layer_norm_backward(d_normed, x, block.ln_1.weight, eps))  # (n_head, n_tokens, d_model)
        yield np.concatenate(of_heads).reshape(3 * model.n_head, -1)
        yield gradients.mlp_in[layer].reshape(1, -1)
    yield d_resid.reshape(1, -1)


# ---- circuits -------------------------------------------------------------------------------------


def circuit(scores: EdgeScores, n: int, prune: bool = True, by: str = "size") -> list[Edge]:
    """The n best edges, the best first. See `EdgeScores.top` for ties.

    prune: leave out, as the literature does, edges that are on no path from the embedding to the logits. They carry
    nothing, so the circuit's faithfulness is the same without them. The result may be empty. by: "size" takes the
    largest absolute scores; "signed" takes the edges that raise the metric most when they carry the clean run.

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
    return scores.circuit(n, prune, by)
