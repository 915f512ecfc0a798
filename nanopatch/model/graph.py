"""A GPT-2 as a graph: the nodes that write to the residual stream, and those that read it.

Points of the residual stream are numbered by half blocks. At point 2 l it enters block l, and attention reads it.
Point 2 l + 1 is between attention and MLP. Point 2 n_layer is the end. A receiver comes after a sender if it reads
at, or after, the first point that the sender has written to.

    senders    embed     resid_pre of block 0     receivers  q 2.1, k 2.1, v 2.1  one of them, of a head
               head 2.1  z of layer 2, head 1                mlp 2     what the MLP of layer 2 reads
               attn 2    attn_out of layer 2                 resid 3   the residual stream entering block 3
               mlp 2     mlp_out of layer 2                            (resid n_layer: after the last block)
                                                             logits    what ln_f and the unembedding read
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ..errors import NanopatchError
from ..types import Array
from .gpt2 import Model
from .layers import ACTIVATIONS, affine, layer_norm


class Node(NamedTuple):
    """A sender or a receiver. Its `str` is its name: "embed", "head 2.1", "q 2.1", "mlp 2", "logits", ..."""

    kind: str
    layer: int = 0
    head: int | None = None

    def __str__(self) -> str:
        if self.kind in ("embed", "logits"):
            return self.kind
        return f"{self.kind} {self.layer}" if self.head is None else f"{self.kind} {self.layer}.{self.head}"

    @property
    def component(self) -> Node:
        """The part of the model that the node belongs to: the head for q, k and v, else the node itself."""
        return self._replace(kind="head") if self.kind in ("q", "k", "v") else self


class Edge(NamedTuple):
    """A connection from the output of one node to an input of another, and its score."""

    sender: Node
    receiver: Node
    score: float


class Place(NamedTuple):
    """What a node writes or reads in one model: the array, and the point of the residual stream."""

    site: str
    layer: int
    head: int | None  # None for all sites but z, q, k and v
    point: int


def node(name: str | Node) -> Node:
    """The node of a name. NanopatchError if no node has such a name."""
    match = re.fullmatch(r"(embed|logits)|(head|q|k|v) (\d+)\.(\d+)|(attn|mlp|resid) (\d+)", str(name))
    if not match:
        raise NanopatchError(f'{name!r} is not a node; nodes are "embed", "head 2.1", "q 2.1", "mlp 2", "logits", ...')
    alone, of_head, layer, head, kind, of_layer = match.groups()
    return Node(alone) if alone else Node(of_head, int(layer), int(head)) if of_head else Node(kind, int(of_layer))


def senders_of(model: Model) -> dict[Node, Place]:
    """All senders. The point of each is the first at which the residual stream holds what it writes."""
    places = {Node("embed"): Place("resid_pre", 0, None, 0)}
    for layer in range(model.n_layer):
        for head in range(model.n_head):
            places[Node("head", layer, head)] = Place("z", layer, head, 2 * layer + 1)
        places[Node("attn", layer)] = Place("attn_out", layer, None, 2 * layer + 1)
        places[Node("mlp", layer)] = Place("mlp_out", layer, None, 2 * layer + 2)
    return places


def receivers_of(model: Model) -> dict[Node, Place]:
    """All receivers. The point of each is where it reads the residual stream."""
    places = {}
    for layer in range(model.n_layer):
        places[Node("resid", layer)] = Place("resid_pre", layer, None, 2 * layer)
        for site in "qkv":
            for head in range(model.n_head):
                places[Node(site, layer, head)] = Place(site, layer, head, 2 * layer)
        places[Node("mlp", layer)] = Place("mlp_pre", layer, None, 2 * layer + 1)
    end = Place("resid_post", model.n_layer - 1, None, 2 * model.n_layer)
    return places | {Node("resid", model.n_layer): end, Node("logits"): end}


def graph(model: Model) -> tuple[dict[Node, Place], dict[Node, Place]]:
    """The senders and the receivers of the edges of a model, in the order of the run."""
    senders = {n: place for n, place in senders_of(model).items() if n.kind != "attn"}
    receivers = {n: place for n, place in receivers_of(model).items() if n.kind != "resid"}
    return senders, receivers


def edge_table(model: Model) -> Array:
    """Whether an edge goes from a sender to a receiver of `graph`: (n_senders, n_receivers), bool."""
    senders, receivers = graph(model)
    written, read = (np.array([place.point for place in places.values()]) for places in (senders, receivers))
    return np.asarray(written[:, None] <= read)


def all_edges(model: Model) -> list[tuple[Node, Node]]:
    """Every edge of `graph`, as (sender, receiver), by sender."""
    senders, receivers = map(list, graph(model))
    return [(senders[i], receivers[j]) for i, j in np.argwhere(edge_table(model)).tolist()]


def comes_after(receiver: Place, senders: Iterable[Place]) -> bool:
    """Whether the receiver reads at or after the first point that one of the senders has written to."""
    return receiver.point >= min(sender.point for sender in senders)


def find_nodes(asked: Any, known: Iterable[Node], what: str) -> list[Node]:
    """The known nodes whose names are, or begin with, what was asked: "q 3" finds "q 3.0", "q 3.1", and so on."""
    known = list(known)
    found = [n for n in known if str(n) == str(asked) or str(n).startswith((f"{asked} ", f"{asked}."))]
    if not found:
        raise NanopatchError(f"unknown {what} {str(asked)!r}; {what}s are {listing(known)}")
    return found


def listing(nodes: Iterable[Node]) -> str:
    """Names of nodes as a short line of text: the first and the last of each kind."""
    kinds: dict[str, list[Node]] = {}
    for n in nodes:
        kinds.setdefault(n.kind, []).append(n)
    return ", ".join(str(some[0]) if len(some) == 1 else f"{some[0]} to {some[-1]}" for some in kinds.values())


# ---- what a head reads and writes -----------------------------------------------------------------


def head_output(model: Model, z: Array, layer: int, head: int) -> Array:
    """A head's z, (n_tokens, d_head), through its rows of c_proj, without c_proj's bias: (n_tokens, d_model)."""
    rows = slice(head * model.d_head, (head + 1) * model.d_head)
    return affine(z, model.h[layer].attn.c_proj.weight[rows])


def head_outputs(model: Model, z: Array, layer: int) -> Array:
    """What each head writes, (..., n_head, n_tokens, d_model), without c_proj's bias.

    z: (..., n_tokens, n_head, d_head).
    """
    weight = model.h[layer].attn.c_proj.weight.reshape(model.n_head, model.d_head, model.d_model)
    return np.asarray(np.swapaxes(z, -3, -2) @ weight)


def qkv_weights(model: Model, site: str, layer: int) -> tuple[Array, Array]:
    """Weight (d_model, d_model) and bias (d_model,) by which all heads make their q, k or v: views of c_attn."""
    first = "qkv".index(site) * model.d_model
    weight, bias = (array[..., first : first + model.d_model] for array in model.h[layer].attn.c_attn)
    return weight, bias


def head_inputs(model: Model, site: str, layer: int) -> tuple[Array, Array]:
    """Weights (n_head, d_model, d_head) and biases (n_head, d_head) by which the heads make their q, k or v; views."""
    weight, bias = qkv_weights(model, site, layer)
    by_head = weight.reshape(model.d_model, model.n_head, model.d_head)
    return np.moveaxis(by_head, 0, 1), bias.reshape(model.n_head, model.d_head)


def mlp_input(model: Model, resid: Array, layer: int) -> Array:
    """The neurons of an MLP before their activation, (..., d_mlp), of the residual stream that it reads."""
    block = model.h[layer]
    return affine(layer_norm(resid, *block.ln_2, model.config.layer_norm_epsilon), *block.mlp.c_fc)


def mlp_output(model: Model, resid: Array, layer: int) -> Array:
    """What an MLP writes, (..., d_model), if it reads this residual stream."""
    neurons = mlp_input(model, resid, layer)
    return affine(ACTIVATIONS[model.config.activation_function](neurons, out=neurons), *model.h[layer].mlp.c_proj)


def written(model: Model, embedding: Array, z: Array, mlp_out: Array) -> Array:
    """What every sender of the graph adds to the residual stream: (n_senders, n_tokens, d_model), in the run's order.

    embedding: (n_tokens, d_model). z, mlp_out: as in a `Run`.
    """
    rows = [embedding[None]]
    for layer in range(model.n_layer):
        rows += [head_outputs(model, z[layer], layer), mlp_out[layer][None]]
    return np.concatenate(rows)
