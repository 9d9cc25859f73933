/**
 * The layout of a run on the node that watches it: while it samples the latest step, afterwards any
 * step.
 *
 * Events `magicportrait.run` (a Beginning, once) and `magicportrait.layout` (an Advance).
 *
 * @import { GraphNode } from "../../scripts/app.js"
 * @import { Place } from "./runs.js"
 *
 * run: the same in all events of one run; prompt: the host's id of what was queued; sampler: the id
 * of the node that samples; asked: the steps on its widget where its scheduler makes others of them;
 * phrases: none of a run without a layout; references: JPEGs in base64, phrase is an index, dark
 * where they are masked.
 * @typedef {{ phrase: number, image: string, masked: boolean }} Reference
 * @typedef {Place & {
 *   run?: string,
 *   prompt?: string | null,
 *   sampler: string,
 *   steps: number,
 *   asked?: number | null,
 *   phrases: string[],
 *   references: Reference[],
 * }} Beginning
 *
 * layouts: for each step a PNG of each picture, in base64.
 * @typedef {Place & { layouts: Record<string, string[]>, done: boolean }} Advance
 *
 * phrases, prompt: null while they are not known; complaint: what else would fail.
 * @typedef {{
 *   phrases: string[] | null,
 *   prompt: string | null,
 *   complaint: string | null,
 * }} Prompt
 */

import {
  ALL_TAKEN,
  addView,
  arrange,
  caption,
  dataUrl,
  element,
  LEFT_OUT,
  slider,
} from "./elements.js";
import { findNode, showsPicturesOf } from "./graph.js";
import { colourOf } from "./palette.js";
import { PromptHelp } from "./prompt_helper.js";

/** How much of a layout covers its picture: while it samples, and when the picture is done. */
const OPACITY = 0.6;
const OPACITY_OF_DONE = 0.3;
const HOW_TO_MASK = "For a part of it, connect a mask to its node.";

/** What the server has told of one run. */
export class LayoutRun {
  /** @type {Map<number, string[]>} */
  layouts = new Map();
  /** The addresses of its pictures, as far as there are any. @type {string[]} */
  backdrops = [];
  isDone = false;
  /** Whether the backdrops are the finished pictures. */
  hasPictures = false;
  /** @type {string | null} */
  #preview = null;

  /** @param {Beginning} beginning */
  constructor({ node, workflow, run, prompt, sampler, steps, asked, phrases, references }) {
    this.id = run;
    this.prompt = prompt;
    this.asked = asked ?? steps;
    this.node = node;
    this.workflow = workflow;
    this.sampler = sampler;
    this.steps = steps;
    this.phrases = phrases;
    this.references = references;
  }

  /** @param {Advance} advance */
  add({ layouts, done }) {
    for (const [step, pictures] of Object.entries(layouts)) {
      this.layouts.set(Number(step), pictures);
    }
    this.isDone = done;
  }

  /** The steps with a layout. */
  get measured() {
    return [...this.layouts.keys()].sort((a, b) => a - b);
  }

  /**
   * The host's preview of its first picture.
   *
   * @param {Blob} blob
   */
  preview(blob) {
    this.close();
    this.#preview = URL.createObjectURL(blob);
    this.backdrops[0] = this.#preview;
  }

  /** @param {string[]} urls of its pictures */
  finish(urls) {
    this.close();
    this.backdrops = urls;
    this.hasPictures = true;
  }

  close() {
    if (this.#preview) URL.revokeObjectURL(this.#preview);
    this.#preview = null;
  }
}

export class LayoutView {
  /** @type {LayoutRun | null} */
  run = null;
  /** What was read last of the graph, as JSON. */
  #read = "";
  /** Whether the user has turned the opacity, which is then left alone. */
  #isTurned = false;

  /**
   * @param {GraphNode} node
   * @param {(node: GraphNode) => Prompt} readPrompt
   */
  constructor(node, readPrompt) {
    this.node = node;
    this.readPrompt = readPrompt;
    this.help = new PromptHelp();
    const colours = { className: "magic-legend", "aria-label": "Colours of the phrases" };
    this.legend = element("ul", colours);
    this.stage = element("div", { className: "magic-stage" });
    const steps = { min: 0, max: 0, step: 1, value: 0 };
    this.step = slider("step", steps, (step) => this.#show(step));
    const shares = { min: 0, max: 1, step: 0.05, value: OPACITY };
    this.opacity = slider("layout", shares, (value) => {
      this.#isTurned = true;
      this.#fade(value);
    });
    this.references = element("div", { className: "magic-references" });
    const label = { className: "magic-view", "aria-label": "Layout" };
    this.content = element("section", label, this.help.content);
    addView(node, "layout", this.content);
    this.#fade(OPACITY);
    this.refresh();
  }

  /** Reads prompt and phrases of the graph again. */
  refresh() {
    const { phrases, prompt, complaint } = this.readPrompt(this.node);
    const read = JSON.stringify([phrases, prompt, complaint]);
    if (read === this.#read) return;
    this.#read = read;
    this.help.show(phrases, prompt, complaint);
  }

  /**
   * Another run.
   *
   * @param {LayoutRun} run
   */
  show(run) {
    this.run = run;
    const { phrases, references } = run;
    if (!phrases.length) {
      const words = element("p", { role: "status" }, "No phrases in this run.");
      this.content.replaceChildren(this.help.content, words);
      return;
    }
    this.legend.replaceChildren(...phrases.map(legendItem));
    this.references.replaceChildren(
      ...references.map(({ phrase, image, masked }) => {
        const title = phrases[phrase];
        const what = masked ? "dark parts are left out by its mask" : "all of it is taken";
        const alt = `Reference of '${title}'; ${what}`;
        return element("img", {
          className: colourOf(phrase),
          src: dataUrl("jpeg", image),
          alt,
          title,
        });
      }),
      ...(references.length ? [caption(ofReferences(references))] : []),
    );
    this.stage.replaceChildren();
    this.step.input.max = "0";
    this.step.shown.value = "";
    this.step.input.removeAttribute("aria-valuetext");
    this.content.replaceChildren(
      this.help.content,
      this.legend,
      this.stage,
      this.step.row,
      ...(run.asked === run.steps ? [] : [caption(stepsSentence(run))]),
      this.opacity.row,
      this.references,
    );
    this.update();
  }

  /** More of the run is known. */
  update() {
    const last = (this.run?.layouts.size ?? 0) - 1;
    if (last < 0) return;
    const { input } = this.step;
    // While it samples the slider follows, unless it has been turned back.
    const follows = this.run?.isDone || Number(input.value) >= Number(input.max);
    input.max = String(last);
    if (follows) input.value = input.max;
    this.#show(Number(input.value));
  }

  /** The run's pictures under their layouts. */
  showBackdrops() {
    this.run?.backdrops.forEach((url, i) => {
      const image = imageIn(this.stage.children[i], ".magic-backdrop");
      if (!image || !url) return;
      image.src = url;
      image.hidden = false;
    });
    if (!this.#isTurned) this.#fade(this.run?.hasPictures ? OPACITY_OF_DONE : OPACITY);
  }

  /** @param {number} opacity of the layout */
  #fade(opacity) {
    this.stage.style.setProperty("--magic-opacity", String(opacity));
    this.opacity.input.value = String(opacity);
    this.opacity.shown.value = `${Math.round(opacity * 100)} %`;
  }

  /** @param {number} index among the steps with a layout */
  #show(index) {
    const { run } = this;
    const step = run?.measured[index];
    if (!run || step === undefined) return;
    const pictures = run.layouts.get(step) ?? [];
    this.step.shown.value = `${step + 1} of ${run.steps}`;
    this.step.input.setAttribute("aria-valuetext", this.step.shown.value);
    if (this.stage.childElementCount !== pictures.length) {
      this.stage.replaceChildren(...pictures.map((_, i) => figure(i)));
      arrange(this.stage);
      this.showBackdrops();
    }
    const where = `at step ${step + 1}: where ${run.phrases.join(", ")} are`;
    pictures.forEach((picture, i) => {
      const image = imageIn(this.stage.children[i], ".magic-layout");
      if (!image) return;
      image.src = dataUrl("png", picture);
      image.alt = `Layout of picture ${i + 1} ${where}`;
    });
  }
}

/** @param {LayoutRun} run */
const stepsSentence = ({ steps, asked }) =>
  `The sampler's scheduler makes ${steps} steps of the ${asked} asked for.`;

/** @param {Reference[]} references */
const ofReferences = (references) =>
  references.some(({ masked }) => masked) ? LEFT_OUT : `${ALL_TAKEN} ${HOW_TO_MASK}`;

/**
 * @param {string} phrase
 * @param {number} index
 */
function legendItem(phrase, index) {
  const className = `magic-swatch ${colourOf(index)}`;
  const swatch = element("span", { className, "aria-hidden": "true" });
  return element("li", {}, swatch, phrase);
}

/** @param {number} index of the picture in its batch */
function figure(index) {
  const alt = `Picture ${index + 1}`;
  const backdrop = element("img", { className: "magic-backdrop", alt, hidden: true });
  // A file that is gone by now.
  backdrop.addEventListener("error", () => {
    backdrop.hidden = true;
  });
  const layout = element("img", { className: "magic-layout" });
  return element("div", { className: "magic-picture" }, backdrop, layout);
}

/**
 * @param {Element | undefined} place
 * @param {string} selector
 * @returns {HTMLImageElement | null | undefined}
 */
const imageIn = (place, selector) => place?.querySelector(selector);

/**
 * Pictures of a finished node, for the runs whose sampler made them. Those of another prompt, in
 * which the node with the layout may be bypassed, are another run's.
 *
 * @param {[LayoutRun, LayoutView[]][]} onScreen the runs with their views
 * @param {GraphNode | null} node
 * @param {string[]} urls
 * @param {string} [prompt] the host's id of what was queued
 */
export function offerPictures(onScreen, node, urls, prompt) {
  for (const [run, views] of onScreen) {
    if (run.prompt && prompt && run.prompt !== prompt) continue;
    const [batch] = run.layouts.values();
    const isWhole = batch?.length === urls.length;
    if (!isWhole || !showsPicturesOf(node, findNode(run.sampler))) continue;
    run.finish([...urls]);
    for (const view of views) view.showBackdrops();
  }
}
