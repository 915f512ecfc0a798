// One array of the forward pass in large: what it is, the line that makes it, its numbers, and what a patch does to it.

import { h, svg } from "./dom.js";
import { number, percent, short, visible } from "./text.js";
import { asTable, scaleBar } from "./heatmap.js";
import { hush, tell } from "./tooltip.js";
import { changeAt, changeWords, editWords, editsAt, glowColour, placeWords, tokenMark } from "./spread.js";
import { columnOf, onPaper, panelsOf, pictureOfArray, scaleOf } from "./thumbnail.js";

/** What a patch does to an array: {parts of a line, the largest change, its position}. */
export function spreadWords(place, patch) {
  const { tokens } = patch, changes = tokens.map((_, i) => changeAt(patch, place, i) ?? 0);
  const largest = Math.max(...changes), at = changes.indexOf(largest), touched = changes.filter((change) => change > 0).length;
  const edits = editsAt(patch, place);
  const here = edits.length ? ["Patched here: ", edits.map((edit, i) => [i ? "; " : "", editWords(edit, place, tokens)]), ". "] : [];
  const same = edits.length ? "What is put in is what was there." : "The patch does not change it.";
  if (largest === 0) return { parts: [here, same], largest, at: null };
  const where = place.name === "logits" ? "at the last position (the others are not computed)" : [
    `at ${touched} of ${tokens.length} positions, most at position ${at} `, tokenMark(tokens[at]),
  ];
  return { parts: [here, "It differs from the run patched into ", where, `: ${changeWords(largest)}.`], largest, at };
}

/**
 * An array in large.
 *
 * place: {name, layer}. about: {shape, what} of the start data. line: the code that makes it. reply: the layer's arrays, or
 * null. patch: the reply about a patch; glowing: the same if the rows are those of the patch. lists: for logits, [title,
 * likeliest tokens] pairs. width: px.
 */
export function closeupOf({ place, about, line, reply, patch, glowing, lists, width }) {
  const { name } = place, array = reply?.[name], spread = patch && spreadWords(place, patch);
  const sizes = name === "logits" ? null : reply?.shapes[name];
  return h(
    "div",
    { class: "closeup", "data-name": name, "data-layer": place.layer },
    h("h4", null, h("code", null, name), " ", h("span", { class: "closeup-shape" }, about.shape, sizes && ` = (${sizes.join(", ")})`)),
    h("pre", { class: "closeup-line" }, h("code", null, line)),
    h("p", null, about.what),
    spread && h("p", { class: "closeup-spread", "data-value": spread.largest, "data-position": spread.at }, spread.parts),
    name === "logits" ? h("div", { class: "closeup-lists" }, lists.map(([title, top]) => likeliestOf(title, top)))
      : array && numbersOf(place, reply, glowing, width),
  );
}

function likeliestOf(title, top) {
  return h(
    "table",
    { class: "closeup-likeliest" },
    h("caption", null, title),
    h("thead", null, h("tr", null, ["token", "logit", "probability"].map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", null, top.map(({ text, id, logit, probability }) =>
      h(
        "tr",
        { "data-id": id },
        h("td", null, tokenMark(text)),
        h("td", { "data-value": logit }, number(logit, 4)),
        h(
          "td",
          { "data-value": probability },
          svg("svg", { width: 80, height: 10, "aria-hidden": "true" },
            svg("rect", { class: "closeup-bar", width: Math.max(0.5, 80 * probability), height: 10 })),
          ` ${percent(probability)}`,
        ),
      ))),
  );
}

/** The numbers as a picture with its labels, the scale, and a table. */
function numbersOf(place, reply, patch, width) {
  const { name } = place, array = reply[name], panels = panelsOf(name, array), scale = scaleOf(name, array);
  const square = name === "scores" || name === "pattern", pooled = reply.pooled[name], { tokens } = reply, n = tokens.length;
  const high = n <= 32 ? 17 : n <= 72 ? 12 : Math.max(2, 640 / n);
  const labels = tokens.map((text) => short(visible(text), 16));
  const left = Math.min(140, 36 + 7 * Math.max(...labels.map((text) => [...text].length)));
  const room = Math.max(120, width - left - (patch ? 14 : 0) - 40);
  const side = Math.max(96, Math.min(240, (room - 20) / Math.min(4, panels.length) - 30));
  const across = Math.min((room - 4 * (panels.length - 1)) / panels.length, 12 * panels[0].columns);
  const [pw, ph] = square ? [side, side] : [across, n * high]; // of one panel, in px

  return [
    h(
      "div",
      { class: "closeup-scale", "data-low": scale.ends[0], "data-high": scale.ends[1], "data-largest": scale.largest },
      scaleBar(scale.ends, name === "pattern" ? "attention" : "value"),
      scale.largest > scale.ends[1] && h("span", null, `a few numbers are larger, up to ${number(scale.largest)}`),
      pooled > 1 && h("span", { class: "closeup-pooled", "data-value": pooled }, `one column is the largest of ${pooled} neighbours`),
      square && h("span", null, "rows are queries, columns are keys; grey is masked"),
    ),
    square
      ? h(
        "div",
        { class: "closeup-heads" },
        side / n > 6 && captioned("query", labelled(side / n)),
        panels.map((panel) => captioned(`head ${panel.head}`, h("div", { class: "closeup-row" }, rowsGlow(ph), drawn(panel)))),
      )
      : h(
        "div",
        { class: "scroll", id: "closeup-box" },
        h(
          "div",
          { class: "closeup-row", style: onPaper(width) },
          labelled(high),
          rowsGlow(ph),
          panels.map((panel) => (panel.head === null ? drawn(panel) : captioned(`${pw > 44 ? "head " : ""}${panel.head}`, drawn(panel)))),
        ),
      ),
    tableOf(name, panels, tokens, pooled),
  ];

  function captioned(caption, drawing) {
    return h("figure", null, h("figcaption", null, caption), drawing);
  }

  /** The rows' labels: as many as there is room for. */
  function labelled(each) {
    const every = Math.ceil(11 / each), style = (i) => ({ "grid-row": `${i + 1} / span ${every}` });
    return h(
      "div",
      { class: "closeup-labels", style: { width: `${left}px`, "grid-auto-rows": `${each}px` } },
      labels.map((text, i) => i % every === 0 && h("div", { style: style(i) }, h("span", null, i), " ", h("bdi", null, text))),
    );
  }

  function rowsGlow(height) {
    if (!patch) return null;
    const canvas = columnOf(tokens.map((_, i) => changeAt(patch, place, i) ?? 0), height, glowColour);
    canvas.className = "closeup-glow";
    canvas.style.setProperty("height", `${height}px`);
    return canvas;
  }

  function drawn(panel) {
    const canvas = pictureOfArray(panel, {
      mostRows: ph, mostColumns: Math.max(1, Math.floor(pw / 1.5)), ends: scale.ends,
      look: (row, column, event) => (row === null ? hush() : tell(told(panel, row, column), event.clientX, event.clientY)),
    });
    canvas.className = "closeup-picture";
    for (const [property, size] of [["width", pw], ["height", ph]]) canvas.style.setProperty(property, `${size}px`);
    return canvas;
  }

  function told(panel, row, column) {
    const head = panel.head === null ? [] : [`head ${panel.head}`], value = panel.at(row, column);
    const change = patch && changeAt(patch, place, row);
    const rows = square
      ? [["query ", row, " ", tokenMark(tokens[row])], ["key ", column, " ", tokenMark(tokens[column])]]
      : [["position ", row, " ", tokenMark(tokens[row])], columnWords(column, pooled)];
    return [
      `${placeWords(place)}: ${square && column > row ? "masked" : number(value)}`, ...head, ...rows,
      ...(patch ? [`${square ? "this query's row" : "this position"}: ${changeWords(change)}`] : []),
    ];
  }
}

function columnWords(column, pooled) {
  return pooled > 1 ? `the largest of columns ${column * pooled} to ${(column + 1) * pooled - 1}` : `column ${column}`;
}

/** The numbers as a table, which takes them when it is opened. For scores and pattern, the heads stand below each other. */
function tableOf(name, panels, tokens, pooled) {
  const { rows: n, columns: m, head } = panels[0], label = (i) => `${i} ${visible(tokens[i])}`;
  const each = (length, make) => Array.from({ length }, (_, i) => make(i));
  if (name === "scores" || name === "pattern") {
    return asTable("closeup-table", {
      values: madeLater([panels.length * n, m], () => panels.flatMap(({ at }) => each(n * m, (k) => at(Math.floor(k / m), k % m)))),
      rows: panels.flatMap((panel) => each(n, (i) => `head ${panel.head}, ${label(i)}`)), columns: each(m, label), rowsTitle: "query",
    });
  }
  const part = (j) => (pooled > 1 ? `${j * pooled}–${(j + 1) * pooled - 1}` : String(j));
  return asTable("closeup-table", {
    values: madeLater([n, panels.length * m], () => each(n, (i) => panels.flatMap(({ at }) => each(m, (j) => at(i, j)))).flat()),
    rows: each(n, label), columns: panels.flatMap((panel) => each(m, (j) => (head === null ? part(j) : `head ${panel.head}, ${part(j)}`))),
    rowsTitle: "position",
  });
}

/** A matrix whose numbers are put together when they are read first. */
function madeLater(shape, make) {
  let made = null;
  return { shape, get data() { return (made ??= make()); } };
}
