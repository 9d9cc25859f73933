/** The links of help pages to the pack's documents, which the host serves no part of. */

import { api } from "../../scripts/api.js";

/** The host's panel, which it fills with a page at a time. */
const PANEL = "node-help-content";
/** As a page in js/docs/ links to one in docs/, so that the link is right in the repository too. */
const DOCUMENT = /^\.\.\/\.\.\/((?:docs|demo)\/[\w.-]+\.md(?:#.*)?)$/;

/** @param {Element} panel */
function lead(panel) {
  for (const link of panel.querySelectorAll("a")) {
    const [, file] = DOCUMENT.exec(link.getAttribute("href") ?? "") ?? [];
    if (file) link.href = api.apiURL(`/magicportrait/${file}`);
  }
}

/**
 * Leads the links to where the server answers with the document, as soon as a page shows: an address
 * is copied and opened in another tab, too.
 */
export function leadToDocuments() {
  // Kept by the browser: to look into it costs nothing while no panel is open.
  const panels = document.getElementsByClassName(PANEL);
  const observer = new MutationObserver(() => {
    for (const panel of panels) lead(panel);
  });
  observer.observe(document.body, { childList: true, subtree: true });
}
