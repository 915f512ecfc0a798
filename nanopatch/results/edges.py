"""Scores of the edges between the nodes of a model, and the circuits made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import NanopatchError, count
from ..experiments.corruption import Corruption
from ..experiments.experiment import Experiment
from ..files import Source, write_whole
from ..model.generation import random_generator
from ..model.graph import Edge, Node
from ..page.document import result_page
from ..page.pack import Shown
from ..types import Array, PathLike
from . import graph_plot, plot
from .base import Result, check, check_shape, jsonable
from .matrix import no_scale, number, usable_span
from .pairs import Pairs, check_pairs
from .prediction import Prediction
from .sweep import DIRECTIONS, about, check_direction, left_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .plot import Drawing


#: What edges can be chosen by.
BY = ("size", "signed")


def connected(edges: Sequence[Edge]) -> list[Edge]:
    """The edges that are on a path from the embedding to the logits, in their order. The others carry nothing."""
    edges = list(edges)
    while True:
        fed = {Node("embed")} | {edge.receiver.component for edge in edges}
        read = {Node("logits")} | {edge.sender for edge in edges}
        kept = [edge for edge in edges if edge.sender in fed and edge.receiver.component in read]
        if len(kept) == len(edges):
            return kept
        edges = kept


def floor_of(corruption: Corruption | None) -> str:
    """What a faithfulness of 0 is like."""
    return "corrupted" if corruption is None else f"all replaced by {corruption}"


def patched(direction: str, corruption: Corruption | None, positions: Sequence[int] | None) -> str:
    """What was done to edges, in words."""
    base, donor = DIRECTIONS[direction]
    done = f"{donor} patched into {base}" if corruption is None else f"edges replaced by {corruption}"
    return done + ("" if positions is None else f" at position {', '.join(map(str, positions))}")


def counts(n: int) -> list[int]:
    """How many edges the page offers a circuit of: 5, 10, 20, ... and all n."""
    stops = [5 * 2**i for i in range(20) if 5 * 2**i < n]
    return [*stops, n]


@dataclass(frozen=True, eq=False, repr=False)
class EdgeScores(Result):
    """The score of every edge, and what it is a score of.

    Attributes
    ----------
    scores : ndarray
        (n_senders, n_receivers), float64; NaN if there is no edge, because the receiver is not after the sender.
    senders, receivers : tuple of Node
        In the order of the run.
    direction, metric, experiment, source, n_pairs, skipped, prediction, pairs
        As in a `Sweep`.
    steps : int
        1 for EAP, more for EAP-IG.
    baseline_clean, baseline_corrupted : float
        The metric of the two unpatched runs; there is no corrupted one in an ablation.
    corruption : Zero, Mean, Resample or None
        What an ablation puts in place of the corrupted prompt.
    absolute : bool
        Whether scores are means of each pair's absolute score.
    positions : tuple of int or None
        The positions that count; None for all.
    qk_fix, grad_drop : bool
        What of AtP* was asked for.
    standard_error : ndarray or None
        The standard error of the mean over experiments, shaped as `scores`; None for one experiment.
    """

    kind: ClassVar[str] = "edges"
    averaged: ClassVar[tuple[str, ...]] = ("scores", "baseline_clean", "baseline_corrupted")
    derived: ClassVar[tuple[str, ...]] = ("edges",)

    scores: Array
    senders: tuple[Node, ...]
    receivers: tuple[Node, ...]
    direction: str
    metric: str
    steps: int
    baseline_clean: float
    baseline_corrupted: float | None
    experiment: Experiment
    source: Source
    corruption: Corruption | None = None
    absolute: bool = False
    positions: tuple[int, ...] | None = None
    qk_fix: bool = False
    grad_drop: bool = False
    n_pairs: int = 1
    standard_error: Array | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    prediction: Prediction | None = None
    pairs: Pairs | None = None

    @property
    def notes(self) -> list[str]:
        """What a reader of the scores must know, as sentences; usually none."""
        told = self.prediction.notes(self.source.name, self.n_pairs) if self.prediction else []
        return [*left_out(self.skipped), *told]

    def _check(self) -> None:
        shape = (len(self.senders), len(self.receivers))
        check_shape(self.scores, shape, "scores", float)
        check_shape(self.standard_error, shape, "standard_error", float)
        check((self.standard_error is not None) == (self.n_pairs > 1), "standard_error")
        check(all(n.kind in ("embed", "head", "attn", "mlp") for n in self.senders), "senders")
        check(all(n.kind in ("q", "k", "v", "mlp", "resid", "logits") for n in self.receivers), "receivers")
        check(len(set(self.senders)) == shape[0] > 0 and len(set(self.receivers)) == shape[1] > 0, "nodes")
        check(np.isfinite(self.scores).any(), "scores")
        check_direction(self.direction)
        check(self.steps >= 1, "steps")
        check(self.n_pairs >= 1, "n_pairs")
        check((self.baseline_corrupted is None) == (self.corruption is not None), "baseline_corrupted")
        check_pairs(self.pairs, self.n_pairs, shape)

    @property
    def edges(self) -> list[Edge]:
        """Every edge with its score, by sender, then by receiver."""
        return self._edges(np.argwhere(np.isfinite(self.scores)))

    def values(self, by: str = "size") -> Array:
        """What edges are chosen by, shaped as `scores`: NaN where there is no edge.

        by: "size" is the absolute score. "signed" is the score as the effect of an edge that carries the clean run: a
        large one raises the metric. (In direction "noise" an edge carries the corrupted run, so the sign is turned.)
        """
        return self._chosen_by(self.scores, by)

    def _chosen_by(self, scores: Array, by: str) -> Array:
        """`values` of scores, of edges or of nodes."""
        if by not in BY:
            raise NanopatchError(f"by={by!r:.60}: {' or '.join(map(repr, BY))} is expected")
        if by == "size":
            return np.abs(scores)
        if self.absolute:
            raise NanopatchError('these scores are means of absolute values, so they have no sign: use by="size"')
        return scores if self.direction == "denoise" else -scores

    def top(self, n: int, by: str = "size") -> list[Edge]:
        """The n best edges, the best first; equal ones stand in the order of `edges`. by: see `values`."""
        places = np.argwhere(np.isfinite(self.scores))
        if not isinstance(n, Integral) or not 1 <= n <= len(places):
            raise NanopatchError(f"n={n!r}: from 1 to {len(places)} edges can be chosen")
        return self._edges(places[np.argsort(-self.values(by)[tuple(places.T)], kind="stable")[:n]])

    def above(self, threshold: float, by: str = "size") -> list[Edge]:
        """The edges whose value is above a threshold, the best first; perhaps none. by: see `values`."""
        if not isinstance(threshold, Real) or math.isnan(threshold):
            raise NanopatchError(f"threshold={threshold!r:.60}: a number is expected")
        n = int((self.values(by) > threshold).sum())
        return self.top(n, by) if n else []

    def circuit(self, n: int, prune: bool = True, by: str = "size") -> list[Edge]:
        """The n best edges, the best first; see `nanopatch.circuit`."""
        edges = self.top(n, by)
        return connected(edges) if prune else edges

    @property
    def nodes(self) -> dict[Node, float]:
        """The score of each sender: the sum of its edges'. For one step it is the sender's own attribution."""
        return dict(zip(self.senders, np.nansum(self.scores, axis=1).tolist(), strict=True))

    def node_circuit(self, n: int, by: str = "size") -> list[Edge]:
        """All edges between the n best heads and MLPs, the embedding and the logits. by: see `values`, of `nodes`."""
        values = self._chosen_by(np.array(list(self.nodes.values())), by)
        order = np.argsort(-values, kind="stable")
        ranked = [self.senders[i] for i in order.tolist() if self.senders[i].kind != "embed"]
        if not isinstance(n, Integral) or not 1 <= n <= len(ranked):
            raise NanopatchError(f"n={n!r}: from 1 to {len(ranked)} heads and MLPs can be chosen")
        kept = {Node("embed"), Node("logits"), *ranked[:n]}
        return [edge for edge in self.edges if edge.sender in kept and edge.receiver.component in kept]

    def shuffled(self, seed: int = 0) -> EdgeScores:
        """The same scores on other edges, drawn with a seed: a baseline for what a ranking is worth."""
        random = random_generator(seed)
        found = np.isfinite(self.scores)
        scores = self.scores.copy()
        by_size = scores[found][
            np.argsort(np.abs(scores[found]), kind="stable")
        ]  # so the order drawn is the seed's alone
        scores[found] = random.permutation(by_size)
        return replace(self, scores=scores, standard_error=None, n_pairs=1, pairs=None)

    def _edges(self, places: Array) -> list[Edge]:
        return [Edge(self.senders[i], self.receivers[j], float(self.scores[i, j])) for i, j in places.tolist()]

    def _best(self, n: int, by: str) -> list[Edge]:
        """The circuit of the best n edges, or of all if there are not so many."""
        return self.circuit(min(n, np.isfinite(self.scores).sum()) if isinstance(n, Integral) else n, by=by)

    @property
    def method(self) -> str:
        """How the scores were made: "EAP", "EAP-IG, 5 steps", "EAP with QK fix and GradDrop", ..."""
        fixes = [name for name, used in (("QK fix", self.qk_fix), ("GradDrop", self.grad_drop)) if used]
        steps = "EAP" if self.steps == 1 else f"EAP-IG, {self.steps} steps"
        return steps + (f" with {' and '.join(fixes)}" if fixes else "")

    @property
    def title(self) -> str:
        """What was scored, in one line."""
        means = "means of sizes over" if self.absolute else "mean of"
        mean = f", {means} {self.n_pairs} pairs" if self.n_pairs > 1 else ""
        done = patched(self.direction, self.corruption, self.positions)
        return f"{self.method}: {self.metric}, {done}, {self.source.name}{mean}"

    def __repr__(self) -> str:
        return f"<EdgeScores: {self.title}; {len(self.edges)} edges>"

    def text(self) -> str:
        lines = [f"{number(e.score, 4):>10}  {e.sender} -> {e.receiver}" for e in self.top(min(20, len(self.edges)))]
        return "\n".join([f"{self.title}; the largest of {len(self.edges)} edges", *lines, *self.notes])

    # ---- pictures and files ---------------------------------------------------------------------

    def plot(self, n: int = 30, ax: Axes | None = None, by: str = "size") -> Figure:
        """Draw the circuit of the best n edges (see `nanopatch.circuit`); returns the matplotlib Figure.

        As for `Result.plot`; `ax`: draw the circuit alone, into these axes.
        """
        plot.check_no_path(n)
        return plot.drawn(*self._parts(n, by), ax)

    def _parts(self, n: int = 30, by: str = "size") -> tuple[Drawing, list[str]]:
        edges = self._best(n, by)
        drawn = ", ".join([f"{len(edges)} of {len(self.edges)} edges", *(f"widest {e.score:.3g}" for e in edges[:1])])
        title = [self.title, f"{drawn}; red raises, dashed blue lowers the metric"]
        return graph_plot.circuit(edges, title), [*about(self, [self]), *self.notes]

    def reply(self, n: int, kept: Faithfulness | None = None) -> Shown:
        """What the page shows: the circuit of the best n edges. kept: how faithful it is."""
        names = ("title", "metric", "notes", "baseline_clean", "baseline_corrupted")
        values = {
            **{name: getattr(self, name) for name in names},
            **{"value": kept and kept.value, "normalised": kept and kept.normalised},
            **{"n": n, "n_all": len(self.edges), "counts": counts(len(self.edges))},
            "edges": [[str(edge.sender), str(edge.receiver), edge.score] for edge in self.circuit(n)],
            **{"senders": list(map(str, self.senders)), "receivers": list(map(str, self.receivers))},
        }
        return Shown(values, {})

    def page(self) -> bytes:
        stops = counts(len(self.edges))
        replies = [({"view": "circuit", "metric": self.metric, "n": n}, self.reply(n)) for n in stops]
        state = {"metric": self.metric, "n": min(stops, key=lambda n: abs(n - 40))}
        return result_page(["circuit"], self.source.name, replies, state)

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict for each edge: sender, receiver, score."""
        return [{"sender": str(e.sender), "receiver": str(e.receiver), "score": e.score} for e in self.edges]

    def to_dict(self) -> dict[str, Any]:
        """The whole result as JSON can hold it, with the edges as rows."""
        return super().to_dict() | {"edges": self.to_rows()}

    def to_dot(self, n: int = 30, by: str = "size") -> str:
        """The circuit of the best n edges in the language of Graphviz. Edges into heads are labelled q, k or v."""
        edges = self._best(n, by)
        lines = ["digraph circuit {", "  rankdir=BT; node [shape=box];"]
        for sender, receiver, score in edges:
            width = graph_plot.width(score, edges)
            look = f'color="{graph_plot.colour(score)}", penwidth={width:.3g}, tooltip="{score!r}"'
            label = f', label="{receiver.kind}"' if receiver.component != receiver else ""
            lines.append(f'  "{sender}" -> "{receiver.component}" [{look}{label}];')
        return "\n".join([*lines, "}\n"])

    def save(self, path: PathLike, n: int = 30, by: str = "size") -> None:
        """As `Result.save`; .dot holds `to_dot(n, by)`, and pictures are `plot(n, by=by)`."""
        ending = Path(path).suffix.lower()
        if ending == ".dot":
            write_whole(path, self.to_dot(n, by).encode("utf-8"))
        elif ending[1:] in plot.FORMATS:
            write_whole(path, plot.as_bytes(plot.picture(*self._parts(n, by)), ending[1:]))
        else:
            super().save(path)


@dataclass(frozen=True, repr=False)
class Faithfulness(Result):
    """The metric of a run in which only a circuit's edges carry the clean run, and of both whole runs.

    Attributes
    ----------
    metric : str
    value, baseline_clean, baseline_corrupted : float
        The metric of the run of the circuit, and of the clean and the corrupted run.
    rounding : float
        Baselines closer than this count as equal.
    n_edges : int
    corruption : Zero, Mean, Resample or None
        What other edges carry in place of the corrupted run; `baseline_corrupted` is then of the run without any edge.
    source, n_pairs, skipped, prediction, pairs
        As in a `Sweep`. For several experiments the three metrics are means.
    standard_error : float or None
        The standard error of the mean of `value`; None for one experiment.
    """

    kind: ClassVar[str] = "faithfulness"
    averaged: ClassVar[tuple[str, ...]] = ("value", "baseline_clean", "baseline_corrupted")
    derived: ClassVar[tuple[str, ...]] = ("normalised",)

    metric: str
    value: float
    baseline_clean: float
    baseline_corrupted: float
    rounding: float
    n_edges: int
    source: Source
    corruption: Corruption | None = None
    n_pairs: int = 1
    standard_error: float | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    prediction: Prediction | None = None
    pairs: Pairs | None = None

    def _check(self) -> None:
        check((self.standard_error is not None) == (self.n_pairs > 1), "standard_error")
        check(not self.rounding < 0, "rounding")
        check(self.n_edges >= 0, "n_edges")
        check(self.n_pairs >= 1, "n_pairs")
        check_pairs(self.pairs, self.n_pairs, ())

    @property
    def normalised(self) -> float:
        """0 is like the corrupted run, 1 like the clean run; NaN if these two are equal, or not finite."""
        span = self.baseline_clean - self.baseline_corrupted
        return (self.value - self.baseline_corrupted) / usable_span(span, self.rounding)

    @property
    def _share(self) -> str:
        """`normalised` in words."""
        if not math.isfinite(self.value):
            return f"no faithfulness: the metric is {self.value} in the circuit's run"
        if math.isnan(self.normalised):
            return f"no faithfulness: {no_scale('it', self.baseline_clean, self.baseline_corrupted)}"
        return f"faithfulness {number(self.normalised, 3)}"

    @property
    def _floor(self) -> str:
        return floor_of(self.corruption)

    def __repr__(self) -> str:
        return f"<Faithfulness: {self.title}>"

    @property
    def notes(self) -> list[str]:
        """What a reader must know, as sentences; usually none."""
        told = self.prediction.notes(self.source.name, self.n_pairs) if self.prediction else []
        return [*left_out(self.skipped), *told]

    def text(self) -> str:
        return "\n".join([self.title, *self.notes])

    @property
    def title(self) -> str:
        """The metric of the three runs, in one line."""
        mean = f", mean of {self.n_pairs} pairs" if self.n_pairs > 1 else ""
        ends = f"clean {number(self.baseline_clean, 3)} is 1, {self._floor} {number(self.baseline_corrupted, 3)} is 0"
        return f"{count(self.n_edges, 'edge')}: {self.metric} {number(self.value, 3)}, {self._share} ({ends}{mean})"

    def plot(self, ax: Axes | None = None) -> Figure:
        """Bars of the metric in the three runs; returns the matplotlib Figure (see `Result.plot`)."""
        return plot.drawn(*self._parts(), ax)

    def _parts(self) -> tuple[Drawing, list[str]]:
        (row,) = self.to_rows()
        names = ["clean", "circuit", "corrupted"]
        labels = ["clean", "circuit", self._floor]
        mean = [f"mean of {self.n_pairs} pairs"] if self.n_pairs > 1 else []
        title = f"{count(self.n_edges, 'edge')}: {self.metric}, {self._share}"
        return plot.bars(np.array([row[name] for name in names]), labels, title), [*mean, *self.notes]

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict: the number of edges, the metric of the three runs, and its normalised value."""
        metrics = {"circuit": self.value, "clean": self.baseline_clean, "corrupted": self.baseline_corrupted}
        return [{"n_edges": self.n_edges, **metrics, "normalised": self.normalised}]

    def to_dict(self) -> dict[str, Any]:
        """The whole result as JSON can hold it, with `normalised`."""
        return super().to_dict() | {"normalised": jsonable(self.normalised)}
