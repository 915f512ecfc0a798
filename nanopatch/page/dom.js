// Elements in one line, and a way to redraw without losing the reader's place. Text is always text, never HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. Attributes that are functions are listeners; null and false leave an attribute or a child out. */
export function h(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value); // onclick, onkeydown, ...
    else if (name === "style") for (const [property, of] of Object.entries(value)) element.style.setProperty(property, of);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/**
 * Put new children into an element. Those at its beginning that are the same elements as before are not touched, so a form
 * stays as it is while someone types. What had the focus (found again by its id) keeps it, and what was scrolled stays.
 */
export function redraw(element, ...children) {
  const focused = element.contains(document.activeElement) ? document.activeElement : null;
  const places = [...element.querySelectorAll(".scroll[id]")].map((box) => [box.id, box.scrollLeft, box.scrollTop]);
  const open = new Set([...element.querySelectorAll("details[id][open]")].map((details) => details.id));
  const next = children.flat(Infinity).filter(Boolean);
  let same = 0;
  while (same < next.length && element.childNodes[same] === next[same]) same++;
  while (element.childNodes.length > same) element.lastChild.remove();
  element.append(...next.slice(same));
  for (const details of element.querySelectorAll("details[id]")) if (open.has(details.id)) details.open = true;
  for (const [id, left, top] of places) document.getElementById(id)?.scrollTo(left, top);
  // What was put back is in its place again, but without the focus.
  const now = focused?.isConnected ? focused : focused?.id ? document.getElementById(focused.id) : null;
  if (now && now !== document.activeElement) now.focus({ preventScroll: true });
}

/** A row of choices of which one is taken: radio buttons that look like one button each. */
export function choices(name, label, options, chosen, choose) {
  return h(
    "fieldset",
    { class: "choices" },
    h("legend", null, label),
    options.map(([value, text, why]) =>
      h(
        "label",
        { title: why },
        h("input", {
          type: "radio", id: `${name}-${value}`, name, value, checked: value === chosen, disabled: Boolean(why),
          onchange: () => choose(value),
        }),
        h("span", null, text),
      ),
    ),
  );
}

/** A menu. options: [value, text] pairs; values are texts. */
export function menu(id, label, options, chosen, choose) {
  return h(
    "label",
    { class: "menu" },
    label,
    h(
      "select",
      { id, onchange: (event) => choose(event.target.value) },
      options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)),
    ),
  );
}

/** What stands in place of a view whose reply is not there: still computed, not in this file, or impossible. */
export function problem(reply) {
  if (!reply) return h("p", { class: "waiting", role: "status" }, "computing …");
  if (reply.missing) {
    return h("p", { class: "missing" }, "This file does not hold these numbers. ", h("code", null, "nanopatch explore"), " computes them.");
  }
  return reply.error ? h("p", { class: "error" }, reply.error) : null;
}
