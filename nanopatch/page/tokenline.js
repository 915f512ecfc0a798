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
 *   units: [{first, text, label}], the tokens, or groups of them. values: their attention, (n, n), NaN behind the mask. ends: of
 *   the colours. pinned: which unit is shown while the pointer is elsewhere, or null: the last. pin: token or null -> called at a click.
 */
export function tokenLine({ units, values, ends, pinned, pin }) {
  const n = units.length, signed = ends[0] < 0, home = pinned ?? n - 1;
  const at = (query, key) => values.data[query * n + key];
  const buttons = units.map(({ text, first, label }, i) =>
    h("button", {
      type: "button", id: `look-${i}`, class: "look", "aria-label": label, "aria-pressed": String(i === pinned), tabindex: i === home ? 0 : -1,
      onclick: () => pin(i === pinned ? null : first), onpointerenter: (event) => point(i, event.clientX, event.clientY), onfocus: () => focused(i),
    }, h("bdi", null, text)));
  const subject = h("bdi", { class: "subject" });
  const line = h(
    "div",
    { class: "token-line", id: "token-line", role: "group", "aria-label": "tokens; arrow keys move, Enter keeps one", onkeydown: walk, onpointerleave: leave, onfocusout: leave },
    buttons,
  );
  paint(home);
  return h(
    "div",
    { class: "looks" },
    line,
    h("p", { class: "note" }, h("span", { class: "key-row" }, "Background"), ": where ", subject, " looks. ",
      h("span", { class: "key-column" }, "Underline"), ": which tokens look at it. Point at a token, or choose one by a click."),
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
    const lines = (found) => found.map(([j, value]) => `${number(value)}  ${units[j].label}`);
    const [row, column] = [rowOf(i), columnOf(i)];
    return [units[i].label, "looks most at", ...(row.length ? lines(row) : ["nothing"]), ...(column.length ? ["is looked at most by", ...lines(column)] : [])];
  }

  function sentence(i) {
    const named = (found) => found.flatMap(([j, value], k) => [k ? ", " : "", h("bdi", { class: "token" }, units[j].label), ` (${number(value)})`]);
    const [row, column] = [rowOf(i), columnOf(i)], verb = signed ? "differs most in its look at " : "looks most at ";
    return [
      h("bdi", { class: "token" }, units[i].label), " ", verb, row.length ? named(row) : "nothing", ". ",
      column.length > 0 && [signed ? "The looks at it differ most from " : "It is looked at most by ", named(column), "."],
    ];
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
