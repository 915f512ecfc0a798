"""The picture of a circuit: nodes in layers, the embedding at the bottom, the logits at the top, and edges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..model.graph import Edge, Node
from ..types import Array
from .plot import BLUE, PLAIN, RED, Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What stands in a layer of the picture: a node, or (edge number, layer) where an edge passes.
Place = Node | tuple[int, int]


#: More edges of a circuit are not drawn: they could not be told apart.
MOST_EDGES = 200


def circuit(edges: Sequence[Edge], title: Sequence[str]) -> Drawing:
    """A drawing of edges, the widest first.

    An edge leaves its sender at the top and ends in a head's q, k or v, or in an MLP or the logits. Its width
    is its |score|; red raises the metric, blue and dashed lowers it.
    """
    drawn = edges[:MOST_EDGES]
    paths, boxes = layout(drawn)
    x, y = np.concatenate([*paths, list(boxes.values())]).T
    unit = min(0.85, 20 / (np.ptp(x) + 1), 18 / (np.ptp(y) + 1))  # inches

    wide = max(6.0, unit * (np.ptp(x) + 1))
    middle, half = (x.min() + x.max()) / 2, wide / unit / 2  # a unit is as long both ways

    def draw(ax: Axes, _: Axes | None) -> list[str]:
        _draw(ax, drawn, paths, boxes, unit / 0.85)
        ax.set(xlim=(middle - half, middle + half), ylim=(y.min() - 0.4, y.max() + 0.4))
        ax.axis("off")
        if not edges:
            return ["None of the best edges is on a path from embed to logits: ask for more of them."]
        return [f"Only the {len(drawn)} widest edges are drawn."] if len(drawn) < len(edges) else []

    return Drawing(wide, unit * (np.ptp(y) + 1), title, draw)


BOX_WIDTH, BOX_HEIGHT = 0.86, 0.46  # of a node; layers are 1 apart
PORTS = {"q": -0.27, "k": 0.0, "v": 0.27}  # where a head's inputs are, from its middle


def colour(score: float) -> str:
    return RED if score > 0 else BLUE


def width(score: float, edges: Sequence[Edge]) -> float:
    return 0.4 + 4 * abs(score) / max([abs(edge.score) for edge in edges] + [1e-300])


def depth(node: Node) -> float:
    """Where a node stands, from the bottom: the embedding, heads and MLPs by layer, the logits."""
    return {"embed": 0, "head": 2 * node.layer + 1, "mlp": 2 * node.layer + 2, "logits": math.inf}[node.kind]


def layout(edges: Sequence[Edge]) -> tuple[list[Array], dict[Node, tuple[float, float]]]:
    """Where to draw: a path for each edge, [(n_points, 2)], and a place for each node, {node: (x, y)}.

    The method is that of Sugiyama et al. (1981). An edge that passes a layer takes a place of its own there beside
    the nodes. Layer by layer, all places move towards the mean of their neighbours, but keep their distance.
    """
    nodes = {Node("embed"), Node("logits")}
    nodes |= {edge.sender for edge in edges} | {edge.receiver.component for edge in edges}
    depths = sorted({depth(node) for node in nodes})
    rows: list[list[Place]] = [sorted((n for n in nodes if depth(n) == d), key=str) for d in depths]
    chains: list[list[Place]] = []
    for number, edge in enumerate(edges):
        bottom, top = (depths.index(depth(node)) for node in (edge.sender, edge.receiver.component))
        passes: list[Place] = [(number, layer) for layer in range(bottom + 1, top)]
        for layer in range(bottom + 1, top):
            rows[layer].append((number, layer))
        chains.append([edge.sender, *passes, edge.receiver.component])
    neighbours: dict[Place, list[Place]] = {place: [] for row in rows for place in row}
    for chain in chains:
        for below, above in itertools.pairwise(chain):
            neighbours[below].append(above)
            neighbours[above].append(below)

    x: dict[Place, float] = {place: i - (len(row) - 1) / 2 for row in rows for i, place in enumerate(row)}
    for sweep in range(24):
        for row in rows if sweep % 2 else reversed(rows):
            wanted = {place: float(np.mean([x[other] for other in neighbours[place]] or [0])) for place in row}
            x |= _keep_apart(wanted)
    y = {place: float(number) for number, row in enumerate(rows) for place in row}
    paths = []
    for edge, (sender, *passes, node) in zip(edges, chains, strict=True):
        points = [(x[sender], y[sender] + BOX_HEIGHT / 2)]
        for passed in passes:
            points += [(x[passed], y[passed] - BOX_HEIGHT / 2), (x[passed], y[passed] + BOX_HEIGHT / 2)]
        port = PORTS.get(edge.receiver.kind, 0)
        paths.append(np.array([*points, (x[node] + port, y[node] - BOX_HEIGHT / 2)]))
    return paths, {node: (x[node], y[node]) for node in nodes}


def _keep_apart(wanted: Mapping[Place, float]) -> dict[Place, float]:
    """Places along one layer: near the wanted places, in their order, without overlap: {place: x}."""
    places = sorted(wanted, key=lambda place: wanted[place])
    widths = [1.1 if isinstance(place, Node) else 0.2 for place in places]  # of nodes, and of edges that pass
    x = np.array([wanted[place] for place in places])
    distances = [(a + b) / 2 for a, b in itertools.pairwise(widths)]
    to_right, to_left = x.copy(), x.copy()
    for i, distance in enumerate(distances):
        to_right[i + 1] = max(to_right[i + 1], to_right[i] + distance)
    for i, distance in reversed(list(enumerate(distances))):
        to_left[i] = min(to_left[i], to_left[i + 1] - distance)
    return dict(zip(places, (to_right + to_left) / 2, strict=True))  # both keep the distances, so their mean does


def _draw(
    ax: Axes,
    edges: Sequence[Edge],
    paths: Sequence[Array],
    boxes: Mapping[Node, tuple[float, float]],
    size: float,
) -> None:
    """Draw edges along their paths, the widest on top, and nodes in their boxes. size: of text, usually 1."""
    from matplotlib.patches import PathPatch, Rectangle
    from matplotlib.path import Path

    for edge, path in reversed(list(zip(edges, paths, strict=True))):
        points, codes = [path[0]], [Path.MOVETO]
        for a, b in itertools.pairwise(path):
            if a[0] == b[0]:
                points, codes = [*points, b], [*codes, Path.LINETO]
            else:  # leaves and arrives vertically
                middle = (a[1] + b[1]) / 2
                points, codes = [*points, (a[0], middle), (b[0], middle), b], [*codes, *[Path.CURVE4] * 3]
        look: dict[str, Any] = dict(edgecolor=colour(edge.score), linewidth=width(edge.score, edges), facecolor="none")
        look |= dict(alpha=0.8, linestyle="-" if edge.score > 0 else (0, (3, 1)))  # in print there may be no colour
        ax.add_patch(PathPatch(Path(points, codes), capstyle="butt", zorder=1, **look))
    for node, (x, y) in boxes.items():
        corner = (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2)
        ax.add_patch(Rectangle(corner, BOX_WIDTH, BOX_HEIGHT, facecolor="white", edgecolor="0.3", zorder=2))
        head = node.kind == "head"
        ax.text(
            x, y + 0.07 * head, str(node), ha="center", va="center", fontsize=8 * size, color="black", zorder=3, **PLAIN
        )
        for port, offset in PORTS.items() if head else ():
            look = dict(ha="center", va="center", fontsize=6.5 * size, color="0.35", zorder=3)
            ax.text(x + offset, y - 0.14, port, **look, **PLAIN)
