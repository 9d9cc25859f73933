/**
 * What an inversion samples again, against the picture it came from.
 *
 * Output `magic_comparison` of a node: [{ original: picture, reconstruction: picture }], pictures as in `images`.
 */

import { addView, element, slider } from "./elements.js";
import { pictureUrl } from "./server.js";

export class CompareView {
  constructor(node) {
    this.run = null;
    this.pairs = element("div", { className: "magic-stage" });
    this.split = slider("original | sampled again", { min: 0, max: 100, step: 1, value: 50 }, (share) => this.#split(share));
    this.content = element("section", { className: "magic-view", "aria-label": "Reconstruction against original" });
    addView(node, "comparison", this.content);
    this.#split(50);
  }

  /** A finished inversion: { pairs }, as in the output. */
  show(run) {
    this.run = run;
    this.pairs.replaceChildren(
      ...run.pairs.map(({ original, reconstruction }, i) =>
        element(
          "div",
          { className: "magic-picture" },
          element("img", { src: pictureUrl(reconstruction), alt: `Picture ${i + 1}, sampled again` }),
          element("img", { className: "magic-original", src: pictureUrl(original), alt: `Picture ${i + 1}, original` }),
        ),
      ),
    );
    this.content.replaceChildren(this.pairs, this.split.row);
  }

  #split(share) {
    this.pairs.style.setProperty("--magic-split", `${share}%`);
    this.split.shown.value = `${share} %`;
  }
}
