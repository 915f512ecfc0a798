// An array of the forward pass as a small picture: one coloured cell for each number, or for the largest of a few.

import { h } from "./dom.js";
import { number } from "./text.js";
import { colour } from "./colours.js";

const WITH_MASK = ["scores", "pattern"]; // (n_head, n_query, n_key): a position sees no later one
const SHARE = 0.95; // so many of an array's numbers lie inside its scale; the largest few would make all others pale
const PAPER = 690; // px, the width of a printed page

/** By how much a drawing of so many px is scaled to be printed. */
export function onPaper(width) {
  return { "--on-paper": Math.min(1, PAPER / width).toFixed(3) };
}

/** The matrices that an array is drawn as: one, or one for each head. at(row, column) is NaN behind the mask. */
export function panelsOf(name, { shape, data }) {
  if (WITH_MASK.includes(name)) {
    const [heads, rows, columns] = shape;
    return Array.from({ length: heads }, (_, head) => ({
      head, rows, columns, at: (i, j) => (j > i ? NaN : data[(head * rows + i) * columns + j]),
    }));
  }
  const [rows, heads] = shape, columns = shape.at(-1);
  if (shape.length === 2) return [{ head: null, rows, columns, at: (i, j) => data[i * columns + j] }];
  return Array.from({ length: heads }, (_, head) => ({
    head, rows, columns, at: (i, j) => data[(i * heads + head) * columns + j],
  }));
}

const scales = new WeakMap();

/** The scale of an array's colours: {ends, largest}. It is two-sided around 0, but for the pattern, which is from 0 to 1. */
export function scaleOf(name, array) {
  if (name === "pattern") return { ends: [0, 1], largest: 1 };
  if (!scales.has(array)) {
    const sizes = array.data.filter(Number.isFinite).map(Math.abs).sort();
    const end = sizes.length ? sizes[Math.ceil(SHARE * sizes.length) - 1] : 0, largest = sizes.at(-1) ?? 0;
    scales.set(array, { ends: [-(end || largest || 1), end || largest || 1], largest });
  }
  return scales.get(array);
}

/** A scale in words. */
export function scaleWords({ ends: [low, high], largest }) {
  const beyond = largest > high ? `; a few numbers are larger, up to ${number(largest)}` : "";
  return `colours from ${number(low)} to ${number(high)}${beyond}`;
}

/**
 * A panel as a canvas of at most so many rows and columns.
 *
 * Of neighbours that share a cell, the one of largest size is drawn. look(row, column, event): called under the pointer
 * with the place of the drawn number; look(null) when the pointer leaves.
 */
export function pictureOfArray(panel, { mostRows, mostColumns, ends, look }) {
  const perRow = Math.ceil(panel.rows / mostRows), perColumn = Math.ceil(panel.columns / mostColumns);
  const rows = Math.ceil(panel.rows / perRow), columns = Math.ceil(panel.columns / perColumn);
  const pixels = new ImageData(columns, rows);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const [row, column] = largestIn(panel, i * perRow, j * perColumn, perRow, perColumn);
      pixels.data.set([...colour(panel.at(row, column), ends), 255], 4 * (i * columns + j));
    }
  }
  const canvas = h("canvas", {
    width: columns, height: rows,
    onpointermove: look && ((event) => {
      const frame = canvas.getBoundingClientRect();
      const i = Math.floor(((event.clientY - frame.top) / frame.height) * rows);
      const j = Math.floor(((event.clientX - frame.left) / frame.width) * columns);
      if (i < 0 || j < 0 || i >= rows || j >= columns) return;
      look(...largestIn(panel, i * perRow, j * perColumn, perRow, perColumn), event);
    }),
    onpointerleave: look && (() => look(null)),
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function largestIn(panel, row, column, nRows, nColumns) {
  let best = [row, column], size = -1;
  for (let i = row; i < Math.min(row + nRows, panel.rows); i++) {
    for (let j = column; j < Math.min(column + nColumns, panel.columns); j++) {
      const of = Math.abs(panel.at(i, j));
      if (of > size) [best, size] = [[i, j], of];
    }
  }
  return best;
}

/** Numbers of the positions as colours from the top down, a canvas one cell wide. Where rows are few, the largest is drawn. */
export function columnOf(values, mostRows, colourOf) {
  const n = Math.ceil(values.length / mostRows), rows = Math.ceil(values.length / n), pixels = new ImageData(1, rows);
  for (let i = 0; i < rows; i++) pixels.data.set([...colourOf(Math.max(...values.slice(i * n, (i + 1) * n))), 255], 4 * i);
  const canvas = h("canvas", { width: 1, height: rows });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}
