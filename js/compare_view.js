/**
 * What an inversion samples again, against the picture it came from.
 *
 * Output `magic_comparison` of a node: [{ original: picture, reconstruction: picture }], pictures
 * as in `images`.
 *
 * @import { GraphNode } from "../../scripts/app.js"
 * @import { Run } from "./runs.js"
 * @import { Picture } from "./server.js"
 *
 * @typedef {{ original: Picture, reconstruction: Picture }} Pair
 * @typedef {Run & { pairs: Pair[] }} Comparison
 */

import { addView, arrange, element, slider } from "./elements.js";
import { pictureUrl } from "./server.js";

export class CompareView {
  /** @type {Comparison | null} */
  run = null;

  /** @param {GraphNode} node */
  constructor(node) {
    this.pairs = element("div", { className: "magic-stage" });
    const range = { min: 0, max: 100, step: 1, value: 50 };
    this.split = slider("original | sampled again", range, (share) => this.#split(share));
    const label = "Reconstruction against original";
    this.content = element("section", { className: "magic-view", "aria-label": label });
    addView(node, "comparison", this.content);
    this.#split(50);
  }

  /**
   * A finished inversion.
   *
   * @param {Comparison} run
   */
  show(run) {
    this.run = run;
    this.pairs.replaceChildren(...run.pairs.map((pair, i) => this.#figure(pair, i)));
    arrange(this.pairs);
    this.content.replaceChildren(this.pairs, this.split.row);
  }

  /**
   * @param {Pair} pair
   * @param {number} index
   */
  #figure({ original, reconstruction }, index) {
    const [first, again] = [pictureUrl(original), pictureUrl(reconstruction)];
    const [ofFirst, ofAgain] = ["original", "sampled again"].map(
      (what) => `Picture ${index + 1}, ${what}`,
    );
    return element(
      "div",
      { className: "magic-picture" },
      element("img", { src: again, alt: ofAgain }),
      element("img", { className: "magic-original", src: first, alt: ofFirst }),
    );
  }

  /** @param {number} share */
  #split(share) {
    this.pairs.style.setProperty("--magic-split", `${share}%`);
    this.split.shown.value = `${share} %`;
  }
}
