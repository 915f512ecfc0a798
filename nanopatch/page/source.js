// Where replies come from: out of the file itself, or from the server on this computer. Both are asked in the same way.

import { unpack } from "./unpack.js";

/** A question as a text: its fields in alphabetical order, no spaces. Python makes the same one. */
export function keyOf(question) {
  return JSON.stringify(Object.fromEntries(Object.entries(question).sort(([a], [b]) => (a < b ? -1 : 1))));
}

/** The replies inside this file. Each chunk is unpacked when something in it is asked for first. */
export function fileSource() {
  const elements = document.querySelectorAll("script.chunk"), chunks = new Map(), replies = new Map();
  const index = chunk(0).then((bytes) => JSON.parse(new TextDecoder().decode(bytes)));
  if (elements.length > 1) chunk(1); // what the page shows first: it is unpacked meanwhile

  function chunk(i) {
    if (!chunks.has(i)) chunks.set(i, gunzip(elements[i].textContent.trim()));
    return chunks.get(i);
  }

  return {
    known: (_, question) => replies.get(keyOf(question)),
    async ask(_, questions, arrived) {
      const places = await index;
      for (const question of questions) {
        const key = keyOf(question);
        if (replies.has(key)) continue;
        if (key in places) {
          const [i, offset, length] = places[key];
          const bytes = await chunk(i);
          replies.set(key, unpack(bytes.subarray(offset, offset + length)));
        } else {
          replies.set(key, { missing: true });
        }
        arrived();
      }
    },
  };
}

async function gunzip(text) {
  const bytes = Uint8Array.from(atob(text), (mark) => mark.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The most replies that are kept, so that stepping back needs no computation. */
const MOST_KEPT = 300;

/** The replies of the server. A new request stops the one before it: here, and through its number also there. */
export function liveSource() {
  const page = crypto.randomUUID(), replies = new Map(), nameOf = (experiment, key) => `${JSON.stringify(experiment)} ${key}`;
  let number = 0, running = null;

  return {
    known: (experiment, question) => replies.get(nameOf(experiment, keyOf(question))),
    async ask(experiment, questions, arrived) {
      running?.abort();
      const byKey = new Map(questions.map((question) => [keyOf(question), question])); // two views may ask the same
      const wanted = [...byKey].filter(([key]) => !replies.has(nameOf(experiment, key))).map(([, question]) => question);
      if (!wanted.length) return;
      const mine = (running = new AbortController());
      number += 1;
      try {
        const response = await fetch("ask", {
          method: "POST", headers: { "Content-Type": "application/json" }, signal: mine.signal,
          body: JSON.stringify({ page, number, experiment, questions: wanted }),
        });
        if (!response.ok) throw new Error(await response.text());
        for await (const bytes of parts(response.body)) {
          const reply = unpack(bytes);
          replies.set(nameOf(experiment, reply.key), reply);
          if (replies.size > MOST_KEPT) replies.delete(replies.keys().next().value);
          arrived();
        }
      } catch (error) {
        if (mine.signal.aborted) return;
        const said = error instanceof TypeError ? "nanopatch explore does not answer: start it again, and open the address that it prints." : error.message;
        arrived(said);
      }
    },
  };
}

/** The replies in a stream: before each stands its length. */
async function* parts(stream) {
  const reader = stream.getReader();
  let bytes = new Uint8Array(0);
  for (;;) {
    const length = bytes.length >= 4 ? new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true) : Infinity;
    if (bytes.length >= 4 + length) {
      yield bytes.slice(4, 4 + length);
      bytes = bytes.subarray(4 + length);
      continue;
    }
    const { done, value } = await reader.read();
    if (done) return;
    const longer = new Uint8Array(bytes.length + value.length);
    longer.set(bytes);
    longer.set(value, bytes.length);
    bytes = longer;
  }
}
