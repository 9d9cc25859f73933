/** The links of help pages to the pack's documents, which the host serves no part of. */

import { api } from "../../scripts/api.js";

/** As a page in js/docs/ links to one in docs/, so that the link is right in the repository too. */
const DOCUMENT = /^\.\.\/\.\.\/((?:docs|demo)\/[\w.-]+\.md(?:#.*)?)$/;

/**
 * Leads a link that is about to be followed to where the server answers with the document.
 *
 * @param {Event} event
 */
function lead({ target }) {
  const link = target instanceof Element ? target.closest("a") : null;
  const [, file] = DOCUMENT.exec(link?.getAttribute("href") ?? "") ?? [];
  if (link && file) link.href = api.apiURL(`/magicportrait/${file}`);
}

/** However it is followed: by any button of the mouse, a finger, or the keyboard. */
export function leadToDocuments() {
  for (const event of ["pointerover", "pointerdown", "focusin"]) {
    document.addEventListener(event, lead, { capture: true, passive: true });
  }
}
