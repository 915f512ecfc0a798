// What the page shows: one flat object. What differs from the page's own defaults stands in the URL, after #, so a link
// shows the same.

/** The fields of an experiment, as Python names them. */
export const EXPERIMENT = ["clean", "corrupted", "answer", "wrong_answer", "prepend_bos", "align", "special_tokens"];

/** How a kind of value is written in the URL, and read from there. */
const KINDS = {
  text: { read: (said) => said, write: String },
  textOrNone: { read: (said) => said || null, write: (value) => value ?? "" },
  yes: { read: (said) => said === "yes", write: (value) => (value ? "yes" : "no") },
  number: { read: (said) => (/^\d{1,9}$/.test(said) ? Number(said) : undefined), write: String },
  list: { read: (said) => said.split(","), write: (value) => value.join(",") },
};

/** The kind of each field. `ids`: prompts and answers are token ids, "15, 3, 7". */
const FIELDS = {
  clean: "text", corrupted: "text", answer: "textOrNone", wrong_answer: "textOrNone", prepend_bos: "yes", align: "textOrNone",
  special_tokens: "yes", ids: "yes", site: "text", axes: "list", window: "number", direction: "text", metric: "text", scale: "text",
  cell: "number", view: "text", run: "text", layer: "number", head: "number", token: "number", shown: "text", step: "number", n: "number",
};

/** The state of a link: the defaults, and what the text after # says otherwise. What cannot be read is listed in `unread`. */
export function readState(hash, defaults) {
  const state = { ...defaults }, unread = [];
  for (const [name, said] of new URLSearchParams(hash.replace(/^#/, ""))) {
    const value = Object.hasOwn(FIELDS, name) && name in defaults ? KINDS[FIELDS[name]].read(said) : undefined;
    if (value === undefined) unread.push(name);
    else state[name] = value;
  }
  return { state, unread };
}

/** The text after # that leads to a state. */
export function writeState(state, defaults) {
  const said = new URLSearchParams();
  for (const [name, kind] of Object.entries(FIELDS)) {
    if (name in defaults && String(state[name]) !== String(defaults[name])) said.set(name, KINDS[kind].write(state[name]));
  }
  return said.toString();
}

/** An experiment, as Python has it, as fields of the state. */
export function stateOf(experiment) {
  const ids = Array.isArray(experiment.clean);
  const shown = (value) => (Array.isArray(value) ? value.join(", ") : value === null ? null : String(value));
  const fields = { clean: shown(experiment.clean), corrupted: shown(experiment.corrupted), ids };
  for (const name of ["answer", "wrong_answer"]) fields[name] = shown(experiment[name]);
  for (const name of ["prepend_bos", "align", "special_tokens"]) fields[name] = experiment[name];
  return fields;
}

/** The experiment of a state, as Python reads it. */
export function experimentOf(state) {
  const experiment = Object.fromEntries(EXPERIMENT.map((name) => [name, state[name] ?? null]));
  if (!state.ids) return experiment;
  const ids = (said) => said.split(/[\s,]+/).filter(Boolean).map((id) => (/^\d{1,9}$/.test(id) ? Number(id) : -1));
  for (const name of ["clean", "corrupted"]) experiment[name] = ids(experiment[name]);
  for (const name of ["answer", "wrong_answer"]) if (experiment[name] !== null) experiment[name] = ids(experiment[name])[0] ?? -1;
  return experiment;
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

/** The question about the grid of a state. */
export function gridQuestion({ site, axes, window, direction, metric }) {
  return { view: "sweep", site, axes, window, direction, metric };
}

/** What a view says if it shows the patched run and no cell is chosen. */
export const NO_CELL = "No cell is patched yet: click one in the heatmap.";
