// Attention: where each head looks. All heads small, one of them large, and the tokens as a line of text.

import { h, problem } from "./dom.js";
import { asTable, heatmap, scaleBar } from "./heatmap.js";
import { number, visible } from "./text.js";
import { NO_CELL, runQuestion } from "./state.js";
import { ofRun, runChoices } from "./runs.js";
import { downloads } from "./download.js";
import { part } from "./unpack.js";
import { smallHeads } from "./heads.js";
import { tokenLine } from "./tokenline.js";

export function attentionView(page) {
  const announced = new WeakSet(); // pooled replies that were drawn: since then, their heads are asked for in full
  let kept = null; // the last patterns: the difference of two runs is made once

  return {
    name: "attention",
    title: "Attention",
    questions(state) {
      const asked = runsOf(state).map((run) => runQuestion("attention", state, run));
      const replies = asked.map((question) => question && page.answer(question));
      return [...asked, ...(replies.every((reply) => announced.has(reply)) ? fullQuestions(state, replies) : [])];
    },
    draw(state, answer, width) {
      const runs = runsOf(state), asked = runs.map((run) => runQuestion("attention", state, run));
      const replies = asked.map((question) => question && answer(question));
      const differs = page.start.runs.includes("clean") && page.start.runs.includes("corrupted");
      const chooser = runChoices(page, "attention", state, state.run, differs ? [["difference", "difference"]] : []);
      const above = [
        h("h2", null, `Attention${runs.length > 1 ? "" : ofRun(page, state.run)}: where each head looks`),
        chooser && h("div", { class: "controls" }, chooser),
      ];
      if (asked.includes(null)) return [...above, h("p", { class: "hint" }, NO_CELL)];
      const wrong = replies.map(problem).find(Boolean);
      if (wrong) return [...above, wrong];
      const lengths = replies.map(({ tokens }) => tokens.length);
      if (lengths.some((n) => n !== lengths[0])) {
        const why = `the ${runs[0]} prompt has ${lengths[0]} tokens, the ${runs[1]} one ${lengths[1]}`;
        return [...above, h("p", { class: "hint" }, `There is no difference to show: ${why}.`)];
      }
      return [...above, ...drawn(state, runs, replies, answer, width)];
    },
  };

  /** The run that is shown, or the two whose difference is. */
  function runsOf({ run, cell, direction }) {
    if (run !== "difference") return [run];
    const base = page.start.directions?.[direction]?.[0];
    return cell !== null && base ? ["patched", base] : ["clean", "corrupted"];
  }

  /** The questions about the chosen head in full. */
  function fullQuestions(state, replies) {
    const [layer, head] = replies[0].heads[chosenHead(state, replies[0].heads)];
    return runsOf(state).map((run) => ({ ...runQuestion("head", state, run), layer, head }));
  }

  function drawn(state, runs, replies, answer, width) {
    const { heads, exact, weighted } = replies[0], at = chosenHead(state, heads), [layer, head] = heads[at];
    const small = patternsOf(replies);
    const full = exact ? [] : fullQuestions(state, replies).map(answer);
    if (!exact && !replies.every((reply) => announced.has(reply))) {
      for (const reply of replies) announced.add(reply);
      queueMicrotask(() => page.set({})); // which asks for the head in full
    }
    const isFull = full.length > 0 && full.every((reply) => reply?.values);
    const values = isFull ? minus(full.map((reply) => reply.values)) : part(small.values, at);
    const units = unitsOf(replies.map(({ tokens }) => tokens), isFull ? 1 : replies[0].pooled ?? 1);
    const two = runs.length > 1, what = two ? `: the ${runs[0]} run minus the ${runs[1]} run` : "";
    const unit = `attention${weighted ? " \u00d7 size of what is moved" : ""}${two ? `, ${runs[0]} minus ${runs[1]}` : ""}`;
    const ends = two ? [-small.largest || -1, small.largest || 1] : [0, weighted ? small.largest || 1 : 1];
    const side = width >= 900 && heads.length > 1, overview = side ? Math.min(width * 0.42, 620) : width;
    const picture = smallHeads({
      heads, values: small.values, ends, room: overview, chosen: at, two,
      choose: ([toLayer, toHead]) => page.set({ layer: toLayer, head: toHead }),
    });
    const room = side ? width - picture.width - 28 : width;
    const labels = units.map(({ label }) => label);
    const names = exact || isFull ? labels : units.map(({ first, last }) => `${first}\u2013${last}`); // short, where texts do not fit
    const pinned = state.token === null ? -1 : units.findIndex(({ first, last }) => first <= state.token && state.token <= last);
    const name = `head ${layer}.${head}`;
    return [
      h("p", { class: "note" }, captionOf(two, weighted, runs, exact || isFull)),
      (layer !== state.layer || head !== state.head) &&
        h("p", { class: "note" }, `Head ${state.layer}.${state.head} is not among these: ${name} is shown.`),
      h("div", { class: "attention", style: side ? { "grid-template-columns": `${picture.width}px minmax(0, 1fr)` } : {} },
        heads.length > 1 && h("figure", null, h("h3", null, `All heads${what}`), picture.element),
        h("figure", null,
          h("h3", { id: "attention-title" }, `${name[0].toUpperCase()}${name.slice(1)}${what}`),
          tokenLine({ units, values, ends, pinned: pinned < 0 ? null : pinned, pin: (token) => page.set({ token }) }),
          heatmap({
            id: "attention-map", label: `${unit} of ${name}`, values, rows: names, columns: names, rowsTitle: "query", columnsTitle: "key",
            ends, width: room, cellHeight: names.length > 24 ? 14 : undefined, // many tokens: about square
            describe: (i, j) => cellWords(unit, labels, values, i, j), pick: (i) => page.set({ token: units[i].first }),
          }),
          scaleBar(ends, unit),
          !exact && !isFull && h("p", { class: "note", id: "attention-pooled" },
            `The prompt has ${replies[0].tokens.length} tokens. ${pooledWords(full, replies[0].pooled)}`),
          !exact && isFull && h("p", { class: "note", id: "attention-pooled" },
            `This head is in full. In the small pictures, each cell is the largest of ${replies[0].pooled} \u00d7 ${replies[0].pooled}.`),
          h("div", { class: "foot" },
            downloads(`nanopatch-attention-${layer}.${head}-${state.run}`, {
              drawing: () => document.getElementById("attention-map"), table: () => patternRows(labels, values),
              json: () => ({ run: state.run, runs, layer, head, tokens: replies[0].tokens, values }),
            }),
            asTable("attention-table", { values, rows: labels, columns: labels, rowsTitle: "query" })))),
    ];
  }

  /** The patterns of one run, or the difference of two, and the largest size in them. */
  function patternsOf(replies) {
    if (kept?.replies.length !== replies.length || kept.replies.some((reply, i) => reply !== replies[i])) {
      const values = minus(replies.map((reply) => reply.values));
      const largest = values.data.reduce((most, value) => (Math.abs(value) > most ? Math.abs(value) : most), 0);
      kept = { replies, values, largest };
    }
    return kept;
  }
}

/** The place of the chosen head among those there are; of one that is not there, the first. */
function chosenHead(state, heads) {
  return Math.max(0, heads.findIndex(([layer, head]) => layer === state.layer && head === state.head));
}

/** One array, or the first minus the second. */
function minus([first, second]) {
  return second ? { shape: first.shape, data: first.data.map((value, k) => value - second.data[k]) } : first;
}

/** The tokens, or the groups of neighbours that share a row: {label, text, first, last}. Where two runs differ, both. */
function unitsOf(lists, size) {
  const units = [];
  for (let first = 0; first < lists[0].length; first += size) {
    const last = Math.min(first + size, lists[0].length) - 1;
    const texts = [...new Set(lists.map((tokens) => tokens.slice(first, last + 1).map(visible).join("")))];
    const text = texts.join(" / ");
    units.push({ first, last, text, label: `${first === last ? first : `${first}\u2013${last}`} ${text}` });
  }
  return units;
}

function captionOf(two, weighted, runs, isFull) {
  const reads = "A row is a token that looks (the query), a column a token that is looked at (the key); no token sees a later one. ";
  if (two) return `${reads}Red: more attention in the ${runs[0]} run. Blue: more in the ${runs[1]} run.`;
  if (!weighted) return isFull ? `${reads}The numbers of a row sum to 1.` : reads;
  const source = "Kobayashi et al. 2020, \u201cAttention is Not Only a Weight\u201d";
  return `${reads}Each number is the attention times the size of what the head moves from there (${source}).`;
}

function pooledWords(full, size) {
  const cells = `Each cell is the largest of ${size} \u00d7 ${size}`;
  if (full.some((reply) => reply?.error)) return `${cells}. ${full.find((reply) => reply?.error).error}`;
  const missing = full.some((reply) => reply?.missing);
  return missing ? `${cells}: this file does not hold each head in full.` : `${cells}, until the head in full is here.`;
}

/** A cell in words. A token stands at the end of its line, so that no direction of writing reorders the line. */
function cellWords(unit, labels, values, i, j) {
  const value = values.data[i * labels.length + j];
  const seen = Number.isNaN(value) ? "masked: no token sees a later one" : `${unit} ${number(value, 4)}`;
  return [seen, `query ${labels[i]}`, `key ${labels[j]}`];
}

/** The cells as rows of a table, without those behind the mask. */
function patternRows(labels, values) {
  const n = labels.length;
  const rows = Array.from(values.data, (value, k) => [Math.floor(k / n), labels[Math.floor(k / n)], k % n, labels[k % n], value]);
  return [["query", "query_token", "key", "key_token", "value"], ...rows.filter((row) => !Number.isNaN(row[4]))];
}
