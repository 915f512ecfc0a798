"""The picture of a circuit: nodes in layers, the embedding at the bottom, the logits at the top, and edges."""

import itertools
import math

import numpy as np


def plot_circuit(edges, ax=None):
    """Draw `circuits.Edge`s with matplotlib; returns the Axes.

    An edge leaves its sender at the top and ends in a head's q, k or v, or in an MLP or the logits. Its width
    is its |score|; red raises the metric, blue lowers it.
    """
    from .plot import new_figure

    ways, boxes = layout(edges)
    x, y = np.concatenate([*ways, list(boxes.values())]).T
    if ax is None:
        ax = new_figure(figsize=(max(6, 0.85 * (np.ptp(x) + 1)), 1.6 + 0.85 * np.ptp(y))).add_subplot()
    draw(ax, edges, ways, boxes)
    ax.set(xlim=(x.min() - 0.5, x.max() + 0.5), ylim=(y.min() - 0.4, y.max() + 0.4))
    ax.axis("off")
    return ax


def node_of(receiver):
    """The node whose input a receiver is: "head 2.1" of "q 2.1"; an MLP's or the logits' own name."""
    kind, _, place = receiver.partition(" ")
    return f"head {place}" if kind in ("q", "k", "v") else receiver


BOX_WIDTH, BOX_HEIGHT = 0.86, 0.46  # of a node; layers are 1 apart
PORTS = {"q": -0.27, "k": 0.0, "v": 0.27}  # where a head's inputs are, from its middle


def colour(score):
    return "#b2182b" if score > 0 else "#2166ac"


def width(score, edges):
    return 0.4 + 4 * abs(score) / max([abs(edge.score) for edge in edges] + [1e-300])


def depth(node):
    """Where a node stands, from the bottom: the embedding, heads and MLPs by layer, the logits."""
    kind, _, place = node.partition(" ")
    if kind in ("head", "mlp"):
        return 2 * int(place.split(".")[0]) + (1 if kind == "head" else 2)
    return 0 if kind == "embed" else math.inf


def layout(edges):
    """Where to draw: a way for each edge, [(n_points, 2)], and a place for each node, {name: (x, y)}.

    As Sugiyama et al. (1981) draw layered graphs: an edge that passes a layer takes a place of its own there beside
    the nodes, and layer by layer all places move towards the mean of their neighbours, keeping their distance.
    """
    nodes = {"embed", "logits"} | {edge.sender for edge in edges} | {node_of(edge.receiver) for edge in edges}
    depths = sorted({depth(node) for node in nodes})
    rows = [sorted(node for node in nodes if depth(node) == d) for d in depths]
    chains = []
    for number, edge in enumerate(edges):
        bottom, top = (depths.index(depth(node)) for node in (edge.sender, node_of(edge.receiver)))
        passes = [(number, row) for row in range(bottom + 1, top)]
        for place in passes:
            rows[place[1]].append(place)
        chains.append([edge.sender, *passes, node_of(edge.receiver)])
    neighbours = {place: [] for row in rows for place in row}
    for chain in chains:
        for below, above in itertools.pairwise(chain):
            neighbours[below].append(above)
            neighbours[above].append(below)

    x = {place: i - (len(row) - 1) / 2 for row in rows for i, place in enumerate(row)}
    for sweep in range(24):
        for row in rows if sweep % 2 else reversed(rows):
            wanted = {place: np.mean([x[other] for other in neighbours[place]] or [0]) for place in row}
            x |= keep_apart(wanted)
    y = {place: float(number) for number, row in enumerate(rows) for place in row}
    ways = []
    for edge, (sender, *passes, node) in zip(edges, chains, strict=True):
        points = [(x[sender], y[sender] + BOX_HEIGHT / 2)]
        for place in passes:
            points += [(x[place], y[place] - BOX_HEIGHT / 2), (x[place], y[place] + BOX_HEIGHT / 2)]
        port = PORTS.get(edge.receiver.split()[0], 0)
        ways.append(np.array([*points, (x[node] + port, y[node] - BOX_HEIGHT / 2)]))
    return ways, {node: (x[node], y[node]) for node in nodes}


def keep_apart(wanted):
    """Places along one layer as near as may be to those wanted, in their order, and not overlapping: {place: x}."""
    places = sorted(wanted, key=lambda place: wanted[place])
    widths = [1.1 if isinstance(place, str) else 0.2 for place in places]  # of nodes, and of edges that pass
    x = np.array([wanted[place] for place in places])
    distances = [(a + b) / 2 for a, b in itertools.pairwise(widths)]
    to_right, to_left = x.copy(), x.copy()
    for i, distance in enumerate(distances):
        to_right[i + 1] = max(to_right[i + 1], to_right[i] + distance)
    for i, distance in reversed(list(enumerate(distances))):
        to_left[i] = min(to_left[i], to_left[i + 1] - distance)
    return dict(zip(places, (to_right + to_left) / 2, strict=True))  # both keep the distances, so their mean does


def draw(ax, edges, ways, boxes):
    """Draw edges along their ways, the widest on top, and nodes in their boxes."""
    from matplotlib.patches import PathPatch, Rectangle
    from matplotlib.path import Path

    for edge, way in reversed(list(zip(edges, ways, strict=True))):
        points, codes = [way[0]], [Path.MOVETO]
        for a, b in itertools.pairwise(way):
            if a[0] == b[0]:
                points, codes = [*points, b], [*codes, Path.LINETO]
            else:  # leaves and arrives upright
                middle = (a[1] + b[1]) / 2
                points, codes = [*points, (a[0], middle), (b[0], middle), b], [*codes, *[Path.CURVE4] * 3]
        look = dict(edgecolor=colour(edge.score), linewidth=width(edge.score, edges), facecolor="none", alpha=0.8)
        ax.add_patch(PathPatch(Path(points, codes), capstyle="butt", zorder=1, **look))
    for node, (x, y) in boxes.items():
        corner = (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2)
        ax.add_patch(Rectangle(corner, BOX_WIDTH, BOX_HEIGHT, facecolor="white", edgecolor="0.3", zorder=2))
        head = node.startswith("head")
        ax.text(x, y + 0.07 * head, node, ha="center", va="center", fontsize=8, zorder=3)
        for port, offset in PORTS.items() if head else ():
            ax.text(x + offset, y - 0.14, port, ha="center", va="center", fontsize=6.5, color="0.35", zorder=3)
