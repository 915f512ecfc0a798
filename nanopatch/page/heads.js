// The attention patterns of all heads as small pictures: a row for each layer, a column for each head.

import { h } from "./dom.js";
import { colour, css } from "./colours.js";
import { number } from "./text.js";
import { hush, say, tell } from "./tooltip.js";
import { part } from "./unpack.js";

const SHADES = 256;
const GAP = 4; // px between two pictures
const NAMES = 24; // px, the column of layer numbers

/** The pictures that were drawn last, by the array they show: another choice of head does not draw them anew. */
const headPictures = new WeakMap();

/**
 * Buttons with a picture each.
 *
 * @param {object} what
 *   heads: [[layer, head]]. values: (n_heads, n, n). ends: of the colours. room: px. chosen: which of the heads. two: whether
 *   the values are the difference of two runs. choose: [layer, head] -> called at a click, or when the arrow keys move.
 * @returns {{element: Element, width: number}}
 */
export function smallHeads({ heads, values, ends, room, chosen, two, choose }) {
  const layers = [...new Set(heads.map(([layer]) => layer))].sort((a, b) => a - b);
  const columns = [...new Set(heads.map(([, head]) => head))].sort((a, b) => a - b);
  const size = Math.max(22, Math.min(90, Math.floor((room - NAMES) / columns.length) - GAP - 4));
  const { canvases, largest } = headCanvases(values, ends, size);
  const buttons = heads.map(([layer, head], i) =>
    h("button", {
      type: "button", id: idOf(i), class: "small-head", "aria-label": `head ${layer}.${head}`, "aria-pressed": String(i === chosen),
      tabindex: i === chosen ? 0 : -1, "data-value": largest[i],
      style: { "grid-row": layers.indexOf(layer) + 2, "grid-column": columns.indexOf(head) + 2 },
      onclick: () => choose(heads[i]), onpointermove: (event) => tell(wordsOf(i), event.clientX, event.clientY), onpointerleave: hush,
    }, canvases[i]));
  const element = h(
    "div",
    { class: "scroll", id: "small-heads-box" },
    h(
      "div",
      {
        class: "small-heads", id: "small-heads", role: "group", "aria-label": "attention of all heads; arrow keys choose one",
        onkeydown: walk,
        style: { "grid-template-columns": `${NAMES - GAP}px repeat(${columns.length}, ${size + 4}px)` },
      },
      columns.map((head, j) => label(1, j + 2, head)),
      layers.map((layer, i) => label(i + 2, 1, layer)),
      buttons,
    ),
    h("p", { class: "note" }, "Down: layers. Across: heads."),
  );
  return { element, width: NAMES + columns.length * (size + 4 + GAP) };

  function label(row, column, number) {
    return h("span", { class: "head-number", "aria-hidden": "true", style: { "grid-row": row, "grid-column": column } }, String(number));
  }

  function idOf(i) {
    return `head-${heads[i][0]}-${heads[i][1]}`;
  }

  function wordsOf(i) {
    const name = `head ${heads[i][0]}.${heads[i][1]}`;
    return two ? [name, `largest difference ${number(largest[i])}`] : [name];
  }

  function walk(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const from = buttons.indexOf(document.activeElement);
    if (!step || from < 0) return;
    event.preventDefault();
    event.stopPropagation();
    const row = layers.indexOf(heads[from][0]) + step[0], column = columns.indexOf(heads[from][1]) + step[1];
    const to = heads.findIndex(([layer, head]) => layer === layers[row] && head === columns[column]);
    if (to < 0) return;
    buttons[to].focus(); // a redraw keeps the focus by the button's id
    say(wordsOf(to));
    choose(heads[to]);
  }
}

/** For each head a canvas, and its largest number. */
function headCanvases(values, ends, size) {
  const looks = [...ends, css(colour(ends[1], ends)), css(colour(NaN, ends)), size, devicePixelRatio].join();
  if (headPictures.get(values)?.looks !== looks) {
    const shades = Array.from({ length: SHADES }, (_, k) => colour(ends[0] + ((ends[1] - ends[0]) * k) / (SHADES - 1), ends));
    const patterns = Array.from({ length: values.shape[0] }, (_, i) => part(values, i));
    const canvases = patterns.map((pattern) => headCanvas(pattern, ends, shades, size));
    headPictures.set(values, { looks, canvases, largest: patterns.map(largestNumber) });
  }
  return headPictures.get(values);
}

/** The number of largest size, with its sign. */
function largestNumber({ data }) {
  return data.reduce((most, value) => (Math.abs(value) > Math.abs(most) ? value : most), 0);
}

/** One pattern, a pixel for each cell; if the screen has fewer pixels there, each shows the largest of several cells. */
function headCanvas({ shape: [n], data: pattern }, [low, high], shades, size) {
  const side = Math.min(n, Math.max(1, Math.round(size * devicePixelRatio)));
  const first = (pixel) => Math.floor((pixel * n) / side), after = (pixel) => Math.max(first(pixel) + 1, first(pixel + 1));
  const pixels = new ImageData(side, side);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      let largest = NaN;
      for (let q = first(y); q < after(y); q++) {
        for (let k = first(x); k < after(x); k++) {
          const value = pattern[q * n + k];
          if (Number.isNaN(largest) || Math.abs(value) > Math.abs(largest)) largest = value;
        }
      }
      if (Number.isNaN(largest)) continue; // behind the mask: the paper shows
      const shade = Math.round(((largest - low) / (high - low)) * (SHADES - 1));
      pixels.data.set([...shades[Math.min(SHADES - 1, Math.max(0, shade))], 255], 4 * (y * side + x));
    }
  }
  const canvas = h("canvas", { width: side, height: side, "aria-hidden": "true", style: { width: `${size}px`, height: `${size}px` } });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}
