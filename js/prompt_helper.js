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

/** Elements for a prompt and its phrases; none when either is unknown or empty. */
export function promptHelp(phrases, prompt) {
  if (!phrases?.length || !prompt?.trim()) return [];
  const ranges = findPhrases(phrases, prompt);
  const missing = phrases.filter((_, i) => !ranges[i].length);
  const parts = [element("p", { className: "magic-prompt", "aria-label": "Prompt with the words of each concept" }, ...underlined(prompt, ranges))];
  if (missing.length) {
    const list = missing.map((phrase) => `'${phrase}'`).join(", ");
    parts.push(element("p", { className: "magic-missing", role: "alert" }, `Not in the prompt: ${list}`));
  }
  return parts;
}
