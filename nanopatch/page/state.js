// What the page shows: one flat object. What differs from the page's own defaults stands in the URL, after #, so a link
// shows the same.

/** How each field is written in the URL. Prompts and answers are there only in the live page: a file has its own. */
const FIELDS = {
  clean: "text", corrupted: "text", answer: "text", wrong_answer: "text", prepend_bos: "yes", align: "text", special_tokens: "yes",
  site: "text", axes: "list", window: "number", direction: "text", metric: "text", scale: "text", cell: "number",
  view: "text", run: "text", layer: "number", head: "number", token: "number", shown: "text", step: "number", n: "number",
};
export const EXPERIMENT = ["clean", "corrupted", "answer", "wrong_answer", "prepend_bos", "align", "special_tokens"];

const READ = {
  text: (text) => text,
  yes: (text) => text === "yes",
  list: (text) => text.split(","),
  number: (text) => (/^\d{1,9}$/.test(text) ? Number(text) : undefined),
};
const WRITE = { text: String, yes: (value) => (value ? "yes" : "no"), list: (value) => value.join(","), number: String };

/** The state of a link: the defaults, and what the text after # says otherwise. Fields that cannot be read are listed in `unread`. */
export function readState(hash, defaults) {
  const state = { ...defaults }, unread = [];
  for (const [name, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
    const value = name in FIELDS && name in defaults ? READ[FIELDS[name]](text) : undefined;
    if (value === undefined) unread.push(name);
    else state[name] = value;
  }
  return { state, unread };
}

/** The text after # that leads to a state. */
export function writeState(state, defaults) {
  const said = new URLSearchParams();
  for (const [name, how] of Object.entries(FIELDS)) {
    const value = state[name];
    if (value === null || value === undefined || String(value) === String(defaults[name])) continue;
    said.set(name, WRITE[how](value));
  }
  return said.toString();
}

/** The part of a state that says what is patched in which cell: fields of a question. */
export function whatOf({ site, axes, window, direction, cell }) {
  return { site, axes, window, direction, cell };
}

/** A question about one run: clean, corrupted, or the patched run of the chosen cell; null if no cell is chosen. */
export function runQuestion(view, state, run = state.run) {
  if (run !== "patched") return { view, run };
  return state.cell === null ? null : { view, run, ...whatOf(state) };
}

/** What a view says if it shows the patched run and no cell is chosen. */
export const NO_CELL = "No cell is patched yet: click one in the heatmap above.";
