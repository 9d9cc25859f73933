/**
 * The layout of a run on the node that watches it: while it samples the latest step, afterwards any step.
 *
 * magicportrait.run     { node, sampler, steps, phrases: [text], references: [{ phrase: index, image: JPEG }] }
 * magicportrait.layout  { node, sampler, layouts: { step: [PNG of each picture] }, done }
 */

import { addView, dataUrl, element, slider } from "./elements.js";
import { findNode, showsPicturesOf } from "./graph.js";
import { colourOf } from "./palette.js";
import { promptHelp } from "./prompt_helper.js";

export class LayoutView {
  constructor(node, readPrompt) {
    this.node = node;
    this.readPrompt = readPrompt;
    this.run = null;
    this.backdrops = [];
    this.help = element("div", { className: "magic-help" });
    this.legend = element("ul", { className: "magic-legend", "aria-label": "Colours of the phrases" });
    this.stage = element("div", { className: "magic-stage" });
    this.step = slider("step", { min: 0, max: 0, step: 1, value: 0 }, (step) => this.#show(step));
    this.opacity = slider("layout", { min: 0, max: 1, step: 0.05, value: 0.6 }, (value) => this.#fade(value));
    this.references = element("div", { className: "magic-references" });
    this.content = element("section", { className: "magic-view", "aria-label": "Layout" }, this.help);
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
    this.help.replaceChildren(...promptHelp(phrases, prompt));
  }

  begin({ sampler, steps, phrases, references }) {
    this.run = { sampler, steps, phrases, layouts: new Map() };
    this.backdrops = [];
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
    this.content.replaceChildren(this.help, this.legend, this.stage, this.step.row, this.opacity.row, this.references);
  }

  add({ layouts, done }) {
    if (!this.run) return;
    for (const [step, pictures] of Object.entries(layouts)) this.run.layouts.set(Number(step), pictures);
    if (!this.run.layouts.size) return;
    this.measured = [...this.run.layouts.keys()].sort((a, b) => a - b);
    const last = this.measured.length - 1;
    // While it samples the slider follows, unless it has been turned back.
    const follows = done || Number(this.step.input.value) >= Number(this.step.input.max);
    this.step.input.max = last;
    if (follows) this.step.input.value = last;
    this.#show(Number(this.step.input.value));
  }

  /** A picture under the layout of picture `index`. */
  setBackdrop(index, url) {
    this.backdrops[index] = url;
    const image = this.stage.children[index]?.querySelector(".magic-backdrop");
    if (!image) return;
    image.src = url;
    image.hidden = false;
  }

  #fade(value) {
    this.stage.style.setProperty("--magic-opacity", value);
    this.opacity.shown.value = `${Math.round(value * 100)} %`;
  }

  #show(index) {
    const step = this.measured[index];
    const pictures = this.run.layouts.get(step);
    this.step.shown.value = `${step + 1} of ${this.run.steps}`;
    this.step.input.setAttribute("aria-valuetext", this.step.shown.value);
    if (this.stage.childElementCount !== pictures.length) {
      this.stage.replaceChildren(...pictures.map((_, i) => this.#figure(i)));
      this.backdrops.forEach((url, i) => url && this.setBackdrop(i, url));
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

/** Pictures of a finished node, for the views whose sampler made them. */
export function offerPictures(views, node, urls) {
  for (const view of views) {
    const batch = view.run?.layouts.values().next().value?.length;
    if (batch === urls.length && showsPicturesOf(node, findNode(view.run.sampler))) urls.forEach((url, i) => view.setBackdrop(i, url));
  }
}
