/** The prompt with each concept's words underlined in its colour, and the phrases that are not in it. */

import { element } from "./elements.js";
import { colourOf } from "./palette.js";
import { findPhrases } from "./phrases.js";

/** `prompt` as nodes; the ranges of phrase i become <mark>s of its colour. */
function underlined(prompt, ranges) {
  const marks = ranges.flatMap((places, phrase) => places.map(([start, end]) => ({ start, end, phrase })));
  marks.sort((a, b) => a.start - b.start || b.end - a.end);
  const parts = [];
  let at = 0;
  for (const { start, end, phrase } of marks) {
    if (start < at) continue;
    parts.push(prompt.slice(at, start), element("mark", { className: colourOf(phrase) }, prompt.slice(start, end)));
    at = end;
  }
  return [...parts, prompt.slice(at)];
}

export class PromptHelp {
  constructor() {
    this.prompt = element("p", { className: "magic-prompt", "aria-label": "Prompt with the words of each concept" });
    this.missing = element("p", { className: "magic-missing", role: "alert" });
    this.content = element("div", { className: "magic-help" });
  }

  /** Empty when prompt or phrases are unknown or empty. */
  show(phrases, prompt) {
    if (!phrases?.length || !prompt?.trim()) return this.content.replaceChildren();
    const ranges = findPhrases(phrases, prompt);
    const list = phrases.filter((_, i) => !ranges[i].length).map((phrase) => `'${phrase}'`);
    this.prompt.replaceChildren(...underlined(prompt, ranges));
    if (!this.prompt.parentNode) this.content.prepend(this.prompt);
    this.#complain(list.length ? `Not in the prompt: ${list.join(", ")}` : "");
  }

  /** An alert is read out whenever it is touched: with every key, if it were made anew. */
  #complain(text) {
    if (!text) return this.missing.remove();
    if (this.missing.textContent !== text) this.missing.textContent = text;
    if (!this.missing.parentNode) this.content.append(this.missing);
  }
}
