// The heatmap: one patch in each cell. A click makes the patch.

import { choices, h, menu, problem } from "./dom.js";
import { asTable, heatmap, scaleBar } from "./heatmap.js";
import { number, visible } from "./text.js";
import { gridQuestion } from "./state.js";
import { downloads } from "./download.js";

export function gridView(page) {
  const { menu: offered } = page.start;
  return {
    name: "grid",
    title: "The heatmap",
    questions: (state) => [gridQuestion(state)],
    draw(state, answer, width) {
      const reply = answer(gridQuestion(state)), prompts = answer({ view: "prompts" });
      return [h("h2", null, "The heatmap: a patch in each cell"), controls(state, prompts), problem(reply) ?? grid(reply, prompts, state, width)];
    },
  };

  function controls(state, prompts) {
    // Some metrics need answers that the prompts may not have.
    const metrics = offered.metrics.filter((name) => name === state.metric || (prompts?.metrics ?? [name]).includes(name));
    const of = (names) => names.map((name) => [name, name.replaceAll("_", " ")]);
    const same = (values) => values.map((value) => [String(value), String(value)]);
    const donor = (direction) => page.start.directions[direction][1];
    return h(
      "div",
      { class: "controls" },
      menu("site", "Array ", same(offered.sites), state.site, (site) => page.set({ site, axes: offered.axes[site][0], window: 1 })),
      offered.axes[state.site].length > 1 &&
        menu("axes", "Axes ", offered.axes[state.site].map((axes) => [axes.join(","), axes.join(" × ")]), state.axes.join(","), (said) => page.set({ axes: said.split(","), window: 1 })),
      offered.windows.length > 1 && state.axes.includes("layer") &&
        menu("window", "Layers at once ", same(offered.windows), String(state.window), (said) => page.set({ window: Number(said) })),
      offered.metrics.length > 1 && menu("metric", "Metric ", of(metrics), state.metric, (metric) => page.set({ metric })),
      offered.directions.length > 1 &&
        choices("direction", "Patch from", offered.directions.map((name) => [name, `${donor(name)} (${name})`]), state.direction, (direction) => page.set({ direction })),
      choices("scale", "Show", [["normalised", "normalised"], ["raw", "raw"]], state.scale, (scale) => page.set({ scale })),
    );
  }

  function grid(reply, prompts, state, width) {
    const raw = state.scale === "raw" || !reply.has_scale;
    const values = raw ? reply.values : reply.normalised, m = reply.columns.length;
    const metric = reply.metric.replaceAll("_", " ");
    const ends = reply.ends[raw ? "raw" : "normalised"];
    const unit = raw ? metric : `${metric}, ${reply.scale}: 0 is the ${reply.base} run, 1 the ${reply.donor} run`;
    const at = reply.cell.data.indexOf(state.cell ?? -1);
    const drawing = heatmap({
      id: "heatmap", label: `${reply.title}; ${unit}`, values, rows: reply.rows, columns: reply.columns, rowsTitle: reply.rows_title,
      columnsTitle: reply.columns_title, ends, width, still: (i, j) => reply.unchanged.data[i * m + j],
      selected: at < 0 ? null : [Math.floor(at / m), at % m],
      describe: (i, j) => describe(reply, prompts, i, j),
      pick: page.start.views.includes("patch") && ((i, j) => page.set({ cell: reply.cell.data[i * m + j], run: "patched" })),
    });
    return [
      h("p", { class: "title" }, reply.title),
      drawing,
      scaleBar(ends, unit),
      reply.unchanged.data.some(Boolean) && h("p", { class: "note" }, "· marks a patch that cannot change the metric."),
      reply.notes.map((note) => h("p", { class: "note" }, note)),
      h("div", { class: "foot" },
        downloads(`nanopatch-${reply.metric}-${state.site}`, {
          drawing: () => document.getElementById("heatmap"), table: () => table(reply), json: () => reply,
        }),
        asTable("heatmap-table", { values, rows: reply.rows, columns: reply.columns, rowsTitle: reply.rows_title })),
    ];
  }
}

/** What a cell is: where, between which tokens, the metric, and whether a patch there can change anything. */
function describe(reply, prompts, i, j) {
  const k = i * reply.columns.length + j, lines = [];
  lines.push(reply.rows_title && `${reply.rows_title} ${reply.rows[i]}`);
  const pair = reply.columns_title === "position" ? prompts?.columns?.[j] : null;
  if (pair && reply.columns.length === prompts.columns.length) {
    const [clean, corrupted] = pair;
    const token = (position, side) => (position === null ? "no token" : visible(prompts[side].tokens[position]));
    lines.push(clean === corrupted ? `position ${clean}` : `position ${clean ?? "–"} in clean, ${corrupted ?? "–"} in corrupted`);
    lines.push(`clean ${token(clean, "clean")}   corrupted ${token(corrupted, "corrupted")}`);
  } else {
    lines.push(`${reply.columns_title} ${reply.columns_title === "query" || reply.columns_title === "key" ? `${j} ` : ""}${reply.columns[j]}`);
  }
  if (reply.blank.data[k]) return [...lines.filter(Boolean), "nothing can be patched here: the token has no partner"];
  lines.push(`${reply.metric.replaceAll("_", " ")} ${number(reply.values.data[k], 4)}`);
  if (reply.has_scale) lines.push(`${reply.scale} ${number(reply.normalised.data[k], 4)}`);
  if (reply.unchanged.data[k]) lines.push("a patch here cannot change the metric");
  return lines.filter(Boolean);
}

/** The cells as rows of a table. */
function table(reply) {
  const m = reply.columns.length;
  const names = [reply.rows_title || "row", reply.columns_title, `${reply.columns_title}_label`, reply.metric, reply.scale.replaceAll(" ", "_"), "unchanged"];
  const cells = [...reply.values.data].map((value, k) =>
    [reply.rows[Math.floor(k / m)], k % m, reply.columns[k % m], value, reply.normalised.data[k], Boolean(reply.unchanged.data[k])]);
  return [names, ...cells];
}
