// The tokens as a line of text: what one of them looks at, and which ones look at it.

import { h } from "./dom.js";
import { colour, css, ink } from "./colours.js";
import { number } from "./text.js";
import { hush, say, tell } from "./tooltip.js";

/** So many tokens are named in words. */
const MOST_NAMED = 3;

/**
 * The line as an element.
 *
 * @param {object} what
 *   units: [{first, text, label}], the tokens, or groups of them. values: their attention, (n, n), NaN behind the mask.
 *   ends: of the colours. pinned: which unit is shown while the pointer is elsewhere, or null: the last one. pin: token or
 *   null -> called at a click.
 */
export function tokenLine({ units, values, ends, pinned, pin }) {
  const n = units.length, signed = ends[0] < 0, home = pinned ?? n - 1;
  const nothing = signed ? "no change here" : "no attention here";
  const at = (query, key) => values.data[query * n + key];
  const buttons = units.map(({ text, first, label }, i) =>
    h("button", {
      type: "button", id: `look-${i}`, class: "look", "aria-label": label, "aria-pressed": String(i === pinned),
      tabindex: i === home ? 0 : -1, onclick: () => pin(i === pinned ? null : first), onfocus: () => focused(i),
      onpointerenter: (event) => point(i, event.clientX, event.clientY),
    }, h("bdi", null, text)));
  const subject = h("bdi", { class: "subject" });
  const line = h(
    "div",
    {
      class: "token-line", id: "token-line", role: "group", "aria-label": "tokens; arrow keys move, Enter keeps one",
      onkeydown: walk, onpointerleave: leave, onfocusout: leave,
    },
    buttons,
  );
  paint(home);
  return h(
    "div",
    { class: "looks" },
    line,
    h("p", { class: "note" },
      h("span", { class: signed ? null : "key-row" }, "Background"), signed ? ": change in where " : ": where ", subject, " looks. ",
      h("span", { class: signed ? null : "key-column" }, "Underline"), signed ? ": change in " : ": ", "which tokens look at it. ",
      "Point at a token, or choose one by a click."),
    h("p", { class: "look-words", id: "look-words" }, sentence(home)),
  );

  /** Colour the line as one token sees it. */
  function paint(i) {
    subject.textContent = units[i].label;
    buttons.forEach((button, j) => {
      const row = at(i, j), column = i === j ? NaN : at(j, i), fill = colour(row, ends);
      button.classList.toggle("subject", i === j);
      for (const [name, value] of [["data-row", row], ["data-column", column]]) {
        if (Number.isNaN(value)) button.removeAttribute(name);
        else button.setAttribute(name, value);
      }
      const style = {
        "background-color": Number.isNaN(row) ? "transparent" : css(fill),
        color: Number.isNaN(row) ? "" : ink(fill),
        "border-bottom-color": Number.isNaN(column) ? "transparent" : css(colour(column, ends, signed ? "two" : "glow")),
      };
      for (const [property, value] of Object.entries(style)) button.style.setProperty(property, value);
    });
  }

  /** What counts most for a token: [its number, the weight], largest first. */
  function strongest(weight) {
    const known = units.map((_, j) => [j, weight(j)]).filter(([, value]) => value && !Number.isNaN(value));
    return known.sort(([, a], [, b]) => Math.abs(b) - Math.abs(a)).slice(0, MOST_NAMED);
  }

  function rowOf(i) {
    return strongest((j) => at(i, j));
  }

  function columnOf(i) {
    return strongest((j) => (i === j ? NaN : at(j, i)));
  }

  /** A token stands at the end of its line, so that no direction of writing reorders the line. */
  function wordsOf(i) {
    const lines = (title, found) => (found.length ? [title, ...found.map(([j, value]) => `${said(value)}  ${units[j].label}`)] : []);
    const [row, column] = [rowOf(i), columnOf(i)];
    if (!row.length && !column.length) return [units[i].label, nothing];
    return [
      units[i].label,
      ...lines(signed ? "change in where it looks" : "looks most at", row),
      ...lines(signed ? "change in what looks at it" : "is looked at most by", column),
    ];
  }

  /** The same as one sentence or two. */
  function sentence(i) {
    const token = (j) => h("bdi", { class: "token" }, units[j].label);
    const named = (title, found) =>
      found.length > 0 && [title, found.flatMap(([j, value], k) => [k ? ", " : "", token(j), ` (${said(value)})`]), ". "];
    const [row, column] = [rowOf(i), columnOf(i)];
    if (!row.length && !column.length) return [token(i), `: ${nothing}.`];
    return [
      named([token(i), signed ? " changes where it looks, most at " : " looks most at "], row),
      named(signed ? "What looks at it changes most at " : "It is looked at most by ", column),
    ];
  }

  function said(value) {
    return signed && value > 0 ? `+${number(value)}` : number(value);
  }

  function point(i, x, y) {
    paint(i);
    tell(wordsOf(i), x, y + 12);
  }

  function focused(i) {
    buttons.forEach((button, j) => button.setAttribute("tabindex", i === j ? 0 : -1));
    if (!buttons[i].matches(":focus-visible")) return;
    const frame = buttons[i].getBoundingClientRect();
    point(i, frame.left, frame.bottom);
    say(wordsOf(i));
  }

  function leave() {
    paint(home);
    hush();
  }

  function walk(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -n, End: n }[event.key];
    if (!step) return event.key === "Escape" ? leave() : undefined;
    const from = buttons.indexOf(document.activeElement);
    buttons[Math.min(n - 1, Math.max(0, from + step))].focus();
    event.preventDefault();
    event.stopPropagation();
  }
}
