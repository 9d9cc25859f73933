/**
 * The colour of phrase i is the CSS class of this name: Okabe and Ito's palette in style.css, the
 * order of host/layout/masks.py.
 */
const COLOURS = 8;

/** @param {number} phrase its index */
export const colourOf = (phrase) => `magic-colour-${phrase % COLOURS}`;
