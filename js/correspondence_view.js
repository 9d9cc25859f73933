/**
 * A finished MagicFace picture to point at: where each of its places looked in the references, by
 * layer group and step.
 *
 * Output `magic_exploration` of a node: [Exploration]. A place is asked for when it is pointed at:
 * GET /magicportrait/correspondence/{key} answers an Answer.
 *
 * @import { GraphNode } from "../../scripts/app.js"
 * @import { Run } from "./runs.js"
 * @import { Picture } from "./server.js"
 *
 * @typedef {[x: number, y: number]} Point shares of width and height
 *
 * colour: the number of the phrase's colour.
 * @typedef {{ phrase: string, colour: number, picture: Picture }} Reference
 * @typedef {{ name: string, rows: number, columns: number }} Group
 *
 * place: where to look first; scale: a PNG in base64.
 * @typedef {Run & {
 *   key: string,
 *   pictures: Picture[],
 *   references: Reference[],
 *   groups: Group[],
 *   steps: number[],
 *   total: number,
 *   place: Point,
 *   scale: string,
 * }} Exploration
 *
 * heat: a PNG in base64.
 * @typedef {{ share: number, peak: Point | null, heat: string }} Look
 * @typedef {{ references: Look[], error?: undefined } | { error: string }} Answer
 */

import { addView, choice, dataUrl, element, slider } from "./elements.js";
import { colourOf } from "./palette.js";
import { ask, pictureUrl } from "./server.js";

/** @type {Record<string, Point>} */
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** @param {number} share */
const percent = (share) => `${(share * 100).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

/**
 * @param {number} value
 * @param {number} highest
 */
const clamp = (value, highest) => Math.min(Math.max(value, 0), highest);

/** @param {Point} point */
const inWords = ([x, y]) =>
  `${Math.round(x * 100)} % from the left, ${Math.round(y * 100)} % from the top`;

export class CorrespondenceView {
  /** @type {Exploration | null} */
  run = null;
  /** @type {Point} */
  #place = [0.5, 0.5];
  #hasPlace = false;
  /** @type {HTMLImageElement[]} */
  #heats = [];
  /** @type {HTMLElement[]} */
  #shares = [];
  /** The question that is open, and the one that was answered last. @type {string | null} */
  #asked = null;
  /** @type {string | null} */
  #answered = null;
  #isAsking = false;

  /** @param {GraphNode} node */
  constructor(node) {
    this.marker = element("span", { className: "magic-marker", "aria-hidden": "true" });
    this.image = element("img", { draggable: false });
    const properties = {
      className: "magic-picture magic-target",
      tabIndex: 0,
      role: "slider",
      "aria-label": "Place in the picture",
      "aria-roledescription": "place",
    };
    this.target = element("div", properties, this.image, this.marker);
    this.references = element("div", { className: "magic-stage magic-seen" });
    this.picture = choice("picture", () => this.#choose());
    this.group = choice("layers", () => this.#choose());
    this.group.input.title =
      "By the size of their grid: fine ones copy details, coarse ones larger parts";
    this.step = slider("step", { min: 0, max: 0, step: 1, value: 0 }, () => this.#choose());
    this.scale = element("img", { alt: "Colours from looked at least to most" });
    this.legend = element("p", { className: "magic-scale" }, "least", this.scale, "most");
    this.words = element("p", { role: "status" });
    const label = { className: "magic-view", "aria-label": "Correspondence" };
    this.content = element("section", label);
    this.#listen();
    addView(node, "exploration", this.content);
  }

  clear() {
    this.run = this.#asked = this.#answered = null;
    this.content.replaceChildren();
  }

  /**
   * A finished run.
   *
   * @param {Exploration} run
   */
  show(run) {
    this.run = run;
    this.#asked = this.#answered = null;
    this.picture.setOptions(run.pictures.map((_, i) => String(i + 1)));
    this.picture.row.hidden = run.pictures.length < 2;
    this.group.setOptions(run.groups.map(({ name }) => name));
    if (!this.#hasPlace) this.#place = run.place ?? this.#place;
    this.#hasPlace = true;
    const last = String(run.steps.length - 1);
    this.step.input.max = last;
    this.step.input.value = last;
    this.scale.src = dataUrl("png", run.scale);
    this.#heats = run.references.map(() => element("img", { className: "magic-heat", alt: "" }));
    this.#shares = run.references.map(() => element("span", { className: "magic-share" }));
    const figures = run.references.map((reference, i) => this.#figure(reference, i));
    this.references.replaceChildren(...figures);
    this.content.replaceChildren(
      element("div", { className: "magic-explorer" }, this.target, this.references),
      this.words,
      this.legend,
      this.picture.row,
      this.group.row,
      this.step.row,
    );
    this.#choose();
  }

  /**
   * @param {Reference} reference
   * @param {number} i
   */
  #figure({ phrase, colour, picture }, i) {
    const alt = `Reference of '${phrase}'`;
    const image = element("img", { src: pictureUrl(picture), alt, draggable: false });
    const className = `magic-swatch ${colourOf(colour)}`;
    const swatch = element("span", { className, "aria-hidden": "true" });
    const name = element("span", { className: "magic-phrase", title: phrase }, phrase);
    return element(
      "figure",
      {},
      element("div", { className: "magic-picture" }, image, this.#heats[i]),
      element("figcaption", {}, swatch, name, this.#shares[i]),
    );
  }

  #listen() {
    const { target } = this;
    target.addEventListener("pointerdown", (event) => {
      if (!event.isPrimary || event.button > 0) return;
      // A node must not be dragged by its picture.
      event.stopPropagation();
      if (event.pointerType !== "mouse") target.setPointerCapture(event.pointerId);
      this.#keep(this.#pointOf(event));
    });
    target.addEventListener("pointermove", (event) => {
      const point = this.#pointOf(event);
      if (event.buttons & 1) this.#keep(point);
      else if (!event.buttons) this.#look(point);
    });
    // What was only hovered over is let go: step and layers are turned for the place that was
    // chosen.
    target.addEventListener("pointerleave", () => this.#look(this.#place));
    target.addEventListener("keydown", (event) => {
      const move = MOVES[event.key];
      if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      this.#move(move);
    });
  }

  /** @param {Point} cells to the right and down */
  #move([right, down]) {
    const group = this.#group;
    if (!group) return;
    const { columns, rows } = group;
    const [column, row] = cellAt(this.#place, group);
    const moved = [clamp(column + right, columns - 1), clamp(row + down, rows - 1)];
    this.#keep([(moved[0] + 0.5) / columns, (moved[1] + 0.5) / rows]);
  }

  get #group() {
    return this.run?.groups[this.group.input.selectedIndex];
  }

  /**
   * @param {PointerEvent} event
   * @returns {Point}
   */
  #pointOf(event) {
    const box = this.image.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    return [clamp(x / box.width, 1), clamp(y / box.height, 1)];
  }

  /** Another picture, layer group or step. */
  #choose() {
    const { run } = this;
    if (!run) return;
    const index = this.picture.input.selectedIndex;
    const url = pictureUrl(run.pictures[index]);
    if (this.image.src !== url) this.image.src = url;
    this.image.alt = `Picture ${index + 1}`;
    this.step.shown.value = `${this.#stepOf(run) + 1} of ${run.total}`;
    this.step.input.setAttribute("aria-valuetext", this.step.shown.value);
    this.#look(this.#place);
  }

  /** @param {Exploration} run */
  #stepOf(run) {
    return run.steps[Number(this.step.input.value)];
  }

  /** @param {Point} point */
  #keep(point) {
    this.#place = point;
    this.#look(point);
  }

  /** @param {Point} point */
  #look(point) {
    const [run, group] = [this.run, this.#group];
    if (!run || !group) return;
    const [column, row] = cellAt(point, group);
    const { columns, rows, name } = group;
    const [x, y] = [(column + 0.5) / columns, (row + 0.5) / rows];
    this.target.setAttribute("aria-valuenow", String(Math.round(x * 100)));
    this.target.setAttribute("aria-valuetext", inWords([x, y]));
    const edges = {
      left: column / columns,
      top: row / rows,
      width: 1 / columns,
      height: 1 / rows,
    };
    for (const [edge, share] of Object.entries(edges)) {
      this.marker.style.setProperty(edge, `${share * 100}%`);
    }
    this.#asked = new URLSearchParams({
      picture: String(this.picture.input.selectedIndex),
      x: String(x),
      y: String(y),
      step: String(this.#stepOf(run)),
      group: name,
    }).toString();
    this.#ask();
  }

  /** One question at a time; of those that come meanwhile the latest is next. */
  async #ask() {
    if (this.#isAsking) return;
    this.#isAsking = true;
    while (this.run && this.#asked && this.#asked !== this.#answered) {
      const { run } = this;
      const asked = this.#asked;
      const route = `/magicportrait/correspondence/${encodeURIComponent(run.key)}?${asked}`;
      const answer = await ask(route);
      if (run !== this.run) continue;
      this.#answered = asked;
      this.#tell(run, answer);
    }
    this.#isAsking = false;
  }

  /**
   * @param {Exploration} run
   * @param {Answer} answer
   */
  #tell(run, answer) {
    const isMissing = answer.error !== undefined;
    this.words.className = isMissing ? "magic-missing" : "";
    this.content.classList.toggle("magic-gone", isMissing);
    if (isMissing) {
      this.words.textContent = answer.error;
      return;
    }
    answer.references.forEach(({ share, peak, heat }, i) => {
      const { phrase } = run.references[i];
      this.#heats[i].src = dataUrl("png", heat);
      this.#heats[i].alt = peak
        ? `Heat: '${phrase}' gets ${percent(share)}, most of it ${inWords(peak)}`
        : `Heat: '${phrase}' gets nothing`;
      this.#shares[i].textContent = percent(share);
    });
    const all = answer.references.reduce((sum, { share }) => sum + share, 0);
    const each = answer.references.map(
      ({ share }, i) => `${run.references[i].phrase} ${percent(share)}`,
    );
    const rest = percent(Math.max(0, 1 - all));
    this.words.textContent = `This place looks at ${each.join(", ")}; at the picture itself ${rest}.`;
  }
}

/**
 * Column and row of the cell that holds a point.
 *
 * @param {Point} point
 * @param {Group} group
 */
function cellAt([x, y], { columns, rows }) {
  return [clamp(Math.floor(x * columns), columns - 1), clamp(Math.floor(y * rows), rows - 1)];
}
