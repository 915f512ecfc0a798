"""How faithful circuits are as they grow, for several rankings of the edges; and edges that were measured exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..experiments.corruption import Corruption
from ..files import Source
from ..model.graph import Edge, Node
from ..types import Array
from . import plot
from .base import Result, check, check_shape
from .edges import floor_of, patched
from .matrix import number, usable_span
from .sweep import left_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .plot import Drawing

#: The fractions of all edges at which the Mechanistic Interpretability Benchmark measures (Mueller et al. 2025, arXiv
#: 2504.13151).
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, eq=False, repr=False)
class CircuitCurves(Result):
    """The faithfulness of circuits of more and more edges, for several rankings of the edges.

    Attributes
    ----------
    names : tuple of str
        Those of the rankings.
    fractions : ndarray
        (n_fractions,): how many of all edges were chosen, from small to 1.
    n_edges : ndarray
        (n_names, n_fractions), float64: how many of them are on a path from the embedding to the logits, and ran.
    values : ndarray
        (n_names, n_fractions): the metric of the circuits' runs; for several experiments the mean.
    standard_error : ndarray or None
        That of the mean of `values`; None for one experiment. Of random rankings, the mean of theirs.
    metric, baseline_clean, baseline_corrupted, rounding, source, corruption, n_pairs, skipped
        As in a `Faithfulness`.
    """

    kind: ClassVar[str] = "circuit_curves"
    derived: ClassVar[tuple[str, ...]] = ("normalised", "cpr", "cmd")

    names: tuple[str, ...]
    fractions: Array
    n_edges: Array
    values: Array
    metric: str
    baseline_clean: float
    baseline_corrupted: float
    rounding: float
    source: Source
    corruption: Corruption | None = None
    n_pairs: int = 1
    standard_error: Array | None = None
    skipped: tuple[tuple[str, str], ...] = ()

    def _check(self) -> None:
        shape = (len(self.names), len(self.fractions))
        check(len(set(self.names)) == shape[0] > 0 and shape[1] > 0, "names")
        for name in ("n_edges", "values", "standard_error"):
            check_shape(getattr(self, name), shape, name, float)
        check((np.diff(self.fractions) > 0).all(), "fractions")
        check((self.standard_error is not None) == (self.n_pairs > 1), "standard_error")

    @property
    def normalised(self) -> Array:
        """The faithfulness, (n_names, n_fractions): 0 is like the corrupted run, 1 like the clean run."""
        span = usable_span(self.baseline_clean - self.baseline_corrupted, self.rounding)
        return np.asarray((self.values - self.baseline_corrupted) / span)

    @property
    def cpr(self) -> dict[str, float]:
        """The circuit performance ratio of each ranking: the area under its faithfulness, by the trapezoid rule.

        1 is a ranking whose circuits all work as the model; above 1 they do better. (Mueller et al. 2025.)
        """
        return self._areas(self.normalised)

    @property
    def cmd(self) -> dict[str, float]:
        """The circuit-model distance of each ranking: the area between its faithfulness and 1; 0 is best."""
        return self._areas(np.abs(1 - self.normalised))

    def _areas(self, heights: Array) -> dict[str, float]:
        areas = ((heights[:, 1:] + heights[:, :-1]) / 2) @ np.diff(self.fractions)
        return dict(zip(self.names, areas.tolist(), strict=True))

    @property
    def title(self) -> str:
        mean = f", mean of {self.n_pairs} pairs" if self.n_pairs > 1 else ""
        others = "the corrupted run" if self.corruption is None else str(self.corruption)
        return f"circuits of more and more edges, all others carry {others}: {self.metric}, {self.source.name}{mean}"

    def __repr__(self) -> str:
        return f"<CircuitCurves: {', '.join(self.names)}; {len(self.fractions)} circuits each>"

    @property
    def notes(self) -> list[str]:
        """What a reader must know, as sentences; usually none."""
        return left_out(self.skipped)

    def text(self) -> str:
        wide = max(map(len, self.names))
        ranks = [
            f"{name:{wide}}  CPR {number(self.cpr[name], 3)}, CMD {number(self.cmd[name], 3)}; faithfulness "
            + ", ".join(number(value, 3) for value in row)
            for name, row in zip(self.names, self.normalised.tolist(), strict=True)
        ]
        return "\n".join(
            [self.title, f"of all edges: {', '.join(f'{f:g}' for f in self.fractions)}", *ranks, *self.notes]
        )

    def _parts(self) -> tuple[Drawing, list[str]]:
        def draw(ax: Axes, _: Axes | None) -> list[str]:
            for height in (0, 1):
                ax.axhline(height, color="0.7", linewidth=1)
            for name, heights in zip(self.names, self.normalised, strict=True):
                ax.plot(self.fractions, heights, "o-", markersize=3, linewidth=1.2, label=plot.drawable(name))
            ax.set_xscale("log")
            ax.set_xlabel("fraction of all edges", fontsize=9)
            label = f"faithfulness: 0 {floor_of(self.corruption)}, 1 clean"
            ax.set_ylabel(plot.wrapped(label, plot.size_of(ax)[1], 9, plot.figure_of(ax)), fontsize=9)
            ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
            cells = (f"{name}: CPR {self.cpr[name]:.3f}, CMD {self.cmd[name]:.3f}" for name in self.names)
            return [f"{cell}." for cell in cells]

        return plot.Drawing(4.5, 3.2, [self.title], draw), self.notes

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict for each circuit: ranking, fraction, the number of edges that ran, the metric, faithfulness."""
        return [
            {"ranking": name, "fraction": float(fraction), "n_edges": int(self.n_edges[i, j]),
             "value": float(self.values[i, j]), "normalised": float(self.normalised[i, j])}
            for i, name in enumerate(self.names)
            for j, fraction in enumerate(self.fractions)
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The whole result as JSON can hold it, with the areas."""
        derived = {name: getattr(self, name) for name in ("cpr", "cmd")}
        return super().to_dict() | derived | {"normalised": [row["normalised"] for row in self.to_rows()]}


@dataclass(frozen=True, eq=False, repr=False)
class VerifiedEdges(Result):
    """Edges whose effect was measured exactly, beside what was estimated; the best-ranked first.

    Attributes
    ----------
    senders, receivers : tuple of Node
        (n_edges,) each.
    estimates, exact : ndarray
        (n_edges,), in units of the metric: the score, and how the metric changes when this edge alone carries what it
        carries in the other run.
    n_asked : int
        How many were to be measured, if the time had been enough.
    direction, metric, source, corruption, positions, n_pairs
        As in `EdgeScores`.
    """

    kind: ClassVar[str] = "verified_edges"

    senders: tuple[Node, ...]
    receivers: tuple[Node, ...]
    estimates: Array
    exact: Array
    n_asked: int
    direction: str
    metric: str
    source: Source
    corruption: Corruption | None = None
    positions: tuple[int, ...] | None = None
    n_pairs: int = 1

    def _check(self) -> None:
        n = len(self.senders)
        check(n == len(self.receivers) <= self.n_asked, "receivers")
        check_shape(self.estimates, (n,), "estimates", float)
        check_shape(self.exact, (n,), "exact", float)

    @property
    def edges(self) -> list[Edge]:
        """The edges with their exact effects, the largest first."""
        order = np.argsort(-np.abs(self.exact), kind="stable").tolist()
        return [Edge(self.senders[i], self.receivers[i], float(self.exact[i])) for i in order]

    @property
    def title(self) -> str:
        done = patched(self.direction, self.corruption, self.positions)
        mean = f", mean of {self.n_pairs} pairs" if self.n_pairs > 1 else ""
        return f"{len(self.senders)} of {self.n_asked} edges measured: {self.metric}, {done}, {self.source.name}{mean}"

    @property
    def worst(self) -> float:
        """The largest error of an estimate, as a size."""
        return float(np.abs(self.estimates - self.exact).max(initial=0))

    def __repr__(self) -> str:
        return f"<VerifiedEdges: {self.title}; estimates are wrong by up to {number(self.worst, 3)}>"

    def text(self) -> str:
        rows = self.to_rows()[:20]
        lines = [
            f"{number(row['estimate'], 4):>10} {number(row['exact'], 4):>10}  {row['sender']} -> {row['receiver']}"
            for row in rows
        ]
        head = f"{self.title}; estimates are wrong by up to {number(self.worst, 3)}"
        return "\n".join([head, f"{'estimate':>10} {'exact':>10}", *lines])

    def _parts(self) -> tuple[Drawing, list[str]]:
        order = np.argsort(-np.abs(self.exact - self.estimates), kind="stable")[:3].tolist()
        worst = [
            (f"{self.senders[i]} -> {self.receivers[i]}", float(self.exact[i]), float(self.estimates[i])) for i in order
        ]
        return plot.scatter(self.exact, self.estimates, worst, ("exact effect", "estimate"), [self.title]), []

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict for each edge: sender, receiver, estimate, exact."""
        return [
            {"sender": str(s), "receiver": str(r), "estimate": float(estimate), "exact": float(exact)}
            for s, r, estimate, exact in zip(self.senders, self.receivers, self.estimates, self.exact, strict=True)
        ]
