"""Circuits: does the model do its task if only some edges carry the clean run?

A GPT-2 is a graph here (`nanopatch.model.graph`). In the run of a circuit, each receiver has an input of its own. The
edges of the circuit carry what their senders write in this run. All other edges carry what they carry in the
corrupted run, or what an ablation puts in. `faithfulness` measures that run beside the clean and the corrupted one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import NanopatchError
from ..experiments.align import Columns
from ..experiments.corruption import Corruption, to_dict
from ..experiments.experiment import Experiment
from ..experiments.metrics import Metric, as_metric, identity
from ..files import Source
from ..gradients.edges import check_edges_asked, check_one_length, edge_case
from ..model.gpt2 import Model
from ..model.graph import Node, edge_table, graph, head_inputs, head_outputs, listing, node
from ..model.layers import affine, layer_norm
from ..model.sites import Run
from ..patching.average import Experiments, Key, check_model
from ..patching.case import Case
from ..patching.many import Share, Where, over
from ..results.edges import EdgeScores, Faithfulness
from ..types import Array, PathLike

if TYPE_CHECKING:
    from concurrent.futures import Executor

#: A circuit: (sender, receiver) pairs.
Circuit = Sequence[tuple[Node, Node]]
#: What of the clean run is needed; z and mlp_out give the shapes of what an ablation puts in.
ENDS_AND_WRITTEN = ("resid_pre", "resid_post", "z", "mlp_out")
#: Bytes that the circuits of one batch may take.
MEMORY = 2**28


def faithfulness(
    model: Model,
    experiments: Experiments,
    edges: Iterable[Any] | Mapping[str, Iterable[Any]],
    *,
    metric: Any = "logit_diff",
    corruption: Corruption | None = None,
    executor: Executor | None = None,
    workers: int | None = None,
    folder: PathLike | Share | None = None,
) -> Any:
    """Run the clean prompt with all edges but `edges` patched to the corrupted run, and measure.

    Nothing is estimated. All three runs are measured as runs of the clean prompt. This makes a difference only for a
    metric that reads the prompt's own tokens (cross_entropy).

    Parameters
    ----------
    model, experiments, metric, executor, workers, folder
        As for `nanopatch.sweep`, but one metric. For several experiments the result is the mean.
    edges : list or dict
        From `circuit`, or (sender, receiver) pairs of names or nodes. [] gives the corrupted run; all edges give
        the clean run. A dict of circuits, by names, is run as one batch, and gives `Panels`, one for each.
    corruption : Zero, Mean or Resample, optional
        What all other edges carry in place of the corrupted run; `Mean(prompts)` is each node's own mean. The
        corrupted prompt is then not used, and `baseline_corrupted` is the metric of the run without any edge.

    Returns
    -------
    Faithfulness or Panels

    Raises
    ------
    NanopatchError
        If prompts have different lengths, or the model has no such edge.

    Examples
    --------
    >>> import nanopatch
    >>> model, michelle = nanopatch.load("nano"), nanopatch.experiments.MICHELLE
    >>> scores = nanopatch.edge_attribution(model, michelle, steps=2)
    >>> found = nanopatch.faithfulness(model, michelle, {f"{n} edges": scores.circuit(n) for n in (10, 100)})
    >>> [round(of.normalised, 2) for of in found.values()]
    [0.31, 0.96]
    """
    check_edges_asked(None, corruption)
    named = edges if isinstance(edges, Mapping) else {"": edges}
    if not named:
        raise NanopatchError("edges={}: give at least one circuit, such as {'best 20': scores.circuit(20)}")
    circuits = [edge_pairs(circuit) for circuit in named.values()]
    names = [str(name) for name in named]
    if len(set(names)) < len(names):
        raise NanopatchError(f"two circuits have one name: {', '.join(names)[:60]}; names are compared as texts")
    task = CircuitTask(circuits, as_metric(metric), corruption, (names,), (isinstance(edges, Mapping),))
    return over(model, experiments, task, Where(executor, workers, folder))


class CircuitTask(NamedTuple):
    """Circuits run on each of many experiments: see `nanopatch.patching.average.Task`."""

    circuits: Sequence[Circuit]
    metric: Metric
    corruption: Corruption | None
    names: tuple[list[str]]
    lists: tuple[bool]

    def structure(self, model: Model, experiment: Experiment) -> Columns:
        return check_one_length(model, experiment, "faithfulness", self.corruption)

    def one(self, model: Model, experiment: Experiment, number: int) -> dict[Key, Faithfulness]:
        case = circuit_case(model, experiment, number, self.metric, self.corruption)
        measured = measure_circuits(model, case, self.circuits)
        return {(name,): found for name, found in zip(self.names[0], measured, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        return {
            "circuits": [sorted([str(s), str(r)] for s, r in circuit) for circuit in self.circuits],
            "metric": identity(self.metric),
            "corruption": to_dict(self.corruption),
        }


def check_scores(model: Any, scores: Any) -> None:
    """NanopatchError unless these are scores of the edges of this model."""
    check_model(model)
    if not isinstance(scores, EdgeScores):
        raise NanopatchError(f"scores are what edge_attribution gives, not {scores!r:.60}")
    if (scores.senders, scores.receivers) != tuple(map(tuple, graph(model))):
        raise NanopatchError("the scores are of another model: their nodes are not this model's")


def circuit_case(model: Model, experiment: Experiment, number: int, metric: Any, corruption: Corruption | None) -> Case:
    """The clean run, as the base, and what the edges outside of a circuit carry."""
    others = ("resid_pre", "resid_mid", "resid_post", "z", "mlp_out")
    return edge_case(model, experiment, number, "noise", metric, corruption, ENDS_AND_WRITTEN, others)


def measure_circuits(model: Model, case: Case, circuits: Sequence[Circuit]) -> list[Faithfulness]:
    """The faithfulness of circuits on one experiment. case: of direction "noise", so that the clean run is the base."""
    corrupted = case.values["corrupted"][0] if "corrupted" in case.values else None
    kept = kept_edges(model, circuits if corrupted is not None else [*circuits, []])
    values = kept_metrics(model, case, run_of_others(model, case), kept)
    if corrupted is None:
        corrupted = values.pop()
    return [
        Faithfulness(
            metric=case.metrics[0].name,
            value=value,
            baseline_clean=case.values["clean"][0],
            baseline_corrupted=corrupted,
            rounding=case.rounding[0],
            n_edges=len(circuit),
            source=model.source or Source("unnamed"),
            corruption=case.runs.corruption,
            prediction=case.runs.prediction,
        )
        for value, circuit in zip(values, circuits, strict=True)
    ]


def kept_metrics(model: Model, case: Case, others: Run, kept: Array) -> list[float]:
    """The metric of the run of each circuit. others: `run_of_others`. kept: as `kept_edges`."""
    values = []
    for resid in circuits_resid(model, case.runs.clean.resid_pre[0], others, kept):
        logits = model.unembed(resid[-1:] if case.last_only else resid, case.answers)
        values.append(case.measure(logits)[0])
    return values


def run_of_others(model: Model, case: Case) -> Run:
    """What the edges outside of a circuit carry, as a run: that of the corrupted prompt, or one made by an ablation."""
    runs = case.runs
    if runs.corrupted is not None:
        return runs.corrupted
    put_in = {site: runs.replacements(site)[runs.draws(site, 1)[0]] for site in ("resid_pre", "z", "mlp_out")}
    resid = put_in["resid_pre"][0]  # (n_tokens, d_model)
    arrays: dict[str, list[Array]] = {"resid_pre": [], "resid_mid": [], "resid_post": []}
    for layer, block in enumerate(model.h):
        arrays["resid_pre"].append(resid)
        resid = resid + affine(put_in["z"][layer].reshape(resid.shape), *block.attn.c_proj)
        arrays["resid_mid"].append(resid)
        resid = resid + put_in["mlp_out"][layer]
        arrays["resid_post"].append(resid)
    streams = {name: np.array(rows) for name, rows in arrays.items()}
    return Run(streams | {name: np.array(put_in[name]) for name in ("z", "mlp_out")}, None, model)


def edge_pairs(edges: Any) -> list[tuple[Node, Node]]:
    """Edges as (sender, receiver) pairs of nodes, without repeats. NanopatchError if they are anything else."""
    pairs: dict[tuple[Node, Node], None] = {}
    for edge in edges if np.iterable(edges) else [edges]:
        if not isinstance(edge, (tuple, list)) or isinstance(edge, Node) or len(edge) < 2:
            raise NanopatchError(f"edges are (sender, receiver) pairs, as `circuit` gives them, not {edge!r:.60}")
        sender, receiver = edge[0], edge[1]
        if not (isinstance(sender, Node) and isinstance(receiver, Node)):  # names; nodes are checked by `kept_edges`
            sender, receiver = node(sender), node(receiver)
        pairs[sender, receiver] = None
    return list(pairs)


def kept_edges(model: Model, circuits: Sequence[Circuit]) -> Array:
    """Which edges each circuit keeps: (n_receivers, n_circuits, n_senders), 1 or 0. NanopatchError for no such edge."""
    senders, receivers = graph(model)
    rows, columns = ({n: i for i, n in enumerate(nodes)} for nodes in (receivers, senders))
    edges = np.pad(edge_table(model).T, (0, 1))  # the last row and column are for what is no node
    kept = np.zeros((len(receivers), len(circuits), len(senders)), model.dtype)
    for number, circuit in enumerate(circuits):
        i = [rows.get(receiver, -1) for _, receiver in circuit]
        j = [columns.get(sender, -1) for sender, _ in circuit]
        for wrong in np.flatnonzero(~edges[i, j])[:1] if circuit else ():
            sender, receiver = circuit[wrong]
            raise NanopatchError(
                f"no edge goes from {str(sender)!r} to {str(receiver)!r}; senders are {listing(senders)}; "
                f"receivers are {listing(receivers)}; and a receiver comes after its sender"
            )
        kept[i, number, j] = 1
    return kept


def circuits_resid(model: Model, embedding: Array, others: Run, kept: Array) -> Array:
    """What the logits read in the run of each circuit: (n_circuits, n_tokens, d_model).

    The input of each receiver is the residual stream of the other run, plus a change for each sender that has an edge
    to it: what the sender writes in this run minus what it writes in the other one. embedding: the token embeddings of
    this run, (n_tokens, d_model). others: a record with the residual stream, z and mlp_out. kept: as `kept_edges`.
    """
    _, n_circuits, n_senders = kept.shape
    n_tokens = len(embedding)
    bytes_of_one = n_tokens * (model.d_model * (n_senders + 12 * model.n_head) + 3 * model.d_mlp) * model.dtype.itemsize
    at_once = max(1, int(MEMORY // bytes_of_one))
    batches = [kept[:, start : start + at_once] for start in range(0, n_circuits, at_once)]
    return np.concatenate([run_batch(model, embedding, others, batch) for batch in batches])


def run_batch(model: Model, embedding: Array, others: Run, kept: Array) -> Array:
    """`circuits_resid` of circuits that run together. kept: as `kept_edges`."""
    n_circuits = kept.shape[1]
    n_tokens, d_model = embedding.shape
    fed = np.asarray(kept.any(axis=(1, 2)))  # (n_receivers,): only these have an input of their own, in some circuit
    used = np.asarray(kept.any(axis=(0, 1)))  # (n_senders,): only what these write is needed
    kept = kept[..., used]
    changes = np.empty((n_circuits, kept.shape[2], n_tokens, d_model), model.dtype)  # one by one, as they are written
    n_written = 0

    def write(change: Array) -> None:  # (n_circuits or 1, n, n_tokens, d_model)
        nonlocal n_written
        n = change.shape[1]
        changes[:, n_written : n_written + n] = change
        n_written += n

    def inputs_of(rows: Any, stream: Array) -> Array:  # (len(rows), n_circuits, n_tokens, d_model)
        of_circuits = np.swapaxes(kept[rows, :, :n_written], 0, 1)  # (n_circuits, len(rows), n_written)
        sums = of_circuits @ changes[:, :n_written].reshape(n_circuits, n_written, n_tokens * d_model)
        return np.asarray(stream + np.swapaxes(sums.reshape(*sums.shape[:2], n_tokens, d_model), 0, 1))

    n_head, receiver, sender, eps = model.n_head, 0, 0, model.config.layer_norm_epsilon
    if used[sender]:
        write((embedding - others.resid_pre[0])[None, None])
    for layer, block in enumerate(model.h):
        # Inputs that no edge feeds are those of the other run's residual stream; the loop assigns all others.
        stream = np.broadcast_to(others.resid_pre[layer], (n_circuits, n_tokens, d_model))
        for site in model.block_steps(layer, stream, sites=("q", "k", "v", "z", "mlp_in", "mlp_out")):
            if site.name in ("q", "k", "v"):
                heads = np.flatnonzero(fed[receiver : receiver + n_head])
                if heads.size:
                    inputs = inputs_of(receiver + heads, others.resid_pre[layer])
                    normed = layer_norm(inputs, *block.ln_1, eps).reshape(heads.size, -1, d_model)
                    weights, biases = head_inputs(model, site.name, layer)
                    own = normed @ weights[heads] + biases[heads, None]  # (len(heads), n_circuits * n_tokens, d_head)
                    own = own.reshape(heads.size, n_circuits, n_tokens, -1)
                    site.array[:, :, heads] = np.moveaxis(own, 0, 2)  # (n_circuits, n_tokens, n_head, d_head)
                receiver += n_head
            elif site.name == "z":
                of_heads = used[sender + 1 : sender + 1 + n_head]
                if of_heads.any():
                    write(head_outputs(model, site.array - others.z[layer], layer)[:, of_heads])
            elif site.name == "mlp_in":
                site.array[...] = inputs_of([receiver], others.resid_mid[layer])[0]
                receiver += 1
            elif site.name == "mlp_out":
                sender += n_head + 1
                if used[sender]:
                    write((site.array - others.mlp_out[layer])[:, None])
    return inputs_of([receiver], others.resid_post[-1])[0]
