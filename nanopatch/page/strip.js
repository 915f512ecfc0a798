// The strip: the arrays of one layer as small pictures, wired as they are computed. The residual stream is the line at the
// bottom; attention and the MLP read it and add to it. Where a patch has changed an array, its picture and its wires glow: by
// the mean of the changes at all positions.

import { h, svg } from "./dom.js";
import { number } from "./text.js";
import { css } from "./colours.js";
import { hush, tell } from "./tooltip.js";
import { changeAt, changeWords, editsAt, glowColour, placeWords, tokenMark } from "./spread.js";
import { columnOf, onPaper, panelsOf, pictureOfArray, scaleOf, scaleWords } from "./thumbnail.js";

const READERS = { q: "resid_pre", k: "resid_pre", v: "resid_pre", mlp_pre: "resid_mid" };
const WRITERS = { attn_out: "resid_mid", mlp_out: "resid_post" }; // which array of the stream has what they add
const BESIDE = [ // made of the array to the left
  ["scores", "pattern"], ["pattern", "z"], ["z", "attn_out"], ["mlp_pre", "mlp_post"], ["mlp_post", "mlp_out"], ["ln_final", "logits"],
];
const IN_STREAM = ["resid_pre", "resid_mid", "resid_post"];
const NAME_HEIGHT = 20; // px, the height of a picture's name
const FRAME = 6; // px that a picture's frame adds to its height
const LEAST_LIT = 0.002; // a smaller change cannot be seen in the colour of a frame or a wire

/**
 * The strip of one layer: {element, show(name)}.
 *
 * places: [{name, layer}] of the layer. reply: its arrays. patch: the reply about a patch, or null. top: the likeliest
 * tokens, drawn as logits. width: px. pick(name): called when an array is chosen.
 */
export function stripOf({ places, reply, patch, top, width, pick }) {
  const n = reply.tokens.length, order = places.map(({ name }) => name), ends = order.includes("logits");
  const column = Math.max(86, Math.min(168, (width - 4) / (ends ? 6 : places.length)));
  const wide = column - 22, high = Math.round(Math.max(60, Math.min(wide, 6.5 * n)));
  const above = ends ? 6 : 34, low = ends ? 0 : high + 62; // px over the pictures, and from the upper row to the lower one
  const xOf = (name) => order.indexOf(name) * column, yOf = (name) => above + (IN_STREAM.includes(name) ? low : 0);
  const middle = (name) => xOf(name) + 6 + (column - 12) / 2, halfway = (name) => yOf(name) + NAME_HEIGHT + (high + FRAME) / 2;
  const stream = above + low + NAME_HEIGHT + (high + FRAME) / 2, bottom = above + NAME_HEIGHT + high + FRAME;
  const w = column * order.length, t = above + low + NAME_HEIGHT + high + FRAME + 16;
  const changes = new Map(places.map((place) => [place.name, patch ? meanChange(patch, place) : 0]));

  const buttons = new Map(places.map((place) => [place.name, arrayButton(place)]));
  const element = h(
    "div",
    { class: "scroll", id: "strip-box" },
    h(
      "div",
      { class: "strip", style: { width: `${w}px`, height: `${t}px`, ...onPaper(w) } },
      svg("svg", { class: "strip-wires", width: w, height: t, viewBox: `0 0 ${w} ${t}`, "aria-hidden": "true" }, wires()),
      [...buttons.values()],
    ),
  );
  return { element, show };

  function show(name) {
    for (const [of, button] of buttons) {
      button.classList.toggle("now", of === name);
      button.tabIndex = of === name ? 0 : -1;
      if (of === name) button.setAttribute("aria-current", "step");
      else button.removeAttribute("aria-current");
    }
    requestAnimationFrame(() => { // once it is in the page
      if (document.activeElement?.classList.contains("strip-array")) buttons.get(name).focus({ preventScroll: true });
      if (xOf(name) < element.scrollLeft || xOf(name) + column > element.scrollLeft + element.clientWidth) {
        element.scrollLeft = xOf(name) - (element.clientWidth - column) / 2;
      }
    });
  }

  function arrayButton(place) {
    const { name } = place, change = changes.get(name), patched = patch && editsAt(patch, place).length > 0;
    return h(
      "button",
      {
        id: `strip-${name}`, type: "button",
        class: ["strip-array", change > LEAST_LIT && "glows", patched && "patched"].filter(Boolean).join(" "),
        "data-name": name, "data-layer": place.layer, "data-value": patch ? change : null, onclick: () => pick(name),
        "aria-label": [placeWords(place), patched && "patched here", patch && `${change > 0 ? "on average " : ""}${changeWords(change)}`]
          .filter(Boolean).join(", "),
        style: {
          left: `${xOf(name) + 6}px`, top: `${yOf(name)}px`, width: `${column - 12}px`, "--glow": css(glowColour(change)),
          "--spread": `${Math.round(14 * Math.min(1, Math.sqrt(change)))}px`,
        },
      },
      h("span", { class: "strip-name" }, name),
      h("span", { class: "strip-picture", style: { height: `${high}px` } }, glowStrip(place), name === "logits" ? bars() : pictures(name)),
      patched && h("span", { class: "strip-badge" }, "patched"),
    );
  }

  function glowStrip(place) {
    if (!patch) return null;
    const canvas = columnOf(reply.tokens.map((_, i) => changeAt(patch, place, i) ?? 0), high, glowColour);
    canvas.className = "strip-rows";
    return canvas;
  }

  function pictures(name) {
    const array = reply[name], panels = panelsOf(name, array), scale = scaleOf(name, array);
    const square = name === "scores" || name === "pattern";
    const gap = panels.length > 1 ? 2 : 0, room = wide - (patch ? 8 : 0);
    const sizes = (across) => [(room + gap) / across - gap, (high + gap) / Math.ceil(panels.length / across) - gap];
    let across = panels.length, [pw, ph] = sizes(across);
    if (square) {
      for (let fewer = across; fewer > 0; fewer--) if (Math.min(...sizes(fewer)) > Math.min(...sizes(across))) across = fewer;
      pw = ph = Math.max(3, Math.floor(Math.min(...sizes(across))));
    }
    return h(
      "span",
      { class: "strip-panels", style: { "grid-template-columns": `repeat(${across}, ${pw}px)`, gap: `${gap}px` } },
      panels.map((panel) => {
        const look = (row, column, event) =>
          row === null ? hush() : tell(told(name, panel, row, column, scale), event.clientX, event.clientY);
        const mostColumns = Math.max(1, square ? pw : pw / 2.5);
        const canvas = pictureOfArray(panel, { mostRows: ph, mostColumns, ends: scale.ends, look });
        for (const [property, size] of [["width", pw], ["height", ph]]) canvas.style.setProperty(property, `${size}px`);
        return canvas;
      }),
    );
  }

  function told(name, panel, row, column, scale) {
    const place = places.find((of) => of.name === name), change = patch && changeAt(patch, place, row);
    const here = patch && editsAt(patch, place).some(({ positions }) => positions.includes(row)) ? ", patched here" : "";
    return [
      `${name} (${reply.shapes[name].join(", ")})`,
      ["position ", row, " ", tokenMark(reply.tokens[row])],
      ...(panel.head === null ? [] : [`head ${panel.head}`]),
      `value ${number(panel.at(row, column))}`,
      scaleWords(scale),
      ...(patch && change !== null ? [`${changeWords(change)}${here}`] : []),
    ];
  }

  /** The likeliest tokens as bars. */
  function bars() {
    if (!top) return null;
    const each = high / top.length;
    return svg("svg", { class: "strip-bars", width: wide - 8, height: high }, top.map(({ probability }, i) =>
      svg("rect", { x: 0, y: i * each, width: Math.max(0.5, probability * (wide - 8)), height: each - 1, "data-value": probability })));
  }

  // ---- wires --------------------------------------------------------------------------------------

  function wires() {
    const has = (...names) => names.every((name) => order.includes(name));
    if (ends) return [streamLine(0, 8, "ln_final"), beside("ln_final", "logits")];
    const adds = Object.keys(WRITERS).filter((name) => has(name)).map(middle);
    const over = above - 2;
    return [
      ...IN_STREAM.filter((name) => has(name)).map((name, i) => streamLine(i ? adds[i - 1] : 0, adds[i] ?? w, name)),
      ...Object.entries(READERS).filter(([name]) => has(name)).map(([name, from]) =>
        wire(`M${middle(name)} ${stream - 3} V${bottom + 7}`, from, arrowHead(middle(name), bottom + 1, "up"))),
      ...Object.keys(WRITERS).filter((name) => has(name)).map((name) => [
        wire(`M${middle(name)} ${bottom + 2} V${stream - 15}`, name, arrowHead(middle(name), stream - 8, "down")),
        svg("circle", { class: "strip-plus", cx: middle(name), cy: stream, r: 7 }),
        svg("path", { class: "strip-plus", d: `M${middle(name) - 4} ${stream} h8 m-4 -4 v8` }),
      ]),
      has("k", "scores") && wire(`M${middle("k")} ${over} V20 H${middle("scores") - 6}`, "k", null),
      has("q", "scores") && overTo("q", "scores", 20),
      has("v", "z") && overTo("v", "z", 8),
      ...BESIDE.filter((pair) => has(...pair)).map((pair) => beside(...pair)),
      ...[["pattern", "attention", bottom + 24], ["mlp_post", "MLP", bottom + 24], ["pattern", "residual stream", stream + 20]]
        .filter(([name]) => has(name))
        .map(([name, text, y]) => svg("text", { class: "strip-part", x: middle(name), y }, text)),
    ];
  }

  function lit(name) {
    const change = changes.get(name) ?? 0;
    if (change <= LEAST_LIT) return { class: "strip-wire" };
    return { style: { "--glow": css(glowColour(Math.max(change, 0.12))) }, class: "strip-wire lit" };
  }

  function streamLine(from, to, name) {
    const look = lit(name);
    return svg("path", { ...look, class: `${look.class} strip-stream`, d: `M${from} ${stream} H${to}`, "data-name": name });
  }

  function wire(d, name, head, crossing = false) {
    const look = lit(name);
    return [
      crossing && svg("path", { class: "strip-halo", d }),
      svg("path", { ...look, d, "data-name": name }),
      head && svg("path", { ...look, class: `strip-head${look.style ? " lit" : ""}`, d: head }),
    ];
  }

  /** A wire over the arrays between two. */
  function overTo(from, to, y) {
    const x = middle(to), d = `M${middle(from)} ${above - 2} V${y} H${x - 6} Q${x} ${y} ${x} ${y + 6} V${above - 7}`;
    return wire(d, from, arrowHead(x, above - 2, "down"), from === "v");
  }

  function beside(from, to) {
    const x = xOf(to) + 5, y = halfway(from);
    return wire(`M${xOf(from) + column - 6} ${y} H${x - 4}`, from, arrowHead(x + 2, y, "right"));
  }
}

function arrowHead(x, y, way) {
  return { up: `M${x - 4} ${y + 7} h8 l-4 -7 z`, down: `M${x - 4} ${y - 7} h8 l-4 7 z`, right: `M${x - 7} ${y - 4} v8 l7 -4 z` }[way];
}

/** The mean over positions of an array's change; of the logits, their change at the last position. */
function meanChange(patch, place) {
  const known = patch.tokens.map((_, i) => changeAt(patch, place, i)).filter((change) => change !== null);
  return known.reduce((sum, change) => sum + change, 0) / known.length;
}
