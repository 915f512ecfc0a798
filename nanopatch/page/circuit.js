// A circuit: the edges of largest |score|, as a graph, and how much of the model's difference they carry alone.

import { h, problem, svg } from "./dom.js";
import { number } from "./text.js";
import { hush, say, tell } from "./tooltip.js";
import { downloads } from "./download.js";
import { BOX_HEIGHT, BOX_WIDTH, nodeOf, PORTS, wiringOf } from "./wiring.js";

const MOST_WIRES = 500; // more edges could not be told apart
const MOST_LISTED = 2000; // of the table

export function circuitView(page) {
  const question = ({ metric }, n) => ({ view: "circuit", metric, n });
  let at = 0; // the edge that the arrow keys have reached

  return { name: "circuit", title: "Circuit", questions, draw };

  function questions(state) {
    const others = page.start.form === "file" ? page.start.menu.counts.filter((n) => n !== state.n) : [];
    return [state.n, ...others].map((n) => question(state, n));
  }

  function draw(state, answer, width) {
    const reply = answer(question(state, state.n)), failed = problem(reply);
    const counts = reply?.counts ?? page.start.menu.counts;
    const stops = counts.includes(state.n) ? counts : [...counts, state.n].sort((a, b) => a - b);
    const known = stops.map((n) => [n, answer(question(state, n))]).filter(([, of]) => Number.isFinite(of?.value));
    if (failed) return [slider(state.n, counts, null), failed];
    return [
      h("p", { class: "title", id: "circuit-title" }, reply.title),
      slider(state.n, counts, reply),
      reply.notes.map((note) => h("p", { class: "note" }, note)),
      reply.value !== null && h(
        "div",
        { class: "circuit-faith" },
        h(
          "div",
          null,
          h("p", { id: "circuit-faithfulness", "data-value": reply.value, "data-normalised": reply.normalised }, faithWords(reply)),
          faithLine(reply, Math.min(width, 460)),
        ),
        faithPlot(known, stops, state.n, Math.min(width, 420)),
      ),
      graph(reply, width),
      h(
        "p",
        { class: "note" },
        "An edge leaves its sender at the top and ends in a head's q, k or v, in an MLP or in the logits. Its width is its |score|. ",
        h("span", { class: "circuit-raises" }, "Red edges raise the metric"), ", ",
        h("span", { class: "circuit-lowers" }, "blue dashed edges lower it"), ".",
      ),
      downloads("nanopatch-circuit", {
        drawing: reply.edges.length ? () => document.getElementById("circuit-graph") : null, json: () => reply,
        table: () => [["sender", "receiver", "score"], ...reply.edges],
      }),
      table(reply.edges),
    ];
  }

  // ---- how many edges -----------------------------------------------------------------------------

  function slider(n, counts, reply) {
    const nearest = counts.indexOf([...counts].sort((a, b) => Math.abs(a - n) - Math.abs(b - n))[0]);
    const input = h("input", {
      id: "circuit-n", type: "range", min: 0, max: counts.length - 1, step: 1, value: nearest, "data-value": n,
      oninput: () => show(counts[input.value]), onchange: () => page.set({ n: counts[input.value] }),
    });
    const told = h("output", { for: "circuit-n" });
    show(n);
    return h("div", { class: "controls circuit-slider" }, h("label", { for: "circuit-n" }, "edges of largest |score|"), input, told);

    function show(chosen) {
      input.setAttribute("aria-valuetext", `${chosen} edges`);
      const fewer = reply && chosen === n && reply.edges.length < chosen;
      told.textContent = `${chosen}${reply ? ` of ${reply.n_all}` : ""}` +
        (fewer ? `; the ${reply.edges.length} of them on a path from embed to logits are the circuit` : "");
    }
  }

  // ---- faithfulness -------------------------------------------------------------------------------

  function faithWords({ metric, value, normalised, baseline_clean: clean, baseline_corrupted: corrupted }) {
    const share = normalised === null ? "The two runs give no scale to compare it with."
      : `That is ${number(normalised)} where the corrupted run is 0 and the clean run is 1.`;
    return `Faithfulness: when only these edges carry the clean run, ${metric.replaceAll("_", " ")} is ${number(value)} ` +
      `(clean ${number(clean)}, corrupted ${number(corrupted)}). ${share}`;
  }

  function faithLine({ metric, value, normalised, baseline_clean: clean, baseline_corrupted: corrupted }, width) {
    const marks = [[corrupted, "corrupted"], [clean, "clean"]].filter(([of]) => Number.isFinite(of));
    const all = [...marks.map(([of]) => of), value], low = Math.min(...all), high = Math.max(...all);
    const x = (of) => 60 + ((width - 120) * (of - low)) / (high - low || 1);
    const side = x(value) < width * 0.3 ? "start" : x(value) > width * 0.7 ? "end" : "middle";
    return svg(
      "svg",
      {
        id: "circuit-line", class: "number-line", width, height: 66, viewBox: `0 0 ${width} 66`, role: "img",
        "data-value": value, "data-normalised": normalised,
        "aria-label": `${metric}: ${marks.map(([of, run]) => `${run} ${number(of)}`).join(", ")}, circuit ${number(value)}`,
      },
      svg("line", { class: "rule", x1: x(low), x2: x(high), y1: 40, y2: 40 }),
      Number.isFinite(corrupted) && svg("line", { class: "way", x1: x(corrupted), x2: x(value), y1: 40, y2: 40 }),
      marks.map(([of, run]) => [
        svg("line", { class: "tick", x1: x(of), x2: x(of), y1: 33, y2: 47, "data-run": run, "data-value": of }),
        svg("text", { x: x(of), y: 62 }, `${run} ${number(of)}`),
      ]),
      svg("circle", { class: "dot", cx: x(value), cy: 40, r: 6 }),
      svg("text", { class: side, x: x(value) + { start: -8, middle: 0, end: 8 }[side], y: 22 }, `circuit ${number(value)}`),
    );
  }

  /** Faithfulness against the number of edges, for the numbers computed so far. A dot is clicked to choose its number. */
  function faithPlot(known, counts, n, width) {
    const scaled = known.every(([, { normalised }]) => normalised !== null), of = (reply) => (scaled ? reply.normalised : reply.value);
    const whole = known[0][1], ends = scaled ? [[0, "corrupted"], [1, "clean"]]
      : [[whole.baseline_corrupted, "corrupted"], [whole.baseline_clean, "clean"]].filter(([end]) => Number.isFinite(end));
    const all = [...ends.map(([end]) => end), ...known.map(([, reply]) => of(reply))], low = Math.min(...all), high = Math.max(...all);
    const [left, top, right, bottom] = [64, 12, width - 14, 112];
    const x = (count) => left + ((right - left) * counts.indexOf(count)) / Math.max(1, counts.length - 1);
    const y = (value) => bottom - ((bottom - top) * (value - low)) / (high - low || 1);
    const points = known.map(([count, reply]) => [x(count), y(of(reply))]);
    const every = Math.ceil((counts.length * 44) / (right - left));
    return h(
      "figure",
      null,
      h("figcaption", null, `Faithfulness${scaled ? "" : ", not normalised,"} by number of edges`,
        known.length < counts.length && "; each is computed when you choose it"),
      svg(
        "svg",
        {
          id: "circuit-plot", class: "circuit-plot", width, height: 152, viewBox: `0 0 ${width} 152`, role: "img",
          "aria-label": `faithfulness: ${known.map(([count, reply]) => `${count} edges ${number(of(reply))}`).join(", ")}`,
        },
        ends.map(([end, run]) => [
          svg("line", { class: "circuit-end", x1: left - 4, x2: right, y1: y(end), y2: y(end) }),
          svg("text", { class: "circuit-end", x: left - 8, y: y(end) + 4 }, run),
        ]),
        counts.map((count, i) => [
          svg("line", { class: "circuit-tick", x1: x(count), x2: x(count), y1: bottom + 6, y2: bottom + 10 }),
          (i % every === 0) && svg("text", { class: "circuit-tick", x: x(count), y: bottom + 22 }, count),
        ]),
        svg("text", { class: "circuit-tick", x: (left + right) / 2, y: bottom + 35 }, "edges"),
        svg("polyline", { class: "circuit-curve", points: points.map((point) => point.join()).join(" ") }),
        known.map(([count, reply], i) => svg("circle", {
          class: `circuit-point${count === n ? " now" : ""}`, cx: points[i][0], cy: points[i][1], r: count === n ? 6 : 4,
          "data-n": count, "data-value": of(reply),
          onclick: () => page.set({ n: count }), onpointerleave: hush,
          onpointermove: (event) => tell([`${count} edges`, `faithfulness ${number(of(reply))}`], event.clientX, event.clientY),
        })),
      ),
    );
  }

  // ---- the graph ----------------------------------------------------------------------------------

  function graph(reply, width) {
    const edges = reply.edges.slice(0, MOST_WIRES);
    if (!edges.length) return h("p", { class: "note" }, "None of these edges is on a path from embed to logits: choose more of them.");
    const { paths, boxes, layers } = wiringOf(edges);
    const across = [...paths.flat(), ...boxes.values()].map(([at]) => at);
    const low = Math.min(...across) - 0.6, span = Math.max(...across) + 0.6 - low;
    const unit = Math.max(edges.length > 60 ? 36 : 46, Math.min(86, (width - 4) / span)), row = layers > 14 ? 58 : 72;
    const w = Math.max(span * unit, Math.min(width - 4, 320)), t = layers * row, inset = (w - span * unit) / 2;
    const x = (of) => inset + (of - low) * unit, y = (of) => t - (of + 0.5) * row;
    const strongest = Math.abs(edges[0][2]) || 1, opacity = edges.length > 200 ? 0.45 : edges.length > 80 ? 0.6 : 0.8;
    const wire = (number, look) => svg("path", { ...look, d: edgeCurve(paths[number].map(([px, py]) => [x(px), y(py)])) });
    at = Math.min(at, edges.length - 1);

    const drawn = edges.map(([sender, receiver, score], number) => {
      const thick = 0.5 + 4.5 * (Math.abs(score) / strongest);
      return wire(number, {
        class: `circuit-edge ${score > 0 ? "circuit-raises" : "circuit-lowers"}`, "stroke-width": thick, opacity,
        "stroke-dasharray": score > 0 ? null : `${Math.max(4, 2.5 * thick)} ${Math.max(2, 0.9 * thick)}`,
        "data-sender": sender, "data-receiver": receiver, "data-value": score,
      });
    });
    const hits = edges.map((_, number) => wire(number, {
      class: "circuit-hit", onpointerleave: leave,
      onpointermove: (event) => point([number], edgeWords(edges[number], reply.metric), event),
    }));
    const drawing = svg(
      "svg",
      {
        id: "circuit-graph", class: "circuit-graph", width: w, height: t, viewBox: `0 0 ${w} ${t}`, tabindex: 0, role: "application",
        "aria-roledescription": "graph",
        "aria-label": `The circuit: ${edges.length} edges. Arrow keys go through them, from the largest score on.`,
        onkeydown: walk, onblur: leave, onfocus: () => drawing.matches(":focus-visible") && reach(at),
      },
      [...drawn].reverse(), // the widest on top
      hits.reverse(),
      [...boxes].map(([name, place]) => box(name, place)),
    );
    return [
      edges.length < reply.edges.length &&
        h("p", { class: "note" }, `Only the ${edges.length} widest of ${reply.edges.length} edges are drawn.`),
      h("div", { class: "scroll", id: "circuit-box" }, drawing),
    ];

    function box(name, [bx, by]) {
      const { kind, layer, head } = nodeOf(name), isHead = kind === "head", wide = BOX_WIDTH * unit, high = BOX_HEIGHT * row;
      const text = isHead && wide < name.length * 6.4 ? `${layer}.${head}` : name;
      const mine = edges.flatMap(([sender, receiver], number) => (sender === name || nodeOf(receiver).component === name ? [number] : []));
      return svg(
        "g",
        {
          class: "circuit-node", "data-name": name, onpointerleave: leave,
          onpointermove: (event) => point(mine, nodeWords(name, mine), event),
        },
        svg("rect", { x: x(bx) - wide / 2, y: y(by) - high / 2, width: wide, height: high, rx: 3 }),
        svg("text", { x: x(bx), y: y(by) + (isHead ? -1 : 4) }, text),
        isHead && Object.entries(PORTS).map(([port, offset]) =>
          svg("text", { class: "circuit-port", x: x(bx) + offset * unit, y: y(by) + high / 2 - 4 }, port)),
      );
    }

    function nodeWords(name, mine) {
      const out = mine.filter((number) => edges[number][0] === name).length;
      return [name, `${mine.length - out} edges in, ${out} out`];
    }

    function point(numbers, lines, event) {
      mark(numbers);
      tell(lines, event.clientX, event.clientY);
    }

    function mark(numbers) {
      drawing.classList.toggle("some", numbers.length > 0);
      drawn.forEach((path, number) => path.classList.toggle("on", numbers.includes(number)));
    }

    function leave() {
      mark([]);
      hush();
    }

    function reach(number) {
      at = number;
      mark([number]);
      const frame = drawn[number].getBoundingClientRect();
      tell(edgeWords(edges[number], reply.metric), frame.left + frame.width / 2, frame.top + frame.height / 2);
    }

    function walk(event) {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -edges.length, End: edges.length }[event.key];
      if (event.key === "Escape") return leave();
      if (!by) return;
      const started = drawing.classList.contains("some");
      reach(Math.max(0, Math.min(edges.length - 1, started ? at + by : at)));
      say(edgeWords(edges[at], reply.metric));
      event.preventDefault();
      event.stopPropagation();
    }
  }

  function table(edges) {
    const details = h(
      "details",
      { id: "circuit-table", class: "numbers", ontoggle: () => details.open && details.children.length === 1 && details.append(rows()) },
      h("summary", null, "as a table"),
    );
    return details;

    function rows() {
      return h(
        "div",
        { class: "scroll" },
        edges.length > MOST_LISTED && h("p", { class: "note" }, `The first ${MOST_LISTED} of ${edges.length} edges; the CSV file has all.`),
        h("table", null,
          h("thead", null, h("tr", null, ["sender", "receiver", "input", "score"].map((name) => h("th", { scope: "col" }, name)))),
          h("tbody", null, edges.slice(0, MOST_LISTED).map(([sender, receiver, score]) =>
            h(
              "tr",
              null,
              h("th", { scope: "row" }, sender),
              h("td", null, nodeOf(receiver).component),
              h("td", null, inputOf(receiver) ?? ""),
              h("td", { "data-value": score }, number(score, 6)),
            ))),
        ),
      );
    }
  }
}

/** Which of a head's inputs a receiver is; null for other nodes, which have one. */
function inputOf(receiver) {
  const { kind } = nodeOf(receiver);
  return kind in PORTS ? kind : null;
}

function edgeWords([sender, receiver, score], metric) {
  const input = inputOf(receiver);
  return [
    `${sender} → ${nodeOf(receiver).component}`, ...(input ? [`input: ${input}`] : []),
    `score ${number(score, 4)}: ${score > 0 ? "raises" : score < 0 ? "lowers" : "does not change"} ${metric.replaceAll("_", " ")}`,
  ];
}

/** A path through points that leaves and arrives vertically. */
function edgeCurve(points) {
  const [[x0, y0], ...rest] = points;
  let d = `M${x0.toFixed(1)} ${y0.toFixed(1)}`, [ax, ay] = [x0, y0];
  for (const [bx, by] of rest) {
    const middle = (ay + by) / 2;
    d += ax === bx ? ` V${by.toFixed(1)}` : ` C${[ax, middle, bx, middle, bx, by].map((of) => of.toFixed(1)).join(" ")}`;
    [ax, ay] = [bx, by];
  }
  return d;
}
