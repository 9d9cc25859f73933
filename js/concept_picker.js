/**
 * The list of saved concepts as pictures, on Load Concept: the file that is chosen, and all of them
 * to choose from.
 *
 * @import { GraphNode } from "../../scripts/app.js"
 */

import { addView, caption, element } from "./elements.js";
import { conceptPictureUrl } from "./server.js";
import { widgetOf } from "./widgets.js";

const FILE = "file";
/** As the node says it when there is none. */
const NO_FILE = "(no concept file)";
/** Shown at once: of thousands of files the rest is found by its name. */
const MOST = 48;
/** What every file's name ends with. */
const ENDING = /(_\d+_)?\.safetensors$/;

/**
 * The files that a list has, by what is typed.
 *
 * @param {string[]} files
 * @param {string} typed
 */
export function matching(files, typed) {
  const words = typed.toLowerCase().split(/\s+/);
  return files.filter((file) => words.every((word) => file.toLowerCase().includes(word)));
}

/**
 * A file's picture; its first letter where it has none, or is damaged.
 *
 * @param {string} file
 */
function pictureOf(file) {
  const name = file.split("/").at(-1) ?? file;
  const frame = element("span", { className: "magic-thumbnail" });
  const image = element("img", { alt: "", loading: "lazy", src: conceptPictureUrl(file) });
  image.addEventListener("error", () => image.replaceWith([...name][0]?.toUpperCase() ?? "?"));
  frame.append(image);
  return frame;
}

export class ConceptPicker {
  /** The file that is on screen. @type {string | null} */
  #shown = null;

  /** @param {GraphNode} node */
  constructor(node) {
    this.node = node;
    this.chosen = element("div", { className: "magic-own" });
    const options = { type: "search", placeholder: "find by name", "aria-label": "Find by name" };
    this.search = element("input", { ...options, className: "magic-search" });
    this.search.addEventListener("input", () => this.#fill());
    // The host's shortcuts are for the graph.
    this.search.addEventListener("keydown", (event) => event.stopPropagation());
    this.list = element("div", { className: "magic-choices", "aria-label": "Saved concepts" });
    this.list.setAttribute("role", "group");
    this.more = caption("");
    this.opener = element("button", { type: "button", className: "magic-button" }, "Choose");
    this.opener.addEventListener("click", () => this.#open(!this.isOpen));
    this.content = element("section", { className: "magic-view", "aria-label": "The concept" });
    this.isOpen = false;
    addView(node, "picker", this.content);
    this.refresh();
  }

  get #widget() {
    return widgetOf(this.node, FILE);
  }

  /** @returns {string[]} */
  get #files() {
    const values = this.#widget?.options?.values;
    const listed = typeof values === "function" ? values() : values;
    const names = Array.isArray(listed) ? listed.map(String) : [];
    return names.filter((name) => name !== NO_FILE);
  }

  /** Reads the widget again. */
  refresh() {
    const value = this.#widget?.value;
    const file = typeof value === "string" && this.#files.includes(value) ? value : "";
    if (file === this.#shown) return;
    this.#shown = file;
    if (!this.#files.length) {
      this.content.replaceChildren();
      return;
    }
    const name = element("p", { role: "status" }, file.replace(ENDING, "") || "No file is chosen.");
    const beside = element("div", {}, name, this.opener);
    this.chosen.replaceChildren(...(file ? [pictureOf(file)] : []), beside);
    this.#open(this.isOpen);
  }

  /** @param {boolean} isOpen */
  #open(isOpen) {
    this.isOpen = isOpen;
    this.opener.textContent = isOpen ? "Close" : "Choose";
    this.opener.setAttribute("aria-expanded", String(isOpen));
    if (isOpen) this.#fill();
    const choices = isOpen ? [this.search, this.list, this.more] : [];
    this.content.replaceChildren(this.chosen, ...choices);
  }

  #fill() {
    const files = matching(this.#files, this.search.value);
    this.list.replaceChildren(
      ...files.slice(0, MOST).map((file) => {
        const name = element("span", {}, file.replace(ENDING, ""));
        const label = { type: "button", title: file, "aria-pressed": file === this.#shown };
        const choice = element("button", label, pictureOf(file), name);
        choice.addEventListener("click", () => this.#choose(file));
        return choice;
      }),
    );
    const rest = files.length - MOST;
    this.more.textContent = files.length
      ? rest > 0
        ? `and ${rest} more: type a part of the name`
        : ""
      : "No file is called so.";
  }

  /** @param {string} file */
  #choose(file) {
    const widget = this.#widget;
    if (!widget) return;
    widget.value = file;
    widget.callback?.(file);
    this.isOpen = false;
    this.#shown = null;
    this.refresh();
    this.opener.focus();
    this.node.graph?.setDirtyCanvas(true, true);
  }
}
