// Which run a view shows: clean, corrupted, or patched.

import { choices } from "./dom.js";
import { NO_CELL } from "./state.js";

/** The run that is shown by a view that knows no difference of two runs. */
export function oneRun({ run, cell }) {
  return run !== "difference" ? run : cell === null ? "clean" : "patched";
}

/** The choice of the run, or null where there is only one. more: what a view offers besides, as options of `choices`. */
export function runChoices(page, view, state, chosen, more = []) {
  const { runs } = page.start;
  if (runs.length < 2) return null;
  const options = runs.map((run) => [run, run, run === "patched" && state.cell === null ? NO_CELL : null]);
  return choices(`${view}-run`, "Run", [...options, ...more], chosen, (run) => page.set({ run }));
}

/** "of the clean run", for a heading; nothing where there is only one run. */
export function ofRun(page, run) {
  return page.start.runs.length < 2 ? "" : ` of the ${run} run`;
}
