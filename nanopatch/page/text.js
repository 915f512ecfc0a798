// Numbers and tokens as a reader sees them.

/** A number with so many digits that count; ∞ and – for what is none. */
export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 10 ** digits || Number.isInteger(value) ? String(Math.round(value))
    : size < 1e-4 ? value.toExponential(digits - 1)
    : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}

/** A probability in percent. */
export function percent(value) {
  return value > 0.9995 && value < 1 ? "> 99.9 %" : value > 0 && value < 1e-5 ? "< 0.001 %" : `${number(100 * value)} %`;
}

/** A token's text with what cannot be seen made visible: ␣ is a space, and other blanks and marks stand as escapes. */
export function visible(token) {
  const escape = (mark) => (mark === " " ? "␣" : mark === "\n" ? "↵" : mark === "\t" ? "⇥" : `\\u{${mark.codePointAt(0).toString(16)}}`);
  return token.replace(/[\p{Z}\p{C}]/gu, escape);
}

/** A text of at most so many characters. */
export function short(text, most) {
  const marks = [...text];
  return marks.length <= most ? text : `${marks.slice(0, most - 1).join("")}…`;
}
