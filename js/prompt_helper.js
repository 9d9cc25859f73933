/**
 * The prompt with each concept's words underlined in its colour, the phrases that are not in it, and
 * what else would fail.
 */

/** @import { Range } from "./phrases.js" */
import { element } from "./elements.js";
import { colourOf } from "./palette.js";
import { findPhrases, missing } from "./phrases.js";

/**
 * `prompt` as nodes; the ranges of phrase i become <mark>s of its colour.
 *
 * @param {string} prompt
 * @param {Range[][]} ranges
 * @param {string[]} phrases said when a word is pointed at: of two like words, which is whose
 */
function underlined(prompt, ranges, phrases) {
  const marks = ranges.flatMap((places, phrase) =>
    places.map(([start, end]) => ({ start, end, phrase })),
  );
  marks.sort((a, b) => a.start - b.start || b.end - a.end);
  const parts = [];
  let at = 0;
  for (const { start, end, phrase } of marks) {
    if (start < at) continue;
    const look = { className: colourOf(phrase), title: phrases[phrase] };
    const mark = element("mark", look, prompt.slice(start, end));
    parts.push(prompt.slice(at, start), mark);
    at = end;
  }
  return [...parts, prompt.slice(at)];
}

export class PromptHelp {
  constructor() {
    const label = "Prompt with the words of each concept";
    this.prompt = element("p", {
      className: "magic-prompt",
      "aria-label": label,
      // The host zooms by the wheel, but over what has the focus and says this.
      "data-capture-wheel": "true",
    });
    this.prompt.addEventListener("scroll", () => this.#showWhetherMore());
    new ResizeObserver(() => this.#showWhetherMore()).observe(this.prompt);
    this.missing = element("p", { className: "magic-missing", role: "alert" });
    this.content = element("div", { className: "magic-help" });
  }

  /**
   * Without the prompt when it or the phrases are unknown or empty.
   *
   * @param {string[] | null} phrases
   * @param {string | null} prompt
   * @param {string | null} complaint about something else
   */
  show(phrases, prompt, complaint) {
    const complaints = complaint ? [complaint] : [];
    if (phrases?.length && prompt?.trim()) {
      const ranges = findPhrases(phrases, prompt);
      const absent = phrases.filter((_, i) => !ranges[i].length);
      const list = absent.map((phrase) => missing(phrase, prompt));
      if (list.length) complaints.push(`Not in the prompt: ${list.join(", ")}`);
      this.prompt.replaceChildren(...underlined(prompt, ranges, phrases));
      if (!this.prompt.parentNode) this.content.prepend(this.prompt);
      this.#showWhetherMore();
    } else {
      this.prompt.remove();
    }
    this.#complain(complaints.join(". "));
  }

  /** Fades what is cut off below. Only what can be scrolled takes the focus. */
  #showWhetherMore() {
    const { scrollTop, scrollHeight, clientHeight } = this.prompt;
    this.prompt.classList.toggle("magic-more-below", scrollHeight - clientHeight - scrollTop > 1);
    if (scrollHeight - clientHeight > 1) this.prompt.tabIndex = 0;
    else this.prompt.removeAttribute("tabindex");
  }

  /**
   * An alert is read out whenever it is touched: with every key, if it were made anew.
   *
   * @param {string} text
   */
  #complain(text) {
    if (!text) {
      this.missing.remove();
      return;
    }
    if (this.missing.textContent !== text) this.missing.textContent = text;
    if (!this.missing.parentNode) this.content.append(this.missing);
  }
}
