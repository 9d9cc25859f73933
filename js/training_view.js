/**
 * A training as it runs: what it learns from, loss, previews, time left.
 *
 * Event `magicportrait.training`: a State.
 *
 * @import { GraphNode } from "../../scripts/app.js"
 * @import { Place } from "./runs.js"
 *
 * run: the same in all of one training; loss: of this step, null before the first; preview: a JPEG
 * in base64; encoded: how many pictures of how many are encoded, before the first step; pictures: in
 * the first event, of each picture a JPEG, dark where it does not count, and the share that does;
 * end: of a training that has stopped before its last step, whether the next one goes on from there
 * ("kept") or not ("lost"); goes_on: whether it is one that goes on.
 * @typedef {{ name: string, share: number, picture: string }} LearnedPicture
 * @typedef {Place & {
 *   run?: string,
 *   step: number,
 *   steps: number,
 *   loss: number | null,
 *   preview: string | null,
 *   seconds_left: number | null,
 *   end?: "kept" | "lost" | null,
 *   goes_on?: boolean,
 *   encoded?: [number, number] | null,
 *   pictures?: LearnedPicture[] | null,
 * }} State
 */

import { addView, caption, dataUrl, element, hideHostsPictures } from "./elements.js";

const WIDTH = 300;
const HEIGHT = 90;
const PREVIEWS = 8;
const POINTS = 1000;
const SMOOTHING = 0.9;
const GOES_ON = ": Run goes on from there";
const THEN_ON = ", then on from where it stopped";
const OF_PICTURES = "How much of each picture counts: dark is left out.";
const OF_CURVE = "Loss, lower is better: thin each step, bold its trend.";
const OF_PREVIEWS = "Previews, the newest first.";
const SVG = "http://www.w3.org/2000/svg";

/** @param {number | null | undefined} seconds */
export function timeLeft(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.round(seconds);
  const minutes = Math.floor(whole / 60);
  return minutes ? `, ${minutes} min ${whole % 60} s left` : `, ${whole} s left`;
}

/**
 * An exponential mean, which shows where a noisy loss is going; the first values count as much as
 * they would later.
 *
 * @param {number[]} losses
 */
export function smoothed(losses) {
  let [sum, weight] = [0, 0];
  return losses.map((loss) => {
    sum = SMOOTHING * sum + loss;
    weight = SMOOTHING * weight + 1;
    return sum / weight;
  });
}

/**
 * How far a training is, in words.
 *
 * @param {State} state
 * @param {string} ofLoss
 */
function account(
  { step, steps, encoded, end, goes_on: goesOn, loss, seconds_left: secondsLeft },
  ofLoss,
) {
  const place = `step ${step} of ${steps}${ofLoss}`;
  if (end) return `stopped at ${place}${end === "kept" ? GOES_ON : ""}`;
  if (encoded && encoded[0] < encoded[1]) {
    return `encoding pictures: ${encoded[0]} of ${encoded[1]}${goesOn ? THEN_ON : ""}`;
  }
  if (goesOn && step && loss === null) return `goes on from ${place}`;
  return `${place}${timeLeft(secondsLeft)}`;
}

/**
 * What the server has told of one training: its pictures, its last event, the losses of about POINTS
 * steps, the last PREVIEWS previews.
 */
export class TrainingRun {
  /** @type {State | null} */
  latest = null;
  /** @type {LearnedPicture[]} */
  pictures = [];
  /** @type {{ step: number, loss: number }[]} */
  points = [];
  /** @type {{ step: number, preview: string }[]} */
  previews = [];

  /** @param {Place & { steps: number, run?: string }} state */
  constructor({ node, workflow, steps, run }) {
    this.node = node;
    this.workflow = workflow;
    this.steps = steps;
    this.id = run;
  }

  /**
   * Whether an event is of this training.
   *
   * @param {State} state
   */
  goesOn({ step, steps, run }) {
    if (run || this.id) return run === this.id;
    return steps === this.steps && step >= (this.latest?.step ?? 0);
  }

  /**
   * The last step may come twice, again with its preview. What comes again, to a page that was not
   * connected for a while, is known.
   *
   * @param {State} state
   */
  add(state) {
    const { step, loss, preview, pictures } = state;
    if (pictures) this.pictures = pictures;
    if (step < (this.latest?.step ?? 0)) return;
    if (preview && this.previews.at(-1)?.step === step) return;
    this.latest = state;
    if (typeof loss === "number" && Number.isFinite(loss)) this.#addPoint(step, loss);
    if (!preview) return;
    this.previews.push({ step, preview });
    if (this.previews.length > PREVIEWS) this.previews.shift();
  }

  /**
   * The last point stays only if it is far enough from the one before it, for the width of the
   * curve.
   *
   * @param {number} step
   * @param {number} loss
   */
  #addPoint(step, loss) {
    const [before, last] = [this.points.at(-2), this.points.at(-1)];
    const isClose = before && last && last.step - before.step < this.steps / POINTS;
    if (last?.step === step || isClose) this.points.pop();
    this.points.push({ step, loss });
  }
}

/**
 * @param {string} className
 * @param {number[][]} points
 */
function line(className, points) {
  const made = document.createElementNS(SVG, "polyline");
  made.setAttribute("class", className);
  const places = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`);
  made.setAttribute("points", places.join(" "));
  return made;
}

function emptyCurve() {
  const curve = document.createElementNS(SVG, "svg");
  curve.setAttribute("class", "magic-curve");
  curve.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  curve.setAttribute("preserveAspectRatio", "none");
  curve.setAttribute("role", "img");
  return curve;
}

export class TrainingView {
  /** @type {TrainingRun | null} */
  run = null;
  /**
   * The newest preview on screen; null: the run has none yet; undefined: nothing of it is drawn.
   *
   * @type {TrainingRun["previews"][number] | null | undefined}
   */
  #shownPreview;
  /**
   * Those on screen.
   *
   * @type {LearnedPicture[] | undefined}
   */
  #shownPictures;

  /** @param {GraphNode} node */
  constructor(node) {
    // Not read out: it changes a few times a second.
    this.words = element("p", { role: "status", "aria-live": "off" });
    this.ofPictures = caption(OF_PICTURES);
    this.curve = emptyCurve();
    this.ofCurve = caption(OF_CURVE);
    const pictures = { className: "magic-learned", "aria-label": "What of each picture counts" };
    this.pictures = element("div", pictures);
    const previews = { className: "magic-previews", "aria-label": "Previews" };
    this.previews = element("div", previews);
    this.ofPreviews = caption(OF_PREVIEWS);
    this.content = element(
      "section",
      { className: "magic-view", "aria-label": "Training" },
      this.words,
      this.ofPictures,
      this.pictures,
      this.ofCurve,
      this.curve,
      this.ofPreviews,
      this.previews,
    );
    addView(node, "training", this.content);
    // The previews again, when all of them are there.
    hideHostsPictures(node);
  }

  /**
   * Another run.
   *
   * @param {TrainingRun} run
   */
  show(run) {
    this.run = run;
    this.#shownPreview = undefined;
    this.update();
  }

  /** More of the run is known. */
  update() {
    const { run } = this;
    if (!run?.latest) return;
    // The end of the bold line: the loss of one step is a matter of chance.
    const trend = smoothed(run.points.map((point) => point.loss));
    const ofLoss = trend.length ? `, loss ${trend.at(-1)?.toPrecision(3)}` : "";
    this.words.textContent = account(run.latest, ofLoss);
    this.#showPictures(run.pictures);
    this.#draw(run);
    const last = run.previews.at(-1) ?? null;
    if (last === this.#shownPreview) return;
    this.#shownPreview = last;
    this.ofPreviews.hidden = !last;
    this.previews.replaceChildren(
      ...[...run.previews].reverse().map((preview) => {
        const title = `step ${preview.step}`;
        const src = dataUrl("jpeg", preview.preview);
        return element("img", { src, alt: `Preview at ${title}`, title });
      }),
    );
  }

  /** @param {LearnedPicture[]} pictures */
  #showPictures(pictures) {
    if (pictures === this.#shownPictures) return;
    this.#shownPictures = pictures;
    this.ofPictures.hidden = !pictures.length;
    this.pictures.replaceChildren(
      ...pictures.map(({ name, share, picture }) => {
        const counts = `${Math.round(100 * share)} %`;
        const title = `${name}, ${counts} of it counts`;
        const image = element("img", { src: dataUrl("jpeg", picture), alt: title });
        return element("figure", { title }, image, element("figcaption", {}, counts));
      }),
    );
  }

  /** @param {TrainingRun} run */
  #draw({ points, steps }) {
    const losses = points.map(({ loss }) => loss);
    const low = losses.reduce((a, b) => Math.min(a, b), Infinity);
    const high = losses.reduce((a, b) => Math.max(a, b), -Infinity);
    const place = (/** @type {number} */ step, /** @type {number} */ loss) => {
      const share = (loss - low) / (high - low || 1);
      return [(step / steps) * WIDTH, HEIGHT - 4 - share * (HEIGHT - 8)];
    };
    const draw = (/** @type {number[]} */ values) =>
      points.map(({ step }, i) => place(step, values[i]));
    const trend = smoothed(losses);
    this.curve.replaceChildren(line("magic-loss", draw(losses)), line("magic-trend", draw(trend)));
    const lowest = trend.reduce((a, b) => Math.min(a, b), Infinity);
    const [from, to, least] = [trend[0], trend.at(-1), lowest].map((loss) => loss?.toPrecision(3));
    const label = losses.length ? `Loss from ${from} to ${to}, lowest ${least}` : "No loss yet";
    this.curve.setAttribute("aria-label", label);
  }
}
