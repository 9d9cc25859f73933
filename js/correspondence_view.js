/**
 * A finished MagicFace picture to point at: where each of its places looked in the references, by layer group and step.
 *
 * Output `magic_exploration` of a node: [{ key, pictures, references: [{ phrase, colour, picture }], groups: [{ name, rows, columns }],
 * steps, total, place: [x, y], scale: PNG }], pictures as in `images`. A place is asked for when it is pointed at:
 * GET /magicportrait/correspondence/{key} answers { place: [x, y, width, height], references: [{ share, peak, heat: PNG }] }, or { error }.
 */

import { addView, choice, dataUrl, element, slider } from "./elements.js";
import { colourOf } from "./palette.js";
import { ask, pictureUrl } from "./server.js";

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const percent = (share) => `${(share * 100).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
const clamp = (value, highest) => Math.min(Math.max(value, 0), highest);

export class CorrespondenceView {
  constructor(node) {
    this.run = null;
    this.marker = element("span", { className: "magic-marker", "aria-hidden": "true" });
    this.image = element("img", { draggable: false });
    this.target = element(
      "div",
      { className: "magic-picture magic-target", tabIndex: 0, role: "slider", "aria-label": "Place in the picture", "aria-roledescription": "place" },
      this.image,
      this.marker,
    );
    this.references = element("div", { className: "magic-stage magic-seen" });
    this.picture = choice("picture", () => this.#choose());
    this.group = choice("layers", () => this.#choose());
    this.group.input.title = "By the size of their grid: fine ones copy details, coarse ones larger parts";
    this.step = slider("step", { min: 0, max: 0, step: 1, value: 0 }, () => this.#choose());
    this.scale = element("img", { alt: "Colours from looked at least to most" });
    this.legend = element("p", { className: "magic-scale" }, "least", this.scale, "most");
    this.words = element("p", { role: "status" });
    this.content = element("section", { className: "magic-view", "aria-label": "Correspondence" });
    this.place = null;
    this.#listen();
    addView(node, "exploration", this.content);
  }

  clear() {
    this.run = this.asked = this.answered = null;
    this.content.replaceChildren();
  }

  /** A finished run, as in the output. */
  show(run) {
    this.run = run;
    this.asked = this.answered = null;
    this.picture.setOptions(run.pictures.map((_, i) => String(i + 1)));
    this.picture.row.hidden = run.pictures.length < 2;
    this.group.setOptions(run.groups.map(({ name }) => name));
    this.place ??= run.place;
    const last = run.steps.length - 1;
    this.step.input.max = last;
    this.step.input.value = last;
    this.scale.src = dataUrl("png", run.scale);
    this.heats = run.references.map(() => element("img", { className: "magic-heat", alt: "" }));
    this.shares = run.references.map(() => element("span", { className: "magic-share" }));
    this.references.replaceChildren(...run.references.map((reference, i) => this.#figure(reference, i)));
    const both = element("div", { className: "magic-explorer" }, this.target, this.references);
    this.content.replaceChildren(both, this.words, this.legend, this.picture.row, this.group.row, this.step.row);
    this.#choose();
  }

  #figure({ phrase, colour, picture }, i) {
    const image = element("img", { src: pictureUrl(picture), alt: `Reference of '${phrase}'`, draggable: false });
    const swatch = element("span", { className: `magic-swatch ${colourOf(colour)}`, "aria-hidden": "true" });
    const caption = element("figcaption", {}, swatch, element("span", { className: "magic-phrase", title: phrase }, phrase), this.shares[i]);
    return element("figure", {}, element("div", { className: "magic-picture" }, image, this.heats[i]), caption);
  }

  #listen() {
    const { target } = this;
    const isFirst = (event) => event.isPrimary && event.button <= 0;
    target.addEventListener("pointerdown", (event) => {
      if (!isFirst(event)) return;
      // A node must not be dragged by its picture.
      event.stopPropagation();
      if (event.pointerType !== "mouse") target.setPointerCapture(event.pointerId);
      this.#keep(this.#placeAt(event));
    });
    target.addEventListener("pointermove", (event) => {
      const place = this.#placeAt(event);
      if (event.buttons & 1) this.#keep(place);
      else if (!event.buttons) this.#look(place);
    });
    // What was only hovered over is let go: step and layers are turned for the place that was chosen.
    target.addEventListener("pointerleave", () => this.#look(this.place));
    target.addEventListener("keydown", (event) => {
      const move = MOVES[event.key];
      if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      const { columns, rows } = this.#grid;
      const [column, row] = this.#cell(this.place);
      const moved = [clamp(column + move[0], columns - 1), clamp(row + move[1], rows - 1)];
      this.#keep([(moved[0] + 0.5) / columns, (moved[1] + 0.5) / rows]);
    });
  }

  get #grid() {
    return this.run.groups[this.group.input.selectedIndex];
  }

  #cell([x, y]) {
    const { columns, rows } = this.#grid;
    return [clamp(Math.floor(x * columns), columns - 1), clamp(Math.floor(y * rows), rows - 1)];
  }

  #placeAt(event) {
    const box = this.image.getBoundingClientRect();
    return [clamp((event.clientX - box.left) / box.width, 1), clamp((event.clientY - box.top) / box.height, 1)];
  }

  /** Another picture, layer group or step. */
  #choose() {
    const index = this.picture.input.selectedIndex;
    const url = pictureUrl(this.run.pictures[index]);
    if (this.image.src !== url) this.image.src = url;
    this.image.alt = `Picture ${index + 1}`;
    this.step.shown.value = `${this.#step + 1} of ${this.run.total}`;
    this.step.input.setAttribute("aria-valuetext", this.step.shown.value);
    this.#look(this.place);
  }

  get #step() {
    return this.run.steps[Number(this.step.input.value)];
  }

  #keep(place) {
    this.place = place;
    this.#look(place);
  }

  #look(place) {
    const [column, row] = this.#cell(place);
    const { columns, rows, name } = this.#grid;
    const [x, y] = [(column + 0.5) / columns, (row + 0.5) / rows];
    const across = `${Math.round(x * 100)} % from the left, ${Math.round(y * 100)} % from the top`;
    this.target.setAttribute("aria-valuenow", Math.round(x * 100));
    this.target.setAttribute("aria-valuetext", across);
    const edges = { left: column / columns, top: row / rows, width: 1 / columns, height: 1 / rows };
    for (const [edge, share] of Object.entries(edges)) this.marker.style[edge] = `${share * 100}%`;
    this.asked = new URLSearchParams({ picture: this.picture.input.selectedIndex, x, y, step: this.#step, group: name }).toString();
    this.#ask();
  }

  /** One question at a time; of those that come meanwhile the latest is next. */
  async #ask() {
    if (this.isAsking) return;
    this.isAsking = true;
    while (this.asked && this.asked !== this.answered) {
      const { run, asked } = this;
      const answer = await ask(`/magicportrait/correspondence/${encodeURIComponent(run.key)}?${asked}`);
      if (run !== this.run) continue;
      this.answered = asked;
      this.#tell(answer);
    }
    this.isAsking = false;
  }

  #tell({ references, error }) {
    this.words.className = error ? "magic-missing" : "";
    this.content.classList.toggle("magic-gone", Boolean(error));
    if (error) {
      this.words.textContent = error;
      return;
    }
    references.forEach(({ share, peak, heat }, i) => {
      const { phrase } = this.run.references[i];
      this.heats[i].src = dataUrl("png", heat);
      this.heats[i].alt = peak
        ? `Heat: '${phrase}' gets ${percent(share)}, most of it ${Math.round(peak[0] * 100)} % from the left, ${Math.round(peak[1] * 100)} % from the top`
        : `Heat: '${phrase}' gets nothing`;
      this.shares[i].textContent = percent(share);
    });
    const all = references.reduce((sum, { share }) => sum + share, 0);
    const each = references.map(({ share }, i) => `${this.run.references[i].phrase} ${percent(share)}`);
    this.words.textContent = `This place looks at ${each.join(", ")}; at the picture itself ${percent(Math.max(0, 1 - all))}.`;
  }
}
