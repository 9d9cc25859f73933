/**
 * What is dark in the pictures of a MagiCapture Subject or Style, which the host shows.
 *
 * Output `magic_masked` of a node: [whether masks leave out anything].
 *
 * @import { GraphNode } from "../../scripts/app.js"
 * @import { Run } from "./runs.js"
 *
 * @typedef {Run & { isMasked: boolean }} PictureSet
 */

import { addView, caption, element, LEFT_OUT } from "./elements.js";

const ALL_LEARNED = "All of each picture is learned.";

export class SetView {
  /** @type {PictureSet | null} */
  run = null;

  /** @param {GraphNode} node */
  constructor(node) {
    const label = { className: "magic-view", "aria-label": "What of the pictures is learned" };
    this.content = element("section", label);
    addView(node, "masked", this.content);
  }

  /**
   * The pictures of a run.
   *
   * @param {PictureSet} run
   */
  show(run) {
    this.run = run;
    this.content.replaceChildren(caption(run.isMasked ? LEFT_OUT : ALL_LEARNED));
  }
}
