// A result that has no view of its own: its picture, its words, and its rows as a table.

import { h, problem } from "./dom.js";
import { downloads } from "./download.js";

export function resultView() {
  const question = { view: "result" };
  return { name: "result", title: "The result", questions: () => [question], draw };

  function draw(_, answer) {
    const reply = answer(question);
    return [problem(reply) ?? shown(reply)];
  }

  function shown(reply) {
    return [
      h("p", { class: "scroll" }, h("img", { src: `data:image/svg+xml;base64,${reply.picture}`, alt: "The picture of the numbers below" })),
      downloads("nanopatch-result", { table: () => [reply.names, ...reply.rows], json: () => reply }),
      h("details", null, h("summary", null, "in words"), h("pre", { class: "code scroll" }, reply.text)),
      h("details", { id: "rows" }, h("summary", null, `as a table of ${reply.rows.length} rows`),
        h("div", { class: "scroll" }, h("table", null,
          h("thead", null, h("tr", null, reply.names.map((name) => h("th", { scope: "col" }, name)))),
          h("tbody", null, reply.rows.map((row) => h("tr", null, row.map((value) => h("td", null, String(value ?? "")))))))))
    ];
  }
}
