// Horizontal bars, one a row: a label, the bar, its value. What is below zero goes from the zero line to the left.

import { h } from "./dom.js";
import { hush, say, tell } from "./tooltip.js";

/**
 * Bars as an element, a list.
 *
 * @param {object} what
 *   id: of the list, one on the page. rows: [{text, value, title, mark}]: the label, the number, lines of text that are told
 *   at the pointer (by default label and number), and a word that marks the row, or null. ends: the values at both ends of
 *   the room for bars; 0 is always in it. format: value -> text. label: what the list shows, for screen readers.
 */
export function bars({ id, rows, ends, format, label }) {
  const low = Math.min(0, ends[0]), high = Math.max(0, ends[1]), room = high - low || 1;
  const percentOf = (value) => `${(100 * (Math.min(high, Math.max(low, value)) - low)) / room}%`;
  const items = rows.map(item);
  let cursor = null;
  return h(
    "ul",
    {
      id, class: low < 0 ? "bars two-sided" : "bars", role: "list", tabindex: 0, "aria-label": label,
      onkeydown: walk, onblur: () => leave(), onpointerleave: () => leave(),
    },
    items,
  );

  function item(row, i) {
    const { text, value, mark } = row, from = Math.min(0, value), to = Math.max(0, value);
    const words = linesOf(row), said = row.title ? words : [...words, ...(mark ? [mark] : [])];
    return h(
      "li",
      { class: mark ? "bar-row marked" : "bar-row", "data-value": value, onpointermove: (event) => point(i, event) },
      h("span", { class: "unseen" }, said.join(", ")),
      h("bdi", { class: "bar-label", "aria-hidden": "true" }, text),
      h("span", { class: "bar-room", "aria-hidden": "true" },
        Number.isFinite(value) && h("span", {
          class: value < 0 ? "bar minus" : "bar plus",
          style: { left: percentOf(from), width: `calc(${percentOf(to)} - ${percentOf(from)})` },
        }),
        h("span", { class: "bar-zero", style: { left: percentOf(0) } }),
        // The mark stands beside the bar's end; in a long bar it stands at the bar's beginning.
        mark && h("span", { class: "bar-mark", style: { left: `calc(${percentOf(to > (low + high) / 2 ? 0 : to)} + 4px)` } }, mark)),
      h("span", { class: "bar-value", "aria-hidden": "true" }, format(value)),
    );
  }

  function linesOf({ text, value, title }) {
    return title ?? [text, format(value)];
  }

  function point(i, event) {
    show(i, event.clientX, event.clientY);
  }

  function show(i, x, y) {
    items.forEach((element, k) => element.classList.toggle("pointed", k === i));
    const frame = items[i].getBoundingClientRect();
    tell(linesOf(rows[i]), x ?? frame.left + frame.width / 2, y ?? frame.bottom);
  }

  function leave() {
    for (const element of items) element.classList.remove("pointed");
    hush();
  }

  function walk(event) {
    const step = { ArrowUp: -1, ArrowDown: 1, Home: -rows.length, End: rows.length }[event.key];
    if (step) {
      cursor = Math.min(rows.length - 1, Math.max(0, cursor === null ? 0 : cursor + step));
      items[cursor].scrollIntoView({ block: "nearest" });
      show(cursor);
      say(linesOf(rows[cursor]));
    } else if (event.key === "Escape") {
      leave();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }
}
