"""Circuits in the files of EAP-IG, which the Mechanistic Interpretability Benchmark takes too.

The file is JSON: {"cfg": the model's shape, "nodes": {name: {"in_graph": ...}}, "edges": {name: {"score": ...,
"in_graph": ...}}}. An edge is named "input->a0.h1<q>": `input` is the embedding, `a0.h1` head 1 of layer 0, `m0` the
MLP of layer 0. (github.com/hannamw/EAP-IG, src/eap/graph.py, `Graph.to_json`; older files have a bool for a node.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NanopatchError
from ..files import read_json, write_whole
from ..model.gpt2 import Model
from ..model.graph import Edge, Node, all_edges, graph
from ..patching.average import check_model
from ..types import PathLike
from .run import edge_pairs, kept_edges


def save_circuit(edges: Iterable[Any], path: PathLike, model: Model) -> None:
    """Write a circuit as EAP-IG's JSON: every edge of the model, and which of them are in the circuit.

    edges: from `circuit`, with their scores, or (sender, receiver) pairs, whose scores are 0 in the file.
    Raises NanopatchError if the model has no such edge, or the file's ending is not .json, or it cannot be written.

    Examples
    --------
    >>> import nanopatch, tempfile
    >>> model, michelle = nanopatch.load("nano"), nanopatch.experiments.MICHELLE
    >>> edges = nanopatch.edge_attribution(model, michelle).circuit(40)
    >>> file = tempfile.mkdtemp() + "/circuit.json"
    >>> nanopatch.save_circuit(edges, file, model)
    >>> set(nanopatch.read_circuit(file, model)) == set(edges)
    True
    """
    if Path(path).suffix.lower() != ".json":
        raise NanopatchError(f"cannot save {path}: a circuit is saved as .json, in the form of EAP-IG")
    check_model(model)
    edges = list(edges) if np.iterable(edges) else [edges]
    pairs = edge_pairs(edges)
    kept_edges(model, [pairs])  # raises if the model has no such edge
    scores = {tuple(pair): 0.0 for pair in pairs}
    scores |= {(edge.sender, edge.receiver): edge.score for edge in edges if isinstance(edge, Edge)}
    inside = {Node("embed"), Node("logits"), *(n.component for pair in pairs for n in pair)}
    contents = {
        "cfg": {
            "n_layers": model.n_layer,
            "n_heads": model.n_head,
            "parallel_attn_mlp": False,
            "d_model": model.d_model,
        },
        "nodes": {name_of(n): {"in_graph": n in inside} for n in [*graph(model)[0], Node("logits")]},
        "edges": {
            f"{name_of(s)}->{name_of(r)}": {"score": scores.get((s, r), 0.0), "in_graph": (s, r) in scores}
            for s, r in all_edges(model)
        },
    }
    write_whole(path, json.dumps(contents).encode())


def read_circuit(path: PathLike, model: Model, every: bool = False) -> list[Edge]:
    """The edges of a circuit in a file of EAP-IG's or of the benchmark's, with their scores.

    every: all edges of the file with their scores, also those outside of its circuit. (Their scores have the sign of a
    loss: a metric that should grow is turned around there.)
    Raises NanopatchError if the file is no such file, or of a model with other numbers of layers and heads.
    """
    check_model(model)
    try:
        given = read_json(path)
    except FileNotFoundError as error:
        raise NanopatchError(f"cannot read {path}: {error.strerror}") from None
    edges, shape = (given.get(name) if isinstance(given, dict) else None for name in ("edges", "cfg"))
    if not isinstance(edges, dict) or not isinstance(shape, dict):
        raise NanopatchError(f"{path} is no circuit of EAP-IG: it has no edges and cfg")
    theirs, ours = [shape.get(name) for name in ("n_layers", "n_heads")], [model.n_layer, model.n_head]
    if theirs != ours:
        raise NanopatchError(
            f"{path} is of a model of {theirs[0]!r} layers and {theirs[1]!r} heads; this one has {ours[0]} and "
            f"{ours[1]}"
        )
    found = []
    for name, about in edges.items():
        sender, _, receiver = name.partition("->")
        score = about.get("score") if isinstance(about, dict) else None
        if not isinstance(about, dict) or not isinstance(score, (int, float, type(None))):
            raise NanopatchError(f"{path}: edge {name!r:.60} has no score and in_graph")
        if every or about.get("in_graph"):
            found.append(Edge(node_of(sender, path), node_of(receiver, path), 0.0 if score is None else float(score)))
    kept_edges(model, [edge_pairs(found)])  # raises if the model has no such edge
    return found


def name_of(n: Node) -> str:
    """What EAP-IG calls a node."""
    if n.kind in ("embed", "logits"):
        return {"embed": "input", "logits": "logits"}[n.kind]
    if n.kind == "mlp":
        return f"m{n.layer}"
    return f"a{n.layer}.h{n.head}" + (f"<{n.kind}>" if n.kind in ("q", "k", "v") else "")


def node_of(name: str, path: PathLike) -> Node:
    """The node that EAP-IG calls so."""
    match = re.fullmatch(r"(input|logits)|m(\d+)|a(\d+)\.h(\d+)(?:<([qkv])>)?", name)
    if not match:
        raise NanopatchError(f"{path}: {name!r:.60} is no node; nodes are input, a0.h1, a0.h1<q>, m0, logits")
    end, mlp, layer, head, site = match.groups()
    if end:
        return Node("embed" if end == "input" else "logits")
    return Node("mlp", int(mlp)) if mlp else Node(site or "head", int(layer), int(head))
