// Step through: the forward pass as arrays with names, one after the other, and how a patch spreads through them.

import { h, problem, redraw } from "./dom.js";
import { css } from "./colours.js";
import { NO_CELL, whatOf } from "./state.js";
import { say } from "./tooltip.js";
import { downloads } from "./download.js";
import { oneRun, runChoices } from "./runs.js";
import { glowBar, glowColour, placeWords, spreadMap, spreadRows, spreadTable } from "./spread.js";
import { stripOf } from "./strip.js";
import { closeupOf, spreadWords } from "./closeup.js";

/** The line of the forward pass that makes each array, as in nanopatch/model/gpt2.py. */
const ARRAY_LINES = {
  resid_pre: "resid_pre = resid_post  # of the layer before",
  q: "q = split_heads(affine(layer_norm(resid_pre, *ln_1), weight_q, bias_q))",
  k: "k = split_heads(affine(layer_norm(resid_pre, *ln_1), weight_k, bias_k))",
  v: "v = split_heads(affine(layer_norm(resid_pre, *ln_1), weight_v, bias_v))",
  scores: "scores = q * attention_scale @ k.T + causal_mask  # in each head",
  pattern: "pattern = softmax(scores)",
  z: "z = pattern @ v  # in each head",
  attn_out: "attn_out = affine(z.reshape(n_tokens, d_model), *attn.c_proj)",
  resid_mid: "resid_mid = resid_pre + attn_out",
  mlp_pre: "mlp_pre = affine(layer_norm(resid_mid, *ln_2), *mlp.c_fc)",
  mlp_post: "mlp_post = activation(mlp_pre)",
  mlp_out: "mlp_out = affine(mlp_post, *mlp.c_proj)",
  resid_post: "resid_post = resid_mid + mlp_out",
  ln_final: "ln_final = layer_norm(resid_post, *ln_f)",
  logits: "logits = ln_final @ lm_head.T",
};
const EMBEDDING = "resid_pre = wte[tokens] + wpe[positions]";
const AT_END = ["ln_final", "logits"];
const PLAY_EVERY = 500; // ms a step

/** Every array of the pass in order: {name, layer}; layer is null after the last block. */
function passOf({ arrays, model }) {
  const inBlock = Object.keys(arrays).filter((name) => !AT_END.includes(name));
  const layers = Array.from({ length: model.n_layer }, (_, layer) => inBlock.map((name) => ({ name, layer })));
  return [...layers.flat(), ...AT_END.map((name) => ({ name, layer: null }))];
}

export function stepsView(page) {
  const { start } = page, pass = start.arrays ? passOf(start) : [], last = pass.length - 1;
  const kept = new Map(); // pictures that a step does not change: only their mark moves
  // What is drawn anew stands in frames of its own, so that the map, with its thousands of cells, stays where it is.
  const parts = ["controls", "map", "legend", "strip", "closeup"];
  const frames = Object.fromEntries(parts.map((name) => [name, h("div", { id: `steps-${name}` })]));
  let timer = 0, moved = false;

  return { name: "steps", title: "Step through", questions, draw, keys };

  // ---- what is shown ------------------------------------------------------------------------------

  function stepOf(state) {
    return Math.min(last, Math.max(0, state.step));
  }

  function runsOf(state) {
    const [base, donor] = start.directions[state.direction];
    return { base, donor, run: oneRun(state) };
  }

  function arraysOf(state, run) {
    const layer = pass[stepOf(state)].layer ?? start.model.n_layer;
    return { view: "arrays", run, layer, ...(run === "patched" ? whatOf(state) : {}) };
  }

  function questions(state) {
    const { base, run } = runsOf(state);
    return [
      { view: "prompts" },
      state.cell === null ? null : { view: "patch", ...whatOf(state) },
      arraysOf(state, run),
      // A file may not hold the arrays of patched runs: it then shows those of the run patched into.
      run === "patched" && start.form === "file" ? arraysOf(state, base) : null,
    ];
  }

  // ---- going forward and back ---------------------------------------------------------------------

  function go(step) {
    const next = Math.min(last, Math.max(0, step));
    if (next === stepOf(page.state)) return;
    moved = true;
    page.set({ step: next });
  }

  function keys(event, state) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.shiftKey || event.defaultPrevented) return;
    if (event.target.closest?.("input, select, textarea, .heatmap, [role=tab]")) return;
    const step = stepOf(state), to = { ArrowLeft: step - 1, ArrowRight: step + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    stop();
    go(to);
    event.preventDefault();
  }

  function play() {
    if (timer) return stop();
    if (stepOf(page.state) === last) go(0);
    timer = setInterval(tick, PLAY_EVERY);
    showPlay();
  }

  function tick() {
    const { state } = page, step = stepOf(state);
    if (state.view !== "steps" || step === last) return stop();
    if (questions(state).filter(Boolean).every((question) => page.answer(question))) go(step + 1); // else it waits
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    showPlay();
  }

  function showPlay() {
    document.getElementById("steps-play")?.replaceChildren(timer ? "❚❚ pause" : "► play");
  }

  // ---- drawing ------------------------------------------------------------------------------------

  function draw(state, answer, width) {
    const step = stepOf(state), place = pass[step], { base, donor, run } = runsOf(state);
    const asked = state.cell === null ? null : answer({ view: "patch", ...whatOf(state) });
    const patch = asked?.change ? asked : null;
    const prompts = answer({ view: "prompts" });
    let shown = answer(arraysOf(state, run)), of = run;
    if (run === "patched" && shown?.missing) [shown, of] = [answer(arraysOf(state, base)), base];
    const tokens = patch?.tokens ?? shown?.tokens ?? prompts?.[base]?.tokens;
    const failed = problem(shown);
    // Rows of the donor's run are those of the map only where both prompts have equally many tokens.
    const glowing = patch && !failed && shown.tokens.length === patch.tokens.length ? patch : null;
    if (moved) say([sentence(place, patch)]);
    moved = false;
    if (!tokens) return problem(answer(arraysOf(state, base))) ?? failed;

    const map = keep("map", [patch, tokens.join("\n"), width, themeKey()], () =>
      spreadMap({ pass, tokens, patch, width, pick: pickStep }));
    map.show(step);
    const tops = likeliestOfRuns(patch, prompts, { base, donor });
    const places = pass.filter(({ layer }) => layer === place.layer), first = pass.indexOf(places[0]);
    const pick = (name) => pickStep(first + places.findIndex((each) => each.name === name));
    const strip = failed ? null : keep("strip", [shown, glowing, width, themeKey()], () =>
      stripOf({ places, reply: shown, patch: glowing, top: tops[of], width, pick }));
    strip?.show(place.name);

    redraw(
      frames.controls,
      controls(step),
      h("h3", null, "How the patch spreads"),
      patch ? h("p", { class: "steps-label" }, h("bdi", null, patch.label))
        : state.cell === null ? h("p", { class: "steps-note" }, NO_CELL) : problem(asked),
      patch && patch.edits.every((edit) => !edit.positions.length) &&
        h("p", { class: "steps-note" }, "This patch writes nothing: what it would put in is what is there already."),
    );
    redraw(frames.map, map.element);
    redraw(
      frames.legend,
      patch && [
        h("div", { class: "steps-legend" }, glowBar(), h("span", { class: "steps-key" }, h("i", null), "patched here")),
        downloads("nanopatch-spread", {
          drawing: () => document.getElementById("spread"), table: () => spreadRows(pass, patch), json: () => patch,
        }),
        spreadTable(pass, patch),
      ],
      h("h3", null, place.layer === null ? "After the last layer" : `Layer ${place.layer}`),
      runChoices(page, "steps", state, run),
      h("p", { class: "steps-note" }, valueWords({ run, of, base }, patch, glowing)),
    );
    redraw(frames.strip, failed ?? strip.element);
    redraw(frames.closeup, closeupOf({
      place, about: start.arrays[place.name], reply: failed ? null : shown, patch, glowing, width,
      line: place.name === "resid_pre" && place.layer === 0 ? EMBEDDING : ARRAY_LINES[place.name],
      lists: Object.entries(tops).map(([which, top]) => [`${which} run`, top]),
    }));
    return Object.values(frames);
  }

  /** The ten likeliest tokens of every run that is known: {run: tokens}. */
  function likeliestOfRuns(patch, prompts, { base, donor }) {
    const before = patch?.top.before ?? prompts?.top?.[base];
    const known = [[base, before], ["patched", patch?.top.after], [donor, prompts?.top?.[donor]]];
    return Object.fromEntries(known.filter(([, top]) => top));
  }

  function keep(name, key, make) {
    const old = kept.get(name);
    if (old && old.key.every((part, i) => part === key[i])) return old.made;
    const made = make();
    kept.set(name, { key, made });
    return made;
  }

  function pickStep(step) {
    stop();
    go(step);
  }

  function controls(step) {
    const button = (id, text, label, to, off) => h(
      "button",
      { id, type: "button", "aria-label": label, title: label, "aria-disabled": off && "true", onclick: () => pickStep(to) },
      text,
    );
    return h(
      "div",
      { class: "steps-controls" },
      button("steps-first", "|◄", "first array (Home)", 0, step === 0),
      button("steps-back", "◄ back", "the array before (left arrow key)", step - 1, step === 0),
      h("button", { id: "steps-play", type: "button", onclick: play }, timer ? "❚❚ pause" : "► play"),
      button("steps-forward", "forward ►", "the next array (right arrow key)", step + 1, step === last),
      button("steps-last", "►|", "last array (End)", last, step === last),
      h("span", { class: "steps-count", "data-value": step },
        `array ${step + 1} of ${pass.length}: `, h("strong", null, placeWords(pass[step]))),
    );
  }

  function valueWords({ run, of, base }, patch, glowing) {
    if (run !== of) {
      return `This file holds no arrays of patched runs: the values are those of the ${base} run, ` +
        "and the glow is what the patch changes in them.";
    }
    if (!patch) return `The values are those of the ${of} run.`;
    if (!glowing) return `The values are those of the ${of} run. Its positions are not those of the ${base} run, so they do not glow.`;
    const which = of === "patched" ? "" : of === base ? ", which is patched into" : ", which is patched from";
    return `The values are those of the ${of} run${which}. The glow is how much the patched run differs from the ${base} run.`;
  }

  function sentence(place, patch) {
    const what = start.arrays[place.name].what, where = placeWords(place);
    const spread = patch ? [spreadWords(place, patch).parts].flat(Infinity).map((part) => part.textContent ?? part).join("") : "";
    return `${where}. ${what} ${spread}`;
  }
}

/** What of a page's colours decides whether a picture must be drawn again. */
function themeKey() {
  return css(glowColour(0)) + css(glowColour(1));
}
