// The patch that was clicked: what the model says before and after it, and the Python that makes it.

import { h, problem, svg } from "./dom.js";
import { number } from "./text.js";
import { gridQuestion, NO_CELL, whatOf } from "./state.js";
import { downloads } from "./download.js";
import { answerTable, likeliestBars } from "./prompts.js";

export function patchView(page) {
  const question = (state) => (state.cell === null ? null : { view: "patch", ...whatOf(state) });
  return {
    name: "patch",
    title: "The patch",
    questions: (state) => [question(state), gridQuestion(state)],
    draw(state, answer, width) {
      const asked = question(state), reply = asked && answer(asked), grid = answer(gridQuestion(state));
      const heading = h("h2", null, "The patch");
      if (!asked) return [heading, h("p", { class: "hint" }, NO_CELL)];
      return [heading, problem(reply) ?? patched(reply, grid, state, width)];
    },
  };

  function patched(reply, grid, state, width) {
    const base = page.start.directions[state.direction][0];
    return [
      h("p", { class: "title", id: "patch-label" }, reply.label),
      grid?.values && numberLine(grid, state.cell, Math.min(width, 560)),
      reply.answers.length > 0 && answerTable(reply.answers, ["before", "after"]),
      h("div", { class: "pair" }, ["before", "after"].map((when) =>
        h("figure", null, h("figcaption", null, when === "before" ? `Before: the ${base} run` : "After the patch"),
          likeliestBars(`top-${when}`, reply.top[when], reply.answers)))),
      h("h3", null, "The same by hand"),
      pythonLines(reply.code),
      h("div", { class: "foot" },
        h("button", { type: "button", id: "copy-code", onclick: (event) => copy(reply.code, event.target) }, "Copy"),
        downloads("nanopatch-patch", { json: () => reply, python: () => reply.code })),
    ];
  }
}

/** The metric after the patch on a line from the corrupted run to the clean one. */
function numberLine(grid, cell, width) {
  const value = grid.values.data[grid.cell.data.indexOf(cell)];
  const marks = [[grid.base_value, grid.base], [grid.donor_value, grid.donor]].filter(([at]) => at !== null && at !== undefined);
  if (!Number.isFinite(value) || !marks.every(([at]) => Number.isFinite(at))) return null;
  const all = [...marks.map(([at]) => at), value], low = Math.min(...all), high = Math.max(...all);
  const x = (at) => 60 + ((width - 120) * (at - low)) / (high - low || 1);
  const metric = grid.metric.replaceAll("_", " ");
  const side = x(value) < width * 0.3 ? "start" : x(value) > width * 0.7 ? "end" : "middle"; // so that no word is cut off
  return svg(
    "svg",
    {
      id: "number-line", class: "number-line", width, height: 66, viewBox: `0 0 ${width} 66`, role: "img", "data-value": value,
      "aria-label": `${metric}: ${marks.map(([at, run]) => `${run} run ${number(at)}`).join(", ")}, after the patch ${number(value)}`,
    },
    svg("line", { class: "rule", x1: x(low), x2: x(high), y1: 40, y2: 40 }),
    svg("line", { class: "way", x1: x(grid.base_value), x2: x(value), y1: 40, y2: 40 }),
    marks.map(([at, run]) => [
      svg("line", { class: "tick", x1: x(at), x2: x(at), y1: 33, y2: 47 }),
      svg("text", { class: "below", x: x(at), y: 60 }, `${run} ${number(at)}`),
    ]),
    svg("circle", { class: "dot", cx: x(value), cy: 40, r: 6 }),
    svg("text", { class: `above ${side}`, x: x(value) + { start: -8, middle: 0, end: 8 }[side], y: 22 }, `after the patch: ${metric} ${number(value)}`),
  );
}

/** The program, with the three lines that are the patch set apart. */
function pythonLines(code) {
  const lines = code.trimEnd().split("\n"), from = lines.findIndex((line) => line.startsWith("for site in"));
  return h("pre", { class: "code scroll", id: "code", tabindex: 0, "aria-label": "Python" }, lines.map((line, i) =>
    h("span", { class: i >= from && i < from + 3 ? "line by-hand" : "line" }, `${line}\n`)));
}

async function copy(code, button) {
  await navigator.clipboard.writeText(code);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}
