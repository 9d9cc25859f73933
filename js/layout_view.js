/**
 * The layout of a run on the node that watches it: while it samples the latest step, afterwards any step.
 *
 * magicportrait.run     { node, workflow, sampler, steps, phrases: [text], references: [{ phrase: index, image: JPEG }] }
 * magicportrait.layout  { node, workflow, sampler, layouts: { step: [PNG of each picture] }, done }
 */

import { addView, dataUrl, element, slider } from "./elements.js";
import { findNode, showsPicturesOf } from "./graph.js";
import { colourOf } from "./palette.js";
import { PromptHelp } from "./prompt_helper.js";

/** What the server has told of one run. backdrops: addresses of its pictures, as far as there are any. */
export class LayoutRun {
  constructor({ node, workflow, sampler, steps, phrases, references }) {
    Object.assign(this, { node, workflow, sampler, steps, phrases, references });
    this.layouts = new Map();
    this.backdrops = [];
    this.isDone = false;
  }

  add({ layouts, done }) {
    for (const [step, pictures] of Object.entries(layouts)) this.layouts.set(Number(step), pictures);
    this.isDone = done;
  }

  /** The steps with a layout. */
  get measured() {
    return [...this.layouts.keys()].sort((a, b) => a - b);
  }

  /** The host's preview of its first picture. */
  preview(blob) {
    this.close();
    this.previewed = URL.createObjectURL(blob);
    this.backdrops[0] = this.previewed;
  }

  finish(urls) {
    this.close();
    this.backdrops = urls;
  }

  close() {
    if (this.previewed) URL.revokeObjectURL(this.previewed);
    this.previewed = null;
  }
}

export class LayoutView {
  constructor(node, readPrompt) {
    this.node = node;
    this.readPrompt = readPrompt;
    this.run = null;
    this.help = new PromptHelp();
    this.legend = element("ul", { className: "magic-legend", "aria-label": "Colours of the phrases" });
    this.stage = element("div", { className: "magic-stage" });
    this.step = slider("step", { min: 0, max: 0, step: 1, value: 0 }, (step) => this.#show(step));
    this.opacity = slider("layout", { min: 0, max: 1, step: 0.05, value: 0.6 }, (value) => this.#fade(value));
    this.references = element("div", { className: "magic-references" });
    this.content = element("section", { className: "magic-view", "aria-label": "Layout" }, this.help.content);
    addView(node, "layout", this.content);
    this.#fade(0.6);
    this.refresh();
  }

  /** Reads prompt and phrases of the graph again. */
  refresh() {
    const { phrases, prompt } = this.readPrompt(this.node);
    const read = JSON.stringify([phrases, prompt]);
    if (read === this.read) return;
    this.read = read;
    this.help.show(phrases, prompt);
  }

  /** Another run. */
  show(run) {
    this.run = run;
    const { phrases, references } = run;
    this.legend.replaceChildren(
      ...phrases.map((phrase, i) =>
        element("li", {}, element("span", { className: `magic-swatch ${colourOf(i)}`, "aria-hidden": "true" }), phrase),
      ),
    );
    this.references.replaceChildren(
      ...references.map(({ phrase, image }) =>
        element("img", {
          className: colourOf(phrase),
          src: dataUrl("jpeg", image),
          alt: `Reference of '${phrases[phrase]}'; dark parts are outside its mask`,
          title: phrases[phrase],
        }),
      ),
    );
    this.stage.replaceChildren();
    this.step.input.max = 0;
    this.step.shown.value = "";
    this.step.input.removeAttribute("aria-valuetext");
    this.content.replaceChildren(this.help.content, this.legend, this.stage, this.step.row, this.opacity.row, this.references);
    this.update();
  }

  /** More of the run is known. */
  update() {
    const last = this.run.layouts.size - 1;
    if (last < 0) return;
    // While it samples the slider follows, unless it has been turned back.
    const follows = this.run.isDone || Number(this.step.input.value) >= Number(this.step.input.max);
    this.step.input.max = last;
    if (follows) this.step.input.value = last;
    this.#show(Number(this.step.input.value));
  }

  /** The run's pictures under their layouts. */
  showBackdrops() {
    this.run.backdrops.forEach((url, i) => {
      const image = this.stage.children[i]?.querySelector(".magic-backdrop");
      if (!image || !url) return;
      image.src = url;
      image.hidden = false;
    });
  }

  #fade(value) {
    this.stage.style.setProperty("--magic-opacity", value);
    this.opacity.shown.value = `${Math.round(value * 100)} %`;
  }

  #show(index) {
    const step = this.run.measured[index];
    if (step === undefined) return;
    const pictures = this.run.layouts.get(step);
    this.step.shown.value = `${step + 1} of ${this.run.steps}`;
    this.step.input.setAttribute("aria-valuetext", this.step.shown.value);
    if (this.stage.childElementCount !== pictures.length) {
      this.stage.replaceChildren(...pictures.map((_, i) => this.#figure(i)));
      this.showBackdrops();
    }
    pictures.forEach((picture, i) => {
      const image = this.stage.children[i].querySelector(".magic-layout");
      image.src = dataUrl("png", picture);
      image.alt = `Layout of picture ${i + 1} at step ${step + 1}: where ${this.run.phrases.join(", ")} are`;
    });
  }

  #figure(index) {
    const backdrop = element("img", { className: "magic-backdrop", alt: `Picture ${index + 1}`, hidden: true });
    return element("div", { className: "magic-picture" }, backdrop, element("img", { className: "magic-layout" }));
  }
}

/** Pictures of a finished node, for the runs whose sampler made them. onScreen: [[run, view]]. */
export function offerPictures(onScreen, node, urls) {
  for (const [run, view] of onScreen) {
    const batch = run.layouts.values().next().value?.length;
    if (batch !== urls.length || !showsPicturesOf(node, findNode(run.sampler))) continue;
    run.finish([...urls]);
    view.showBackdrops();
  }
}
