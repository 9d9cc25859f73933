/**
 * The colour of phrase i is the CSS class of this name: the palette of host/pictures/palette.py in
 * style.css. Once all colours are used a second class has a pattern.
 */
const COLOURS = 16;
const PATTERNS = ["", " magic-striped", " magic-checked"];

/** @param {number} phrase its index */
export const colourOf = (phrase) =>
  `magic-colour-${phrase % COLOURS}${PATTERNS[Math.floor(phrase / COLOURS) % PATTERNS.length]}`;
