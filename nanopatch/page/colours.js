// Colours of numbers, in a light and a dark page. Blue against red-orange, which colour-blind readers tell apart, and
// which differ in brightness from the middle: a print in grey keeps the size.

const LIGHT = {
  two: [[5, 48, 97], [67, 147, 195], [247, 247, 247], [214, 96, 77], [103, 0, 31]],
  one: [[247, 251, 255], [158, 202, 225], [49, 130, 189], [8, 48, 107]],
  glow: [[247, 247, 247], [254, 196, 79], [217, 95, 14], [102, 37, 6]],
  none: [236, 236, 236],
};
const DARK = {
  two: [[150, 205, 255], [60, 120, 175], [34, 36, 40], [190, 95, 60], [255, 180, 140]],
  one: [[34, 36, 40], [40, 90, 140], [75, 150, 215], [190, 225, 255]],
  glow: [[34, 36, 40], [120, 70, 10], [225, 140, 30], [255, 225, 150]],
  none: [52, 54, 58],
};
const dark = matchMedia("(prefers-color-scheme: dark)");

/** Call this when the reader's system changes between light and dark. */
export function onTheme(redrawn) {
  dark.addEventListener("change", redrawn);
}

function palette() {
  return dark.matches && !matchMedia("print").matches ? DARK : LIGHT;
}

/** The colour of a value: [r, g, b]. ends: the values at both ends of the scale; below 0, the middle is 0. */
export function colour(value, [low, high], name = low < 0 ? "two" : "one") {
  const { [name]: stops, none } = palette();
  if (Number.isNaN(value)) return none;
  const place = Math.min(1, Math.max(0, (value - low) / (high - low || 1))) * (stops.length - 1);
  const i = Math.min(Math.floor(place), stops.length - 2);
  return stops[i].map((channel, c) => Math.round(channel + (place - i) * (stops[i + 1][c] - channel)));
}

export function css([r, g, b]) {
  return `rgb(${r} ${g} ${b})`;
}

/** Black or white: what has the larger contrast on a colour (by its luminance, as WCAG 2 defines it). */
export function ink(rgb) {
  const [r, g, b] = rgb.map((channel) => (channel <= 10 ? channel / 3294.6 : ((channel / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}
