// Files that a reader takes away: the picture, the numbers, the Python lines.

import { h } from "./dom.js";

/** What a drawing looks like on its own, without the page's style sheet. */
const COPIED = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-family", "font-size", "font-weight", "text-anchor", "display"];

/**
 * Buttons that save files. name: of the files, without ending. drawing: () -> an SVG element. table: () -> rows of values,
 * the first of them names. json: () -> an object. python: () -> text. What is not given has no button.
 */
export function downloads(name, { drawing, table, json, python }) {
  const kinds = [
    drawing && ["PNG", async () => [await png(drawing()), "png"]],
    drawing && ["SVG", () => [new Blob([standalone(drawing())], { type: "image/svg+xml" }), "svg"]],
    table && ["CSV", () => [new Blob([csv(table())], { type: "text/csv" }), "csv"]],
    json && ["JSON", () => [new Blob([JSON.stringify(json(), plain, 1)], { type: "application/json" }), "json"]],
    python && ["Python", () => [new Blob([python()], { type: "text/x-python" }), "py"]],
  ].filter(Boolean);
  return h(
    "p",
    { class: "downloads" },
    "Save as ",
    kinds.map(([label, make]) => h("button", { type: "button", id: `save-${name}-${label}`, onclick: async () => save(name, ...(await make())) }, label)),
  );
}

function save(name, blob, ending) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: `${name}.${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** Rows of values as CSV. */
function csv(rows) {
  const cell = (value) => {
    const said = value === null || Number.isNaN(value) ? "" : String(value);
    return /[",\r\n]/.test(said) ? `"${said.replaceAll('"', '""')}"` : said;
  };
  return rows.map((row) => row.map(cell).join(",") + "\r\n").join("");
}

/** An array of a reply as lists; what is no number becomes null, as everywhere in JSON. */
function plain(_, value) {
  return value?.shape && value?.data ? nested([...value.data], value.shape) : value;
}

function nested(data, [n, ...inner]) {
  if (!inner.length) return data;
  const size = data.length / n;
  return Array.from({ length: n }, (_, i) => nested(data.slice(i * size, (i + 1) * size), inner));
}

/** An SVG element as a file of its own. */
function standalone(drawing) {
  const copy = drawing.cloneNode(true), { width, height } = drawing.viewBox.baseVal;
  const from = [drawing, ...drawing.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
  from.forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const property of COPIED) to[i].setAttribute(property, style.getPropertyValue(property));
    for (const name of ["class", "id", "tabindex", "role"]) to[i].removeAttribute(name);
  });
  for (const hidden of copy.querySelectorAll("[hidden]")) hidden.remove();
  const paper = copy.ownerDocument.createElementNS("http://www.w3.org/2000/svg", "rect");
  const colours = { width, height, fill: getComputedStyle(document.body).backgroundColor };
  for (const [name, value] of Object.entries(colours)) paper.setAttribute(name, value);
  copy.prepend(paper);
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  return new XMLSerializer().serializeToString(copy);
}

/** An SVG element as a PNG of twice its size. */
async function png(drawing) {
  const url = URL.createObjectURL(new Blob([standalone(drawing)], { type: "image/svg+xml" }));
  const picture = new Image();
  await new Promise((loaded, failed) => {
    picture.onload = loaded;
    picture.onerror = failed;
    picture.src = url;
  });
  const { width, height } = drawing.viewBox.baseVal;
  const canvas = h("canvas", { width: 2 * width, height: 2 * height });
  canvas.getContext("2d").drawImage(picture, 0, 0, 2 * width, 2 * height);
  URL.revokeObjectURL(url);
  return new Promise((done) => canvas.toBlob(done));
}
