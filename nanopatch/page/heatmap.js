// A matrix as coloured cells: hovered, walked by arrow keys, and clicked. Everything drawn in cells goes through here.

import { h, svg } from "./dom.js";
import { number, short } from "./text.js";
import { colour, css, ink } from "./colours.js";
import { hush, say, tell } from "./tooltip.js";

/** With more cells than this, the cells are one picture of so many pixels. */
const MOST_CELLS = 4000;
const LINE = 14; // px, the height of a label

/** Where the arrow keys are, by the id of the heatmap: a redraw keeps it. */
const cursors = new Map();

/**
 * A heatmap as an element.
 *
 * @param {object} what
 *   id: of the drawing, one on the page. label: what it shows, for screen readers. values: {shape: [rows, columns], data}.
 *   rows, columns: labels. rowsTitle, columnsTitle: what they are. ends: the values at both ends of the colours.
 *   width: the room there is, in px. palette: "two", "one" or "glow". texts: texts in the cells, (i, j) -> text.
 *   still: (i, j) -> whether to mark it with a dot, where nothing can change. selected: [i, j] or null.
 *   describe: (i, j) -> lines of text. pick: (i, j) -> called at a click or Enter. cellHeight: px. shade: value -> what its
 *   colour is taken at, between the ends; by default the value.
 */
export function heatmap({
  id, label, values, rows, columns, rowsTitle, columnsTitle, ends, width, palette, texts, still, selected, describe, pick,
  shade = (value) => value, cellHeight = values.shape[0] <= 6 ? 34 : values.shape[0] <= 16 ? 26 : 20,
}) {
  const [n, m] = values.shape;
  const at = (i, j) => values.data[i * m + j];
  const left = Math.min(110, 14 + 6.5 * Math.max(...rows.map((row) => Math.min(16, [...row].length)), 1));
  const cell = Math.max(texts ? 44 : m > 100 ? 4 : 11, Math.min(texts ? 76 : 56, (width - left - 12) / m));
  const slanted = Math.max(...columns.map((text) => [...text].length)) * 6.6 > cell; // labels that do not fit lie on their side
  const bottom = slanted ? 96 : LINE + 4;
  const height = n > 60 ? Math.max(3, cellHeight / Math.ceil(n / 60)) : cellHeight;
  const [w, t] = [left + m * cell + 12, LINE + 4 + n * height + bottom + LINE];
  const x = (j) => left + j * cell, y = (i) => LINE + 4 + i * height;

  const cells = n * m <= MOST_CELLS ? drawnCells() : [pictureOfCells()];
  const every = Math.max(1, Math.ceil(LINE / cell)), everyRow = Math.max(1, Math.ceil(12 / height));
  const ring = svg("rect", { class: "ring", width: cell, height, hidden: true });
  const chosen = selected && svg("rect", { class: "chosen", x: x(selected[1]), y: y(selected[0]), width: cell, height });

  let cursor = cursors.get(id) ?? selected ?? null;
  if (cursor && (cursor[0] >= n || cursor[1] >= m)) cursor = null;

  const drawing = svg(
    "svg",
    {
      id, class: "heatmap", width: w, height: t, viewBox: `0 0 ${w} ${t}`, tabindex: 0, role: "application",
      "aria-roledescription": "heatmap", "aria-label": `${label}. ${n} by ${m} cells; arrow keys move${pick ? ", Enter chooses" : ""}.`,
      onpointermove: (event) => point(event, true), onpointerleave: leave, onclick: (event) => choose(point(event, false)),
      onkeydown: walk, onfocus: () => drawing.matches(":focus-visible") && cursor && show(cursor), onblur: leave,
    },
    svg("text", { class: "axis", x: 2, y: LINE - 2 }, rowsTitle),
    rows.map((text, i) => i % everyRow === 0 && svg("text", { class: "row", x: left - 5, y: y(i) + height / 2 + 4 }, short(text, 16))),
    cells,
    columns.map((text, j) =>
      j % every === 0 &&
      svg("text", slanted
        ? { class: "slanted", transform: `translate(${x(j) + cell / 2 + 3} ${y(n) + 6}) rotate(-60)` }
        : { class: "column", x: x(j) + cell / 2, y: y(n) + LINE }, short(text, 18)),
    ),
    svg("text", { class: "axis middle", x: left + (m * cell) / 2, y: t - 3 }, columnsTitle),
    chosen,
    ring,
  );
  return h("div", { class: "scroll", id: `${id}-box` }, drawing);

  function drawnCells() {
    const drawn = [];
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < m; j++) {
        const value = at(i, j), fill = colour(shade(value), ends, palette);
        drawn.push(svg("rect", { x: x(j), y: y(i), width: cell, height, fill: css(fill), "data-value": value }));
        const text = texts ? short(texts(i, j), Math.floor(cell / 6.5)) : still?.(i, j) ? "·" : Number.isNaN(value) ? "–" : null;
        if (text !== null) drawn.push(svg("text", { class: "inside", x: x(j) + cell / 2, y: y(i) + height / 2 + 4, fill: ink(fill) }, text));
      }
    }
    return drawn;
  }

  function pictureOfCells() {
    const canvas = h("canvas", { width: m, height: n }), pixels = new ImageData(m, n);
    for (let k = 0; k < n * m; k++) pixels.data.set([...colour(shade(values.data[k]), ends, palette), 255], 4 * k);
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return svg("image", { class: "cells", href: canvas.toDataURL(), x: left, y: y(0), width: m * cell, height: n * height, preserveAspectRatio: "none" });
  }

  /** The cell under the pointer, or null. */
  function point(event, telling) {
    const frame = drawing.getBoundingClientRect();
    const j = Math.floor((event.clientX - frame.left - left) / cell), i = Math.floor((event.clientY - frame.top - y(0)) / height);
    if (i < 0 || j < 0 || i >= n || j >= m) return leave(), null;
    if (telling) show([i, j], event.clientX, event.clientY);
    return [i, j];
  }

  function show([i, j], px, py) {
    for (const [name, value] of [["x", x(j)], ["y", y(i)]]) ring.setAttribute(name, value);
    ring.removeAttribute("hidden");
    const frame = drawing.getBoundingClientRect();
    tell(describe(i, j), px ?? frame.left + x(j) + cell, py ?? frame.top + y(i));
  }

  function leave() {
    ring.setAttribute("hidden", "");
    hush();
  }

  function choose(found) {
    if (!found) return;
    cursors.set(id, (cursor = found));
    if (pick) pick(...found);
  }

  function walk(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -m], End: [0, m] }[event.key];
    if (step) {
      const [i, j] = cursor ?? [0, 0], moved = cursor ? [i + step[0], j + step[1]] : [i, j];
      cursor = [Math.min(n - 1, Math.max(0, moved[0])), Math.min(m - 1, Math.max(0, moved[1]))];
      cursors.set(id, cursor);
      show(cursor);
      say(describe(...cursor));
    } else if (event.key === "Enter" || event.key === " ") {
      choose(cursor);
    } else if (event.key === "Escape") {
      leave();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }
}

/** The colours of a heatmap and the values they stand for. */
export function scaleBar(ends, unit, palette) {
  const [low, high] = ends, steps = 41;
  const at = (k) => low + ((high - low) * k) / (steps - 1);
  return h(
    "div",
    { class: "scale" },
    h("span", null, number(low)),
    svg(
      "svg",
      { width: 160, height: 10, role: "img", "aria-label": `colours from ${number(low)} to ${number(high)}` },
      Array.from({ length: steps }, (_, k) =>
        svg("rect", { x: (160 * k) / steps, width: 160 / steps + 0.5, height: 10, fill: css(colour(at(k), ends, palette)) })),
    ),
    h("span", null, number(high)),
    h("span", { class: "unit" }, unit),
  );
}

/** The same numbers as a table, folded away: for screen readers, for copying. */
export function asTable(id, { values, rows, columns, rowsTitle, texts }) {
  const m = values.shape[1];
  const details = h(
    "details",
    { id, class: "numbers", ontoggle: () => details.open && details.children.length === 1 && details.append(table()) },
    h("summary", null, "as a table"),
  );
  return details;

  function table() {
    return h(
      "div",
      { class: "scroll" },
      h(
        "table",
        null,
        h("thead", null, h("tr", null, h("th", { scope: "col" }, rowsTitle), columns.map((text) => h("th", { scope: "col" }, text)))),
        h("tbody", null, rows.map((row, i) =>
          h("tr", null, h("th", { scope: "row" }, row), columns.map((_, j) =>
            h("td", null, texts ? texts(i, j) : number(values.data[i * m + j], 6)))))),
      ),
    );
  }
}
