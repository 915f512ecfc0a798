// The logit lens: what the model would predict, if the blocks after a row were left out.

import { choices, h, problem } from "./dom.js";
import { colour, css } from "./colours.js";
import { asTable, heatmap, scaleBar } from "./heatmap.js";
import { number, percent, visible } from "./text.js";
import { NO_CELL, runQuestion } from "./state.js";
import { oneRun, ofRun, runChoices } from "./runs.js";
import { downloads } from "./download.js";

/** What the cells can show: the names in the state, and in words. */
const LENSES = [
  ["prediction", "likeliest token"],
  ["answer_probability", "probability of the answer"],
  ["rank", "rank of the answer"],
  ["logit_diff", "logit difference"],
];
/** Ranks that the scale of colours names. */
const RANKS = [0, 1, 10, 100, 1000, 10000, 100000];

export function lensView(page) {
  const question = (state) => runQuestion("lens", state, oneRun(state));
  return {
    name: "lens",
    title: "Logit lens",
    questions: (state) => [question(state)],
    draw(state, answer, width) {
      const run = oneRun(state), asked = question(state), reply = asked && answer(asked);
      const heading = h("h2", null, `Logit lens${ofRun(page, run)}: what each layer would predict`);
      const chooser = runChoices(page, "lens", state, run);
      if (!asked) return [heading, h("div", { class: "controls" }, chooser), h("p", { class: "hint" }, NO_CELL)];
      const wrong = problem(reply);
      if (wrong) return [heading, h("div", { class: "controls" }, chooser), wrong];
      return [heading, ...lens(reply, state, width, chooser)];
    },
  };

  function lens(reply, state, width, chooser) {
    const offered = LENSES.filter(([name]) => name === "prediction" || reply[name]);
    const shown = offered.some(([name]) => name === state.shown) ? state.shown : "prediction";
    const values = shown === "prediction" ? reply.probability : reply[shown], m = values.shape[1];
    const text = (i, j) => lensText(reply, shown, i * m + j);
    const ends = lensEnds(shown, values, page.start.model.n_vocab);
    const drawing = {
      id: "lens-map", label: `logit lens: ${wordsOf(reply, shown)}`, values, rows: reply.rows, columns: reply.columns,
      rowsTitle: "read from", columnsTitle: "position", ends, width, texts: text,
      shade: shown === "rank" ? rankShade : undefined, describe: (i, j) => lensWords(reply, i, j),
    };
    return [
      h("div", { class: "controls" }, chooser,
        offered.length > 1 && choices("lens-shown", "Show", offered, shown, (name) => page.set({ shown: name }))),
      h("p", { class: "title", id: "lens-title" }, `In each cell: ${wordsOf(reply, shown)}.`),
      shown !== state.shown && h("p", { class: "note" }, `There is no ${state.shown.replaceAll("_", " ")} in this lens.`),
      heatmap(drawing),
      shown === "rank" ? rankScale(ends) : scaleBar(ends, shown === "logit_diff" ? "logits" : "probability"),
      h("p", { class: "note" }, "Read it from top to bottom: each row is the residual stream at one place of the pass, read by the final ",
        "LayerNorm and the unembedding as if the model ended there (nostalgebraist 2020, \u201cinterpreting GPT: the logit lens\u201d). ",
        "The last row is the model's own prediction."),
      reply.notes?.map((note) => h("p", { class: "note" }, note)),
      h("div", { class: "foot" },
        downloads(`nanopatch-lens-${oneRun(state)}`, {
          drawing: () => document.getElementById("lens-map"), table: () => lensRows(reply), json: () => reply,
        }),
        asTable("lens-table", {
          values, rows: reply.rows, columns: reply.columns, rowsTitle: "read from", texts: shown === "prediction" ? text : undefined,
        })),
    ];
  }

  /** What the cells show, in words. */
  function wordsOf(reply, shown) {
    const token = (text) => (text === null ? "" : ` ${visible(text)}`);
    return {
      prediction: "the likeliest next token; the colour is its probability",
      answer_probability: `the probability of${token(reply.answer)}`,
      rank: `the rank of${token(reply.answer)}, that is, how many tokens are likelier`,
      logit_diff: `the logit of${token(reply.answer)} minus that of${token(reply.wrong_answer)}`,
    }[shown];
  }
}

/** What stands in a cell: of a number, what fits there. The tooltip and the table have more digits. */
function lensText(reply, shown, k) {
  if (shown === "prediction") return visible(reply.texts[reply.text.data[k]]);
  const value = reply[shown].data[k];
  if (shown === "rank") return number(value, 6);
  if (shown === "answer_probability") {
    if (value < 0.001) return value ? "<0.1%" : "0%";
    return value > 0.99 && value < 1 ? ">99%" : `${(100 * value).toFixed(value < 0.1 ? 1 : 0)}%`;
  }
  return value.toFixed(Math.abs(value) < 10 ? 2 : 1).replace(/^-(?=[0.]*$)/, "").replace("-", "\u2212");
}

/** The values at both ends of the colours. Of a rank, the logarithm counts, and rank 0 is the strong end. */
function lensEnds(shown, values, n_vocab) {
  const largest = values.data.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  if (shown === "rank") return [rankShade(n_vocab ? n_vocab - 1 : Math.max(1, largest)), 0];
  return shown === "logit_diff" ? [-largest || -1, largest || 1] : [0, 1];
}

function rankShade(rank) {
  return Math.log10(1 + rank);
}

/** The colours of some ranks. */
function rankScale(ends) {
  return h(
    "div",
    { class: "scale" },
    RANKS.filter((rank) => rankShade(rank) <= ends[0]).map((rank) =>
      h("span", { class: "rank-shade" },
        h("span", { class: "swatch", style: { background: css(colour(rankShade(rank), ends)) } }), number(rank, 6))),
    h("span", { class: "unit" }, "rank, on a logarithmic scale: 0 is the likeliest token"),
  );
}

/** A cell in words. A token stands at the end of its line, so that no direction of writing reorders the line. */
function lensWords(reply, i, j) {
  const k = i * reply.columns.length + j, value = (name) => reply[name]?.data[k];
  return [
    `read from ${reply.rows[i]}`,
    `position ${reply.columns[j]}`,
    `likeliest next token ${visible(reply.texts[reply.text.data[k]])}`,
    `its probability ${percent(value("probability"))}`,
    reply.answer_probability && `probability of the answer ${percent(value("answer_probability"))}`,
    reply.rank && `rank of the answer ${value("rank")}`,
    reply.logit_diff && `logit difference ${number(value("logit_diff"), 4)}`,
  ].filter(Boolean);
}

/** The cells as rows of a table. */
function lensRows(reply) {
  const known = LENSES.map(([name]) => name).filter((name) => reply[name]?.data), m = reply.columns.length;
  const cell = (_, k) => [
    reply.rows[Math.floor(k / m)], k % m, reply.tokens[k % m], reply.texts[reply.text.data[k]], reply.probability.data[k],
    ...known.map((name) => reply[name].data[k]),
  ];
  return [["read_from", "position", "token", "predicted", "probability", ...known], ...Array.from(reply.text.data, cell)];
}
