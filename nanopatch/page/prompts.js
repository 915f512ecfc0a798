// The two prompts: typed, aligned token by token, and what the model says after each.

import { h, menu } from "./dom.js";
import { number, percent, visible } from "./text.js";
import { stateOf } from "./state.js";
import { bars } from "./bars.js";

const PROMPTS = { view: "prompts" };

export function promptsView(page) {
  const live = page.start.form === "live";
  const form = live ? promptForm(page) : null;
  let seed = 0, task = null;

  return {
    name: "prompts",
    title: "The two prompts",
    questions: () => [PROMPTS, task].filter(Boolean),
    draw(state, answer) {
      const reply = answer(PROMPTS);
      const found = task && answer(task);
      if (found) {
        task = null;
        if (found.experiment) queueMicrotask(() => page.set(stateOf(found.experiment)));
      }
      form?.show(state);
      return [
        h("h2", null, "The two prompts"),
        live && examples(page),
        form?.element,
        ...(reply ? drawn(reply, state, page) : [h("p", { class: "waiting", role: "status" }, "computing …")]),
      ];
    },
  };

  /** A menu of named experiments, and of tasks that draw a new pair each time. Made once. */
  function examples() {
    examples.made ??= h(
      "p",
      { class: "examples" },
      menu("named", "Start from ", [["", "…"], ...Object.keys(page.start.named).map((name) => [name, name])], "", (name) => {
        if (name) page.set(stateOf(page.start.named[name]));
        document.getElementById("named").value = "";
      }),
      page.start.tasks.map((name) =>
        h("button", {
          type: "button", id: `task-${name}`, title: "draws a new pair each time",
          onclick: () => {
            task = { view: "task", task: name, seed: seed++ };
            page.set({});
          },
        }, `a pair of ${name.replaceAll("_", " ")}`),
      ),
    );
    return examples.made;
  }
}

/** The fields that are typed into. They are made once, so that a redraw does not disturb who types. */
function promptForm(page) {
  const fields = {};
  const field = (name, label, attributes = {}) =>
    h("label", { class: `field ${name}` }, label, (fields[name] = h(attributes.tag ?? "input", {
      id: `type-${name}`, autocomplete: "off", autocapitalize: "off", spellcheck: "false", maxlength: 20000, dir: "auto", rows: attributes.rows,
      oninput: () => page.set({ [name]: name.includes("answer") ? fields[name].value || null : fields[name].value }),
    })));
  const tick = (name, label) =>
    h("label", { class: "tick" }, (fields[name] = h("input", {
      type: "checkbox", id: `type-${name}`, onchange: () => page.set({ [name]: name === "align" ? (fields[name].checked ? "diff" : null) : fields[name].checked }),
    })), label);
  const element = h(
    "form",
    { class: "prompt-form", onsubmit: (event) => event.preventDefault() },
    field("clean", "Clean prompt", { tag: "textarea", rows: 2 }),
    field("answer", "Answer"),
    field("corrupted", "Corrupted prompt", { tag: "textarea", rows: 2 }),
    field("wrong_answer", "Wrong answer"),
    h("p", { class: "ticks" },
      tick("align", "align by tokens (prompts of different lengths)"),
      tick("prepend_bos", "put <|endoftext|> before both"),
      page.start.model.reads_text && tick("special_tokens", "read <|endoftext|> in a prompt as that token")),
  );
  return {
    element,
    show(state) {
      for (const [name, input] of Object.entries(fields)) {
        if (input.type === "checkbox") input.checked = Boolean(state[name]);
        else if (input.value !== (state[name] ?? "")) input.value = state[name] ?? "";
      }
    },
  };
}

function drawn(reply, state, page) {
  return [
    reply.error && h("p", { class: "error", role: "alert" }, reply.error),
    reply.mends?.length > 0 &&
      h("p", { class: "mends" }, reply.mends.map((mend, i) => h("button", { type: "button", id: `mend-${i}`, onclick: () => page.set(mend.change) }, mend.label))),
    reply.clean && reply.corrupted && alignedTokens(reply),
    reply.answers?.length > 0 && answerTable(reply.answers, ["clean", "corrupted"]),
    reply.notes?.map((note) => h("p", { class: "note" }, note)),
    reply.top && h("div", { class: "pair" }, ["clean", "corrupted"].map((name) =>
      h("figure", null, h("figcaption", null, `The likeliest next tokens, ${name} run`), likeliestBars(`top-${name}`, reply.top[name], reply.answers)))),
  ];
}

/** Both prompts in columns; without an alignment, each on its own. */
function alignedTokens({ clean, corrupted, columns }) {
  const sides = [clean, corrupted];
  const n = Math.max(clean.tokens.length, corrupted.tokens.length);
  const pairs = columns ?? Array.from({ length: n }, (_, i) => sides.map(({ tokens }) => (i < tokens.length ? i : null)));
  const differ = ([i, j]) => i === null || j === null || clean.ids[i] !== corrupted.ids[j];
  return h(
    "ol",
    { class: "columns", "aria-label": "tokens of the clean prompt and, below, of the corrupted one" },
    pairs.map((pair) =>
      h(
        "li",
        { class: differ(pair) ? "differs" : null },
        h("span", { class: "position" }, pair[0] === pair[1] ? String(pair[0]) : pair.map((p) => p ?? "–").join("/")),
        pair.map((position, side) =>
          h("bdi", { class: `token ${side ? "corrupted" : "clean"}`, title: position === null ? "no token" : `id ${sides[side].ids[position]}` },
            position === null ? "–" : visible(sides[side].tokens[position]))),
        differ(pair) && h("span", { class: "unseen" }, "differs"),
      ),
    ),
  );
}

/** What two runs say of the answers. */
export function answerTable(answers, runs, names = runs) {
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "answers" },
      h("thead", null,
        h("tr", null, h("td", { rowspan: 2 }), names.map((name) => h("th", { colspan: 3, scope: "colgroup" }, name))),
        h("tr", null, runs.map(() => ["logit", "probability", "rank"].map((name) => h("th", { scope: "col" }, name))))),
      h("tbody", null, answers.map((of) =>
        h("tr", { "data-role": of.role },
          h("th", { scope: "row" }, `${of.role} `, h("bdi", { class: "token" }, visible(of.text))),
          runs.map((run) => [
            h("td", { "data-value": of[run].logit }, number(of[run].logit, 4)),
            h("td", { "data-value": of[run].probability }, percent(of[run].probability)),
            h("td", { "data-value": of[run].rank }, String(of[run].rank)),
          ])))),
    ),
  );
}

/** Ten likeliest tokens as bars of their probability; the answers are marked. */
export function likeliestBars(id, top, answers = []) {
  const role = Object.fromEntries(answers.map((of) => [of.id, of.role]));
  const rows = top.map(({ text, id: token, probability, logit }) => ({
    text: visible(text), value: probability, mark: role[token]?.split(" ")[0] ?? null,
    title: [`${visible(text)}  (id ${token})`, `probability ${percent(probability)}`, `logit ${number(logit, 4)}`, ...(role[token] ? [`the ${role[token]}`] : [])],
  }));
  return bars({ id, rows, ends: [0, 1], format: percent, label: "probabilities of the ten likeliest next tokens" });
}
