// The spread map: a whole forward pass in one picture. A column is an array, a row is a position, and the colour is how
// much a patch changed the array there. Information flows to the right, and down to later positions.

import { h, svg } from "./dom.js";
import { number, percent, short, visible } from "./text.js";
import { colour, css } from "./colours.js";
import { asTable } from "./heatmap.js";
import { hush, say, tell } from "./tooltip.js";

const MOST_SPREAD = 20000; // more cells are one picture of so many pixels
const STREAM_ARRAYS = ["resid_pre", "resid_mid", "resid_post"];
/** Sites that are not drawn, and the array that reads each of them next: there they are marked. */
const READ_BY = { q_input: "q", k_input: "k", v_input: "v", mlp_in: "mlp_pre" };

/** The colour of a relative change: its square root, so that 1 % can be seen beside 100 %. 1 and more look the same. */
export function glowColour(change) {
  return colour(Math.min(1, Math.sqrt(change)), [0, 1], "glow");
}

/** A change in words. */
export function changeWords(change) {
  return change === 0 ? "no change" : change === Infinity ? "changed, from zero" : `changed by ${percent(change)}`;
}

/** The change of an array at a position, by a reply about a patch; null where it is not known. place: {name, layer}. */
export function changeAt(patch, { name, layer }, position) {
  const n = patch.tokens.length;
  if (name === "logits" && position < n - 1) return null; // only the last token's logits are computed
  if (layer === null) return patch.change_final.data[(name === "logits" ? n : 0) + position];
  return patch.change.data[(patch.names.indexOf(name) * patch.change.shape[1] + layer) * n + position];
}

/** The edits of a patch that are marked at an array; those of no position write nothing. */
export function editsAt(patch, { name, layer }) {
  return patch.edits.filter((edit) => edit.positions.length && edit.layer === layer && (READ_BY[edit.site] ?? edit.site) === name);
}

/** What an edit writes, in words, as parts of a line. */
export function editWords({ site, positions, within, keys }, { name }, tokens) {
  const few = (items, text) => [items.slice(0, 6).map((item, i) => [i ? ", " : "", text(item)]), items.length > 6 ? ", …" : ""];
  const all = positions.length === tokens.length;
  const named = (i) => [i, " ", tokenMark(tokens[i])];
  const rows = all ? "all positions" : [positions.length > 1 ? "positions " : "position ", few(positions, named)];
  const inside = within && [site.startsWith("mlp") ? ", neuron" : ", head", within.length > 1 ? "s " : " ", few(within, String)];
  const columns = keys && keys.length < tokens.length && [keys.length > 1 ? ", keys " : ", key ", few(keys, named)];
  return [site === name ? "" : `${site}, which ${name} reads: `, rows, inside, columns].filter(Boolean);
}

/** A token in a line of text, kept apart from the text around it where it is written from right to left. */
export function tokenMark(text) {
  return h("bdi", { class: "token" }, short(visible(text), 24));
}

/**
 * The map: {element, show(step)}.
 *
 * pass: [{name, layer}], layer null after the last block. tokens: of the rows. patch: the reply about a patch, or null.
 * width: px. pick: called with the number of the column that was chosen.
 */
export function spreadMap({ pass, tokens, patch, width, pick }) {
  const n = tokens.length, labels = tokens.map((text) => short(visible(text), 16));
  const left = Math.min(130, 30 + 6.6 * Math.max(...labels.map((text) => [...text].length)));
  const gaps = pass.map((place, k) => gapBefore(pass[k - 1], place));
  const between = gaps.reduce((sum, gap) => sum + gap, 0);
  const cell = Math.max(5, Math.min(36, (width - left - between - 16) / pass.length));
  const height = n <= 32 ? 17 : n <= 72 ? 11 : Math.max(2, 760 / n);
  const named = cell >= 11, top = 26, bottom = named ? 74 : 22;
  const xs = [];
  gaps.reduce((x, gap) => (xs.push(x + gap), x + gap + cell), left);
  const [w, t] = [xs.at(-1) + cell + 16, top + n * height + bottom], y = (i) => top + i * height;

  const ring = svg("rect", { class: "spread-ring", width: cell, height, hidden: true });
  const mark = svg(
    "g",
    { class: "spread-now" },
    svg("path", { d: `M${cell / 2 - 6} ${top - 9} h12 l-6 7 z` }),
    svg("rect", { x: -1.5, y: top - 1.5, width: cell + 3, height: n * height + 3 }),
  );
  const names = pass.map((place, k) => svg("text", named
    ? { class: "spread-name", transform: `translate(${xs[k] + cell / 2 + 3} ${y(n) + 9}) rotate(-55)` }
    : { class: "spread-name alone", x: Math.min(w - 40, Math.max(left + 20, xs[k] + cell / 2)), y: y(n) + 15 }, place.name));
  const everyRow = Math.max(1, Math.ceil(11 / height));
  let row = null, now = 0;

  const drawing = svg(
    "svg",
    {
      id: "spread", class: "spread", width: w, height: t, viewBox: `0 0 ${w} ${t}`, tabindex: 0, role: "application",
      "aria-roledescription": "map",
      "aria-label": `How the patch spreads: ${pass.length} arrays by ${n} positions. ` +
        "Left and right go through the arrays, up and down through the positions.",
      onpointermove: (event) => point(event, true), onpointerleave: leave, onblur: leave, onkeydown: walk,
      onclick: (event) => {
        const found = point(event, false);
        if (!found) return;
        row = found[1] >= 0 && found[1] < n ? found[1] : null;
        pick(found[0]);
      },
    },
    layerNames(),
    labels.map((text, i) => i % everyRow === 0 && [
      svg("text", { class: height < 12 ? "spread-row small" : "spread-row", x: left - 6, y: y(i) + height / 2 + 4 }, text),
      svg("text", { class: "spread-position", x: 2, y: y(i) + height / 2 + 4 }, i),
    ]),
    pass.length * n <= MOST_SPREAD ? drawnCells() : pass.map((_, k) => pictureOfColumn(k)),
    outlines(),
    names,
    mark,
    ring,
  );
  return { element: h("div", { class: "scroll", id: "spread-box" }, drawing), show };

  function show(step) {
    now = step;
    mark.style.setProperty("transform", `translateX(${xs[step]}px)`);
    names.forEach((text, k) => text.classList.toggle("now", k === step));
    drawing.dataset.step = step;
    const box = drawing.parentElement;
    requestAnimationFrame(() => {
      if (xs[step] < box.scrollLeft + left || xs[step] + 40 > box.scrollLeft + box.clientWidth) {
        box.scrollLeft = xs[step] - box.clientWidth / 2;
      }
      if (row !== null && document.activeElement === drawing) showCell(step, row);
    });
  }

  function drawnCells() {
    return pass.flatMap((place, k) =>
      tokens.map((_, i) => {
        const change = patch ? changeAt(patch, place, i) : 0;
        return change !== null && svg("rect", {
          class: "spread-cell", x: xs[k], y: y(i), width: cell, height, fill: css(glowColour(change)), "data-step": k,
          "data-name": place.name, "data-layer": place.layer, "data-position": i, "data-value": patch ? change : null,
        });
      }));
  }

  function pictureOfColumn(k) {
    const canvas = h("canvas", { width: 1, height: n }), pixels = new ImageData(1, n);
    for (let i = 0; i < n; i++) {
      const change = patch ? changeAt(patch, pass[k], i) : 0;
      if (change !== null) pixels.data.set([...glowColour(change), 255], 4 * i);
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return svg("image", {
      class: "cells", href: canvas.toDataURL(), x: xs[k], y: top, width: cell, height: n * height, preserveAspectRatio: "none",
    });
  }

  /** A line over the columns of each layer, and its number. */
  function layerNames() {
    const layers = [...new Set(pass.map(({ layer }) => layer))];
    return layers.map((layer) => {
      const of = xs.filter((_, k) => pass[k].layer === layer), from = of[0], to = of.at(-1) + cell;
      const text = layer === null ? "end" : to - from > 60 ? `layer ${layer}` : layer;
      return [
        svg("line", { class: "spread-layer", x1: from, x2: to, y1: 16, y2: 16 }),
        svg("text", { class: "spread-layer", x: (from + to) / 2, y: 11 }, text),
      ];
    });
  }

  /** Frames around what is assigned: one for each run of neighbouring positions. */
  function outlines() {
    return patch && pass.map((place, k) =>
      editsAt(patch, place).map(({ site, positions }) =>
        positions.filter((i) => !positions.includes(i - 1)).map((first) => {
          let last = first;
          while (positions.includes(last + 1)) last += 1;
          return svg("rect", {
            class: "spread-patched", x: xs[k], y: y(first), width: cell, height: (last - first + 1) * height, rx: 2,
            "data-name": place.name, "data-site": site, "data-layer": place.layer, "data-first": first, "data-last": last,
          });
        })));
  }

  /** The column and the row under the pointer; null outside. The labels belong to their columns. */
  function point(event, telling) {
    const frame = drawing.getBoundingClientRect(), px = event.clientX - frame.left;
    const i = Math.floor((event.clientY - frame.top - top) / height);
    const k = xs.findIndex((x, at) => px >= x - gaps[at] / 2 && px < x + cell + (gaps[at + 1] ?? 4) / 2);
    if (k < 0) return leave(), null;
    if (telling && i >= 0 && i < n) showCell(k, i, event.clientX, event.clientY);
    else if (telling) leave();
    return [k, i];
  }

  function showCell(k, i, px, py) {
    for (const [name, value] of [["x", xs[k]], ["y", y(i)]]) ring.setAttribute(name, value);
    ring.removeAttribute("hidden");
    const frame = drawing.getBoundingClientRect();
    tell(lines(k, i), px ?? frame.left + xs[k] + cell, py ?? frame.top + y(i));
  }

  function lines(k, i) {
    const place = pass[k], told = [placeWords(place), ["position ", i, " ", tokenMark(tokens[i])]];
    if (!patch) return told;
    const change = changeAt(patch, place, i);
    told.push(change === null ? "not computed: only the last token's logits are" : changeWords(change));
    if (editsAt(patch, place).some(({ positions }) => positions.includes(i))) told.push("patched here");
    return told;
  }

  function leave() {
    ring.setAttribute("hidden", "");
    hush();
  }

  function walk(event) {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (event.key === "Escape") return leave();
    if (!by) return;
    row = row === null ? 0 : Math.min(n - 1, Math.max(0, row + by));
    showCell(now, row);
    say(lines(now, row).map((line) => [line].flat(Infinity).map((part) => part.textContent ?? part).join("")));
    event.preventDefault();
    event.stopPropagation();
  }
}

/** The changes as rows of a file: names first. */
export function spreadRows(pass, patch) {
  const rows = pass.flatMap((place) => patch.tokens.map((text, i) => [place.name, place.layer, i, text, changeAt(patch, place, i)]));
  return [["array", "layer", "position", "token", "change"], ...rows.filter((row) => row[4] !== null)];
}

/** The changes as a table, folded away. */
export function spreadTable(pass, patch) {
  const values = patch.tokens.flatMap((_, i) => pass.map((place) => changeAt(patch, place, i) ?? NaN));
  return asTable("spread-table", {
    values: { shape: [patch.tokens.length, pass.length], data: values }, rows: patch.tokens.map((text, i) => `${i} ${visible(text)}`),
    columns: pass.map(placeWords), rowsTitle: "change, as a share of the array",
  });
}

/** Where an array stands in the pass, in words. */
export function placeWords({ name, layer }) {
  return layer === null ? name : `layer ${layer}, ${name}`;
}

/** A wide gap between layers, a narrow one between the residual stream and what reads and writes it. */
function gapBefore(before, { name, layer }) {
  if (!before) return 0;
  if (before.layer !== layer) return 9;
  return STREAM_ARRAYS.includes(name) !== STREAM_ARRAYS.includes(before.name) ? 2 : 0;
}

/** The colours of changes, and what they stand for. */
export function glowBar() {
  const wide = 240, steps = 60, x = (change) => wide * Math.sqrt(change);
  return h(
    "div",
    { class: "scale spread-scale" },
    h("span", null, "no change"),
    svg(
      "svg",
      { width: wide + 8, height: 26, role: "img", "aria-label": "colours from no change to a change as large as the array itself" },
      Array.from({ length: steps }, (_, k) =>
        svg("rect", { x: (wide * k) / steps, width: wide / steps + 0.5, height: 11, fill: css(glowColour((k / (steps - 1)) ** 2)) })),
      svg("rect", { class: "spread-bar", x: 0.5, y: 0.5, width: wide - 1, height: 10 }),
      [0.01, 0.1, 0.25, 0.5].map((change) => [
        svg("line", { class: "spread-tick", x1: x(change), x2: x(change), y1: 11, y2: 15 }),
        svg("text", { class: "spread-tick", x: x(change), y: 25 }, `${number(100 * change)} %`),
      ]),
    ),
    h("span", null, "as large as the array itself, or larger"),
  );
}
