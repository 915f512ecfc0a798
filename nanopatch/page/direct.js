// Direct logit attribution: what each part of the model adds to the answer's logit.

import { h, problem } from "./dom.js";
import { asTable, heatmap, scaleBar } from "./heatmap.js";
import { number } from "./text.js";
import { NO_CELL, runQuestion } from "./state.js";
import { oneRun, ofRun, runChoices } from "./runs.js";
import { bars } from "./bars.js";
import { downloads } from "./download.js";

/** So many parts have a bar of their own; the smaller ones are summed. */
const MOST_PARTS = 24;

export function directView(page) {
  const question = (state) => runQuestion("direct", state, oneRun(state));
  return {
    name: "direct",
    title: "Direct logit attribution",
    questions: (state) => [question(state)],
    draw(state, answer, width) {
      const run = oneRun(state), asked = question(state), reply = asked && answer(asked);
      const chooser = runChoices(page, "direct", state, run);
      return [
        h("h2", null, `Direct logit attribution${ofRun(page, run)}: which parts write the answer`),
        chooser && h("div", { class: "controls" }, chooser),
        !asked ? h("p", { class: "hint" }, NO_CELL) : problem(reply) ?? parts(reply, state, width),
      ];
    },
  };

  function parts(reply, state, width) {
    const columns = width >= 1500 ? 3 : width >= 700 ? 2 : 1, room = (width - 32 * (columns - 1)) / columns;
    const { rows, said } = largestParts(reply);
    const column = { shape: [reply.names.length, 1], data: reply.values.data };
    return [
      h("p", { class: "title", id: "direct-title" }, reply.title),
      h("p", { class: "note" },
        "The residual stream after the last block is the sum of what the embeddings, the heads, the MLPs and the biases wrote. ",
        "So the logit is a sum too, with the final LayerNorm taken at the scale that it has in this run (Elhage et al. 2021, ",
        "\u201cA Mathematical Framework for Transformer Circuits\u201d). Red adds to it, blue takes away."),
      h("div", {
        class: columns === 2 ? "direct-columns two" : "direct-columns",
        style: { "grid-template-columns": `repeat(${columns}, minmax(0, 1fr))` },
      },
        h("figure", null,
          h("h3", null, "Parts, the largest first"),
          bars({ id: "direct-parts", rows, ends: barEnds(rows.map(({ value }) => value)), format: withSign, label: "what each part adds" }),
          h("p", { class: "note" }, said, " The sum of these bars is ",
            h("strong", { id: "direct-total", "data-value": reply.total }, number(reply.total, 4)), ".")),
        headsFigure(reply, state, room),
        h("figure", { class: "direct-sums" },
          h("h3", null, "The sum so far, through the pass"),
          bars({
            id: "direct-cumulative", ends: barEnds(reply.cumulative.data), format: withSign,
            label: "the sum of all parts up to each point of the pass",
            rows: reply.cumulative_names.map((name, i) => cumulativeRow(reply, name, i)),
          }))),
      reply.notes.map((note) => h("p", { class: "note" }, note)),
      h("div", { class: "foot" },
        downloads(`nanopatch-direct-${oneRun(state)}`, {
          table: () => [["part", "value"], ...reply.names.map((name, i) => [name, reply.values.data[i]])], json: () => reply,
        }),
        asTable("direct-table", { values: column, rows: reply.names, columns: ["adds"], rowsTitle: "part" })),
    ];
  }

  function headsFigure(reply, state, width) {
    const [n_layer, n_head] = reply.heads.shape, at = (i, j) => reply.heads.data[i * n_head + j];
    const [rows, columns] = [n_layer, n_head].map((n) => Array.from({ length: n }, (_, i) => String(i)));
    const largest = Math.max(...reply.heads.data.map(Math.abs)) || 1, ends = [-largest, largest];
    const linked = page.start.views.includes("attention");
    return h("figure", null,
      h("h3", null, "Heads"),
      heatmap({
        id: "direct-heads", label: "what each head adds", values: reply.heads, rows, columns, rowsTitle: "layer", columnsTitle: "head",
        ends, width,
        selected: linked && state.layer < n_layer && state.head < n_head ? [state.layer, state.head] : null,
        describe: (i, j) => [`head ${i}.${j}`, `adds ${number(at(i, j), 4)}`, ...(linked ? ["a click shows its attention"] : [])],
        pick: linked ? (layer, head) => page.set({ view: "attention", layer, head }) : undefined,
      }),
      scaleBar(ends, "added"),
      asTable("direct-heads-table", {
        values: reply.heads, rows: rows.map((i) => `layer ${i}`), columns: columns.map((i) => `head ${i}`), rowsTitle: "",
      }));
  }
}

/** The largest parts as rows of bars, the rest summed in the last one, and a sentence that says so. */
function largestParts({ names, values }) {
  const order = names.map((_, i) => i).sort((a, b) => Math.abs(values.data[b]) - Math.abs(values.data[a]));
  const few = order.length <= MOST_PARTS + 1, kept = few ? order : order.slice(0, MOST_PARTS), rest = order.slice(kept.length);
  const row = (text, value) => ({ text, value, title: [text, `adds ${number(value, 4)}`] });
  const rows = kept.map((i) => row(names[i], values.data[i]));
  if (few) return { rows, said: `All ${rows.length} parts are here.` };
  const sum = rest.reduce((total, i) => total + values.data[i], 0);
  rows.push(row(`${rest.length} smaller parts`, sum));
  return {
    rows, said: `The ${kept.length} largest of ${names.length} parts have a bar each; the last bar is the sum of the other ${rest.length}.`,
  };
}

function cumulativeRow({ cumulative_names, cumulative }, name, i) {
  const value = cumulative.data[i], before = i ? cumulative.data[i - 1] : 0;
  const where = name === "ln_f" ? "after the final LayerNorm" : `after ${name}`;
  const change = `${i ? `change since ${cumulative_names[i - 1]}` : "change"} ${withSign(value - before)}`;
  return { text: name, value, title: [where, `sum so far ${number(value, 4)}`, change] };
}

function barEnds(values) {
  return [Math.min(0, ...values), Math.max(0, ...values)];
}

/** A number with its sign. */
function withSign(value) {
  return value > 0 ? `+${number(value)}` : number(value);
}
