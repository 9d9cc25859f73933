/**
 * The words that the CLIP of a MagiCapture Apply knows, before the run: without one of them a prompt
 * draws nothing of what was learned.
 *
 * @import { GraphNode } from "../../scripts/app.js"
 */

import { addView, caption, element } from "./elements.js";
import { learnedWordsOf, promptsBehind } from "./graph.js";

/**
 * What to say of words when no prompt has any of them; null otherwise, and while a prompt is not
 * known.
 *
 * @param {string[]} words
 * @param {string[] | null} prompts
 */
function complaintAbout(words, prompts) {
  if (!prompts?.length) return null;
  // Capital letters make no difference.
  const text = prompts.join("\n").toLowerCase();
  if (words.some((word) => text.includes(word.toLowerCase()))) return null;
  return `Not in the prompt: ${words.map((word) => `'${word}'`).join(", ")}`;
}

export class WordsView {
  /** What is on screen, as JSON. */
  #shown = "";

  /** @param {GraphNode} node */
  constructor(node) {
    this.node = node;
    const label = { className: "magic-view", "aria-label": "Learned words" };
    this.content = element("section", label);
    addView(node, "words", this.content);
    this.refresh();
  }

  /** Reads the graph again. */
  refresh() {
    const words = learnedWordsOf(this.node) ?? [];
    const complaint = words.length ? complaintAbout(words, promptsBehind(this.node)) : null;
    const read = JSON.stringify([words, complaint]);
    // An alert is read out whenever it is touched.
    if (read === this.#shown) return;
    this.#shown = read;
    this.content.replaceChildren();
    if (words.length) this.content.append(caption(`Write in the prompt: ${words.join(", ")}`));
    if (!complaint) return;
    this.content.append(element("p", { className: "magic-missing", role: "alert" }, complaint));
  }
}
