/**
 * What a MagicFace Concept takes: of a picture of its own before the run, with the Mask Editor; of a
 * connected image after the run. And the strength in words.
 *
 * Output `magic_taken` of a node: JPEGs in base64, dark where the mask leaves them out, if it does.
 *
 * @import { GraphNode } from "../../scripts/app.js"
 * @import { Run } from "./runs.js"
 *
 * @typedef {Run & { pictures: { picture: string, masked: boolean }[] }} Taken
 */

import { app } from "../../scripts/app.js";
import {
  ALL_TAKEN,
  addView,
  arrange,
  caption,
  dataUrl,
  element,
  hideHostsPictures,
  LEFT_OUT,
} from "./elements.js";
import { isLinked } from "./graph.js";
import { inputPictureUrl } from "./server.js";
import { onTurn, widgetOf } from "./widgets.js";

const PICTURE = "picture";
/** The host's button beside it. */
const UPLOAD = "upload";
const CUSTOM = "custom";
/**
 * Of UNets, as host/sampling/backbone/unet.py has them.
 *
 * @type {Record<string, number>}
 */
const STRENGTHS = { subtle: 2, normal: 3, strong: 4 };
/** What the Mask Editor calls its files, which are transparent where the brush was. */
const PAINTED = /(^|\/)clipspace-[^/]*$/;
/** Of a connected image, which has no button of ours beside it. */
const HOW_TO_PAINT =
  "For a part of it: right-click Load Image > Open in MaskEditor, and connect its MASK to 'mask'.";
const SIDE = 128;
/** What is left of a colour that is not taken. */
const DARK = 0.25;

/**
 * A word for the strength sets the number, and another number is `custom`.
 *
 * @param {GraphNode} node
 */
export function linkStrengths(node) {
  const [preset, strength] = [widgetOf(node, "preset"), widgetOf(node, "strength")];
  if (!preset || !strength) return;
  onTurn(preset, (word) => {
    const number = STRENGTHS[String(word)];
    if (number !== undefined) strength.value = number;
  });
  onTurn(strength, (number) => {
    if (number !== STRENGTHS[String(preset.value)]) preset.value = CUSTOM;
  });
}

/**
 * The Mask Editor reads and writes a widget called `image`. This one stands for the node's picture,
 * and is neither drawn nor saved.
 *
 * @param {GraphNode} node
 */
export function offerToMaskEditor(node) {
  const picture = widgetOf(node, PICTURE);
  if (!picture) return;
  const alias = {
    name: "image",
    type: "hidden",
    hidden: true,
    serialize: false,
    options: { serialize: false, hidden: true, canvasOnly: true, hideInPanel: true },
    computeSize: () => [0, -4],
    get value() {
      return picture.value;
    },
    set value(value) {
      picture.value = value;
      picture.callback?.(value);
    },
  };
  node.widgets?.push(alias);
}

/**
 * An image that has been loaded.
 *
 * @param {string} src
 */
async function loaded(src) {
  const image = element("img", { src });
  await image.decode();
  return image;
}

/**
 * Draws an image as large as the canvas is.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {HTMLImageElement} image
 */
function pixelsOf(context, image) {
  const { width, height } = context.canvas;
  context.clearRect(0, 0, width, height);
  context.drawImage(image, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

export class ConceptView {
  /** @type {Taken | null} */
  run = null;
  /** The picture of its own that is on screen; null for a connected image. @type {string | null} */
  #shown = "";

  /** @param {GraphNode} node */
  constructor(node) {
    this.node = node;
    this.canvas = element("canvas", { className: "magic-taken", role: "img" });
    this.words = element("p", { role: "status" });
    const paint = element(
      "button",
      { type: "button", className: "magic-button" },
      "Paint the mask",
    );
    paint.addEventListener("click", () => this.#paint());
    const beside = element("div", {}, this.words, paint);
    this.row = element("div", { className: "magic-own" }, this.canvas, beside);
    this.stage = element("div", { className: "magic-stage" });
    const label = { className: "magic-view", "aria-label": "What is taken" };
    this.content = element("section", label);
    addView(node, "taken", this.content);
    // It has what was painted cut out: the opposite of what is taken.
    hideHostsPictures(node);
    onTurn(widgetOf(node, PICTURE), () => this.refresh());
    this.refresh();
  }

  /** Reads the graph again: a connected image takes the picture's place. */
  refresh() {
    const value = widgetOf(this.node, PICTURE)?.value;
    const own = typeof value === "string" ? value : "";
    const picture = isLinked(this.node, "image") ? null : own;
    this.#disablePicture(picture === null);
    if (picture === this.#shown) return;
    this.#shown = picture;
    if (picture) this.#showOwn(picture);
    else if (picture === null && this.run) this.show(this.run);
    else this.content.replaceChildren();
  }

  /**
   * A connected image counts, and the picture does not.
   *
   * @param {boolean} isDisabled
   */
  #disablePicture(isDisabled) {
    const names = new Set([PICTURE, UPLOAD]);
    for (const widget of this.node.widgets ?? []) {
      if (names.has(widget.name)) widget.disabled = isDisabled;
    }
  }

  /**
   * What was taken of a connected image.
   *
   * @param {Taken} run
   */
  show(run) {
    this.run = run;
    if (!isLinked(this.node, "image")) return;
    const isMasked = run.pictures.some(({ masked }) => masked);
    const alt = isMasked ? "What is taken of the image; the rest is dark" : ALL_TAKEN;
    this.stage.replaceChildren(
      ...run.pictures.map(({ picture }) => {
        const image = element("img", { src: dataUrl("jpeg", picture), alt, title: alt });
        return element("div", { className: "magic-picture" }, image);
      }),
    );
    arrange(this.stage);
    const words = isMasked ? LEFT_OUT : `${ALL_TAKEN} ${HOW_TO_PAINT}`;
    this.content.replaceChildren(this.stage, caption(words));
  }

  /** @param {string} picture a file of the input folder */
  async #showOwn(picture) {
    try {
      const channels = ["rgb", "a"].map((channel) => inputPictureUrl(picture, channel));
      const [colours, alpha] = await Promise.all(channels.map(loaded));
      // Another may have been chosen meanwhile.
      if (picture !== this.#shown) return;
      this.#draw(colours, alpha, PAINTED.test(picture));
    } catch {
      if (picture !== this.#shown) return;
      this.canvas.width = this.canvas.height = 0;
      this.words.textContent = "The picture is not there any more: choose another.";
    }
    this.canvas.setAttribute("aria-label", this.words.textContent ?? "");
    this.content.replaceChildren(this.row);
  }

  /**
   * What is taken, and all the rest dark.
   *
   * @param {HTMLImageElement} colours
   * @param {HTMLImageElement} alpha
   * @param {boolean} isPainted
   */
  #draw(colours, alpha, isPainted) {
    const scale = SIDE / Math.max(colours.naturalWidth, colours.naturalHeight);
    this.canvas.width = Math.max(1, Math.round(colours.naturalWidth * scale));
    this.canvas.height = Math.max(1, Math.round(colours.naturalHeight * scale));
    const context = this.canvas.getContext("2d", { willReadFrequently: true });
    if (!context) return;
    const { data: opaque } = pixelsOf(context, alpha);
    const picture = pixelsOf(context, colours);
    const isMasked = opaque.some((value, i) => i % 4 === 3 && value < 255);
    if (isMasked) {
      picture.data.forEach((value, i) => {
        if (i % 4 === 3) return;
        const share = opaque[i - (i % 4) + 3] / 255;
        picture.data[i] = value * (DARK + (1 - DARK) * (isPainted ? 1 - share : share));
      });
      context.putImageData(picture, 0, 0);
    }
    this.words.textContent = isMasked ? "The bright part is taken." : ALL_TAKEN;
  }

  #paint() {
    app.canvas.selectNode(this.node);
    app.extensionManager.command.execute("Comfy.MaskEditor.OpenMaskEditor");
  }
}
