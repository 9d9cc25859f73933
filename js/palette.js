/**
 * The colour of phrase i is the CSS class of this name: the palette of host/pictures/palette.py in
 * style.css.
 */
const COLOURS = 16;

/** @param {number} phrase its index */
export const colourOf = (phrase) => `magic-colour-${phrase % COLOURS}`;
