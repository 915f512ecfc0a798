// The box beside the pointer, and the same words for a screen reader.

import { h } from "./dom.js";

const box = h("div", { id: "tooltip", class: "tooltip", "aria-hidden": "true", hidden: true });
const spoken = h("div", { id: "spoken", class: "unseen", role: "status", "aria-live": "polite" });
document.body.append(box, spoken);

/** Show lines of text near a point of the window; the first line is a heading. */
export function tell(lines, x, y) {
  box.replaceChildren(...lines.map((line, i) => h(i ? "div" : "strong", null, line)));
  box.hidden = false;
  const { offsetWidth: width, offsetHeight: height } = box;
  const left = x + 14 + width > innerWidth ? Math.max(4, x - 14 - width) : x + 14;
  const top = y + 14 + height > innerHeight ? Math.max(4, y - 14 - height) : y + 14;
  box.style.setProperty("transform", `translate(${left}px, ${top}px)`);
}

/** Say lines to a screen reader. */
export function say(lines) {
  spoken.textContent = lines.join(", ");
}

export function hush() {
  box.hidden = true;
}
