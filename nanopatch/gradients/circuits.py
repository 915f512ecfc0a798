"""Edge attribution and circuits: which connections between components carry the difference between two prompts?

A GPT-2 is a graph here. Its nodes are the embedding, every head, every MLP and the logits. A head has three
inputs, its q, k and v; an MLP and the logits have one each. Every node reads the sum of what all earlier ones
have written to the residual stream, so an edge goes from every node to every later input: a block's heads feed
its MLP, but not each other. Nodes and inputs bear the names of `nanopatch.paths`: an edge goes from a sender
("embed", "head 0.1", "mlp 0") to a receiver ("q 2.1", "k 2.1", "v 2.1", "mlp 2", "logits").

Edge attribution patching (EAP; Syed, Rager & Conmy 2023, arXiv 2310.10348) scores all edges with two runs and one
backward pass. The edges of largest |score| make a circuit, and its faithfulness says whether it is one: the metric
of the model when every other edge carries what it carries in the corrupted run.
"""

import json
import math
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

import numpy as np

from .attribution import check_steps
from ..model.backward import backward, layer_norm_backward
from ..model.checkpoint import Source
from ..results.circuit_plot import colour, node_of, plot_circuit, width
from ..errors import NanopatchError
from ..experiments.experiment import Experiment
from ..files import write_whole
from ..model.layers import affine, layer_norm
from ..experiments.metrics import as_metric, check_slope, measure, metric_gradient
from ..patching.sweep import DIRECTIONS, check_direction, equal_length_tokens, rounding, target_of
from ..patching.paths import comes_after, listing, receivers_of, senders_of
from ..model.sites import record


class Edge(NamedTuple):
    sender: str
    receiver: str
    score: float


# ---- the graph ------------------------------------------------------------------------------------


def graph(model):
    """The senders and the receivers of a model's graph: two dicts {name: `paths.Place`}, in the order of the run."""
    senders = {name: place for name, place in senders_of(model).items() if not name.startswith("attn")}
    receivers = {name: place for name, place in receivers_of(model).items() if not name.startswith("resid")}
    return senders, receivers


def written(model, run, sender):
    """What a sender adds to the residual stream, c_proj's bias left out of a head's part: (n_tokens, d_model)."""
    if sender.site != "z":
        return getattr(run, sender.site)[sender.layer]
    return head_output(model, run.z[sender.layer][:, sender.head], sender)


def head_output(model, z, place):
    """A head's z, (n_tokens, d_head), through its rows of c_proj: (n_tokens, d_model)."""
    rows = slice(place.head * model.d_head, (place.head + 1) * model.d_head)
    return affine(z, model.h[place.layer].attn.c_proj.weight[rows])


def head_input(model, place):
    """Weight (d_model, d_head) and bias (d_head,) by which a head makes its q, k or v: its columns of c_attn."""
    first = "qkv".index(place.site) * model.d_model + place.head * model.d_head
    weight, bias = model.h[place.layer].attn.c_attn
    return weight[:, first : first + model.d_head], bias[first : first + model.d_head]


# ---- scores ---------------------------------------------------------------------------------------


def edge_attribution(model, experiment, direction="denoise", metric="logit_diff", steps=1):
    """Score every edge of the graph: `EdgeScores`.

    An edge's score estimates, to first order, how the metric changes when this edge alone carries what it carries
    in the other run: the sum over positions of (the sender's output in the run patched from - its output in the
    run patched into) . (the metric's derivative with respect to the receiver's input).

    direction, metric: as for `nanopatch.sweep`; the metric needs a derivative. steps: 1 takes the derivative on
    the run patched into (EAP). More take its mean over runs whose token embeddings (`resid_pre` of block 0) lie on
    the straight line from that run's to the other's, at the middles of so many equal steps (EAP-IG; Hanna, Pezzelle
    & Belinkov 2024, arXiv 2403.17806), at a run and a backward pass each.
    Raises NanopatchError for prompts of different lengths, unknown arguments, and metrics without derivative.
    """
    check_direction(direction)
    check_steps(steps)
    metric, tokens = as_metric(metric), equal_length_tokens(model, experiment, "edge attribution")
    into_name, origin_name = DIRECTIONS[direction]
    kept = {into_name: None, origin_name: ("resid_pre", "z", "mlp_out", "logits")}
    runs = {name: model.run(getattr(tokens, name), sites=kept[name]) for name in ("clean", "corrupted")}
    targets = {name: target_of(tokens, run.tokens, runs["clean"].logits[-1]) for name, run in runs.items()}
    into, origin, target = runs[into_name], runs[origin_name], targets[into_name]
    baselines = {name: measure([metric], run.logits, targets[name])[0] for name, run in runs.items()}

    senders, receivers = graph(model)
    differences = [(written(model, origin, s) - written(model, into, s)).ravel() for s in senders.values()]
    differences = np.array(differences, np.float64)  # (n_senders, n_tokens * d_model)
    scores = np.zeros((len(senders), len(receivers)))
    for step in range(steps):
        fraction = (step + 0.5) / steps
        embedding = into.resid_pre[0] + fraction * (origin.resid_pre[0] - into.resid_pre[0])  # (n_tokens, d_model)
        run = into if steps == 1 else record(model.steps_from(0, embedding))
        d_logits = metric_gradient(metric, run.logits, target)
        if steps == 1:
            check_slope(metric, baselines[into_name], d_logits)
        gradients = backward(model, run, d_logits)
        for j, receiver in enumerate(receivers.values()):
            scores[:, j] += differences @ input_gradient(model, run, gradients, receiver).ravel() / steps
    for i, sender in enumerate(senders.values()):
        scores[i, [not comes_after(receiver, [sender]) for receiver in receivers.values()]] = np.nan
    return EdgeScores(
        scores=scores,
        senders=tuple(senders),
        receivers=tuple(receivers),
        direction=direction,
        metric=metric.name,
        steps=steps,
        baseline_clean=baselines["clean"],
        baseline_corrupted=baselines["corrupted"],
        experiment=experiment,
        source=model.source or Source("unnamed"),
    )


def input_gradient(model, run, gradients, receiver):
    """Derivative with respect to the residual stream as one receiver alone reads it: (n_tokens, d_model)."""
    site, layer = receiver.site, receiver.layer
    if site == "logits":
        return gradients.resid_post[-1]
    if site == "mlp_pre":
        return gradients.mlp_in[layer]
    # `gradients.q_input` is the sum over heads. This head's part of it goes through this head's q alone.
    weight, _ = head_input(model, receiver)  # (d_model, d_head)
    d_normed = affine(getattr(gradients, site)[layer][:, receiver.head], weight.T)  # (n_tokens, d_model)
    x, eps = getattr(run, f"{site}_input")[layer], model.config.layer_norm_epsilon
    return layer_norm_backward(d_normed, x, model.h[layer].ln_1.weight, eps)


@dataclass(frozen=True, eq=False, repr=False)
class EdgeScores:
    """The score of every edge, and what it is a score of.

    scores: (n_senders, n_receivers), float64, NaN where there is no edge, the receiver not coming after the sender.
    senders, receivers: their names, in the order of the run. baseline_clean, baseline_corrupted: the metric of the
    two unpatched runs.
    """

    scores: np.ndarray
    senders: tuple
    receivers: tuple
    direction: str
    metric: str
    steps: int
    baseline_clean: float
    baseline_corrupted: float
    experiment: Experiment
    source: Source

    @property
    def edges(self):
        """Every edge with its score: [Edge], by sender, then by receiver."""
        places = np.argwhere(np.isfinite(self.scores))
        return [Edge(self.senders[i], self.receivers[j], float(self.scores[i, j])) for i, j in places]

    def top(self, n):
        """The n edges of largest |score|, largest first; of equal ones, the first of `edges` first: [Edge]."""
        edges = self.edges
        if not isinstance(n, Integral) or not 1 <= n <= len(edges):
            raise NanopatchError(f"n={n!r}: from 1 to {len(edges)} edges can be chosen")
        return sorted(edges, key=lambda edge: -abs(edge.score))[:n]

    @property
    def title(self):
        """What was scored, in one line."""
        how = "EAP" if self.steps == 1 else f"EAP-IG, {self.steps} steps"
        into, origin = DIRECTIONS[self.direction]
        return f"{how}: {self.metric}, {origin} patched into {into}, {self.source.name}"

    def __repr__(self):
        return f"<EdgeScores: {self.title}; {len(self.edges)} edges>"

    def __str__(self):
        lines = [f"{e.score:10.4f}  {e.sender} -> {e.receiver}" for e in self.top(min(20, len(self.edges)))]
        return "\n".join([f"{self.title}; the largest of {len(self.edges)} edges", *lines])

    # ---- pictures and files ---------------------------------------------------------------------

    def _repr_png_(self):  # how a notebook shows it
        from ..results.plot import as_bytes

        return as_bytes(self.plot(min(30, len(self.edges))).figure)

    def plot(self, n=30, ax=None):
        """Draw `circuit(self, n)` (see `circuit_plot.plot_circuit`); returns the matplotlib Axes."""
        edges = circuit(self, n)
        drawn = ", ".join([f"{len(edges)} of {len(self.edges)} edges", *(f"widest {e.score:.3g}" for e in edges[:1])])
        ax = plot_circuit(edges, ax)
        ax.set_title(f"{self.title}\n{drawn}; red raises the metric, blue lowers it", fontsize=9)
        return ax

    def to_dict(self, n=None):
        """What JSON can hold: all edges, or with n those of `circuit(self, n)`, and what they are scores of."""
        return {
            "format": "nanopatch edges 1",
            "model": self.source.name,
            "model_sha256": self.source.sha256,
            "experiment": self.experiment.to_dict(),
            "direction": self.direction,
            "metric": self.metric,
            "steps": self.steps,
            "baseline_clean": self.baseline_clean,
            "baseline_corrupted": self.baseline_corrupted,
            "edges": [edge._asdict() for edge in (self.edges if n is None else circuit(self, n))],
        }

    def save_json(self, path, n=None):
        """Write `to_dict(n)` as JSON."""
        write_whole(path, json.dumps(self.to_dict(n), indent=1, ensure_ascii=False).encode("utf-8"))

    def to_dot(self, n=30):
        """`circuit(self, n)` in the language of Graphviz, edges into heads labelled q, k or v."""
        edges = circuit(self, n)
        lines = ["digraph circuit {", "  rankdir=BT; node [shape=box];"]
        for sender, receiver, score in edges:
            kind, node = receiver.split()[0], node_of(receiver)
            look = f'color="{colour(score)}", penwidth={width(score, edges):.3g}, tooltip="{score!r}"'
            label = f', label="{kind}"' if kind in "qkv" else ""
            lines.append(f'  "{sender}" -> "{node}" [{look}{label}];')
        return "\n".join([*lines, "}\n"])

    def save_dot(self, path, n=30):
        """Write `to_dot(n)`."""
        write_whole(path, self.to_dot(n).encode("utf-8"))


# ---- circuits -------------------------------------------------------------------------------------


def circuit(scores, n, prune=True):
    """The n edges of largest |score|, largest first: [Edge]. See `EdgeScores.top` for ties.

    prune: leave out, as the literature does, those that dangle: edges on no way from the embedding to the logits.
    They carry nothing, so the circuit's faithfulness is the same without them. There may be none left.
    """
    edges = scores.top(n)
    while prune:
        fed = {"embed"} | {node_of(edge.receiver) for edge in edges}
        read = {"logits"} | {edge.sender for edge in edges}
        kept = [edge for edge in edges if edge.sender in fed and node_of(edge.receiver) in read]
        if len(kept) == len(edges):
            break
        edges = kept
    return edges


@dataclass(frozen=True)
class Faithfulness:
    """The metric of a circuit run, and of both whole runs."""

    metric: str
    value: float
    baseline_clean: float
    baseline_corrupted: float
    rounding: float
    n_edges: int

    @property
    def normalised(self):
        """0: as the corrupted run; 1: as the clean one; NaN where these two are equal."""
        span = self.baseline_clean - self.baseline_corrupted
        return (self.value - self.baseline_corrupted) / (span if abs(span) > self.rounding else math.nan)

    def __str__(self):
        return (
            f"{self.n_edges} edges: {self.metric} {self.value:.3f}, faithfulness {self.normalised:.3f} "
            f"(clean {self.baseline_clean:.3f} is 1, corrupted {self.baseline_corrupted:.3f} is 0)"
        )


def faithfulness(model, experiment, edges, metric="logit_diff"):
    """Run the clean prompt with all edges but `edges` patched to the corrupted run, and measure: `Faithfulness`.

    edges: of `circuit`, or (sender, receiver) pairs of your own; [] gives the corrupted run, every edge the clean
    one. Nothing is estimated. All three runs are measured as runs of the clean prompt, which only a metric that
    looks at the prompt's own tokens (cross_entropy) can tell.
    Raises NanopatchError for prompts of different lengths, and for edges that the model has not.
    """
    edges = list(edges) if np.iterable(edges) else [edges]
    strange = [edge for edge in edges if not isinstance(edge, (tuple, list)) or len(edge) < 2]
    if strange:
        raise NanopatchError(f"edges are (sender, receiver) pairs, as `circuit` gives them, not {strange[0]!r:.60}")
    metric, tokens = as_metric(metric), equal_length_tokens(model, experiment, "faithfulness")
    clean, corrupted = model.run(tokens.clean, sites=("resid_pre", "logits")), model.run(tokens.corrupted)
    target = target_of(tokens, tokens.clean, clean.logits[-1])
    logits = circuit_logits(model, clean.resid_pre[0], corrupted, edges)
    (value,), (of_clean,), (of_corrupted,) = (
        measure([metric], of_run, target) for of_run in (logits, clean.logits, corrupted.logits)
    )
    limit = rounding(model, clean.logits, corrupted.logits)
    return Faithfulness(metric.name, value, of_clean, of_corrupted, limit, len({tuple(edge[:2]) for edge in edges}))


def circuit_logits(model, embedding, corrupted, edges):
    """Logits (n_tokens, n_vocab) of a run in which each receiver has an input of its own.

    That input is the residual stream of the corrupted run, plus the change of what each sender writes that has an
    edge to it: what it writes in this run, less what it writes in the corrupted run. embedding: the token embeddings
    of this run, (n_tokens, d_model). corrupted: a full record.
    """
    senders, receivers = graph(model)
    feeding = {name: [] for name in receivers}
    for sender, receiver in dict.fromkeys(tuple(edge[:2]) for edge in edges):
        known = sender in senders and receiver in receivers
        if not known or not comes_after(receivers[receiver], [senders[sender]]):
            raise NanopatchError(
                f"no edge goes from {sender!r} to {receiver!r}; senders are {listing(senders)}; receivers are "
                f"{listing(receivers)}; and a receiver comes after its sender"
            )
        feeding[receiver].append(sender)
    changes = {"embed": embedding - corrupted.resid_pre[0]}  # {sender: (n_tokens, d_model)}

    def input_of(receiver, stream):
        return stream + sum(changes[sender] for sender in feeding[receiver])

    heads, eps = range(model.n_head), model.config.layer_norm_epsilon
    for layer, block in enumerate(model.h):
        # Every reading is assigned to, so the residual stream that goes into the block is read by nobody.
        stream = corrupted.resid_pre[layer]  # (n_tokens, d_model)
        for site in model.block_steps(layer, stream, sites=("q", "k", "v", "z", "mlp_in", "mlp_out")):
            if site.name in ("q", "k", "v"):
                for head in heads:
                    name = f"{site.name} {layer}.{head}"
                    normed = layer_norm(input_of(name, stream), *block.ln_1, eps)  # (n_tokens, d_model)
                    site.array[:, head] = affine(normed, *head_input(model, receivers[name]))
            elif site.name == "z":
                for head in heads:
                    change = site.array[:, head] - corrupted.z[layer][:, head]  # (n_tokens, d_head)
                    name = f"head {layer}.{head}"
                    changes[name] = head_output(model, change, senders[name])
            elif site.name == "mlp_in":
                site.array = input_of(f"mlp {layer}", corrupted.resid_mid[layer])
            elif site.name == "mlp_out":
                changes[f"mlp {layer}"] = site.array - corrupted.mlp_out[layer]
    return model.unembed(input_of("logits", corrupted.resid_post[-1]))
