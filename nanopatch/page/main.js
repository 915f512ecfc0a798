// The page: a state, the questions it leads to, and the views that draw the replies.
//
// A view is {name, title, questions(state), draw(state, answer, width)}. `questions` says what must be known; `draw` makes
// the elements; answer(question) is its reply, or undefined while it is computed. Views change the state by page.set(...).

import { h, redraw } from "./dom.js";
import { onTheme } from "./colours.js";
import { short } from "./text.js";
import { EXPERIMENT, experimentOf, readState, stateOf, writeState } from "./state.js";
import { fileSource, liveSource } from "./source.js";
import { promptsView } from "./prompts.js";
import { gridView } from "./grid.js";
import { patchView } from "./patch.js";
import { resultView } from "./result.js";
import { attentionView } from "./attention.js";
import { lensView } from "./lens.js";
import { directView } from "./direct.js";
import { stepsView } from "./steps.js";
import { circuitView } from "./circuit.js";

const start = JSON.parse(document.getElementById("start").textContent);
const source = start.form === "file" ? fileSource() : liveSource();
const defaults = { ...start.state, ...(start.experiment && stateOf(start.experiment)) };

const page = { start, state: null, set, answer };
const offered = (views) => views.map((view) => view(page)).filter((view) => start.views.includes(view.name));
const above = offered([promptsView, gridView, patchView, resultView]);
const tabs = offered([attentionView, lensView, directView, stepsView, circuitView]);
const frames = new Map([...above, ...tabs].map((view) => [view, h("section", { id: view.name, "aria-label": view.title, class: "view" })]));
const remark = h("p", { class: "error", role: "alert", hidden: true });
const tabRow = h("div", { class: "tabs", role: "tablist", "aria-label": "Views of a run", onkeydown: walkTabs });

const frameOf = (view) => frames.get(view);
const [first, ...side] = above;
document.getElementById("page").append(
  remark,
  ...(first ? [frameOf(first)] : []),
  h("div", { class: side.length > 1 ? "side" : "alone" }, side.map(frameOf)),
  tabRow,
  ...tabs.map(frameOf),
);
document.title = start.model.name ? `nanopatch: ${start.model.name}` : "nanopatch";
addEventListener("hashchange", follow);
addEventListener("keydown", (event) => shown()?.keys?.(event, page.state));
onTheme(drawAll);
let room = innerWidth;
let waiting = false;
let opened = false; // whether all has been drawn once
let queue = []; // the views that are still to be drawn: [view, frame, width]
const fading = new Map(); // the timer of each frame that waits to be shown in grey
const drawnFrom = new Map(); // what each frame was drawn from
let unfollowed = ""; // what of the link is not shown: said until something is chosen
addEventListener("resize", () => innerWidth !== room && ((room = innerWidth), draw()));
addEventListener("beforeprint", drawAll); // with light colours
addEventListener("afterprint", drawAll);
follow();

/** Show what the link says. */
function follow() {
  const { state, unread } = readState(location.hash, defaults);
  page.state = state;
  const wrong = repair(state);
  unfollowed = [...unread.map((name) => `The link's ${short(name, 40)} cannot be read.`), ...wrong].join(" ");
  update();
}

/** What a link asks for and this page does not have is replaced by the default. Returns a sentence for each. */
function repair(state) {
  const { menu } = start, said = [];
  const fix = (name, holds) => {
    if (holds) return;
    said.push(`This page has no ${name} ${short(String(state[name]), 40)}: it shows ${defaults[name] ?? "none"}.`);
    state[name] = defaults[name];
  };
  fix("site", menu.sites.includes(state.site));
  if (!menu.axes[state.site].some((axes) => String(axes) === String(state.axes))) {
    if (String(state.axes) !== String(defaults.axes)) said.push(`This page has no grid of ${state.site} by ${short(String(state.axes), 40)}.`);
    state.axes = menu.axes[state.site][0];
  }
  fix("direction", menu.directions.includes(state.direction));
  fix("metric", menu.metrics.includes(state.metric));
  fix("window", menu.windows.includes(state.window));
  fix("scale", ["normalised", "raw"].includes(state.scale));
  if (tabs.length) fix("view", tabs.some((view) => view.name === state.view));
  fix("run", ["clean", "corrupted", "patched", "difference"].includes(state.run));
  if (start.form === "file" && EXPERIMENT.some((name) => state[name] !== defaults[name])) {
    said.push("This file holds one experiment, and not that of the link.");
    for (const name of EXPERIMENT) state[name] = defaults[name];
  }
  return said;
}

/** Change the state. What is patched, or in which prompts, decides what a cell means: a new one starts without a cell. */
function set(changes) {
  const state = { ...page.state, ...changes };
  const moved = [...EXPERIMENT, "site", "axes", "window", "direction"].some((name) => name in changes && String(changes[name]) !== String(page.state[name]));
  if (moved && !("cell" in changes)) state.cell = null;
  if (state.cell === null && state.run === "patched") state.run = "clean";
  page.state = state;
  repair(state);
  if (Object.keys(changes).length) unfollowed = "";
  const said = writeState(state, defaults);
  // A page inside a notebook has no address of its own.
  if (location.protocol !== "about:") history.replaceState(null, "", said ? `#${said}` : location.pathname + location.search);
  update();
}

function shown() {
  return tabs.find((view) => view.name === page.state.view);
}

function answer(question) {
  return source.known(experimentOf(page.state), question);
}

/** Ask what the state needs, and draw what is known. */
function update() {
  complain(unfollowed);
  const questions = [...above, shown()].flatMap((view) => view?.questions(page.state)).filter(Boolean);
  const at = performance.now();
  source.ask(experimentOf(page.state), questions, (failed) => {
    complain(failed ?? unfollowed);
    // The prompts alone wait a moment for the heatmap: drawing takes time from what computes it.
    const few = above.some((view) => view.questions(page.state).some((question) => question && !answer(question)));
    setTimeout(drawSoon, few && !failed ? Math.max(0, at + 150 - performance.now()) : 0);
  });
  if (opened || start.form === "live") drawSoon(); // a file is opened in a moment: it shows nothing half
}

function drawSoon() {
  if (waiting) return;
  waiting = true;
  queue = []; // what was still to be drawn comes after what is drawn now
  requestAnimationFrame(() => {
    waiting = false;
    draw();
  });
}

function complain(text) {
  remark.textContent = text;
  remark.hidden = !text;
}

/**
 * Draw what has changed. Once the page is there, one view in each frame and the heatmap first: so what someone waits for is
 * on the screen before the rest is drawn.
 */
function draw(atOnce = !opened) {
  if (tabRow.dataset.shown !== page.state.view) redraw(tabRow, tabs.map(tabOf));
  tabRow.dataset.shown = page.state.view;
  tabRow.hidden = tabs.length < 2;
  for (const [view, frame] of frames) frame.hidden = tabs.includes(view) && view !== shown();
  // All widths are read before anything is drawn: each one that is read later would lay out the page once more.
  queue = [...frames].filter(([, frame]) => !frame.hidden).map(([view, frame]) => [view, frame, frame.clientWidth || innerWidth]);
  queue.sort(([a], [b]) => Number(b.name === "grid") - Number(a.name === "grid"));
  for (const [, frame] of queue) frame.setAttribute("aria-busy", "true");
  drawQueue(atOnce);
}

function drawQueue(atOnce) {
  const mistake = answer({ view: "prompts" })?.error;
  while (queue.length) {
    const [view, frame, width] = queue.shift(), asked = view.questions(page.state).filter(Boolean);
    // While something is computed, or the prompts cannot be read, what was drawn before stays, in grey.
    const known = asked.every((question) => answer(question));
    const stale = !known || (mistake && view.name !== "prompts");
    fade(frame, stale);
    const drawn = (!stale || !frame.childElementCount) && drawView(view, frame, width);
    frame.setAttribute("aria-busy", String(!known));
    if (drawn && queue.length && !atOnce) return requestAnimationFrame(() => drawQueue(atOnce));
  }
  opened ||= [...frames.values()].every((frame) => frame.hidden || frame.getAttribute("aria-busy") === "false");
  document.documentElement.dataset.drawn = String(performance.now());
}

/** Show in grey what no longer holds; only after a moment, so that quick answers do not make the page blink. */
function fade(frame, stale) {
  clearTimeout(fading.get(frame));
  if (!stale) frame.classList.remove("stale");
  else fading.set(frame, setTimeout(() => frame.classList.add("stale"), 300));
}

/** Draw a view, unless it was drawn from the same state, in the same width, with the same replies. Says whether it did. */
function drawView(view, frame, width) {
  const { state } = page, before = drawnFrom.get(frame);
  if (before?.state === state && before.width === width && before.read.every(([question, reply]) => answer(question) === reply)) return false;
  const read = [];
  const noting = (question) => {
    read.push([question, answer(question)]);
    return read.at(-1)[1];
  };
  redraw(frame, view.draw(state, noting, width));
  drawnFrom.set(frame, { state, width, read });
  return true;
}

/** Draw all views anew: their colours or their room have changed. */
function drawAll() {
  drawnFrom.clear();
  draw(true);
}

function tabOf(view) {
  const chosen = view === shown();
  return h("button", {
    id: `tab-${view.name}`, role: "tab", type: "button", "aria-selected": String(chosen), "aria-controls": view.name,
    tabindex: chosen ? 0 : -1, onclick: () => set({ view: view.name }),
  }, view.title);
}

function walkTabs(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  const next = tabs[(tabs.indexOf(shown()) + step + tabs.length) % tabs.length];
  set({ view: next.name });
  document.getElementById(`tab-${next.name}`).focus();
  event.preventDefault();
  event.stopPropagation();
}
