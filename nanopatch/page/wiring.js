// Where the nodes and edges of a circuit are drawn: nodes in layers, the embedding at the bottom, the logits at the top.
// The same method as in nanopatch/results/graph_plot.py, of Sugiyama et al. (1981).

export const BOX_WIDTH = 0.86, BOX_HEIGHT = 0.46; // of a node; neighbouring layers are 1 apart
export const PORTS = { q: -0.27, k: 0, v: 0.27 }; // where a head's inputs are, from its middle
const MOST_ROUTED = 120; // with more edges, none has a place of its own in the layers that it passes
const SWEEPS = 24;

/** A node's parts: {kind, layer, head, component}. The component of "q 2.1" is "head 2.1"; of others, the node itself. */
export function nodeOf(name) {
  const [kind, place = ""] = name.split(" "), [layer, head] = place.split(".").map(Number);
  return { kind, layer, head: head ?? null, component: kind in PORTS ? `head ${place}` : name };
}

/** Where a node stands, from the bottom. */
function depthOf(name) {
  const { kind, layer } = nodeOf(name);
  return { embed: 0, head: 2 * layer + 1, attn: 2 * layer + 1, mlp: 2 * layer + 2, resid: 2 * layer, logits: Infinity }[kind];
}

/**
 * Where to draw edges [sender, receiver, score]: {paths, boxes, layers}.
 *
 * paths: for each edge its points [[x, y], ...], which it goes through vertically. boxes: a Map from node to the middle [x, y]
 * of its box. layers: how many there are. y counts layers from the bottom.
 */
export function wiringOf(edges) {
  const routed = edges.length <= MOST_ROUTED;
  const names = new Set(["embed", "logits", ...edges.flatMap(([sender, receiver]) => [sender, nodeOf(receiver).component])]);
  const depths = [...new Set([...names].map(depthOf))].sort((a, b) => a - b);
  const rows = depths.map((depth) => [...names].filter((name) => depthOf(name) === depth).sort((a, b) => nodeOf(a).head - nodeOf(b).head));
  const chains = edges.map(([sender, receiver], number) => {
    const component = nodeOf(receiver).component, from = depths.indexOf(depthOf(sender)), to = depths.indexOf(depthOf(component));
    const passes = Array.from({ length: routed ? to - from - 1 : 0 }, (_, i) => `${number} ${from + 1 + i}`);
    passes.forEach((pass, i) => rows[from + 1 + i].push(pass));
    return [sender, ...passes, component];
  });
  const x = new Map(rows.flatMap((row) => row.map((place, i) => [place, (i - (row.length - 1) / 2) * 1.1])));
  if (routed) sweepRows(rows, chains, x, names);

  const y = new Map(rows.flatMap((row, number) => row.map((place) => [place, number])));
  const paths = chains.map(([sender, ...rest], number) => {
    const component = rest.pop(), port = PORTS[nodeOf(edges[number][1]).kind] ?? 0;
    return [
      [x.get(sender), y.get(sender) + BOX_HEIGHT / 2],
      ...rest.flatMap((pass) => [-1, 1].map((side) => [x.get(pass), y.get(pass) + (side * BOX_HEIGHT) / 2])),
      [x.get(component) + port, y.get(component) - BOX_HEIGHT / 2],
    ];
  });
  return { paths, boxes: new Map([...names].map((name) => [name, [x.get(name), y.get(name)]])), layers: rows.length };
}

/** Layer by layer, all places move towards the mean of their neighbours, but keep their distance. */
function sweepRows(rows, chains, x, names) {
  const neighbours = new Map([...x.keys()].map((place) => [place, []]));
  for (const chain of chains) {
    for (let i = 1; i < chain.length; i++) {
      neighbours.get(chain[i - 1]).push(chain[i]);
      neighbours.get(chain[i]).push(chain[i - 1]);
    }
  }
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    for (const row of sweep % 2 ? rows : [...rows].reverse()) {
      const wanted = row.map((place) => {
        const others = neighbours.get(place);
        return [place, others.length ? others.reduce((sum, other) => sum + x.get(other), 0) / others.length : 0];
      });
      for (const [place, at] of keptApart(wanted, names)) x.set(place, at);
    }
  }
}

/** Places along one layer: near the wanted places, in their order, without overlap. */
function keptApart(wanted, names) {
  const places = [...wanted].sort((a, b) => a[1] - b[1]), widths = places.map(([place]) => (names.has(place) ? 1.1 : 0.2));
  const toRight = places.map(([, at]) => at), toLeft = [...toRight];
  for (let i = 1; i < places.length; i++) toRight[i] = Math.max(toRight[i], toRight[i - 1] + (widths[i - 1] + widths[i]) / 2);
  for (let i = places.length - 2; i >= 0; i--) toLeft[i] = Math.min(toLeft[i], toLeft[i + 1] - (widths[i] + widths[i + 1]) / 2);
  return places.map(([place], i) => [place, (toRight[i] + toLeft[i]) / 2]); // both keep the distances, so their mean does
}
